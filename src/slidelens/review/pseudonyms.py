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

    These reveal nothing about the ids, and stay when the folder is evaluated again, so that a
    report still means the same slides. Whoever has the evaluation can tell which slide is meant
    (``slidelens review EVAL_DIR list``). If an id begins in the same way, they are called
    ``SS-001``, ...: no name may be another slide's id.
    """
    numbers, letters = saved.numbers, "S"
    while any(name.upper().startswith(f"{letters}-") for name in numbers):
        letters += "S"
    return {name: f"{letters}-{numbers[name]:03}" for name in saved.labels}


def reviewer_pseudonyms(names: Iterable[str]) -> dict[str, str]:
    """Call reviewers ``Reviewer 1``, ``Reviewer 2``, ... in the same way."""
    order = sorted(set(names), key=lambda name: sha256(name.encode()).digest())
    return {name: f"Reviewer {number}" for number, name in enumerate(order, 1)}
