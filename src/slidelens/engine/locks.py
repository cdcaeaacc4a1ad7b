"""Locks between processes; on file systems without locks, runs go on with a warning."""

from __future__ import annotations

import errno
import logging
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from slidelens.files import beside

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["claimed", "locked"]

log = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What Lustre, NFS and FUSE answer where they are mounted without locks."""

_told: set[Path] = set()  # folders without locks
_claimed: set[Path] = set()  # by this process


@contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[None]:
    """Hold a lock file; where the file system has no locks, warn once and go on without.

    Parameters
    ----------
    path
        The file; it stays. Its folder must be there.
    timeout
        Seconds to wait for whoever holds it; below 0 for as long as it takes.

    Raises
    ------
    filelock.Timeout
        Somebody else holds it.
    OSError
        The file cannot be written.
    """
    # A window may release it in another thread; another user of a shared folder may open it. A file
    # that only stands for a lock, which filelock makes where there are none, stays behind when its
    # process is killed, and all others wait.
    lock = FileLock(path, timeout, 0o666, thread_local=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if path.parent not in _told:
            log.warning(
                "%s: its file system has no locks (%s); other runs that write there are not seen",
                *(path.parent, error),
            )
            _told.add(path.parent)
    try:
        yield
    finally:
        lock.release()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim work that other processes may come upon, and tell whether it is ours to do.

    It is not while another process has claimed it; a process that dies loses its claims. Runs of
    one process do not keep each other from anything: the first may have been left half-way.

    Parameters
    ----------
    path
        What the work makes. Beside it a hidden file stands for the claim as long as that holds.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    file = beside(path.absolute(), "claim")  # claims of ours are known by their whole path
    if file in _claimed:
        yield True
        return
    with ExitStack() as held:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(file, 0))
        except Timeout:
            ours = False
        else:
            ours = True
            held.callback(_release, file)
            _claimed.add(file)
        yield ours


def _release(file: Path) -> None:
    """Take away what stands for a claim, while its lock still holds."""
    _claimed.discard(file)
    with suppress(OSError):  # Windows removes no file that is open; there the lock does it
        file.unlink()
