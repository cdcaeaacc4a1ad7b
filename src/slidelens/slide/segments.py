"""Read TIFF tiles and strips: located by tifffile, decoded without a lock, cached."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tifffile

from slidelens.errors import SlideError, UnsupportedSlideError
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import new_owner, tile_cache
from slidelens.slide.complete import check_complete
from slidelens.slide.reader import Level, unreadable

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

__all__ = ["TiffPixels", "main_series", "open_tiff", "stored_levels"]

_MAX_SEGMENT = 1 << 30
_EXACT = {1, 5, 7, 8, 32946, 33005, 34925, 50000, 50001}
"""Compressions that decode to the same RGB as OpenSlide: none, LZW, JPEG, deflate, J2K RGB, ..."""
_PLAIN = {"generic", "uniform", "shaped"}
"""tifffile's names for TIFF whose writer it does not know."""
_JPEG = 7
"""The method that turns YCbCr into RGB."""


def open_tiff(path: Path) -> tifffile.TiffFile:
    """Open a TIFF and find its series.

    Raises
    ------
    SlideError
        The file is not TIFF, or is damaged.
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
    """Return the series with the most pixels, level 0 of the slide.

    If an OME-TIFF describes several files, series of other files are not considered.
    """
    own = [s for s in file.series if _lies_in(s, file)]
    return max(own or file.series, key=lambda s: s.keyframe.imagewidth * s.keyframe.imagelength)


def stored_levels(file: tifffile.TiffFile, series: Any) -> list[Any]:
    """Return the levels of an image, finest first, as tifffile's series.

    Those that tifffile finds, which are each 2, 3 or 4 times as small as the one before, and in
    TIFF without a vendor's header all others that state that they are the image reduced.
    """
    top = series.keyframe
    levels = list(series.levels)
    if series.kind in _PLAIN and top.parent is file:
        levels += [s for s in file.series if s is not series and _is_reduced(s, series)]
    return sorted(levels, key=lambda s: -s.keyframe.imagewidth)


def _is_reduced(series: Any, whole: Any) -> bool:
    page, top = series.keyframe, whole.keyframe
    small, large = (page.imagewidth, page.imagelength), (top.imagewidth, top.imagelength)
    same = ("dtype", "photometric", "samplesperpixel", "planarconfig", "is_tiled", "extrasamples")
    return bool(
        page.is_reduced
        and series.axes == whole.axes
        and all(getattr(page, name) == getattr(top, name) for name in same)
        and len(series.pages) == len(whole.pages)
        and small[0] < large[0]
        and abs(small[0] * large[1] - small[1] * large[0]) <= 2 * max(large)  # to 2 px
    )


def _lies_in(series: Any, file: tifffile.TiffFile) -> bool:
    if not series.is_multifile:
        return series.keyframe.parent is file
    return any(page is not None and page.parent is file for page in series)


@dataclass(frozen=True, slots=True)
class _Page:
    """A page's segments, and the file that contains them, taken from tifffile's page.

    tifffile's page reads tags on first use, and is not thread-safe while it does.
    """

    file: _File
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    decode: Callable[..., Any]
    tables: dict[str, bytes | None]
    fill: np.generic

    @classmethod
    def of(cls, page: Any, file: _File, white: bool) -> _Page:
        keyframe = page.keyframe
        jpeg = int(keyframe.compression) in (6, 7, 34892)
        dtype = keyframe.dtype
        full = np.iinfo(dtype).max if white and dtype.kind == "u" else keyframe.nodata
        return cls(
            file,
            np.array(page.dataoffsets, np.int64),
            np.array(page.databytecounts, np.int64),
            page.decode,
            {"jpegtables": page.jpegtables} if jpeg else {},
            dtype.type(full),
        )


@dataclass(frozen=True, slots=True)
class _Store:
    """Where the pixels of one level are: pages with segments, or one array."""

    pages: tuple[_Page, ...]
    block: tuple[int, int]
    columns: int
    rows: int
    planes: int
    array: _Array | None


class _File:
    """A file that threads read at any position; closed when the last of them releases it.

    If the system can read at a position, there is no lock: threads would queue for one, and each
    would wait for the interpreter's lock while it holds it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
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


