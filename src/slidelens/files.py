"""Files and folders that appear whole or not at all.

What is being written lies beside its target as ``.<name>.tmp-<host>-<pid>-<random>``: hidden, on
the same file system, and known as a leftover once its process is dead; the next run clears those.
``<host>`` names the process ids' namespace too: containers of one machine number their own.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import cache
from glob import escape
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR
from typing import TYPE_CHECKING, BinaryIO
from uuid import uuid4

from slidelens.errors import ResultError, listed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping

__all__ = [
    "atomic_file",
    "beside",
    "is_folder",
    "is_litter",
    "is_temporary",
    "make_scratch",
    "meant",
    "names_folder",
    "remove_scratch",
    "staged",
    "staged_folder",
    "write_atomic",
    "write_together",
]

_active: set[Path] = set()  # what this process is writing now
_tidied: set[Path] = set()  # folders where this process has cleared the files of dead runs
_LITTER = {".DS_Store", "Thumbs.db", "desktop.ini"}
_TOLD = 3  # names of files that a message tells
_NOWHERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL}
"""No such path; EINVAL: on Windows there cannot be one of this name."""
_SYNCS = 16  # files that are put on the disk at a time
_LONG = 150  # bytes of a name; file systems take 255 in all
_ABANDONED_S = 7 * 24 * 3600  # a leftover of another machine, whose processes we cannot see


@contextmanager
def staged_folder(target: Path, holds: Collection[str] | None) -> Iterator[Path]:
    """Provide a new folder to fill, which replaces ``target`` when the block succeeds.

    The new folder is on the disk (fsync) before it gets its name, and is removed if the block
    raises. What was there before stays until then: the two change places in one step where the
    system can, else the old one is put back by the next run if this one dies in between.

    Parameters
    ----------
    holds
        Names of all that such a folder may hold. None: the caller knows that what is there is its
        own.

    Raises
    ------
    ResultError
        There is something else in ``target``, or it is a file: nobody's work is replaced.
    """
    target = target.absolute()  # "." has no name
    if target.is_symlink() and target.exists():  # what it leads to is replaced, and the link stays
        target = target.resolve()
    if holds is not None:
        _check_own(target, holds)
    target.parent.mkdir(parents=True, exist_ok=True)
    _clear_leftovers(target)
    staging = _beside(target, "tmp")
    _active.add(staging)
    try:
        staging.mkdir()
        yield staging
        _sync_tree(staging)
        _publish(staging, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)  # after a plain rename nothing is left here
        _active.discard(staging)


@contextmanager
def staged(target: Path) -> Iterator[Path]:
    """Provide a temporary path of the target's name, which becomes ``target`` at the end.

    What the block leaves beside that place, or writes before it raises, is removed.
    """
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = make_scratch(target.parent)
    try:
        place = scratch / target.name
        yield place
        _sync_tree(scratch)
        if place.is_file() and not target.is_dir():
            place.replace(target)
        else:
            _publish(place, target)
    finally:
        remove_scratch(scratch)


def _check_own(target: Path, holds: Collection[str]) -> None:
    if not target.exists():
        return
    if not target.is_dir():
        raise ResultError(f"{target}: is a file; expected a new folder, or one to replace.")
    names = sorted(path.name for path in target.iterdir())
    other = [name for name in names if name not in holds and not is_litter(name)]
    if other:
        raise ResultError(
            f"{target}: holds other files ({listed(other, _TOLD)}), which would be "
            "lost; give a new or an empty folder."
        )


def is_litter(name: str) -> bool:
    """Return whether a file of this name is one that file browsers leave in any folder."""
    return name in _LITTER or name.startswith("._")


def names_folder(path: str | Path) -> bool:
    """Return whether an output path names a folder: it exists as one, or ends in a slash.

    A :class:`~pathlib.Path` has lost the slash.
    """
    slashes = ("/", os.sep)
    return Path(path).is_dir() or (isinstance(path, str) and path.endswith(slashes))


def is_folder(path: Path) -> bool | None:
    """Return whether a path leads to a folder; ``None`` where it leads nowhere.

    Unlike those of :class:`~pathlib.Path`, whose answer depends on Python's version, it does not
    say that nothing is there where that cannot be known.

    Raises
    ------
    OSError
        A folder above it may not be looked into, or the name is too long.
    """
    try:
        return S_ISDIR(path.stat().st_mode)
    except ValueError:  # a name with a zero byte
        return None
    except OSError as error:
        if error.errno in _NOWHERE:
            return None
        raise


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, never sees half of it."""
    with atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def write_together(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write files that belong together, in order: where one finds no room, all stay as they were.

    ``files`` are contents by name. Others in the folder are kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    scratch = make_scratch(folder)
    try:
        for name, content in files.items():
            data = content.encode() if isinstance(content, str) else content
            (scratch / name).write_bytes(data)
        _sync_tree(scratch)
        for name in files:
            (scratch / name).replace(folder / name)
        _sync(folder)
    finally:
        remove_scratch(scratch)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Provide a file to write, which replaces ``path`` when the block succeeds.

    In a folder that is staged or scratch it is not put on the disk by itself.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _beside(path, "tmp")
    staged, writing = not _active.isdisjoint(path.parents), staging.absolute()
    if not staged:
        _clear_files(path.parent)
    _active.add(writing)
    try:
        with staging.open("xb") as file:
            yield file
            file.flush()
            if not staged or os.name == "nt":  # Windows syncs no folder
                os.fsync(file.fileno())
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)
        _active.discard(writing)


