"""Decisions on errors, in one SQLite file that several people and programs may write at once.

Nothing is ever overwritten: a decision is a row, its change is another, and the newest row of a
case and reviewer is in force. A connection lives for one call, so a store may be used from any
thread.
"""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from slidelens.errors import ResultError
from slidelens.review.taxonomy import TAXONOMY, Kind, no_category, read_taxonomy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["STORE_FILE", "TAXONOMY", "CaseKey", "Decision", "Kind", "Progress", "ReviewStore"]

STORE_FILE = "review.sqlite"

_APPLICATION = 0x534C5256  # "SLRV", so that another program's database is not taken for ours
_WAIT_S = 30.0
_MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE decision (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            slide_id TEXT NOT NULL,
            model TEXT NOT NULL,
            kind TEXT NOT NULL CHECK (kind IN ('fp', 'fn')),
            reviewer TEXT NOT NULL,
            category TEXT NOT NULL,
            note TEXT NOT NULL,
            true_label TEXT NOT NULL,
            time TEXT NOT NULL
        )""",
        "CREATE INDEX decision_of ON decision (slide_id, model, kind, reviewer, time, id)",
    ),
)
"""Statements that lead from each version (``user_version``) to the next."""

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
    """What one reviewer holds of one error.

    Attributes
    ----------
    slide_id, model, kind, reviewer
        Of which error, and whose.
    category
        Of the taxonomy; empty: none chosen.
    note
        Free text.
    true_label
        The right class where the reviewer finds the slide's label wrong; else empty.
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
        """What it is about."""
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
        ``EVAL_DIR/review.sqlite``. Made by the first decision; until then there are none.
    read_only
        Never write, nor make the file: for readers of folders that may not be written.
    patience
        Seconds to wait for another program that is writing.

    Raises
    ------
    ResultError
        By any method: a file that is damaged, of another program or of a newer version, or that
        cannot be written.
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
        """Decide, or change what was decided; what is ``None`` stays as it is, ``""`` clears it.

        Parameters
        ----------
        key
            The error that is judged.
        reviewer
            Who decides; each reviewer has decisions of their own.
        category, note, true_label
            Why it went wrong, in a word that the taxonomy (``taxonomy.toml`` beside the store, or
            :data:`TAXONOMY`) has for this kind of error; free text; what the label should be.

        Returns
        -------
        What is now in force.

        Raises
        ------
        ValueError
            No reviewer.
        ResultError
            A category that is none of this kind of error's, unless the reviewer chose it for this
            error before (it may have been taken from the file since).
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
        """Decide several cases alike, all or none.

        ``keys`` are the cases; ``reviewer``, ``category``, ``note`` and ``true_label`` are as for
        :meth:`set`.

        Raises
        ------
        ValueError
            No reviewer.
        ResultError
            A category that is none of these kinds of errors'.
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
        """Take decisions over from elsewhere with the times they state, all or none.

        Of one case and reviewer the newest is in force, so what is older becomes history.

        Returns
        -------
        How many were not known before.
        """
        with self._write() as db:
            new = set(decisions) - set(_read(db, _ALL))
            for decision in sorted(new, key=lambda d: d.time):
                db.execute(_INSERT, astuple(decision))
        return len(new)

    def get(self, key: CaseKey, reviewer: str) -> Decision | None:
        """Return what a reviewer decided on a case."""
        with self._reading() as db:
            return None if db is None else _latest(db, key, reviewer)

    def decisions(self, reviewer: str | None = None) -> list[Decision]:
        """Return what is in force, of one reviewer or of all, by case; withdrawn ones are not."""
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

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Give a connection that only reads; ``None`` where nothing has been decided yet."""
        if not self.path.exists():
            yield None
            return
        with _told(self.path), closing(_open_to_read(self.path, self._patience)) as db:
            yield db if _check(db, self.path) else None

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        """Give a connection that alone may write; all is kept, or nothing if the block raises."""
        if self.read_only:
            raise ResultError(f"{self.path}: was opened to be read only.")
        with _told(self.path), closing(_connect(self.path, self._patience)) as db:
            _prepare(db, self.path, self._patience)
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
            except BaseException:
                db.execute("ROLLBACK")
                raise
            db.execute("COMMIT")


def _change(db: sqlite3.Connection, key: CaseKey, reviewer: str, given: dict[str, Any]) -> Decision:
    before = _latest(db, key, reviewer)
    now = datetime.now(UTC)
    if before is None:
        after = Decision(*key, reviewer, **given, time=_stamp(now))
    else:
        if all(getattr(before, name) == text for name, text in given.items()):
            return before
        # A clock that was put back must not make the change older than what it changes.
        then = datetime.fromisoformat(before.time) + timedelta(microseconds=1)
        after = replace(before, **given, time=_stamp(max(now, then)))
    db.execute(_INSERT, astuple(after))
    return after


def _stamp(when: datetime) -> str:
    """Write a time so that texts sort as times do."""
    return when.astimezone(UTC).isoformat(timespec="microseconds")


def _latest(db: sqlite3.Connection, key: CaseKey, reviewer: str) -> Decision | None:
    found = _read(db, _LATEST, (*key, reviewer))
    return found[0] if found else None


def _read(db: sqlite3.Connection, text: str, values: tuple[str, ...] = ()) -> list[Decision]:
    return [Decision(*row) for row in db.execute(text, values)]


def _connect(path: Path, patience: float, options: str = "") -> sqlite3.Connection:
    # Transactions are begun and ended here, not by the module's guesses.
    where = f"{path.absolute().as_uri()}{options}"
    return sqlite3.connect(where, uri=True, timeout=patience, isolation_level=None)


def _open_to_read(path: Path, patience: float) -> sqlite3.Connection:
    """Open a file to read, also in a folder where SQLite cannot make its side files."""
    db = _connect(path, patience, "?mode=ro")
    try:
        db.execute("PRAGMA user_version").fetchone()
    except sqlite3.OperationalError:
        db.close()
        waiting = path.with_name(path.name + "-wal")
        if waiting.exists() and waiting.stat().st_size:
            raise  # what another program has just written could not be seen
        db = _connect(path, patience, "?mode=ro&immutable=1")
    return db


def _check(db: sqlite3.Connection, path: Path) -> bool:
    """Say whether a file holds a review that this version reads; ``False`` for an empty one."""
    version, application = _pragma(db, "user_version"), _pragma(db, "application_id")
    if application != _APPLICATION:
        if _pragma(db, "schema_version") == 0:
            return False  # another process is just making it, or died before it could
        raise ResultError(f"{path}: is a database of another program, not a review; move it.")
    if version > len(_MIGRATIONS):
        raise ResultError(
            f"{path}: version {version} of the review is newer than this slidelens reads "
            f"({len(_MIGRATIONS)}); update slidelens."
        )
    return True


def _prepare(db: sqlite3.Connection, path: Path, patience: float) -> None:
    """Make the tables, or bring those of an older version up to date, once."""
    if _check(db, path) and _pragma(db, "user_version") == len(_MIGRATIONS):
        return
    _use_wal(db, patience)
    db.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_pragma(db, "user_version"), len(_MIGRATIONS)):
            for statement in _MIGRATIONS[number]:
                db.execute(statement)
        db.execute(f"PRAGMA application_id = {_APPLICATION}")
        db.execute(f"PRAGMA user_version = {len(_MIGRATIONS)}")
    except BaseException:
        db.execute("ROLLBACK")
        raise
    db.execute("COMMIT")


def _use_wal(db: sqlite3.Connection, patience: float) -> None:
    """Switch to write-ahead logging, which SQLite refuses at once while another does the same."""
    end = time.monotonic() + patience
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
        else:
            return


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: Any = db.execute(f"PRAGMA {name}").fetchone()[0]
    return int(value)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say what SQLite could not do, and what helps."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ResultError(
            f"{path}: the review cannot be read or written ({error}). Check that the folder may be "
            "written and the disk is not full; if another program holds the file, try again."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ResultError(
            f"{path}: is no review, or damaged ({error}); put a copy back, or move it away to "
            "begin anew."
        ) from error