@dataclass(frozen=True, slots=True)
class _Array:
    """Uncompressed pixels in one piece, in the order of tifffile's ``axes``.

    They are not mapped into memory: a map of a file that is cut, or whose share goes away, ends the
    process.
    """

    file: _File
    dtype: np.dtype[Any]
    offset: int
    axes: str
    shape: tuple[int, ...]

    def read(self, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        """Read ``(h, w, C)``, of other axes than channels the first position."""
        at = self.axes.index("Y")
        rows, columns, *within = self.shape[at:]
        kept = tuple(slice(None) if axis in "YXSC" else 0 for axis in self.axes)
        planes = np.arange(prod(self.shape[:at])).reshape(self.shape[:at])[kept[:at]]
        pixel = self.dtype.itemsize * prod(within)
        starts = [
            self.offset + ((plane * rows + row) * columns + x) * pixel
            for plane in planes.ravel().tolist()
            for row in range(y, y + h)
        ]
        try:
            data = bytearray().join([self.file.read(start, w * pixel) for start in starts])
        except OSError as error:
            raise unreadable(self.file.path, error, "its pixels cannot be read") from error
        if len(data) < len(starts) * w * pixel:
            raise _ends_early(self.file.path)
        pixels = np.frombuffer(data, self.dtype).reshape(*planes.shape, h, w, *within)
        axes = [axis for axis in self.axes if axis in "YXSC"]
        order = [axes.index(axis) for axis in "YXSC" if axis in axes]
        first = pixels[(..., *kept[at:])]
        return first.transpose(order).reshape(h, w, -1)


class TiffPixels:
    """The levels of one TIFF series, readable box by box.

    Parameters
    ----------
    path, file
        The open file; it may be closed afterwards.
    levels
        tifffile's series, one per level; ``None`` for a level to leave out.
    white
        Whether tiles that were never written are white: they are in colour images.
    """

    def __init__(
        self, path: Path, file: tifffile.TiffFile, levels: list[Any | None], *, white: bool = False
    ) -> None:
        self._path = path
        self._white = white
        self._real_path: str = file.filehandle.path
        self._in_one_file = not any(s is not None and s.is_multifile for s in levels)
        self._owner = new_owner()
        opened = cache(self._open)
        self._stores = [None if s is None else self._store(s, opened) for s in levels]

    @classmethod
    def matching(cls, path: Path, levels: tuple[Level, ...]) -> Self | None:
        """Open the tiles of a slide that OpenSlide describes; ``None`` if no level is plain RGB."""
        with open_tiff(path) as file:
            pages = [(s.keyframe, s) for s in stored_levels(file, main_series(file))]
            plain = [(p, s) for p, s in pages if p.parent is file and _is_plain(p)]
            found = {(p.imagewidth, p.imagelength): s for p, s in plain}
            matches = [found.get((level.size.width, level.size.height)) for level in levels]
            return cls(path, file, matches) if any(matches) else None

    @property
    def files(self) -> set[Path]:
        """The files that hold segments."""
        stores = (store for store in self._stores if store is not None)
        return {page.file.path for store in stores for page in store.pages}

    def has(self, level: int) -> bool:
        """Return whether this level can be read here."""
        return self._stores[level] is not None

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        """Read ``(h, w, C)`` as stored, a box inside the level; ``SlideError`` after closing."""
        store = self._stores[level]
        if store is None:
            raise SlideError(f"{self._path}: was closed while it was read.")
        if store.array is not None:
            return store.array.read(x, y, w, h)
        return read_blocks(
            tile_cache(),
            (self._owner, level),
            lambda row, column: self._decode(store, row, column),
            store.block,
            (x, y, w, h),
        )

    def close(self) -> None:
        """Close the files and forget their tiles."""
        self._stores = [None] * len(self._stores)  # reads under way are completed
        tile_cache().drop(self._owner)

    def _store(self, level: Any, opened: Callable[[Path], _File]) -> _Store:
        page = level.keyframe
        array = self._array(level, opened)
        pages = self._pages(level, opened) if array is None else ()
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

    def _pages(self, level: Any, opened: Callable[[Path], _File]) -> tuple[_Page, ...]:
        """Collect the pages of all channels; those of an OME-TIFF may be in several files."""
        pages = _channel_pages(level)
        if any(page is None for page in pages):
            raise SlideError(
                f"{self._path}: some of its channels are missing; put all files of this OME-TIFF "
                "into one folder, or copy them again."
            )
        if not self._in_one_file and len({page.keyframe.hash for page in pages}) > 1:
            raise UnsupportedSlideError(
                f"{self._path}: the files of this OME-TIFF store their pixels in different ways, "
                "which cannot be read together; convert them to one OME-TIFF."
            )
        return tuple(_Page.of(page, opened(self._path_of(page)), self._white) for page in pages)

    def _path_of(self, page: Any) -> Path:
        """Return the file that contains a page, the one that was opened by its given name."""
        found = page.parent.filehandle.path
        return self._path if found == self._real_path else Path(found)

    def _open(self, path: Path) -> _File:
        if path != self._path:
            check_complete(path)
        return _File(path)

    def _array(self, level: Any, opened: Callable[[Path], _File]) -> _Array | None:
        """Return the pixels of a level if they are stored uncompressed in one piece."""
        page = level.keyframe
        if not self._in_one_file or level.dataoffset is None or page.is_tiled:
            return None
        dtype = page.dtype.newbyteorder(page.parent.byteorder)
        path = self._path_of(page)
        if path.stat().st_size < level.dataoffset + prod(level.shape) * dtype.itemsize:
            raise _ends_early(path)
        return _Array(opened(path), dtype, level.dataoffset, level.axes, level.shape)

    def _decode(self, store: _Store, row: int, column: int) -> NDArray[Any]:
        """Decode one tile or strip of every channel: ``(bh, bw, C)``."""
        index = row * store.columns + column
        parts = [
            _segment(page, plane * store.rows * store.columns + index)
            for page in store.pages
            for plane in range(store.planes)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)


def _ends_early(path: Path) -> SlideError:
    return SlideError(
        f"{path}: ends before its pixels do: it was cut, or is replaced; copy it again."
    )


def _segment(page: _Page, index: int) -> NDArray[Any]:
    count = int(page.counts[index])
    try:
        data = page.file.read(int(page.offsets[index]), count) if count else None
        decoded, _, shape = page.decode(data, index, **page.tables)
    except Exception as error:  # reason: decoders raise their own exceptions, one per compression
        raise unreadable(page.file.path, error, "its pixels cannot be decoded") from error
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
    """Return whether tifffile decodes a page's tiles to exactly the pixels that OpenSlide gives."""
    return bool(
        page.is_tiled
        and page.dtype == np.uint8
        and page.samplesperpixel == 3
        and page.planarconfig == 1
        and int(page.photometric) in ((2, 6) if int(page.compression) == _JPEG else (2,))
        and int(page.compression) in _EXACT
        and all(page.databytecounts)  # OpenSlide draws missing tiles from other levels
    )
