"""Decisions on errors, in an SQLite file that several people may write at once.

Nothing is ever overwritten: a decision is a row, a change is another row, and the newest row of a
case and reviewer is in force. A connection lives for one call, so a store can be used from any
thread.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slidelens.errors import ResultError
from slidelens.review.database import reading, writing
from slidelens.review.taxonomy import TAXONOMY, Kind, no_category, read_taxonomy

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence
    from contextlib import AbstractContextManager

__all__ = ["STORE_FILE", "TAXONOMY", "CaseKey", "Decision", "Kind", "Progress", "ReviewStore"]

STORE_FILE = "review.sqlite"

_WAIT_S = 30.0

_COLUMNS = "slide_id, model, kind, reviewer, category, note, true_label, time"
_ALL = f"SELECT {_COLUMNS} FROM decision"  # noqa: S608  # made of constants, as are all below
_IN_FORCE = (
    f"SELECT {_COLUMNS} FROM (SELECT *, row_number() OVER "  # noqa: S608
    "(PARTITION BY slide_id, model, kind, reviewer ORDER BY time DESC, id DESC) AS age "
    f"FROM decision) WHERE age = 1 ORDER BY {_COLUMNS}"
)
_LATEST = (
    f"{_ALL} WHERE slide_id = ? AND model = ? AND kind = ? AND reviewer = ? "
    "ORDER BY time DESC, id DESC LIMIT 1"
)
_INSERT = f"INSERT INTO decision ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608


class CaseKey(NamedTuple):
    """What a decision is about: the error of ``model`` on ``slide_id``, of ``kind`` fp or fn."""

    slide_id: str
    model: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Decision:
    """What one reviewer decided about one error.

    Attributes
    ----------
    slide_id, model, kind, reviewer
        The error, and who decided.
    category
        Of the taxonomy; empty: none chosen.
    note
        Free text.
    true_label
        The right class if the reviewer finds the slide's label wrong; otherwise empty.
    time
        UTC, ISO 8601.
    """

    slide_id: str
    model: str
    kind: Kind
    reviewer: str
    category: str = ""
    note: str = ""
    true_label: str = ""
    time: str = ""

    @property
    def key(self) -> CaseKey:
        """The error that it is about."""
        return CaseKey(self.slide_id, self.model, self.kind)

    @property
    def label_is_wrong(self) -> bool:
        """Whether the reviewer finds the slide's label wrong."""
        return bool(self.true_label)

    @property
    def decided(self) -> bool:
        """Whether it says why the error happened; a note alone does not."""
        return bool(self.category or self.true_label)


class Progress(NamedTuple):
    """How many of the errors are decided: ``done`` of ``total``."""

    done: int
    total: int


