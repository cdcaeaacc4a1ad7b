"""Results on disk, as the Run panel lists them; deletion can be undone."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING
from uuid import uuid4

from slidelens.errors import NewerResultError, ResultError
from slidelens.maps.result import find_results
from slidelens.maps.run_settings import region_text
from slidelens.maps.schema import read_result_file

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from slidelens.maps.schema import SlideInfo

__all__ = ["Entry", "Trash", "entries"]

_DELETED = re.compile(r"\.deleted-.+-[0-9a-f]{8}")
_KEPT_S = 24 * 3600.0
"""How long the deletions of a crashed window are kept: another window may still restore them."""


@dataclass(frozen=True)
class Entry:
    """A result in a list; if it cannot be read, ``error`` says why."""

    folder: Path
    slide: str
    model: str
    probabilities: dict[str, float]
    time: float
    """When it was made, seconds since 1970."""
    error: str = ""
    threshold: float = 0.5
    """The model's operating point."""
    part: str = ""
    """Which part of the slide was run, as ``--region`` takes it; empty: all of it."""
    newer: bool = False
    """Whether it cannot be read because a newer slidelens wrote it."""
    made_on: SlideInfo | None = None
    """The slide as the result states it."""
    misfit: str = ""
    """Why it does not belong to the slide that it is listed for."""

    @property
    def call(self) -> str:
        """The predicted class, at the model's operating point."""
        names = list(self.probabilities)
        if len(names) != 2:
            return max(names, key=self.probabilities.__getitem__, default="")
        return names[self.probabilities[names[1]] >= self.threshold]

    @property
    def score(self) -> str:
        """The positive class and its probability, marked if of a region only; or what is wrong."""
        if self.error:
            return "newer version" if self.newer else "damaged"
        if self.misfit:
            return "does not fit"
        if not self.probabilities:
            return ""
        name = list(self.probabilities)[-1]
        return f"{name} {self.probabilities[name]:.1%}{' (region)' if self.part else ''}"

    @property
    def about(self) -> str:
        """Its path, the region that was run and the slide; or what is wrong."""
        where = f"\nregion {self.part} (x, y, width, height in px)" if self.part else ""
        slide = None if self.made_on is None else self.made_on.path
        made_on = "" if slide is None else f"\nof {slide}"
        return self.error or self.misfit or f"{self.folder}{where}{made_on}"


def entries(folders: Iterable[Path]) -> list[Entry]:
    """List the results in some folders, newest first.

    A folder that does not exist yet holds none.
    """
    found: dict[Path, Entry] = {}
    for folder in folders:
        if folder.is_dir():
            for path in find_results(folder):
                found[path.resolve()] = _entry(path)
    return sorted(found.values(), key=lambda e: e.time, reverse=True)


class Trash:
    """Results that were deleted and can still be restored.

    A deleted result is renamed in its place, so deletion takes no time and cannot fail half-way; it
    is removed when the window closes or, after a crash, by :meth:`sweep`.
    """

    def __init__(self) -> None:
        self._hidden: dict[Path, Path] = {}  # where it is now, to where it was

    def delete(self, folder: Path) -> Path:
        """Take a result (or a training run) out of its list; return what :meth:`restore` takes.

        Raises
        ------
        ResultError
            It cannot be deleted.
        """
        hidden = folder.with_name(f".deleted-{folder.name}-{uuid4().hex[:8]}")
        try:
            folder.rename(hidden)
        except OSError as error:
            raise ResultError(
                f"{folder}: cannot be deleted ({error.strerror or error}); check its permissions."
            ) from error
        with suppress(OSError):  # the time of the deletion, for `sweep`
            os.utime(hidden)
        self._hidden[hidden] = folder
        return hidden

    def exchange(self, hidden: Path) -> Path | None:
        """Restore what was deleted; what has taken its place since is deleted instead.

        Returns
        -------
        What :meth:`delete` returned for that one; ``None`` if the place was free.

        Raises
        ------
        ResultError
            As in :meth:`restore` and :meth:`delete`; everything is then as it was before.
        """
        folder = self._hidden.get(hidden)
        newer = self.delete(folder) if folder is not None and folder.exists() else None
        try:
            self.restore(hidden)
        except ResultError:
            if newer is not None:
                self.restore(newer)
            raise
        return newer

    def restore(self, hidden: Path) -> None:
        """Restore what was deleted, given what :meth:`delete` returned.

        Raises
        ------
        ResultError
            It was not deleted here, another one has taken its place, or it cannot be renamed.
        """
        folder = self._hidden.get(hidden)
        if folder is None:
            raise ResultError(f"{hidden}: was not deleted in this window.")
        if folder.exists():
            raise ResultError(f"{folder}: a newer one is there; delete that one first.")
        try:
            hidden.rename(folder)
        except OSError as error:
            raise ResultError(
                f"{folder}: cannot be restored ({error.strerror or error}); it is in {hidden}."
            ) from error
        del self._hidden[hidden]

    def sweep(self, folder: Path) -> None:
        """Remove deletions left by windows that crashed, in a folder of results, a day ago or more.

        Only folders named as :meth:`delete` names them, directly in it or in a model's folder.
        """
        mine = set(self._hidden)
        models = [path for path in _folders(folder) if not path.name.startswith(".")]
        for path in (found for place in (folder, *models) for found in _folders(place)):
            if _DELETED.fullmatch(path.name) and path not in mine and _is_old(path):
                shutil.rmtree(path, ignore_errors=True)

    def empty(self) -> None:
        """Remove what was deleted."""
        for hidden in self._hidden:
            shutil.rmtree(hidden, ignore_errors=True)
        self._hidden = {}


def _folders(folder: Path) -> list[Path]:
    """Return the folders directly in a folder, without links; none if it cannot be read."""
    try:
        return [path for path in folder.iterdir() if path.is_dir() and not path.is_symlink()]
    except OSError:
        return []


def _is_old(path: Path) -> bool:
    try:
        found = path.stat()
    except OSError:
        return False  # another window was faster
    return time() - max(found.st_mtime, found.st_ctime) > _KEPT_S


def _entry(path: Path) -> Entry:
    file = path / "result.json"
    try:
        content, time = read_result_file(file), file.stat().st_mtime
    except (ResultError, OSError) as error:
        newer = isinstance(error, NewerResultError)
        return Entry(path, path.name, path.parent.name, {}, 0.0, str(error), newer=newer)
    settings = content.settings
    return Entry(
        path,
        content.slide.id,
        content.model.name,
        dict(content.probabilities),
        time,
        threshold=0.5 if content.model.threshold is None else content.model.threshold,
        made_on=content.slide,
        part="" if settings is None or settings.region is None else region_text(settings),
    )
