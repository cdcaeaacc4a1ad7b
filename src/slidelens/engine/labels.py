"""The labels table: class, split and patient of each slide."""

from __future__ import annotations

import io
import logging
import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from slidelens.engine.class_order import in_order
from slidelens.engine.lost_zeros import zeros_hint
from slidelens.engine.patients import one_spelling, patients_by_class, shared_patients
from slidelens.errors import LabelError, amount, listed
from slidelens.slide.base import id_of_name
from slidelens.tables import named, read_rows, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "LabelTable",
    "LabelledSlide",
    "Split",
    "read_labels",
    "read_listed",
    "split_by_patient",
]

Split = Literal["train", "tune", "test"]
log = logging.getLogger(__name__)

_SPLITS: Mapping[str, Split] = {
    "train": "train",
    "training": "train",
    "tune": "tune",
    "tuning": "tune",
    "val": "tune",
    "valid": "tune",
    "validation": "tune",
    "test": "test",
    "testing": "test",
}
_INDEX = re.compile("[0-9]{1,9}")
_DECIMAL = re.compile(r"\d+\.\d+")

_MISSING = frozenset({"na", "nan", "n/a", "null", "none"})
"""How programs write an empty cell; a slide may be called so."""
_TUNE = 0.2
_SHOWN = 3
"""Ids in a message that show how they are written."""


@dataclass(frozen=True, slots=True)
class LabelledSlide:
    """A row of the table; ``label`` is the 0-based index into the table's classes.

    -1 where the table was read without labels (:func:`read_listed`).
    """

    slide_id: str
    label: int
    split: Split | None = None
    patient: str | None = None

    @property
    def patient_key(self) -> str:
        """Who the slide is of; a slide without a patient is one of its own."""
        return f"patient {self.patient}" if self.patient else f"slide {self.slide_id}"


@dataclass(frozen=True)
class LabelTable:
    """All rows, and the classes in label order."""

    path: Path
    classes: tuple[str, ...]
    rows: tuple[LabelledSlide, ...]

    def of(self, split: Split) -> list[LabelledSlide]:
        """Return the rows of a split, in the order of the file."""
        return [row for row in self.rows if row.split == split]

    def only(self, split: Split) -> LabelTable:
        """Return the table with the rows of a split alone.

        Raises
        ------
        LabelError
            There are none; says which splits there are.
        """
        rows = tuple(self.of(split))
        if not rows:
            counts = Counter(row.split or "no split" for row in self.rows)
            found = ", ".join(f"{name} ({n})" for name, n in counts.items())
            raise LabelError(f"{self.path}: no slide in split {split}; found {found}.")
        return replace(self, rows=rows)

    def without(self, split: Split) -> LabelTable:
        """Return the table without the rows of a split."""
        return replace(self, rows=tuple(row for row in self.rows if row.split != split))

    def split(self, seed: int) -> LabelTable:
        """Return the table with a split for each row: its own, else :func:`split_by_patient`.

        Where none is in split ``tune``, it is drawn from all that are not in split ``test``.

        Raises
        ------
        LabelError
            A split for some of the rows that are not ``test`` only; no slide or not every class to
            train on; none to tune on.
        """
        given = {row.split for row in self.rows} - {"test"}
        if given in ({None}, {"train"}):
            drawn = split_by_patient(self.without("test"), seed)
            of = {row.slide_id: row for row in drawn.rows}
            return replace(self, rows=tuple(of.get(r.slide_id, r) for r in self.rows))
        bare = [row.slide_id for row in self.rows if row.split is None]
        _refuse(self.path, (bare, "slides without a split, where others have one"))
        self.check_trained("mark some slides train")
        return self

    def check_trained(self, remedy: str) -> None:
        """Refuse to train without a slide of each class.

        Raises
        ------
        LabelError
            Classes without a slide in split train, and the ``remedy``.
        """
        trained = {row.label for row in self.of("train")}
        lacking = [name for i, name in enumerate(self.classes) if i not in trained]
        if lacking:
            raise LabelError(
                f"{self.path}: classes without a slide in split train: {listed(lacking)}; {remedy}."
            )

    def with_files(self, files: Mapping[str, Path]) -> LabelTable:
        """Return the table with ids as the files have them (``a.svs`` becomes ``a``).

        Raises
        ------
        LabelError
            Ids without a file, all at once; two rows for one file.
        """
        known = {path.name: name for name, path in files.items()} | {name: name for name in files}
        stems = {r.slide_id: id_of_name(r.slide_id) for r in self.rows}
        known |= {name: stem for name, stem in stems.items() if name not in known and stem in files}
        missing = [r.slide_id for r in self.rows if r.slide_id not in known]
        if missing:
            raise LabelError(
                f"{self.path}: no slide for {listed(missing)}; found "
                f"{amount(len(files), 'slide')}: {listed(list(files), _SHOWN)}. Give slide_id as "
                "the file name, with or without its extension; of a DICOM series, as the name of "
                f"its folder.{zeros_hint(missing, files)}"
            )
        rows = tuple(replace(r, slide_id=known[r.slide_id]) for r in self.rows)
        _refuse(self.path, (_twice(r.slide_id for r in rows), "slides twice"))
        return replace(self, rows=rows)


