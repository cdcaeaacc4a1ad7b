"""Names under which slides and reviewers go into a report that leaves the house."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["reviewer_pseudonyms", "slide_pseudonyms"]


def slide_pseudonyms(ids: Iterable[str]) -> dict[str, str]:
    """Call slides ``S-001``, ``S-002``, ... in an order that tells nothing of their ids.

    The same slides always get the same numbers, so whoever holds the evaluation can tell which
    slide is meant (``slidelens review EVAL_DIR list``); a reader who does not know the ids cannot.
    Where an id begins so itself, they are called ``SS-001``, ...: no name may be another's id.
    """
    order = sorted(set(ids), key=lambda name: sha256(name.encode()).digest())
    width, letters = max(3, len(str(len(order)))), "S"
    while any(name.upper().startswith(f"{letters}-") for name in order):
        letters += "S"
    return {name: f"{letters}-{number:0{width}}" for number, name in enumerate(order, 1)}


def reviewer_pseudonyms(names: Iterable[str]) -> dict[str, str]:
    """Call reviewers ``Reviewer 1``, ``Reviewer 2``, ... in the same manner."""
    order = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
    return {name: f"Reviewer {number}" for number, name in enumerate(order, 1)}
