"""Detect a truncated TIFF before its missing tiles are read."""

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
_NDPI = 65420  # Hamamatsu's classic TIFF exceeds 4 GB with non-standard offsets
_DTYPES = {3: "u2", 4: "u4", 13: "u4", 16: "u8", 18: "u8"}


class _Layout(NamedTuple):
    """How a TIFF (False) or BigTIFF (True) writes its directories."""

    order: str
    big: bool

    @property
    def word(self) -> str:
        """Type of an offset in the file."""
        return self.order + ("u8" if self.big else "u4")

    @property
    def entries(self) -> np.dtype[np.void]:
        """Type of a directory's entries."""
        short = self.order + "u2"
        value = "V8" if self.big else "V4"
        return np.dtype([("tag", short), ("type", short), ("n", self.word), ("value", value)])


def check_complete(path: Path) -> None:
    """Check that all directories, tiles and strips of a TIFF lie within the file.

    Only directories are read. Hamamatsu's NDPI and other formats are not checked.

    Raises
    ------
    SlideError
        The file ends before its pixels do.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        magic = file.read(4)
        if magic not in TIFF_MAGIC:
            return
        layout = _Layout("<" if magic[:2] == b"II" else ">", big=b"+" in magic)
        wide = np.dtype(layout.word).itemsize
        head = _bytes(file, wide, wide, size)  # the offset of the first directory
        if head is None:
            raise _cut(path, 2 * wide, size)
        todo = [int(_numbers(head, layout.word)[0])]
        seen: set[int] = set()
        while todo:
            at = todo.pop()
            if at == 0 or at in seen:
                continue
            seen.add(at)
            directory = _directory(file, at, layout, size)
            if directory is None:
                raise SlideError(
                    f"{path}: is truncated or damaged: its directory at byte {at} reaches beyond "
                    f"the end of the file, at {size}; copy it again."
                )
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


def _bytes(file: BinaryIO, at: int, count: int, size: int) -> bytes | None:
    """Read ``count`` bytes; ``None`` if they lie beyond the ``size`` of the file.

    Damaged numbers may be too large for the system or for memory, so they are checked first.
    """
    if at + count > size:
        return None
    file.seek(at)
    raw = file.read(count)
    return raw if len(raw) == count else None


def _directory(
    file: BinaryIO, at: int, layout: _Layout, size: int
) -> tuple[dict[int, NDArray[np.unsignedinteger]], int] | None:
    """Read the integers of one directory and the offset of the next; ``None`` beyond the end."""
    wide = 8 if layout.big else 2
    counted = _bytes(file, at, wide, size)
    if counted is None:
        return None
    n = int(_numbers(counted, layout.order + ("u8" if layout.big else "u2"))[0])
    entries, word = layout.entries, np.dtype(layout.word)
    body = _bytes(file, at + wide, n * entries.itemsize + word.itemsize, size)
    if body is None:
        return None
    tags: dict[int, NDArray[np.unsignedinteger]] = {}
    for entry in np.frombuffer(body, entries, n):
        tag = int(entry["tag"])
        if tag not in (*_OFFSETS, *_COUNTS, _SUB_IFDS, _NDPI) or int(entry["type"]) not in _DTYPES:
            continue
        dtype = np.dtype(layout.order + _DTYPES[int(entry["type"])])
        length = int(entry["n"]) * dtype.itemsize
        raw: bytes | None = entry["value"].tobytes()[:length]
        if length > word.itemsize:
            where = int(_numbers(entry["value"].tobytes(), layout.word)[0])
            raw = _bytes(file, where, length, size)
        if raw is None:
            return None
        tags[tag] = np.frombuffer(raw, dtype)
    return tags, int(_numbers(body[-word.itemsize :], layout.word)[0])


def _pixels_end(tags: dict[int, NDArray[np.unsignedinteger]]) -> int:
    """Return the byte after the last tile or strip of a directory."""
    end = 0
    for where, length in zip(_OFFSETS, _COUNTS, strict=True):
        if where in tags and length in tags and len(tags[where]) == len(tags[length]):
            starts, counts = (tags[tag].astype(np.uint64) for tag in (where, length))
            # A damaged start near 2**64 would wrap around in the sum alone.
            end = max(end, *(int(part.max(initial=0)) for part in (starts + counts, starts)))
    return end


def _numbers(raw: bytes, dtype: str) -> NDArray[np.unsignedinteger]:
    return np.frombuffer(raw, dtype)
