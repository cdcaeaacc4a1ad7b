"""Open, check and migrate the SQLite file of a review."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from slidelens.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["reading", "writing"]

_APPLICATION = 0x534C5256  # "SLRV", so that another program's database is not taken for ours
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


@contextmanager
def reading(path: Path, patience: float) -> Iterator[sqlite3.Connection | None]:
    """Provide a read-only connection; ``None`` if nothing has been decided yet.

    ``patience`` is how many seconds to wait for another program that is writing.
    """
    if not path.exists():
        yield None
        return
    with _translated_errors(path), closing(_open_to_read(path, patience)) as db:
        yield db if _check(db, path) else None


@contextmanager
def writing(path: Path, patience: float) -> Iterator[sqlite3.Connection]:
    """Provide an exclusive connection for writing; rolled back if the block raises."""
    with _translated_errors(path), closing(_connect(path, patience)) as db:
        _prepare(db, path, patience)
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
        except BaseException:
            db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")


def _connect(path: Path, patience: float, options: str = "") -> sqlite3.Connection:
    # Transactions begin and end here, not where the module guesses.
    where = f"{path.absolute().as_uri()}{options}"
    return sqlite3.connect(where, uri=True, timeout=patience, isolation_level=None)


def _open_to_read(path: Path, patience: float) -> sqlite3.Connection:
    """Open a file for reading, also in a folder where SQLite cannot create its side files."""
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
    """Return whether a file holds a review that this version reads; ``False`` for an empty one."""
    version, application = _pragma(db, "user_version"), _pragma(db, "application_id")
    if application != _APPLICATION:
        if _pragma(db, "schema_version") == 0:
            return False  # another process is creating it, or died before it could
        raise ResultError(f"{path}: is a database of another program, not a review; move it.")
    if version > len(_MIGRATIONS):
        raise ResultError(
            f"{path}: version {version} of the review is newer than this slidelens reads "
            f"({len(_MIGRATIONS)}); update slidelens."
        )
    return True


def _prepare(db: sqlite3.Connection, path: Path, patience: float) -> None:
    """Create the tables, or bring those of an older version up to date, once."""
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
    """Switch to write-ahead logging, which SQLite refuses at once while another does so."""
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
def _translated_errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into a ``ResultError`` that says what failed and what to do."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise ResultError(
            f"{path}: the review cannot be read or written ({error}). Check that the folder may be "
            "written and the disk is not full; if another program holds the file, try again."
        ) from error
    except sqlite3.DatabaseError as error:
        raise ResultError(
            f"{path}: is not a review, or is damaged ({error}); put a copy back, or move it away "
            "to start a new one."
        ) from error
