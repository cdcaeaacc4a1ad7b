"""A labels table filled in by clicking; the file follows every click."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING

from slidelens.errors import LabelError
from slidelens.files import write_atomic
from slidelens.slide.base import id_of_name
from slidelens.tables import read_rows, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

__all__ = ["LabelBook", "class_names"]

_COLUMNS = ["slide_id", "label"]
_Rows = dict[str, tuple[int, dict[str, str]] | None]
"""For each slide its previous row, and the row's number; None: it had none."""


class LabelBook:
    """Labels of the slides in a folder.

    Rows of other slides, other columns and the order of an existing table stay as they are. Each
    change reads the file again, so that what others have written to it is kept.

    Parameters
    ----------
    path
        The CSV file; created by the first label.
    slides
        Slide id to file.

    Raises
    ------
    LabelError
        The file cannot be read, or has no columns slide_id and label.
    """

    def __init__(self, path: Path, slides: Mapping[str, Path]) -> None:
        self.path = path
        self.slides = dict(slides)
        self._columns, self._rows = _read(path) if path.exists() else (list(_COLUMNS), [])
        self._undo: list[_Rows] = []

    @property
    def labels(self) -> dict[str, str]:
        """Slide id to label, for the folder's slides that have one."""
        found = {self._meant(row): row["label"].strip() for row in self._rows}
        return {name: found[name] for name in self.slides if found.get(name)}

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels that occur, sorted: the order of the classes, the last of two is positive."""
        return tuple(sorted({r["label"].strip() for r in self._rows if r["label"].strip()}))

    @property
    def counts(self) -> dict[str, int]:
        """The number of slides with each label."""
        labels = list(self.labels.values())
        return {name: labels.count(name) for name in self.classes}

    @property
    def can_undo(self) -> bool:
        """Whether some labelling done here can be undone."""
        return bool(self._undo)

    def set(self, slides: Iterable[str], label: str) -> None:
        """Label slides and write the file; an empty label removes their rows.

        Raises
        ------
        LabelError
            A slide is not in the folder, or the file cannot be read or written.
        """
        wanted = list(slides)
        unknown = [name for name in wanted if name not in self.slides]
        if unknown:
            raise LabelError(f"no slide {', '.join(unknown)} in this folder.")
        rows = self._fresh()
        before: _Rows = {}
        for name in wanted:
            at = self._at(rows, name)
            before[name] = None if at is None else (at, dict(rows[at]))
            if at is not None and label:
                rows[at]["label"] = label
            elif at is not None:
                del rows[at]
            elif label:
                rows.append(dict.fromkeys(self._columns, "") | {"slide_id": name, "label": label})
        self._write(rows)
        self._undo.append(before)

    def undo(self) -> tuple[str, ...]:
        """Take back the last labelling; labels set elsewhere since stay.

        Returns
        -------
        The slides that it was of; none if there was nothing to take back.

        Raises
        ------
        LabelError
            The file cannot be read or written.
        """
        if not self._undo:
            return ()
        rows = self._fresh()
        for name, old in reversed(self._undo[-1].items()):
            at = self._at(rows, name)
            if old is None and at is not None:
                del rows[at]
            elif old is not None and at is None:
                rows.insert(old[0], old[1])
            elif old is not None and at is not None:
                rows[at]["label"] = old[1]["label"]
        self._write(rows)
        return tuple(self._undo.pop())

    def _fresh(self) -> list[dict[str, str]]:
        """Return the rows as the file has them now: others may have written to it."""
        if self.path.exists():
            self._columns, self._rows = _read(self.path)
        return [dict(row) for row in self._rows]

    def _at(self, rows: list[dict[str, str]], name: str) -> int | None:
        """Return the number of the row of a slide."""
        return next((i for i, row in enumerate(rows) if self._meant(row) == name), None)

    def _meant(self, row: Mapping[str, str]) -> str:
        """Return which of the folder's slides a row is for: by id, file name or path."""
        given = row["slide_id"].strip()
        if given in self.slides:
            return given
        named = (n for n, path in self.slides.items() if path.name == given)
        return next(named, id_of_name(given))

    def _write(self, rows: list[dict[str, str]]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        try:
            write_atomic(self.path, text.getvalue())
        except OSError as error:
            raise LabelError(
                f"{self.path}: cannot be written ({error.strerror or error}); keep the labels in "
                "another file."
            ) from error
        self._rows = rows


def class_names(text: str) -> tuple[str, ...]:
    """Return the class names in a text, separated by commas, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _read(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    lines = read_text(path, LabelError).splitlines()
    reader, columns, _ = read_rows(lines, path, LabelError)
    lacking = [name for name in _COLUMNS if name not in columns]
    if lacking:
        raise LabelError(
            f"{path}: no column {' and '.join(lacking)}; the first line must name them."
        )
    return columns, [{name: row.get(name) or "" for name in columns} for row in reader]