def read_labels(
    path: Path, classes: Sequence[str] | None = None, *, every_class: bool = True
) -> LabelTable:
    """Read a CSV file with columns slide_id, label and optionally split and patient.

    Parameters
    ----------
    path
        UTF-8 (or Excel's Unicode text), separated by comma, semicolon or tab. Other columns are
        ignored. NA, NaN, N/A, null and None are empty cells, but for the name of a slide or of a
        known class. Patients whose names differ only in case or spaces are one.
    classes
        Known class names in label order (of a model that is fine-tuned or evaluated). Without them
        the classes are the labels in the order of
        :func:`~slidelens.engine.class_order.in_order`, names such as normal, benign or negative
        first: of two the last is the positive one, and it is warned where their names do not tell
        which that is. Labels that are all numbers are indices,
        and then the classes are called ``0``, ``1``, ... A label may be the name (in any case, if
        only one class is called so) or the index of a known class, unless names are numbers.
    every_class
        Refuse a table that has no slide of some class. An evaluation takes it: figures that need
        the class are then undefined.

    Raises
    ------
    LabelError
        A missing file or column; an empty, unknown or double entry; a class without a slide; a
        patient in two splits. All faults are listed at once.
    """
    cells = _cells(path, ("slide_id", "label"), classes or ())
    labels = [r["label"] for r in cells]
    names = _classes(path, labels, every_class) if classes is None else tuple(classes)
    index = {name: i for i, name in enumerate(names)}
    what = f"labels that are not one of the classes {', '.join(names)}"
    if not any(name.isdecimal() for name in names):  # else a number is the name of a class
        index |= {str(i): i for i in range(len(names))}
        what = (
            f"labels that are neither one of the classes {', '.join(names)} nor an index below "
            f"{len(names)}"
        )
    for name in {r["label"] for r in cells} - index.keys():  # written in another case
        alike = [i for known, i in index.items() if known.casefold() == name.casefold()]
        if len(alike) == 1:
            index[name] = alike[0]
    known = {index[r["label"]] for r in cells if r["label"] in index}
    empty = [name for i, name in enumerate(names) if i not in known] if every_class else []
    rows = one_spelling(path, (_row(r, index.get(r["label"], 0)) for r in cells))
    _refuse(
        path,
        *_faults(cells, rows),
        ((f"{r['slide_id']} ({r['label']!r})" for r in cells if r["label"] not in index), what),
        (empty, "classes without a slide"),
    )
    return LabelTable(path, names, rows)


def read_listed(path: Path) -> LabelTable:
    """Read which slides a table names, for a run: what they are labelled, if at all, is not read.

    Parameters
    ----------
    path
        As for :func:`read_labels`; column label may be absent.

    Raises
    ------
    LabelError
        As :func:`read_labels`, but for faults of labels.
    """
    cells = _cells(path, ("slide_id",))
    rows = tuple(_row(r, -1) for r in cells)
    _refuse(path, *_faults(cells, rows))
    return LabelTable(path, (), rows)


def split_by_patient(table: LabelTable, seed: int) -> LabelTable:
    """Assign each row to train or tune at random: stratified by class, a patient in one only.

    A fifth of each class's patients is for tuning; at least one of each class that has two.

    Parameters
    ----------
    table
        Splits that it has are dropped.
    seed
        The same seed gives the same split.

    Raises
    ------
    LabelError
        Too few patients for a training and a tuning split.
    """
    random = np.random.default_rng(seed)
    held: set[str] = set()
    every = 0
    for patients in patients_by_class(table.rows).values():
        every += len(patients)
        count = max(1, round(_TUNE * len(patients))) if len(patients) > 1 else 0
        held.update(random.permutation(patients)[:count].tolist())
    if not held or len(held) == every:
        raise LabelError(
            f"{table.path}: {every} patients of {len(table.classes)} classes are too few "
            "to split into train and tune; label more slides, or say which are train and which "
            "are tune in column 'split'."
        )
    rows = (replace(r, split="tune" if r.patient_key in held else "train") for r in table.rows)
    return replace(table, rows=tuple(rows))