def make_scratch(parent: Path) -> Path:
    """Make a hidden folder for temporary files in ``parent``; those of dead runs are cleared."""
    target = parent.absolute() / "slidelens"  # what is active is known by its whole path
    _clear_leftovers(target)
    scratch = _beside(target, "tmp")
    _active.add(scratch)
    scratch.mkdir(0o700)
    return scratch


def remove_scratch(scratch: Path) -> None:
    """Remove what :func:`make_scratch` made."""
    shutil.rmtree(scratch, ignore_errors=True)
    _active.discard(scratch)


def _publish(staging: Path, target: Path) -> None:
    if not target.exists():
        try:
            staging.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise  # else another process has just made the same: take its place
        else:
            return
    if _exchange(staging, target):
        return
    old = _beside(target, "old")
    target.rename(old)
    try:
        staging.rename(target)
    except OSError:
        old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths atomically; False if the system or file system cannot."""
    import ctypes

    swap = 2  # RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS
    a, b = os.fsencode(one.absolute()), os.fsencode(other.absolute())
    system = platform.system()
    if system == "Linux":
        call = getattr(ctypes.CDLL(None), "renameat2", None)
        here = -100  # AT_FDCWD; the paths are absolute anyway
        return call is not None and call(here, a, here, b, swap) == 0
    if system == "Darwin":
        call = getattr(ctypes.CDLL(None), "renamex_np", None)
        return call is not None and call(a, b, swap) == 0
    return False


def _clear_leftovers(target: Path) -> None:
    """Remove what dead runs left beside ``target``; put its old folder back if it is missing."""
    name = _short(target.name)
    for leftover in target.parent.glob(f".{escape(name)}.*-*-*-*"):
        kind = _dead(leftover, name)
        if kind == "old" and not target.exists():
            leftover.rename(target)
        elif kind:
            shutil.rmtree(leftover, ignore_errors=True)


def _clear_files(folder: Path) -> None:
    """Remove what dead runs left of files in a folder; once, as many files may be written there."""
    folder = folder.absolute()
    if folder in _tidied:
        return
    _tidied.add(folder)
    for leftover in folder.glob(".*.tmp-*-*-*"):
        if _dead(leftover, leftover.name[1:].rpartition(".tmp-")[0]) and leftover.is_file():
            with suppress(OSError):  # another user's, or another run has just cleared it
                leftover.unlink()


def _dead(leftover: Path, name: str) -> str:
    """Return "tmp" or "old" for a leftover whose process is gone, else ""."""
    match = re.fullmatch(r"(tmp|old)-(\w+)-(\d+)-\w+", leftover.name[len(name) + 2 :])
    if match is None or leftover in _active:
        return ""
    kind, host, pid = match[1], match[2], int(match[3])
    if host != _host() or os.name == "nt":
        try:
            alive = time.time() - leftover.stat().st_mtime < _ABANDONED_S
        except FileNotFoundError:  # another run has just cleared it, or finished
            return ""
    else:
        alive = pid != os.getpid() and _runs(pid)
    return "" if alive else kind


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync_tree(folder: Path) -> None:
    paths = []
    for parent, _, names in os.walk(folder):
        paths += [os.path.join(parent, name) for name in names]  # noqa: PTH118  # os.walk gives strings
        paths.append(parent)
    with ThreadPoolExecutor(_SYNCS) as pool:  # what is asked for together the disk does at once
        for _ in pool.map(_sync, paths):
            pass


def _sync(path: Path | str) -> None:
    """Have the system put a file's content, or a folder's entries, on the disk."""
    if os.name == "nt":
        return  # Windows flushes what is renamed, and opens no folders
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot sync folders
            raise
    finally:
        os.close(handle)


def is_temporary(name: str) -> bool:
    """Return whether a name is one that we give to what is being written, replaced or deleted."""
    return bool(re.fullmatch(r"\.(.+\.(tmp|old)-\w+-\d+-\w+|deleted-.+)", name))


def meant(path: str) -> str:
    """Return the place that a path of what is being written stands for, to tell it to people."""
    return re.sub(r"\.([^/\\]+)\.(?:tmp|old)-\w+-\d+-\w+", r"\1", path)


def beside(target: Path, kind: str) -> Path:
    """Return a hidden place beside ``target``, of a ``kind``."""
    return target.with_name(f".{_short(target.name)}.{kind}")


def _beside(target: Path, kind: str) -> Path:
    return beside(target, f"{kind}-{_host()}-{os.getpid()}-{uuid4().hex[:8]}")


def _short(name: str) -> str:
    """Return a name that leaves room for more, in place of one that file systems just take."""
    data = os.fsencode(name)
    return name if len(data) <= _LONG else f"{name[:20]}~{sha256(data).hexdigest()[:16]}"


@cache
def _host() -> str:
    name = re.sub(r"\W", "", platform.node())[:16] or "localhost"
    try:
        namespace = str(Path("/proc/self/ns/pid").readlink())  # such as pid:[4026531836]
    except OSError:  # no Linux: no containers of one host name
        return name
    return name + re.sub(r"\D", "", namespace)
