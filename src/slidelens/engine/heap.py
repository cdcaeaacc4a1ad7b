"""Give memory back to the system while a long run goes on."""

from __future__ import annotations

from slidelens.nn.heap import resident, trim_heap
from slidelens.slide.cache import tile_cache

__all__ = ["PER_READER", "HeapTrimmer"]

PER_READER = 64 << 20
"""Bytes of growth per thread that reads: each has an arena of the heap to itself, and while one is
trimmed no other goes on."""
_SETTLE = 3
"""Steps after which a process has again what a step needs."""


class HeapTrimmer:
    """Returns free heap pages to the system when a run has grown by ``growth`` bytes.

    Feature maps of a few megabytes come and go between small objects that stay, and glibc's heap
    grows around the holes: by 1.2 GB over 1800 tiles, of which 0.2 GB are in use. Mapping such
    blocks one by one instead (``M_MMAP_THRESHOLD``) costs 10 % of a run's time. What is given back
    is soon asked for again, and each page then costs a fault: twice a second that was up to 20 % of
    a run's time. So it is done when holes have piled up, and never for what every step needs: that
    is seen in the first steps after each time. Decoded tiles that are kept are no holes.
    """

    def __init__(self, growth: int = 2 * PER_READER) -> None:
        self._growth = growth
        self._settling, self._usual = _SETTLE, 0

    def __call__(self) -> None:
        """Look, after a step, and trim if need be; does nothing where there is no ``/proc``."""
        now = resident()
        if now is None:
            return
        now -= tile_cache().used
        if self._settling:
            self._settling -= 1
            self._usual = max(self._usual, now)
        elif now - self._usual > self._growth:
            self.now()
            self._settling, self._usual = _SETTLE, 0

    @staticmethod
    def now() -> None:
        """Trim; does nothing where the C library is not glibc."""
        trim_heap()
