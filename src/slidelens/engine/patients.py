"""The patients of a labels table: whose slides belong together."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING
from unicodedata import normalize

from slidelens.errors import listed

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from slidelens.engine.labels import LabelledSlide

__all__ = ["one_spelling", "patients_by_class", "shared_patients"]

log = logging.getLogger(__name__)


def patients_by_class(rows: Iterable[LabelledSlide]) -> dict[int, list[str]]:
    """Return the patients of each class, sorted; one counts for the highest class it has."""
    label_of: dict[str, int] = {}
    for row in rows:
        label_of[row.patient_key] = max(row.label, label_of.get(row.patient_key, 0))
    return {
        label: sorted(name for name, own in label_of.items() if own == label)
        for label in sorted({*label_of.values()})
    }


def shared_patients(rows: Iterable[LabelledSlide]) -> list[str]:
    """Name patients in two splits; beside ``test``, no split is one too: it may be learnt from."""
    splits: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row.patient:
            splits[row.patient].add(row.split or "no split")
    for found in splits.values():
        if "test" not in found:
            found.discard("no split")
    return [f"{p} ({', '.join(sorted(s))})" for p, s in splits.items() if len(s) > 1]


def one_spelling(path: Path, rows: Iterable[LabelledSlide]) -> tuple[LabelledSlide, ...]:
    """Return the rows with one spelling of each patient's name, the first, and warn of the others.

    Names that differ only in case or spaces are one patient: were they two, one could be learnt
    from and evaluated. That two patients are taken for one does no such harm.

    Parameters
    ----------
    path
        Of the table.
    rows
        Its slides.
    """
    rows = tuple(rows)
    written: dict[str, dict[str, None]] = defaultdict(dict)
    for name in (row.patient for row in rows if row.patient):
        written[_plain(name)][name] = None
    alike = [" and ".join(map(repr, names)) for names in written.values() if len(names) > 1]
    if alike:
        log.warning(
            "%s: patients that differ only in upper and lower case or in spaces count as one: %s. "
            "Write those who are not the same differently",
            *(path, listed(alike)),
        )
    first = {key: next(iter(names)) for key, names in written.items()}
    return tuple(
        replace(row, patient=first[_plain(row.patient)]) if row.patient else row for row in rows
    )


def _plain(name: str) -> str:
    return "".join(normalize("NFKC", name).casefold().split())
