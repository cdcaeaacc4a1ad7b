"""Exchange decisions as CSV, and correct labels with them."""

from __future__ import annotations

import csv
import io
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from contextlib import suppress
from dataclasses import astuple, fields
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

from slidelens.errors import LabelError, ResultError
from slidelens.review.store import Decision
from slidelens.review.tally import label_votes
from slidelens.review.taxonomy import Kind
from slidelens.slide.base import id_of_name
from slidelens.tables import as_given, as_text, named, read_rows, read_text, table_text

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.review.taxonomy import Taxonomy

__all__ = ["CorrectedLabels", "correct_labels", "decisions_csv", "read_decisions"]

_COLUMNS = tuple(field.name for field in fields(Decision))
_NEEDED = _COLUMNS[:4]
_SPREADSHEETS = ("%d.%m.%Y %H:%M:%S", "%d.%m.%Y %H:%M", "%Y/%m/%d %H:%M:%S", "%Y/%m/%d %H:%M")
"""Time formats of spreadsheets, except those with an ambiguous order of day and month."""
_SHOWN = 20
_WHOLE = re.compile(r"(\d+)(\.0+)")
"""How programs write an index in a column in which one was missing."""
_MARKS = (BOM_UTF8, BOM_UTF16_LE, BOM_UTF16_BE)


class CorrectedLabels(NamedTuple):
    """A labels table with the labels that reviewers found wrong replaced.

    Attributes
    ----------
    text
        The CSV file: that of the evaluation, with all its columns; or, if it is gone or has changed
        since, a new one with the evaluated slides.
    changed
        Slide id to the new label.
    disputed
        Slides whose label some reviewers, but not most, find wrong; they keep it.
    original
        Whether ``text`` is the evaluation's own table.
    """

    text: str
    changed: dict[str, str]
    disputed: list[str]
    original: bool


def decisions_csv(decisions: Iterable[Decision]) -> str:
    """Write decisions as CSV, one per row; what a spreadsheet would compute, as its text."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    writer.writerows(map(as_text, astuple(d)) for d in decisions)
    return text.getvalue()


def read_decisions(
    path: str | Path,
    saved: SavedEvaluation,
    taxonomy: Taxonomy,
    there: Iterable[Decision] = (),
) -> list[Decision]:
    """Read decisions from a CSV file with the columns of :func:`decisions_csv`.

    Only slide_id, model, kind and reviewer are required. Files that a spreadsheet has saved are
    read too: other separators, empty rows, times in another format. A row may have no time.

    Parameters
    ----------
    path
        The file.
    saved, taxonomy
        The evaluation and its categories.
    there
        Decisions that the review has, or had: a slide keeps a category that was taken out of the
        taxonomy since.

    Raises
    ------
    ResultError
        The file or some rows cannot be used, or name slides, models, categories or labels that the
        evaluation and its taxonomy do not have; all faults are listed at once.
    """
    path = Path(path)
    lines = io.StringIO(read_text(path, ResultError)).readlines()
    rows, columns, _ = read_rows(lines, path, ResultError)
    missing = [name for name in _NEEDED if name not in columns]
    if missing:
        raise ResultError(f"{path}: no column {', '.join(missing)}; expected {','.join(_COLUMNS)}.")
    kept = {(one.slide_id, one.kind, one.category) for one in there}
    found, faults = [], []
    for row in rows:
        cells = {name: as_given((row.get(name) or "").strip()) for name in _COLUMNS}
        if not any(cells.values()):
            continue  # what spreadsheets leave below a table
        one, fault = _decision(cells, saved, taxonomy, kept)
        found.append(one)
        if fault:
            faults.append(f"  line {rows.line_num}: {fault}")
    if faults:
        more = f"\n  and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise ResultError(f"{path}: nothing is imported:\n" + "\n".join(faults[:_SHOWN]) + more)
    return found


def correct_labels(saved: SavedEvaluation, decisions: Iterable[Decision]) -> CorrectedLabels:
    """Replace the labels that more than half of a slide's reviewers find wrong."""
    votes = label_votes(decisions, saved.labels)
    changed = {
        slide_id: vote.label
        for slide_id, vote in votes.items()
        if vote.label and slide_id in saved.labels
    }
    disputed = sorted(slide_id for slide_id, vote in votes.items() if vote.disputed)
    original = _original(saved)
    if original is None:
        return CorrectedLabels(_evaluated(saved, changed), changed, disputed, original=False)
    mark = "\ufeff" if original.startswith(_MARKS) else ""  # without it Excel garbles umlauts
    text = mark + _replaced(table_text(original), saved, changed)
    return CorrectedLabels(text, changed, disputed, original=True)


