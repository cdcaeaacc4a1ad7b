"""Open a slide with the backend that its content requires."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from slidelens.errors import PluginError, SlideError, SlideNotFoundError, UnsupportedSlideError
from slidelens.files import is_folder
from slidelens.registry import Registry
from slidelens.slide.base import Slide, slide_id
from slidelens.slide.plugin import PluginReader
from slidelens.slide.resolution import GivenMpp, resolve_mpp, table_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from slidelens.geometry import Mpp
    from slidelens.slide.reader import Facts, Reader

__all__ = ["READERS", "SLIDE_SUFFIXES", "GivenMpp", "is_slide", "open_slide", "why_absent"]

READERS: Registry[type[Reader]] = Registry(
    "slidelens.slides",
    "slidelens.slide.reader:Reader",
    {
        "omezarr": "slidelens.slide.omezarr:OmeZarrReader",
        "openslide": "slidelens.slide.openslide:OpenSlideReader",
        "tifffile": "slidelens.slide.tiff:TiffReader",
    },
)
"""Backends in the order in which they are tried; plugins come after the built-ins."""

SLIDE_SUFFIXES = (
    *(".svs", ".tif", ".tiff", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".svslide", ".bif"),
    *(".dcm", ".qptiff", ".btf", ".tf8", ".zarr", ".zarr.zip", ".ozx"),
)
"""Extensions that slides usually have, for names and lists; what a file is, its content says."""

_HEAD = 1024
_LARGEST = 1 << 44
"""Pixels: a square metre of glass at 0.25 µm/px."""
_CONVERT = "which no backend reads; convert it to OME-TIFF"
_KNOWN = {
    b"\x89PNG": "a PNG picture, not a slide",
    b"\xff\xd8\xff": "a JPEG picture, not a slide",
    b"PK\x03\x04": "a zip archive: unpack it and open what it holds",
    b"<DataObject": f"a Philips iSyntax, {_CONVERT}",
    b"\x70\0\0\0\x2a": f"a Leica LIF, {_CONVERT}",
    b"\x89HDF": f"an HDF5 file, {_CONVERT}",
}
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+:/", re.IGNORECASE)
_READS = "SVS, NDPI, MRXS, SCN, BIF, DICOM, TIFF, OME-TIFF, QPTIFF and OME-Zarr"


def open_slide(
    path: str | os.PathLike[str],
    *,
    mpp: GivenMpp = None,
    backend: str | None = None,
    icc: bool = False,
) -> Slide:
    """Open a whole-slide image without decoding pixels.

    Parameters
    ----------
    path
        A slide file; a DICOM series by its folder or any of its files; an OME-Zarr folder or zip
        archive.
    mpp
        Resolution in µm per level-0 px, if the file states none or a wrong one: a number, a pair
        (x, y), the path of a CSV with columns ``slide,mpp``, or ``"from-objective"`` (10 divided
        by the objective power, only for files that state no resolution).
    backend
        Name of the backend; default: chosen by the content of the file.
    icc
        Convert pixels to sRGB by the embedded ICC profile, if there is one.

    Raises
    ------
    SlideNotFoundError
        No such file or folder.
    UnsupportedSlideError
        No backend reads the format.
    SlideError
        The file cannot be opened, or the path is not valid text.
    MissingMppError
        ``mpp="from-objective"`` and the file states no objective power.
    """
    start, where = perf_counter(), Path(path)
    _check_name(where)
    name = _choose(where, backend)
    slide = _opened(where, name, icc, lambda f: resolve_mpp(f, where, slide_id(where), mpp))
    if slide.mpp is None:
        slide.without_row = table_of(mpp)
    slide.open_seconds = perf_counter() - start
    return slide


def _opened(
    path: Path,
    backend: str,
    icc: bool,
    resolve: Callable[[Facts], tuple[Mpp | None, str | None]] = lambda _: (None, None),
) -> Slide:
    if backend in READERS.plugins():
        reader: Reader = PluginReader(path, READERS, backend)
    else:
        reader = READERS.get(backend)(path)
    try:
        _check_size(reader.facts, path)
        found, source = resolve(reader.facts)
        colour = None
        if icc:
            from slidelens.slide.icc import srgb_transform

            colour = srgb_transform(reader.icc_profile(), path)
    except BaseException:
        reader.close()
        raise
    slide = Slide(reader, path, mpp=found, mpp_source=source, colour=colour)
    slide.reopen = partial(_opened, path.absolute(), backend, icc)
    return slide


def _check_size(facts: Facts, path: Path) -> None:
    width, height = facts.levels[0].size
    if width * height > _LARGEST:
        raise SlideError(
            f"{path}: states {width} x {height} px; no scanner makes that many, so the file is "
            "damaged, or is no slide."
        )


def is_slide(path: str | os.PathLike[str]) -> bool:
    """Return whether a backend accepts a file or folder; damage may only show when it is read."""
    where = Path(path)
    try:
        _choose(where, None)
    except SlideError:
        return False
    return True


def why_absent(path: str | os.PathLike[str]) -> str | None:
    """Return why there is nothing at a path; ``None`` if there is, or it is unreadable."""
    where = Path(path)
    try:
        return _absent(where) if is_folder(where) is None else None
    except OSError:  # opening it says so
        return None


def _check_name(path: Path) -> None:
    """Refuse a path that no result could state: its bytes are not UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode(errors="backslashreplace").decode()
        raise SlideError(
            f"{shown}: the path is not valid UTF-8 text, so no result could state it; rename the "
            "file, or the folder whose name it is."
        ) from error


