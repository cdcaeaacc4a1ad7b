"""Pixels of TIFF levels: tiles and strips found by tifffile, decoded outside any lock, cached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tifffile

from slidelens.errors import SlideError
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import new_owner, tile_cache
from slidelens.slide.reader import Level, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TiffPixels", "main_series", "open_tiff"]

_MAX_SEGMENT = 1 << 30
_EXACT = {1, 5, 7, 8, 32946, 33005, 34925, 50000, 50001}
"""Compressions that decode to the same RGB as OpenSlide: none, LZW, JPEG, deflate, J2K RGB, ..."""


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF and find its series.

    Raises
    ------
    SlideError
        A file that is not TIFF, or a damaged one.
    """
    try:
        file = tifffile.TiffFile(path)
        try:
            empty = not file.series  # parses all headers
        except BaseException:
            file.close()
            raise
    except Exception as error:  # reason: a damaged header makes the parser raise almost anything
        raise unreadable(path, error, "cannot be opened as TIFF") from error
    if empty:
        file.close()
        raise SlideError(f"{path}: is a TIFF that holds no image.")
    return file


def main_series(file: tifffile.TiffFile) -> Any:
    """Return the series with the most pixels, level 0 of the slide."""
    return max(file.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page's segments, taken out of tifffile's page.

    That one reads tags when first asked for them, and is not thread-safe while it does.
    """

    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    decode: Callable[..., Any]
    tables: dict[str, bytes | None]
    fill: np.generic

    @classmethod
    def of(cls, page: Any) -> _Page:
        keyframe = page.keyframe
        jpeg = int(keyframe.compression) in (6, 7, 34892)
        white = keyframe.samplesperpixel >= 3 and keyframe.dtype == np.uint8
        return cls(
            np.array(page.dataoffsets, np.int64),
            np.array(page.databytecounts, np.int64),
            page.decode,
            {"jpegtables": page.jpegtables} if jpeg else {},
            keyframe.dtype.type(255 if white else keyframe.nodata),
        )


@dataclass(frozen=True, slots=True)
class _Store:
    """Where the pixels of one level lie: pages with segments, or one array on disk."""

    pages: tuple[_Page, ...]
    block: tuple[int, int]
    columns: int
    rows: int
    planes: int
    array: NDArray[Any] | None


class _File:
    """A file that threads read at any place; it is closed when the last of them lets go of it.

    Where the system can read at a place there is no lock: with one, threads stand in line for it,
    and each waits for the interpreter's lock while it holds it.
    """

    def __init__(self, path: Path) -> None:
        self._lock = Lock()
        self._number = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))

    def read(self, start: int, count: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._number, count, start)
        with self._lock:  # Windows
            os.lseek(self._number, start, os.SEEK_SET)
            return os.read(self._number, count)

    def __del__(self) -> None:
        number = getattr(self, "_number", None)  # none: it could not be opened
        if number is not None:
            os.close(number)


class TiffPixels:
    """The levels of one TIFF series, readable box by box.

    Parameters
    ----------
    path, file
        The open file; it may be closed afterwards.
    levels
        tifffile's series, one per level; ``None`` for a level to leave out.
    """

    def __init__(self, path: Path, file: tifffile.TiffFile, levels: list[Any | None]) -> None:
        self._path = path
        self._owner = new_owner()
        self._stores = [None if s is None else self._store(s, file.byteorder) for s in levels]
        self._file: _File | None = _File(path)

    @classmethod
    def matching(cls, path: Path, levels: tuple[Level, ...]) -> Self | None:
        """Open the tiles of a slide that OpenSlide describes; ``None`` if no level is plain RGB."""
        with open_tiff(path) as file:
            pages = [(s.keyframe, s) for s in main_series(file).levels]
            found = {(p.imagewidth, p.imagelength): s for p, s in pages if _is_plain(p)}
            plain = [found.get((level.size.width, level.size.height)) for level in levels]
            return cls(path, file, plain) if any(plain) else None

    def has(self, level: int) -> bool:
        """Say whether this level can be read here."""
        return self._stores[level] is not None

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        """Read ``(h, w, C)`` as stored, a box inside the level; ``SlideError`` after closing."""
        store, file = self._stores[level], self._file
        if store is None or file is None:
            raise SlideError(f"{self._path}: was closed while it was read.")
        if store.array is not None:
            return np.array(store.array[y : y + h, x : x + w])

        return read_blocks(
            tile_cache(),
            (self._owner, level),
            lambda row, column: self._decode(file, store, row, column),
            store.block,
            (x, y, w, h),
        )

    def close(self) -> None:
        """Close the file and forget its tiles."""
        self._stores = [None] * len(self._stores)
        self._file = None  # what is being read is read to its end
        tile_cache().drop(self._owner)

    def _store(self, level: Any, byteorder: str) -> _Store:
        page = level.keyframe
        array = self._map(level, byteorder)
        pages = tuple(_Page.of(p) for p in _channel_pages(level)) if array is None else ()
        samples = page.samplesperpixel if page.planarconfig == 2 else 1
        if page.is_tiled:
            block = (page.tilewidth, page.tilelength)
        else:
            block = (page.imagewidth, min(page.rowsperstrip, page.imagelength))
        self._check(page, pages, block)
        return _Store(
            pages,
            block,
            -(-page.imagewidth // block[0]),
            -(-page.imagelength // block[1]),
            samples,
            array,
        )

    def _check(self, page: Any, pages: tuple[_Page, ...], block: tuple[int, int]) -> None:
        """Refuse what cannot be read in pieces."""
        size = block[0] * block[1] * page.dtype.itemsize * page.samplesperpixel
        if pages and size > _MAX_SEGMENT:
            raise SlideError(
                f"{self._path}: stores its pixels in blocks of {size / 1e9:.1f} GB, which cannot "
                "be read in pieces; convert it to a tiled TIFF."
            )

    def _map(self, level: Any, byteorder: str) -> NDArray[Any] | None:
        """Map pixels that lie uncompressed in one piece, as ``(H, W, C)``."""
        if level.dataoffset is None or level.keyframe.is_tiled:
            return None
        dtype = level.keyframe.dtype.newbyteorder(byteorder)
        array = np.memmap(self._path, dtype, "r", level.dataoffset, level.shape)
        kept = array[tuple(slice(None) if axis in "YXSC" else 0 for axis in level.axes)]
        axes = [axis for axis in level.axes if axis in "YXSC"]
        order = [axes.index(axis) for axis in "YXSC" if axis in axes]
        height, width = level.keyframe.imagelength, level.keyframe.imagewidth
        return kept.transpose(order).reshape(height, width, -1)

    def _decode(self, file: _File, store: _Store, row: int, column: int) -> NDArray[Any]:
        """Decode one tile or strip of every channel: ``(bh, bw, C)``."""
        index = row * store.columns + column
        parts = [
            self._segment(file, page, plane * store.rows * store.columns + index)
            for page in store.pages
            for plane in range(store.planes)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)

    def _segment(self, file: _File, page: _Page, index: int) -> NDArray[Any]:
        count = int(page.counts[index])
        try:
            data = file.read(int(page.offsets[index]), count) if count else None
            decoded, _, shape = page.decode(data, index, **page.tables)
        except Exception as error:  # reason: decoders raise their own kinds, one per compression
            raise unreadable(self._path, error, "its pixels cannot be decoded") from error
        if decoded is None:  # a tile that was never written
            return np.full(shape[1:], page.fill)
        pixels: NDArray[Any] = decoded[0]
        return pixels


def _channel_pages(level: Any) -> tuple[Any, ...]:
    """Return the pages of all channels at the first position of every other axis."""
    page = level.keyframe
    leading = level.axes[: len(level.axes) - len(page.axes)]
    shape = level.shape[: len(leading)]
    numbers = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    first = numbers[tuple(slice(None) if axis == "C" else 0 for axis in leading)]
    return tuple(level.pages[int(i)] for i in np.atleast_1d(first))


def _is_plain(page: Any) -> bool:
    """Say whether tifffile decodes a page's tiles to the very pixels that OpenSlide gives."""
    return bool(
        page.is_tiled
        and page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == 1
        and int(page.photometric) in (2, 6)
        and int(page.compression) in _EXACT
        and all(page.databytecounts)  # OpenSlide draws missing tiles from other levels
    )
