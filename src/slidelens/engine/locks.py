"""Locks between processes, for folders on file systems that may have none."""

from __future__ import annotations

import errno
import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["locked"]

log = logging.getLogger(__name__)

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK}
"""What Lustre, NFS and FUSE answer where they are mounted without locks."""

_told: set[Path] = set()


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
    lock = FileLock(path, timeout, thread_local=False)  # a window may release it in another thread
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        if path not in _told:
            log.warning(
                "%s: its file system has no locks (%s); let no other run write there meanwhile",
                *(path.parent, error),
            )
            _told.add(path)
    try:
        yield
    finally:
        lock.release()
