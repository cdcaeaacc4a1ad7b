"""Count the tiles that reads of a slide decode."""

from __future__ import annotations

from math import ceil, floor
from threading import Lock
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from slidelens.slide.base import Slide

__all__ = ["Reads"]

_TILE = 256
"""Side of a tile in px if the file does not state it, as in a DICOM folder."""


class Reads:
    """Watches a slide while the context is open.

    A tile counts once however often it is read, as it stays in memory; a whole tile is decoded for
    any of its pixels.

    Parameters
    ----------
    slide
        An open slide. Only reads through this object are seen.
    """

    def __init__(self, slide: Slide) -> None:
        self._slide = slide
        self._tiles: set[tuple[int, int, int]] = set()
        self._lock = Lock()
        self._read = slide.read_level

    def __enter__(self) -> Self:
        self._slide.read_level = self._watch  # type: ignore[method-assign]  # undone on leaving
        return self

    def __exit__(self, *_: object) -> None:
        self._slide.read_level = self._read  # type: ignore[method-assign]

    def decoded(self, level: int | None = None) -> int:
        """Return the pixels of the tiles that were read, of one level or of all."""
        return sum(
            across * down
            for index in range(len(self._slide.levels))
            if level in (None, index)
            for across, down in [self._tile(index)]
            for tile in self._tiles
            if tile[0] == index
        )

    def _tile(self, level: int) -> tuple[int, int]:
        said = self._slide.properties
        across, down = (
            int(said.get(f"openslide.level[{level}].tile-{side}", _TILE))
            for side in ("width", "height")
        )
        return across, down

    def _watch(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        width, height = self._slide.levels[level].size
        across, down = self._tile(level)
        columns = range(floor(max(0, x) / across), ceil(min(width, x + w) / across))
        rows = range(floor(max(0, y) / down), ceil(min(height, y + h) / down))
        with self._lock:
            self._tiles.update((level, column, row) for column in columns for row in rows)
        return self._read(level, x, y, w, h)
