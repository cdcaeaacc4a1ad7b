"""Find out that a TIFF was cut off, before its missing tiles are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import numpy as np

from slidelens.errors import SlideError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TIFF_MAGIC", "check_complete"]

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_OFFSETS, _COUNTS, _SUB_IFDS = (273, 324), (279, 325), 330
_NDPI = 65420  # Hamamatsu's classic TIFF reaches over 4 GB with offsets of its own making
_DTYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


class _Layout(NamedTuple):
    """How a TIFF (False) or BigTIFF (True) writes its directories."""

    order: str
    big: bool

    @property
    def word(self) -> str:
        """Type of a place in the file."""
        return self.order + ("u8" if self.big else "u4")

    @property
    def entries(self) -> np.dtype[np.void]:
        """Type of a directory's entries."""
        short = self.order + "u2"
        value = "V8" if self.big else "V4"
        return np.dtype([("tag", short), ("type", short), ("n", self.word), ("value", value)])


def check_complete(path: Path) -> None:
    """Make sure that all directories, tiles and strips of a TIFF lie within the file.

    Only directories are read. Hamamatsu's NDPI, and what is no TIFF, is not judged.

    Raises
    ------
    SlideError
        A file that ends before its pixels do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(16)
        if not head.startswith(TIFF_MAGIC):
            return
        order = "<" if head[:2] == b"II" else ">"
        layout = _Layout(order, big=b"+" in head[2:4])
        todo = [int(_numbers(head[8:16] if layout.big else head[4:8], layout.word)[0])]
        seen: set[int] = set()
        while todo:
            at = todo.pop()
            if at == 0 or at in seen:
                continue
            seen.add(at)
            directory = _directory(file, at, layout)
            if directory is None:
                raise _cut(path, at, size)
            tags, following = directory
            if _NDPI in tags:
                return
            todo += [following, *map(int, tags.get(_SUB_IFDS, ()))]
            end = _pixels_end(tags)
            if end > size:
                raise _cut(path, end, size)


def _cut(path: Path, end: int, size: int) -> SlideError:
    return SlideError(
        f"{path}: is truncated: its content reaches to byte {end}, the file ends at {size}; "
        "copy it again."
    )


def _directory(
    file: BinaryIO, at: int, layout: _Layout
) -> tuple[dict[int, NDArray[np.unsignedinteger]], int] | None:
    """Read the integers of one directory and the place of the next; ``None`` beyond the end."""
    wide = 8 if layout.big else 2
    file.seek(at)
    counted = file.read(wide)
    if len(counted) < wide:
        return None
    n = int(_numbers(counted, layout.order + ("u8" if layout.big else "u2"))[0])
    entries, word = layout.entries, np.dtype(layout.word)
    body = file.read(n * entries.itemsize + word.itemsize)
    if len(body) < n * entries.itemsize + word.itemsize:
        return None
    tags: dict[int, NDArray[np.unsignedinteger]] = {}
    for entry in np.frombuffer(body, entries, n):
        tag = int(entry["tag"])
        if tag not in (*_OFFSETS, *_COUNTS, _SUB_IFDS, _NDPI) or int(entry["type"]) not in _DTYPES:
            continue
        dtype = np.dtype(layout.order + _DTYPES[int(entry["type"])])
        length = int(entry["n"]) * dtype.itemsize
        raw = entry["value"].tobytes()[:length]
        if length > word.itemsize:
            file.seek(int(_numbers(entry["value"].tobytes(), layout.word)[0]))
            raw = file.read(length)
        if len(raw) < length:
            return None
        tags[tag] = np.frombuffer(raw, dtype)
    return tags, int(_numbers(body[-word.itemsize :], layout.word)[0])


def _pixels_end(tags: dict[int, NDArray[np.unsignedinteger]]) -> int:
    """Return the byte after the last tile or strip of a directory."""
    end = 0
    for where, length in zip(_OFFSETS, _COUNTS, strict=True):
        if where in tags and length in tags and len(tags[where]) == len(tags[length]):
            ends = tags[where].astype(np.uint64) + tags[length].astype(np.uint64)
            end = max(end, int(ends.max(initial=0)))
    return end


def _numbers(raw: bytes, dtype: str) -> NDArray[np.unsignedinteger]:
    return np.frombuffer(raw, dtype)