def _choose(path: Path, backend: str | None) -> str:
    """Return the backend that is named, or the name of the first that accepts the content."""
    head = _head(path)
    if backend is not None:
        if backend not in READERS:
            known = ", ".join(READERS)
            raise SlideError(f"no slide backend {backend!r}; there are: {known}.")
        return backend
    faults = []
    for name in READERS:
        try:
            if _takes(name, path, head):
                return name
        except PluginError as error:  # the others are asked nevertheless
            faults.append(f" {error}")
    what = _folder_is(path) if path.is_dir() else _looks_like(head)
    raise UnsupportedSlideError(f"{path}: {what}; slidelens reads {_READS}.{''.join(faults)}")


def _takes(name: str, path: Path, head: bytes) -> bool:
    """Ask one backend whether it reads a file.

    Raises
    ------
    PluginError
        The plugin does not load, or raises instead of answering.
    """
    reader = READERS.get(name)
    if name not in READERS.plugins():
        try:
            return reader.sniff(path, head)
        except PermissionError as error:  # the contents of a folder
            raise _barred(path, error) from error
    try:
        return reader.sniff(path, head)
    except (Exception, SystemExit) as error:  # reason: a plugin may raise anything
        raise PluginError(
            f"plugin {name!r} (group {READERS.group}) failed on it: {type(error).__name__}: "
            f"{error}."
        ) from error


def _head(path: Path) -> bytes:
    try:
        folder = is_folder(path)
        if folder:
            return b""
        if folder is False:
            with path.open("rb") as file:
                return file.read(_HEAD)
    except OSError as error:  # it, or a folder above it, is unreadable; or the name is too long
        raise _barred(path, error) from error
    raise SlideNotFoundError(_absent(path))


def _absent(path: Path) -> str:
    if _ADDRESS.match(str(path)):
        return (
            f"{path}: is an address; slides are read from files and folders, and nothing is "
            "fetched: download it, or mount its location."
        )
    return f"{path}: no such file or folder."


def _barred(path: Path, error: OSError) -> SlideError:
    return SlideError(
        f"{path}: cannot be read ({error.strerror or error}); check the path, and that you may "
        "read it and the folders it lies in."
    )


def _folder_is(path: Path) -> str:
    """Describe what an unsupported folder seems to be."""
    from slidelens.slide.omezarr import what_is

    if dicom := min(path.glob("*.dcm"), default=None):
        return f"a folder that holds more than DICOM files: open one of these, such as {dicom.name}"
    return what_is(path) or "a folder that holds no DICOM or OME-Zarr slide"


def _looks_like(head: bytes) -> str:
    """Describe what an unsupported file seems to be."""
    if not head:
        return "an empty file, not a slide"
    for magic, name in _KNOWN.items():
        if head.startswith(magic):
            return name
    if b"\0" not in head:
        return "looks like text, not a slide, whatever its extension"
    return "not a slide format that any backend knows, or damaged at its beginning"
