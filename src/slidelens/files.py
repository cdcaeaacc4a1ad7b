"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import shutil
from contextlib import contextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["staged_folder", "write_atomic"]


@contextmanager
def staged_folder(target: Path) -> Iterator[Path]:
    """Give a new folder to fill; it takes the place of ``target`` when the block ends well.

    The folder lies beside ``target`` under a hidden name (so the move is a rename on one file
    system) and is removed if the block raises. What was there before stays until the new folder is
    complete.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(target)
    staging.mkdir()
    try:
        yield staging
        _publish(staging, target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after the rename nothing is left here


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(path)
    try:
        with staging.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def _publish(staging: Path, target: Path) -> None:
    if not target.exists():
        staging.rename(target)
        return
    old = _beside(target)
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.{uuid4().hex[:12]}")
