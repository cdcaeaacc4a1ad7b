"""Free memory of the C library's heap: what is kept for the next step, and what is returned."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from mmap import PAGESIZE
from pathlib import Path
from typing import Any

__all__ = ["HeapGuard", "keep_pages", "resident", "trim_heap"]

_LEAST = 320 << 20
"""Bytes of growth that are never worth a trim in the midst of work. With 192 MB, streaming
ResNet-18 to layer2 by tiles of 512 px trimmed 17 times a step: a fifth of its time."""
_LEFT = 64 << 20
"""Growth in bytes that is worth a trim at the end of the work."""
_STATM = Path("/proc/self/statm")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""What ``mallopt`` calls them, in glibc's ``malloc.h``."""
_TUNED = tuple(
    f"MALLOC_{name}_" for name in ("TRIM_THRESHOLD", "MMAP_THRESHOLD", "MMAP_MAX", "TOP_PAD")
)
"""Environment variables by which a user decides what glibc keeps."""


class HeapGuard:
    """Trims the heap when the process has grown by much more than it needs.

    A tile's feature maps are allocated between small long-lived objects and fragment glibc's heap:
    streaming ResNet-18 to layer2 held 600 MB with 260 MB in use. Returned pages cost time when they
    are needed again, so the heap is trimmed only after many have piled up.
    """

    def __init__(self) -> None:
        self._low: int | None = None
        keep_pages()

    def __call__(self, need: int, *, last: bool = False) -> None:
        """Trim the heap if necessary; does nothing without ``/proc``.

        ``need`` is the number of bytes allocated and freed repeatedly; ``last`` is whether the
        work has ended.
        """
        now = resident()
        if now is None:
            return
        if self._low is None or now < self._low:
            self._low = now
        elif now - self._low > (_LEFT if last else max(need, _LEAST)):
            trim_heap()
            self._low = resident()


@cache
def keep_pages() -> None:
    """Let glibc keep the pages of feature maps from one layer to the next.

    glibc returns the free end of a heap once it is twice as large as the largest block that it has
    mapped and freed so far. So chance decided whether feature maps of a few megabytes kept their
    pages: SqueezeNet on 1800 tiles faulted in 0.1 to 1 million of them again, up to a third of the
    run's time. Now it always keeps 64 MB at the end of each thread's heap, as it does by itself
    after a block of almost 32 MB. Larger blocks have pages of their own, as before.

    Does nothing the second time, where the C library is not glibc, or where the user has set what
    glibc keeps (``MALLOC_TRIM_THRESHOLD_`` and the like).
    """
    mallopt = _of_glibc("mallopt")
    tuned = any(os.environ.get(name) for name in _TUNED)
    if mallopt is None or tuned or "glibc.malloc." in os.environ.get("GLIBC_TUNABLES", ""):
        return
    # Both, since either one stops glibc from moving the other.
    mallopt(_MMAP_THRESHOLD, 32 << 20)
    mallopt(_TRIM_THRESHOLD, 64 << 20)


def trim_heap() -> None:
    """Return free pages to the system; does nothing if the C library is not glibc."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def resident() -> int | None:
    """Resident memory of the process in bytes; ``None`` without ``/proc``."""
    try:
        # Few calls of the system: after each, a thread waits until readers leave it Python's lock.
        with _STATM.open("rb", buffering=0) as file:
            return int(file.read(256).split()[1]) * PAGESIZE
    except OSError:
        return None


@cache
def _of_glibc(name: str) -> Any:
    """Return a function of the C library; ``None`` where that is not glibc."""
    try:
        library = ctypes.CDLL(None)
        return getattr(library, name, None) if hasattr(library, "gnu_get_libc_version") else None
    except (OSError, TypeError):  # Windows: no handle of the process itself
        return None
