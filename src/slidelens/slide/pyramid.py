"""Lazy pyramids for viewers: arrays that read only what is shown.

Stored levels are used as they are. If two of them are more than a factor of 4 apart, or the
coarsest is longer than 2048 px (a slide with a single level, say), levels are synthesised: block by
block, by area averaging from the next finer level, when they are looked at. The coarsest level,
which viewers read whole and often, keeps its blocks; the others share the tile cache.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol, SupportsIndex

import numpy as np

from slidelens.geometry import Size
from slidelens.settings import get_settings
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import TileCache, new_owner, tile_cache
from slidelens.slide.resample import WHITE, pixel_edges, sample

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import DTypeLike, NDArray

    from slidelens.slide.reader import Level

__all__ = ["COARSEST", "LazyLevel", "make_pyramid"]

COARSEST = 2048
"""Largest side in px of the coarsest level."""

_GAP = 4.5
_CHUNK = 256
_PART = 512

Index = SupportsIndex | slice


class _Stored(Protocol):
    """The members of :class:`slidelens.slide.base.Slide` that a pyramid uses."""

    @property
    def levels(self) -> Sequence[Level]: ...
    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]: ...


class LazyLevel:
    """One level of a pyramid as an array: ``(H, W, 3)`` uint8 RGB.

    It has what viewers need of an array (``shape``, ``dtype``, ``ndim``, ``chunks``, indexing with
    integers and slices, ``numpy.asarray``); for anything else, convert it first. Large reads are
    decoded on several threads.
    """

    dtype = np.dtype(np.uint8)
    ndim = 3
    chunks = (_CHUNK, _CHUNK, 3)

    def __init__(self, size: Size) -> None:
        self.extent = size
        self.shape = (size.height, size.width, 3)

    @property
    def size(self) -> int:
        """Number of samples, as of any array."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole level, if it were in memory."""
        return self.size

    def __len__(self) -> int:
        return self.shape[0]

    def read(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read whole pixels of this level, ``(h, w, 3)`` uint8 RGB, white outside it."""
        raise NotImplementedError  # overridden by the two kinds of levels below

    def forget(self) -> None:
        """Drop cached pixels, if there are any."""

    def __getitem__(self, key: Index | tuple[Any, ...]) -> NDArray[np.uint8]:
        rows, columns, channels = _expand(key)
        y, local_y = _span(rows, self.shape[0])
        x, local_x = _span(columns, self.shape[1])
        if not len(y) or not len(x):
            pixels = np.empty((len(y), len(x), 3), np.uint8)
        else:
            pixels = self._read_parallel(
                min(x[0], x[-1]), min(y[0], y[-1]), abs(x[-1] - x[0]) + 1, abs(y[-1] - y[0]) + 1
            )
        picked: NDArray[np.uint8] = pixels[:, :, channels][local_y][
            (slice(None), local_x) if isinstance(local_y, slice) else (local_x,)
        ]
        return picked

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a slide's level is decoded into a new array: copy=False cannot be")
        return np.asarray(self[:, :, :], dtype=dtype)

    def _read_parallel(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        if w * h <= 2 * _PART * _PART:
            return self.read(x, y, w, h)
        out = np.empty((h, w, 3), np.uint8)

        def part(corner: tuple[int, int]) -> None:
            left, top = max(x, corner[0]), max(y, corner[1])
            right, bottom = min(x + w, corner[0] + _PART), min(y + h, corner[1] + _PART)
            out[top - y : bottom - y, left - x : right - x] = self.read(
                left, top, right - left, bottom - top
            )

        tops = range(y // _PART * _PART, y + h, _PART)
        lefts = range(x // _PART * _PART, x + w, _PART)
        parts: list[Future[None]] = []
        try:
            for top in tops:
                parts += [_pool().submit(part, (left, top)) for left in lefts]
            for one in parts:
                one.result()
        finally:  # failed, or interrupted: no thread reads on when the caller closes the slide
            wait([one for one in parts if not one.cancel()])
        return out


class StoredLevel(LazyLevel):
    """A level of the file."""

    def __init__(self, slide: _Stored, index: int) -> None:
        super().__init__(slide.levels[index].size)
        self._slide = slide
        self._index = index

    def read(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read whole pixels of this level, white outside it."""
        return self._slide.read_level(self._index, x, y, w, h)


class SynthesisedLevel(LazyLevel):
    """Half the next finer level, area-averaged block by block when read.

    Its size is rounded up and its pixels are stretched to end exactly where the slide ends: viewers
    derive scales from shapes.
    """

    def __init__(self, finer: LazyLevel, tiles: TileCache) -> None:
        super().__init__(Size(-(-finer.extent.width // 2), -(-finer.extent.height // 2)))
        self._finer = finer
        self._tiles = tiles
        self._owner = new_owner()

    def read(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read whole pixels of this level, white outside it."""
        width, height = self.extent
        x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
        if (x0, y0, x1, y1) == (x, y, x + w, y + h):
            chunk = (_CHUNK, _CHUNK)
            return read_blocks(self._tiles, (self._owner,), self._make, chunk, (x, y, w, h))
        out = np.full((h, w, 3), WHITE, np.uint8)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self.read(x0, y0, x1 - x0, y1 - y0)
        return out

    def forget(self) -> None:
        """Drop all blocks."""
        self._tiles.drop(self._owner)

    def _make(self, row: int, column: int) -> NDArray[np.uint8]:
        x, y = column * _CHUNK, row * _CHUNK
        w, h = min(_CHUNK, self.extent.width - x), min(_CHUNK, self.extent.height - y)
        step_x = self._finer.extent.width / self.extent.width
        step_y = self._finer.extent.height / self.extent.height
        return sample(
            self._finer.read,
            self._finer.extent,
            pixel_edges(x * step_x, step_x, w, 1),
            pixel_edges(y * step_y, step_y, h, 1),
        )


def make_pyramid(slide: _Stored) -> list[LazyLevel]:
    """Return the levels of a slide, finest first, with the missing ones synthesised.

    Nothing is read.
    """
    levels: list[LazyLevel] = []
    for index, stored in enumerate(slide.levels):
        while levels and max(levels[-1].extent) / max(stored.size) > _GAP:
            levels.append(SynthesisedLevel(levels[-1], tile_cache()))
        levels.append(StoredLevel(slide, index))
    while max(levels[-1].extent) > COARSEST:
        coarsest = max(levels[-1].extent) <= 2 * COARSEST
        tiles = TileCache(4 * COARSEST * COARSEST) if coarsest else tile_cache()
        levels.append(SynthesisedLevel(levels[-1], tiles))
    return levels


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(get_settings().reader_threads, thread_name_prefix="slide")


def _expand(key: Index | tuple[Any, ...]) -> tuple[Index, Index, Any]:
    """Extend a key to three items."""
    items = list(key) if isinstance(key, tuple) else [key]
    if any(item is Ellipsis for item in items):
        at = next(i for i, item in enumerate(items) if item is Ellipsis)
        items[at : at + 1] = [slice(None)] * (4 - len(items))
    if len(items) > 3:
        raise IndexError(f"a level has 3 axes, not {len(items)}")
    items += [slice(None)] * (3 - len(items))
    return items[0], items[1], items[2]


def _span(item: Index, n: int) -> tuple[range, int | slice]:
    """Return the rows (or columns) that an index names, and how to select them once read."""
    if isinstance(item, slice):
        named = range(n)[item]
        return named, slice(None, None, named.step)
    at = range(n)[item]
    return range(at, at + 1), 0
