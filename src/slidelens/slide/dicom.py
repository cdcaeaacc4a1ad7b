"""Which DICOM files are one slide: the files of a series. OpenSlide reads everything else."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["INDEX", "dicom_files", "files_of_series", "series_in", "series_of"]

INDEX = "DICOMDIR"
"""Name of the index of a medium's DICOM files, which is one itself and holds no pixels."""

_BESIDE = {INDEX, "Thumbs.db", "desktop.ini"}
_HEAD = 1 << 16
_MAGIC_AT = slice(128, 132)
_SERIES = re.compile(rb"\x20\0\x0d\0UI..[\d.]+\0?\x20\0\x0e\0UI..([\d.]+)", re.DOTALL)
"""(0020,000D) StudyInstanceUID and (0020,000E) SeriesInstanceUID in explicit little endian.

A file's own stand side by side; one of a series alone may refer to another series.
"""


def dicom_files(folder: Path) -> list[Path]:
    """Return a folder's files, sorted, if all of them are DICOM; otherwise none.

    An index of them, and files that file browsers leave, are not counted.
    """
    kept = (p for p in folder.iterdir() if p.name not in _BESIDE and not p.name.startswith("."))
    files = sorted(path for path in kept if path.is_file())
    return files if all(_head(file) for file in files) else []


def series_in(folder: Path) -> dict[bytes | None, Path]:
    """Return the series in a folder whose files are all DICOM, each with its first file."""
    series: dict[bytes | None, Path] = {}
    for file in dicom_files(folder):
        series.setdefault(series_of(file), file)
    return series


def files_of_series(file: Path) -> list[Path]:
    """Return the files of a file's series, itself among them; they lie in its folder."""
    series = series_of(file)
    beside = (p for p in file.parent.iterdir() if p.name not in _BESIDE and p.is_file())
    return [file] if series is None else [p for p in beside if series_of(p) == series]


def series_of(file: Path) -> bytes | None:
    """Return the id of the series that a file belongs to; ``None`` if it does not state one."""
    found = _SERIES.search(_head(file, _HEAD))
    return found and found[1]


def _head(file: Path, size: int = _MAGIC_AT.stop) -> bytes:
    """Return the first bytes of a DICOM file; none of any other file."""
    with file.open("rb") as opened:
        head = opened.read(_MAGIC_AT.stop)
        return head + opened.read(size - len(head)) if head[_MAGIC_AT] == b"DICM" else b""