class ReviewStore:
    """The decisions of a review.

    Parameters
    ----------
    path
        ``EVAL_DIR/review.sqlite``. The first decision creates it; until then there are none.
    read_only
        Never write, nor create the file: for readers of folders that they may not write.
    patience
        Seconds to wait for another program that is writing.

    Raises
    ------
    ResultError
        By any method: the file is damaged, of another program or of a newer version, or cannot be
        written.
    """

    def __init__(
        self, path: str | Path, *, read_only: bool = False, patience: float = _WAIT_S
    ) -> None:
        self.path = Path(path)
        self.read_only = read_only
        self._patience = patience

    def set(
        self,
        key: CaseKey,
        *,
        reviewer: str,
        category: str | None = None,
        note: str | None = None,
        true_label: str | None = None,
    ) -> Decision:
        """Decide, or change a decision; ``None`` leaves a value as it is, ``""`` clears it.

        Parameters
        ----------
        key
            The error that is judged.
        reviewer
            Who decides; each reviewer has decisions of their own.
        category, note, true_label
            The cause, one of the categories of the taxonomy (``taxonomy.toml`` beside the store, or
            :data:`TAXONOMY`) for this kind of error; free text; what the label should be.

        Returns
        -------
        What is now in force.

        Raises
        ------
        ValueError
            No reviewer.
        ResultError
            The category is not one for this kind of error, unless the reviewer chose it for this
            error before (it may have been removed from the file since).
        """
        return self.set_all([key], reviewer, category, note, true_label)[0]

    def set_all(
        self,
        keys: Iterable[CaseKey],
        reviewer: str,
        category: str | None = None,
        note: str | None = None,
        true_label: str | None = None,
    ) -> list[Decision]:
        """Make the same decision on several cases, all or none.

        ``keys`` are the cases; ``reviewer``, ``category``, ``note`` and ``true_label`` are as for
        :meth:`set`.

        Raises
        ------
        ValueError
            No reviewer.
        ResultError
            The category is not one for these kinds of errors.
        """
        if not reviewer.strip():
            raise ValueError("a decision needs the name of its reviewer")
        changes = {"category": category, "note": note, "true_label": true_label}
        given = {name: text.strip() for name, text in changes.items() if text is not None}
        with self._write() as db:
            wanted = list(keys)
            if given.get("category"):
                self._check_category(wanted, reviewer.strip(), given["category"])
            return [_change(db, key, reviewer.strip(), given) for key in wanted]

    def _check_category(self, keys: Iterable[CaseKey], reviewer: str, category: str) -> None:
        taxonomy = read_taxonomy(self.path.parent)
        for key in keys:
            if category in taxonomy.get(key.kind, (category,)):  # other kinds: the table refuses
                continue
            chosen = {d.category for d in self.history(key) if d.reviewer == reviewer}
            if category not in chosen:
                why = no_category(self.path.parent, key.kind, category, taxonomy)
                raise ResultError(f"slide {key.slide_id!r}, model {key.model!r}: {why}.")

    def add_all(self, decisions: Iterable[Decision]) -> int:
        """Import decisions with the times they state, all or none.

        The newest decision of a case and reviewer is in force, so older ones become history. A
        decision without a time counts as made now, unless the reviewer has already made the same
        one.

        Returns
        -------
        How many were new.
        """
        with self._write() as db:
            new = _new(list(decisions), _read(db, _ALL))
            for decision in sorted(new, key=lambda d: d.time):
                db.execute(_INSERT, astuple(decision))
        return len(new)

    def get(self, key: CaseKey, reviewer: str) -> Decision | None:
        """Return what a reviewer decided on a case."""
        with self._reading() as db:
            return None if db is None else _latest(db, key, reviewer)

    def decisions(self, reviewer: str | None = None) -> list[Decision]:
        """Return the decisions in force, of one reviewer or all, without withdrawn ones."""
        with self._reading() as db:
            found = [] if db is None else _read(db, _IN_FORCE)
        return [
            d
            for d in found
            if (d.decided or d.note) and (reviewer is None or d.reviewer == reviewer)
        ]

    def history(self, key: CaseKey | None = None) -> list[Decision]:
        """Return every change of one case or of all, oldest first."""
        with self._reading() as db:
            found = [] if db is None else _read(db, f"{_ALL} ORDER BY time, id")
        return [d for d in found if key is None or d.key == key]

    def reviewers(self) -> list[str]:
        """Return who has decided something, by name."""
        return sorted({d.reviewer for d in self.decisions()})

    def progress(self, keys: Iterable[CaseKey], reviewer: str | None = None) -> Progress:
        """Count how many of these cases are decided, by one reviewer or by anyone."""
        decided = {d.key for d in self.decisions(reviewer) if d.decided}
        wanted = set(keys)
        return Progress(len(wanted & decided), len(wanted))

    def _reading(self) -> AbstractContextManager[sqlite3.Connection | None]:
        return reading(self.path, self._patience)

    def _write(self) -> AbstractContextManager[sqlite3.Connection]:
        if self.read_only:
            raise ResultError(f"{self.path}: was opened read-only.")
        return writing(self.path, self._patience)


def _change(db: sqlite3.Connection, key: CaseKey, reviewer: str, given: dict[str, Any]) -> Decision:
    before = _latest(db, key, reviewer)
    now = datetime.now(UTC)
    if before is None:
        after = Decision(*key, reviewer, **given, time=_stamp(now))
    else:
        if all(getattr(before, name) == text for name, text in given.items()):
            return before
        # A clock that was set back must not make a change older than what it changes.
        then = datetime.fromisoformat(before.time) + timedelta(microseconds=1)
        after = replace(before, **given, time=_stamp(max(now, then)))
    db.execute(_INSERT, astuple(after))
    return after


def _new(decisions: Sequence[Decision], known: Sequence[Decision]) -> set[Decision]:
    """Return the decisions that are new, each with a time; later ones without one are newer."""
    timed = {d for d in decisions if d.time}
    said = {replace(d, time="") for d in timed.union(known)}
    fresh = [d for d in dict.fromkeys(decisions) if not d.time and d not in said]
    now = datetime.now(UTC)
    stamped = {
        replace(d, time=_stamp(now + timedelta(microseconds=n))) for n, d in enumerate(fresh)
    }
    return timed.difference(known) | stamped


def _stamp(when: datetime) -> str:
    """Write a time so that texts sort in order of time."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _latest(db: sqlite3.Connection, key: CaseKey, reviewer: str) -> Decision | None:
    found = _read(db, _LATEST, (*key, reviewer))
    return found[0] if found else None


def _read(db: sqlite3.Connection, text: str, values: tuple[str, ...] = ()) -> list[Decision]:
    return [Decision(*row) for row in db.execute(text, values)]