def _decision(
    cells: dict[str, str],
    saved: SavedEvaluation,
    taxonomy: Taxonomy,
    kept: Collection[tuple[str, Kind, str]],
) -> tuple[Decision, str]:
    """Return a row's decision and its faults."""
    if cells["true_label"] == saved.labels.get(cells["slide_id"]):
        cells["true_label"] = ""  # corrected since: no longer wrong
    time, fault = _time(cells["time"])
    kind: Kind = "fn" if cells["kind"] == "fn" else "fp"
    known, category = taxonomy[kind], cells["category"]
    if cells["kind"] not in get_args(Kind):
        fault = f"kind {cells['kind']!r} is neither fp nor fn"
    elif not cells["reviewer"]:
        fault = "no reviewer"
    elif cells["model"] not in saved.models:
        fault = f"model {cells['model']!r} is not one of {', '.join(saved.models)}"
    elif cells["slide_id"] not in saved.labels:
        fault = f"slide {cells['slide_id']!r} was not evaluated"
    elif category and category not in known and (cells["slide_id"], kind, category) not in kept:
        fault = f"category {category!r} is not one of {kind}: {', '.join(known)}"
    elif cells["true_label"] and cells["true_label"] not in saved.classes:
        fault = f"true_label {cells['true_label']!r} is not one of {', '.join(saved.classes)}"
    one = Decision(
        slide_id=cells["slide_id"],
        model=cells["model"],
        kind=kind,
        reviewer=cells["reviewer"],
        category=category,
        note=cells["note"],
        true_label=cells["true_label"],
        time=time,
    )
    return one, fault


def _time(text: str) -> tuple[str, str]:
    when = _read_time(text)
    if when is None:
        fault = (
            f"time {text!r} is not ISO 8601, such as 2026-01-31T12:00:00+00:00; write it so, or "
            "leave it empty"
        )
        return "", fault if text else ""
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return when.astimezone(UTC).isoformat(timespec="microseconds"), ""


def _read_time(text: str) -> datetime | None:
    with suppress(ValueError):
        return datetime.fromisoformat(text)
    for form in _SPREADSHEETS:
        with suppress(ValueError):
            return datetime.strptime(text, form).replace(tzinfo=UTC)
    return None


def _original(saved: SavedEvaluation) -> bytes | None:
    """Return the labels table that was evaluated, as it was read; ``None`` if gone or changed."""
    try:
        content = saved.labels_table.read_bytes()
    except OSError:
        return None
    if sha256(content).hexdigest() != saved.record.get("labels_sha256"):
        return None
    return content


def _evaluated(saved: SavedEvaluation, changed: dict[str, str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    patients = saved.patients
    named = any(patients.values())
    writer.writerow(["slide_id", "label", *(["patient"] if named else [])])
    for slide_id, label in saved.labels.items():
        patient = [patients[slide_id] or ""] if named else []
        writer.writerow([slide_id, changed.get(slide_id, label), *patient])
    return text.getvalue()


def _replaced(original: str, saved: SavedEvaluation, changed: dict[str, str]) -> str:
    """Replace labels in a table, each in the form used there: class name or index."""
    lines = io.StringIO(original).readlines()
    _, columns, separator = read_rows(lines, saved.labels_table, LabelError)
    # Cell by cell: columns without a name, and cells behind the last one, stay as they are.
    where, what = (columns.index(named(columns, name)) for name in ("slide_id", "label"))
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True)
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    names, found = {name.casefold() for name in saved.classes}, set()
    for line, cells in enumerate(rows):
        given = cells[where].strip() if line and len(cells) > max(where, what) else ""
        meant = given if given in saved.labels else id_of_name(given)
        if meant in changed:
            found.add(meant)
            label, zeros = cells[what].strip(), ""
            if label.casefold() not in names and (number := _WHOLE.fullmatch(label)):
                label, zeros = number.groups()
            by_name = label.casefold() in names
            new = changed[meant]
            cells[what] = (new if by_name else str(saved.classes.index(new))) + zeros
        writer.writerow(cells)
    lost = sorted(changed.keys() - found)
    if lost:
        raise LabelError(f"the labels table has no row of {', '.join(lost)}; evaluate again.")
    return text.getvalue()
