"""Give memory back to the system while a long run goes on."""

from __future__ import annotations

from functools import cache

from slidelens.nn.heap import keep_pages, resident, trim_heap
from slidelens.slide.cache import tile_cache

__all__ = ["PER_READER", "HeapTrimmer", "heap_trimmer"]

PER_READER = 48 << 20
"""Bytes of growth per thread that reads: each has an arena of the heap to itself, and while one is
trimmed no other goes on. With two readers and 64 MB each, 4.3 gigapixels took up to 13 % more
memory than 203 megapixels; with 32 MB they were trimmed four times as often."""
_SETTLE = 3
"""Steps after which a process has again what a step needs."""


class HeapTrimmer:
    """Returns free heap pages to the system when the process has grown by much since it settled.

    Feature maps of a few megabytes come and go between small objects that stay, and glibc's heap
    grows around the holes: by 1.2 GB over 1800 tiles, of which 0.2 GB are in use. Mapping such
    blocks one by one instead (``M_MMAP_THRESHOLD``) costs 10 % of a run's time. What is given back
    is soon asked for again, and each page then costs a fault: twice a second that was up to 20 % of
    a run's time, and twice a slide up to 10 %. So it is done when holes have piled up, and never
    for what every step needs: that is seen in the first steps after each time. Decoded tiles that
    are kept are no holes, nor is the room of those of the slide before: the next one's fill it.

    A streamed trunk has another rule (:class:`~slidelens.nn.heap.HeapGuard`): it looks within a
    step, where holes pile up from tile to tile, and knows what a tile needs. So it compares with
    the least that was held, and has no steps to see first what is usual.
    """

    def __init__(self) -> None:
        keep_pages()
        self._settling, self._usual, self._tiles = _SETTLE, 0, 0

    def __call__(self, growth: int) -> None:
        """Look, after a step, and trim if need be; does nothing where there is no ``/proc``.

        ``growth`` is how many bytes are much.
        """
        now = resident()
        if now is None:
            return
        self._tiles = max(self._tiles, tile_cache().used)
        now -= self._tiles
        if self._settling > 0:
            self._settling -= 1
            self._usual = max(self._usual, now)
        elif now - self._usual > growth:
            self.now()

    def now(self) -> None:
        """Trim; does nothing where the C library is not glibc."""
        trim_heap()
        self._settling, self._usual, self._tiles = _SETTLE, 0, tile_cache().used


@cache
def heap_trimmer() -> HeapTrimmer:
    """Return the one of this process: a slide needs again what the one before it needed."""
    return HeapTrimmer()
