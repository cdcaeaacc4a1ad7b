"""Access the arrays of an OME-Zarr in a folder or a zip archive (NGFF RFC-9, .ozx)."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from math import prod
from pathlib import Path, PureWindowsPath
from threading import Lock
from typing import TYPE_CHECKING, Any

from slidelens.errors import SlideError
from slidelens.files import is_folder
from slidelens.slide.reader import closed, unreadable
from slidelens.slide.zarr_bounds import Bounds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["LARGEST", "ZIP_MAGIC", "ZarrFolder", "ZarrZip", "attributes", "place_of"]

LARGEST = 1 << 30
"""Bytes that are read at a time."""
ZIP_MAGIC = b"PK\x03\x04"
_METADATA = ("zarr.json", ".zarray", ".zattrs")


class ZarrFolder:
    """A hierarchy of zarr groups and arrays in a folder.

    Parameters
    ----------
    path
        The opened path, for error messages.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._root = path.absolute()  # the process may work in another folder by the next read
        self.incomplete: set[str] = set()
        """Arrays that were read where a chunk is missing, which zarr fills."""

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Return the OME attributes of a group; empty if there are none."""
        return attributes(self._root / self._inside(group))

    def array(self, name: str) -> Any:
        """Open an array; if that is impossible, zarr's own exceptions are raised.

        Reading it raises ``SlideError`` once it is gone: to zarr all of its chunks are then empty.
        """
        from zarr.storage import LocalStore

        folder = self._root / self._inside(name)

        def note() -> None:
            if not any((folder / metadata).exists() for metadata in _METADATA):
                raise SlideError(
                    f"{self.path}: its array {name!r} is no longer there; open the slide again "
                    "when its disk or share is connected, or where it was moved to."
                )
            self.incomplete.add(name)

        return _array(self.path, LocalStore(folder, read_only=True), "", note)

    def is_empty(self, name: str) -> bool:
        """Return whether an array has no pixels at all."""
        return next(self._chunks(name), None) is None

    def stored(self, name: str) -> int:
        """Count the files (chunks or shards) that hold an array's pixels."""
        return sum(1 for _ in self._chunks(name))

    def close(self) -> None:
        """Close the open files; harmless when called twice."""

    def _chunks(self, name: str) -> Iterator[str]:
        try:
            yield from _chunks(self._root / name)
        except OSError as error:  # it is unreadable, or a link leads back to itself
            raise unreadable(self.path, error, "its chunks cannot be listed") from error

    def _inside(self, name: str) -> str:
        """Return the path of a group or array from the metadata; it must not lead outside.

        Raises
        ------
        SlideError
            It does: the slide would show what somebody else keeps elsewhere on this machine.
        """
        stated = PureWindowsPath(name)  # which knows slashes of both kinds
        if stated.anchor or ".." in stated.parts:
            raise SlideError(
                f"{self.path}: its OME-Zarr metadata name {name!r}, which is outside it; an "
                "image's arrays are read only from inside."
            )
        return name


class ZarrZip(ZarrFolder):
    """The same in one zip archive, which is read in place: nothing is unpacked.

    The hierarchy begins at the archive's top, as RFC-9 says, or in the folder that was zipped.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._store = _store_of(path)
        self._top = ""
        try:
            if not self.attributes():
                self._top = _first_folder(path)
        except BaseException:  # zarr keeps the file open, and Windows then lets nobody replace it
            with suppress(AttributeError):  # of a store that could not even be opened
                self.close()
            raise

    def attributes(self, group: str = "") -> dict[str, Any]:
        """Return the OME attributes of a group; empty where there is none."""
        import zarr
        from zarr.errors import ContainsArrayError

        where = self._where(group)
        try:
            found = zarr.open_group(self._store, path=where, mode="r").attrs.asdict()
        except (FileNotFoundError, ContainsArrayError):
            return {}
        except SlideError:
            raise
        except Exception as error:  # reason: damage raises zipfile's and zarr's exceptions
            what = "cannot be read as a zip archive of OME-Zarr"
            raise unreadable(self.path, error, what) from error
        ome = found.get("ome", found)
        return dict(ome) if isinstance(ome, dict) else {}

    def array(self, name: str) -> Any:
        """Open an array; if that is impossible, zarr's own exceptions are raised."""
        return _array(self.path, self._store, self._where(name), partial(self.incomplete.add, name))

    def is_empty(self, name: str) -> bool:  # noqa: ARG002  # one archive is copied, or not
        """Return False: a truncated archive does not open, as its index is at the end."""
        return False

    def stored(self, name: str) -> int:
        """Count the files (chunks or shards) that hold an array's pixels."""
        array = self.array(name)
        within = prod(array.shards) // prod(array.chunks) if array.shards else 1
        return int(array.nchunks_initialized) // within

    def close(self) -> None:
        """Close the archive; harmless when called twice."""
        self._store.close()

    def _where(self, name: str) -> str:
        return "/".join(part for part in (self._top, self._inside(name)) if part)