def _cells(path: Path, needed: Sequence[str], classes: Sequence[str] = ()) -> list[dict[str, str]]:
    """Read the known columns, of which some are needed, as stripped text, or as none."""
    empty = _MISSING.difference(name.casefold() for name in classes)
    # Rows end at the ends of lines alone, not at whatever else ends a line of text.
    lines = io.StringIO(read_text(path, LabelError)).readlines()
    reader, columns, _ = read_rows(lines, path, LabelError)
    place = {name: named(columns, name) for name in ("slide_id", "label", "split", "patient")}
    lacking = [name for name in needed if place[name] not in columns]
    if lacking:
        raise LabelError(
            f"{path}: no column {' and '.join(lacking)}; expected slide_id,label[,split][,patient]"
            f", found {', '.join(columns) or 'nothing'}."
        )
    rows, incomplete = [], []
    for row in reader:
        cells = {name: (row.get(column) or "").strip() for name, column in place.items()}
        if not any(cells.values()):
            continue  # what spreadsheets leave below a table
        given = cells["label"]
        for name in place.keys() - {"slide_id"}:
            if cells[name].casefold() in (empty if name == "label" else _MISSING):
                cells[name] = ""
        rows.append(cells)
        if not all(cells[name] for name in needed):
            told = f" ({given} is an empty cell)" if given != cells["label"] else ""
            incomplete.append(f"line {reader.line_num}{told}")
    if not rows:
        raise LabelError(f"{path}: a header and no slides.")
    _refuse(path, (incomplete, f"rows without {' or '.join(needed)}"))
    # Programs write indices so where a column has, or had, an empty cell; 1.5 is a name.
    decimal = [row for row in rows if _DECIMAL.fullmatch(row["label"])]
    if all(float(row["label"]).is_integer() for row in decimal):
        for row in decimal:
            row["label"] = row["label"].partition(".")[0]
    return rows


def _classes(path: Path, labels: Sequence[str], every_class: bool) -> tuple[str, ...]:
    names, known = in_order(set(labels))
    if len({name.casefold() for name in names}) < len(names):
        log.warning(
            "%s: classes that differ only in upper and lower case are different classes: %s",
            *(path, ", ".join(names)),
        )
    if all(map(_INDEX.fullmatch, names)):
        count = max(int(name) for name in names) + 1
        empty = [str(i) for i in range(min(count, 1000)) if str(i) not in names]
        if empty and every_class:
            raise LabelError(
                f"{path}: labels that are numbers are 0-based class indices, but no slide has "
                f"{listed(empty)}. Number the classes from 0, or write names (such as grade3)."
            )
        names.sort(key=int)
    elif not known:
        log.warning(
            "%s: the names of the classes %s and %s do not tell which is the positive one, so it "
            "is the last, %s; --classes %s,%s (classes= in Python) makes it the other one",
            *(path, *names, names[1], *names[::-1]),
        )
    if len(names) < 2 and every_class:
        raise LabelError(
            f"{path}: all {len(labels)} slides are labelled {names[0]!r}; at least two classes "
            "are needed to learn a difference."
        )
    return tuple(names)


def _row(cells: Mapping[str, str], label: int) -> LabelledSlide:
    split = _SPLITS.get(cells["split"].lower())
    return LabelledSlide(cells["slide_id"], label, split, cells["patient"] or None)


def _faults(
    cells: Sequence[Mapping[str, str]], rows: Sequence[LabelledSlide]
) -> list[tuple[Iterable[str], str]]:
    """Return what of slides, splits and patients is to be refused, with what it is."""
    unknown = [r for r in cells if r["split"] and r["split"].lower() not in _SPLITS]
    return [
        (_twice(r["slide_id"] for r in cells), "slides twice"),
        (
            [f"{r['slide_id']} ({r['split']!r})" for r in unknown],
            f"splits that are not one of {', '.join(get_args(Split))}",
        ),
        (
            shared_patients(rows),
            "patients in more than one split, which would leak into the evaluation",
        ),
    ]


def _twice(ids: Iterable[str]) -> list[str]:
    return [f"{name} ({n} times)" for name, n in Counter(ids).items() if n > 1]


def _refuse(path: Path, *kinds: tuple[Iterable[str], str]) -> None:
    """Refuse a table for all that was found, a line for each kind: what, and what that is."""
    faults = [(list(found), what) for found, what in kinds]
    told = [f"{what}: {listed(found)}." for found, what in faults if found]
    if told:
        raise LabelError(f"{path}: " + "\n  ".join(told))
