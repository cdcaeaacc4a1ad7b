"""Wrap a plugin's reader: check what it returns, cache it, and name it when it fails."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slidelens.errors import SlideError
from slidelens.geometry import Mpp
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import new_owner, tile_cache
from slidelens.slide.reader import Facts, Level, Reader

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from slidelens.registry import Registry

__all__ = ["PluginReader"]

_BLOCK = 512
"""Side in px of the blocks that are read and kept: overlapping or small tiles share them."""


class PluginReader(Reader):
    """Opens a file with the reader of a plugin, and represents it.

    Parameters
    ----------
    path
        The file.
    readers, name
        The plugins, and the name of this one.

    Raises
    ------
    SlideError
        Whatever else the plugin raises, or returns in breach of its contract; methods too.
    """

    backend = "plugin"

    def __init__(self, path: Path, readers: Registry[type[Reader]], name: str) -> None:
        self.backend = name  # type: ignore[misc]  # reason: one class stands for all plugins
        self._path, self._readers = path, readers
        self._owner = new_owner()
        with self._blaming():
            self._reader = readers.get(name)(path)
            try:
                self.facts = _checked(self._reader.facts)
            except BaseException:
                self._reader.close()
                raise

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:  # noqa: ARG003  # the plugin is asked itself
        """Accept no file."""
        return False

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level from cached blocks."""

        def block(row: int, column: int) -> NDArray[np.uint8]:
            left, top = column * _BLOCK, row * _BLOCK
            return self._block(
                level, left, top, min(_BLOCK, width - left), min(_BLOCK, height - top)
            )

        width, height = self.facts.levels[level].size
        return read_blocks(
            tile_cache(), (self._owner, level), block, (_BLOCK, _BLOCK), (x, y, w, h)
        )

    def _block(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        with self._blaming():
            pixels = np.array(self._reader.read(level, x, y, w, h))  # it may reuse its memory
            if pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
                raise TypeError(
                    f"read gave {pixels.dtype} pixels of shape {pixels.shape}, expected uint8 of "
                    f"{(h, w, 3)}"
                )
            return pixels

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read one of the file's other images."""
        with self._blaming():
            return self._reader.read_associated(name)

    def other_files(self) -> list[Path]:
        """Return the files of the slide besides the one that was opened."""
        with self._blaming():
            return [Path(file) for file in self._reader.other_files()]

    def notes(self) -> list[str]:
        """Return the plugin's warnings about the file."""
        with self._blaming():
            return [str(note) for note in self._reader.notes()]

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if there is one."""
        with self._blaming():
            return self._reader.icc_profile()

    def close(self) -> None:
        """Close the file and forget its blocks."""
        tile_cache().drop(self._owner)
        with self._blaming():
            self._reader.close()

    def _blaming(self) -> AbstractContextManager[None]:
        return self._readers.blaming(self.backend, f"on {self._path}", SlideError)


def _checked(facts: Facts) -> Facts:
    levels = facts.levels
    if not levels or not all(isinstance(level, Level) for level in levels):
        raise TypeError(f"facts.levels is {levels}, expected one Level or more (see levels_of)")
    sides = [level.size for level in levels]
    if sides != sorted(sides, reverse=True) or not all(min(size) >= 1 for size in sides):
        raise ValueError(f"facts.levels is {levels}, expected the finest first")
    mpp = facts.mpp
    if mpp is not None and not (isinstance(mpp, Mpp) and all(isfinite(m) and m > 0 for m in mpp)):
        raise TypeError(f"facts.mpp is {mpp!r}, expected Mpp(x, y) above 0, or None")
    return facts