def place_of(path: Path) -> ZarrFolder:
    """Return the hierarchy in a folder or a zip archive."""
    return ZarrFolder(path) if path.is_dir() else ZarrZip(path)


def _store_of(path: Path) -> Any:
    """Return zarr's store for a zip archive, which stays closed after closing.

    Zarr's own store opens the archive again for a read under way, and leaves it open.
    """
    from zarr.storage import ZipStore

    class Store(ZipStore):
        def __init__(self) -> None:
            super().__init__(path, mode="r")
            self._closed, self._closing = False, Lock()

        def close(self) -> None:
            with self._closing:
                self._closed = True
                super().close()

        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            with self._closing:  # nothing in there blocks
                if self._closed:
                    raise closed(path)
                if byte_range is None and key in self._zf.NameToInfo:
                    size = self._zf.NameToInfo[key].file_size
                    if size > LARGEST:  # a few megabytes may inflate to all of the memory
                        raise SlideError(
                            f"{path}: {key} in it unpacks to {size:,} bytes, which no chunk of a "
                            f"slide has; expected at most {LARGEST:,}. Write it again with "
                            "smaller chunks."
                        )
                return await super().get(key, prototype, byte_range)

    return Store()


def _array(path: Path, store: Any, where: str, note: Callable[[], None]) -> Any:
    """Open an array of a store that calls ``note`` whenever a chunk is missing.

    Chunks that unpack to more than they can hold raise ``SlideError``, which names ``path``.
    """
    import zarr
    from zarr.storage import WrapperStore

    bounds: list[Bounds] = []

    class Watched(WrapperStore[Any]):
        async def get(self, key: str, prototype: Any, byte_range: Any = None) -> Any:
            return self._found(key, await self._store.get(key, prototype, byte_range), byte_range)

        def get_sync(self, key: str, *, byte_range: Any = None, **kwargs: Any) -> Any:  # zarr 3.4's
            found = self._store.get_sync(key, byte_range=byte_range, **kwargs)
            return self._found(key, found, byte_range)

        async def get_ranges(self, key: str, byte_ranges: Any, **kwargs: Any) -> Any:  # zarr 3.4's
            async for group in self._store.get_ranges(key, byte_ranges, **kwargs):
                for number, content in group:
                    self._found(key, content, byte_ranges[number])
                yield group

        def get_ranges_sync(self, key: str, byte_ranges: Any, **kwargs: Any) -> Any:
            found = self._store.get_ranges_sync(key, byte_ranges, **kwargs)
            return [(n, self._found(key, content, byte_ranges[n])) for n, content in found]

        def _found(self, key: str, content: Any, byte_range: Any) -> Any:
            if key.endswith(_METADATA):
                return content
            if content is None:
                note()
            elif bounds:
                bounds[0].check(key, content.as_numpy_array(), whole=byte_range is None)
            return content

    array = zarr.open_array(Watched(store), path=where, mode="r")
    bounds.append(Bounds(path, array))
    return array


def attributes(folder: Path) -> dict[str, Any]:
    """Return the OME attributes of a zarr group, version 0.4 or 0.5; empty for other folders.

    Raises
    ------
    SlideError
        They are damaged or unreadable.
    """
    for name, keys in (("zarr.json", ("attributes", "ome")), (".zattrs", ())):
        file = folder / name
        if is_folder(file) is not False:
            continue
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            for key in keys:
                found = found.get(key, {})
        except (OSError, ValueError, AttributeError) as error:
            raise unreadable(folder, error, f"its {name} cannot be read") from error
        return dict(found) if isinstance(found, dict) else {}
    return {}


def _chunks(folder: str | Path) -> Iterator[str]:
    """Yield the files of an array that hold pixels, the first at once, however many there are."""
    with os.scandir(folder) as found:
        for entry in found:
            if entry.is_dir():
                yield from _chunks(entry.path)
            elif not entry.name.startswith(".") and entry.name != "zarr.json":
                yield entry.path


def _first_folder(archive: Path) -> str:
    """Return the folder of the first file in a zip archive; empty: it is at the top."""
    with archive.open("rb") as file:
        head = file.read(30)  # its last fields: lengths of the name, and of what follows that
        name = file.read(int.from_bytes(head[26:28], "little")).decode(errors="replace")
    return name.split("/")[0] if "/" in name else ""
