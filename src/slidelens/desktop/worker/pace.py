"""Limit how often progress is reported."""

from __future__ import annotations

from time import perf_counter

__all__ = ["Pace"]

_EVERY = 0.15  # seconds between two progress messages


class Pace:
    """Lets through what is new, and otherwise one message in a while."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()
        self._time = 0.0

    def due(self, *where: object) -> bool:
        """Return whether to report progress now."""
        now = perf_counter()
        if where == self._last and now - self._time < _EVERY:
            return False
        self._last, self._time = where, now
        return True
