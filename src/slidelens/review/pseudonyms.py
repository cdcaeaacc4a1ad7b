"""Pseudonyms of slides and reviewers for reports."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from slidelens.review.evaluation import SavedEvaluation

__all__ = ["reviewer_pseudonyms", "slide_pseudonyms"]


def slide_pseudonyms(saved: SavedEvaluation) -> dict[str, str]:
    """Call slides ``S-001``, ``S-002``, ... by the numbers that the evaluation gave them.

    These tell nothing of the ids, and stay when the folder is evaluated again, so that a report
    still means the same slides. Whoever holds the evaluation can tell which slide is meant
    (``slidelens review EVAL_DIR list``). Where an id begins so itself, they are called ``SS-001``,
    ...: no name may be another's id.
    """
    numbers, letters = saved.numbers, "S"
    while any(name.upper().startswith(f"{letters}-") for name in numbers):
        letters += "S"
    return {name: f"{letters}-{numbers[name]:03}" for name in saved.labels}


def reviewer_pseudonyms(names: Iterable[str]) -> dict[str, str]:
    """Call reviewers ``Reviewer 1``, ``Reviewer 2``, ... in the same manner."""
    order = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
    return {name: f"Reviewer {number}" for number, name in enumerate(order, 1)}
