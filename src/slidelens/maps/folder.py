"""The folder of a result: which of its files are ours, and where one may be written."""

from __future__ import annotations

import errno
import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.files import is_litter, write_atomic
from slidelens.maps.schema import read_result_file

if TYPE_CHECKING:
    from slidelens.maps.schema import ResultFile

__all__ = [
    "FEATURES",
    "FILE",
    "MAPS",
    "REGIONS",
    "TILES",
    "TRAJECTORY",
    "cannot_write",
    "carry_over",
    "check_place",
    "check_same",
    "is_whole",
    "key_of",
    "restate_path",
    "sizes",
]

FILE, MAPS, TILES, REGIONS = "result.json", "maps.ome.zarr", "tiles.csv", "regions.geojson"
TRAJECTORY, FEATURES = "trajectory.json", "features.safetensors"
_OURS = frozenset({FILE, MAPS, TILES, REGIONS, TRAJECTORY, FEATURES})


def check_place(folder: Path) -> None:
    """Refuse a place where a result cannot be saved, before it is computed.

    Raises
    ------
    ResultError
        There is something else than a result, or its folder cannot be written.
    """
    try:
        if folder.is_symlink() and not folder.exists():
            raise ResultError(
                f"{folder}: is a link that leads nowhere, expected the folder of a result. Remove "
                "it, or choose another --out."
            )
        if folder.exists() and not _replaceable(folder):
            raise ResultError(
                f"{folder}: exists and is not a result, so it is not replaced. Choose "
                "another --out."
            )
        fault = _fault_above(folder)
    except OSError as error:
        raise cannot_write(folder, error) from error
    if fault:
        raise cannot_write(folder, OSError(fault, os.strerror(fault)))


def cannot_write(folder: Path, error: OSError) -> ResultError:
    """Return the error of a result that finds no place."""
    return ResultError(
        f"{folder}: cannot write the result ({error.strerror or error}). "
        "Free some space or choose another --out."
    )


def key_of(content: ResultFile) -> str:
    """Return what tells a result from any other that may take its folder; not its slide's path."""
    return content.model_dump_json(exclude={"slide": {"path"}})


def check_same(folder: Path, key: str) -> None:
    """Refuse to read more of a result whose folder holds another one by now.

    Raises
    ------
    ResultError
        It does, or it is gone.
    """
    if key_of(read_result_file(folder / FILE)) != key:
        raise ResultError(
            f"{folder}: was replaced by another result since this one was opened; open it again."
        )


def restate_path(folder: Path, path: Path) -> None:
    """State in a result where its slide lies now, if that can be written."""
    file, where = folder / FILE, str(path.absolute())
    with suppress(OSError):
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["slide"].get("path") != where:
            content["slide"]["path"] = where
            write_atomic(file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def sizes(folder: Path) -> dict[str, int]:
    """Return name and size in bytes of the parts of a result; of a folder that of all its files."""
    there = (folder / name for name in sorted(_OURS - {FILE}))
    return {path.name: _size(path) for path in there if path.exists()}


def is_whole(folder: Path, content: ResultFile) -> bool:
    """Return whether all is there that a folder's ``result.json`` states, nothing of it cut short.

    Old results, and those of other programs, state their maps only.
    """
    if not all((folder / one.path / "zarr.json").is_file() for one in content.maps):
        return False
    for name, size in (content.files or {}).items():
        path = folder / name
        # People edit regions, which makes that file shorter, too.
        if not path.exists() or (name != REGIONS and _size(path) < size):
            return False
    return True


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def carry_over(old: Path, new: Path) -> None:
    """Give the folder ``new`` what people put into ``old``, which it is to replace.

    Files are shared, or copied where they cannot be, so that the old folder stays whole.
    """
    for path in old.iterdir() if old.is_dir() else ():
        if path.name in _OURS or is_litter(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True, copy_function=_share)
        else:
            _share(path, new / path.name)


def _fault_above(folder: Path) -> int:
    """Return why nothing can be made beside ``folder``, an error number; 0 if it can."""
    above = next(path for path in folder.resolve().parents if path.exists())
    if not above.is_dir():
        return errno.ENOTDIR
    effective = os.access in os.supports_effective_ids
    may = os.access(above, os.W_OK | os.X_OK, effective_ids=effective)
    return 0 if may else errno.EACCES


def _share(source: str | Path, target: str | Path) -> None:
    try:
        if not Path(source).is_symlink():
            os.link(source, target)
            return
    except OSError:  # a file system without hard links
        pass
    shutil.copy2(source, target, follow_symlinks=False)


def _replaceable(path: Path) -> bool:
    if not path.is_dir():
        return False
    return (path / FILE).exists() or all(is_litter(inner.name) for inner in path.iterdir())
