"""``predictions.csv``: how the last run of each slide ended."""

from __future__ import annotations

import csv
import io
import logging
import os
import re
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from math import inf
from pathlib import Path
from shutil import copyfile
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Literal

from slidelens.engine.last_run import PREDICTIONS
from slidelens.engine.locks import locked
from slidelens.errors import ResultError, SlideLensError
from slidelens.files import write_atomic
from slidelens.slide.base import slide_id
from slidelens.tables import read_rows, read_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

__all__ = ["Outcome", "PredictionTable", "failure"]

Status = Literal["done", "failed", "skipped"]
_LOCK = ".predictions.lock"
_SKIPPED_S = 1.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one slide (``slide_id``) and one ``model`` ended, after so many ``seconds``.

    ``error`` is empty unless ``status`` is ``"failed"``; ``probabilities`` are then empty. So many
    pairs of slide and model are ``left`` for the run.
    """

    model: str
    slide_id: str
    status: Status
    error: str
    probabilities: dict[str, float]
    seconds: float
    left: int = 0


def failure(
    model: str, path: str | Path, error: Exception, start: float, places: Iterable[str | Path] = ()
) -> Outcome:
    """Return the outcome of a slide that failed.

    The error names files without the folders that they lie in: tables are passed on.

    Parameters
    ----------
    model, path
        Name of the model; the slide.
    error
        What went wrong; the log gets the traceback of what was not foreseen.
    start
        When the slide was begun, by :func:`time.perf_counter`.
    places
        Other folders of which files may be named.
    """
    path, text = Path(path), " ".join(str(error).split())
    if not isinstance(error, SlideLensError):
        log.error("%s: %s failed", path, model, exc_info=error)
        text = f"{path.name}: {type(error).__name__}: {text}"
    for folder in (path.parent, *map(Path, places)):
        for place in (os.path.realpath(folder), str(folder.absolute()), str(folder)):
            text = re.sub(rf"(?<![\w./\\-]){re.escape(place + os.sep)}", "", text)
    return Outcome(model, slide_id(path), "failed", text, {}, perf_counter() - start)


class PredictionTable:
    """The table of one model. Several runs, on several machines too, may write it side by side.

    On a file system without locks one may write over what another has just added: that one adds it
    again the next time.

    Parameters
    ----------
    folder
        Of the model's results.
    classes
        The model's.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        self._path = folder / PREDICTIONS
        self._classes = classes
        names = [f"prob_{name}" for name in classes]
        self._header = ["slide_id", "status", "error", *names, "seconds"]
        self._waiting: list[Outcome] = []
        self._ours: dict[str, list[str]] = {}
        self._flushed = -inf
        with self._alone():  # what cannot be read or written is said before anything is computed
            self._read()

    def record(self, outcome: Outcome) -> None:
        """Add or replace the row of a slide and write the file.

        The row of a skipped slide, of which little is new, may wait for the next one or for
        :meth:`flush`: of thousands that follow at once each would write all rows again. So does,
        with a warning, a row that cannot be written now: on Windows nobody can write a table that
        a spreadsheet has open, and no run should end for it.
        """
        self._waiting.append(outcome)
        if outcome.status != "skipped" or monotonic() - self._flushed >= _SKIPPED_S:
            try:
                self.flush()
            except ResultError as error:
                log.warning("%s (It does not mention %s yet.)", error, outcome.slide_id)

    def flush(self) -> None:
        """Write the rows that wait, and those that are lost.

        Raises
        ------
        ResultError
            A table that cannot be read or written.
        """
        if not (self._waiting or self._ours):
            return
        with self._alone():
            rows, other = self._read()  # anew: another run may have added rows
            lost = self._ours.keys() - rows.keys()
            if not (self._waiting or lost):
                return
            rows |= {slide: self._ours[slide] for slide in sorted(lost)}
            for outcome in self._waiting:
                slide = outcome.slide_id
                rows[slide] = self._ours[slide] = self._row(outcome, rows.get(slide))
            if other:
                self._set_aside()
            text = io.StringIO()
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(self._header)
            writer.writerows(rows.values())
            write_atomic(self._path, text.getvalue())
        self._waiting.clear()
        self._flushed = monotonic()

    def _row(self, outcome: Outcome, before: list[str] | None) -> list[str]:
        values = [outcome.probabilities.get(name) for name in self._classes]
        seconds = f"{outcome.seconds:.2f}"
        if outcome.status == "skipped" and before is not None:
            seconds = before[-1]  # what it took when it was computed
        return [
            outcome.slide_id,
            outcome.status,
            outcome.error,
            *("" if value is None else f"{value:.8g}" for value in values),
            seconds,
        ]

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the table against other runs."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._path.with_name(_LOCK)):
                yield
        except OSError as error:
            raise ResultError(
                f"{self._path}: cannot write the table ({error.strerror or error}). Free some "
                "space, close the program that has it open, or choose another --out."
            ) from error

    def _read(self) -> tuple[dict[str, list[str]], bool]:
        """Return the rows of earlier calls, and whether rewriting the table would lose more.

        A spreadsheet may have saved it in its own way; rows of other classes are not taken.
        """
        if not self._path.exists():
            return {}, False
        lines = io.StringIO(read_text(self._path, ResultError)).readlines()
        table, columns, separator = read_rows(lines, self._path, ResultError)
        rows = {}
        if set(self._header) <= set(columns):
            for row in table:
                if None not in row and None not in row.values():
                    rows[row["slide_id"]] = [row[name] for name in self._header]
        if separator == ";":  # of a spreadsheet whose numbers have a decimal comma
            for cells in rows.values():
                cells[3:] = [value.replace(",", ".") for value in cells[3:]]
        return rows, bool(columns) and columns != self._header

    def _set_aside(self) -> None:
        """Keep a copy of a table that has other columns."""
        names = (f"{PREDICTIONS}.bak{number or ''}" for number in count())
        beside = next(b for b in map(self._path.with_name, names) if not b.exists())
        copyfile(self._path, beside)
        log.warning("%s: has other columns and is rewritten; it is kept as %s", self._path, beside)
