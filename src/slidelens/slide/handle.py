"""An OpenSlide handle shared by threads: freed once, and never during a read."""

from __future__ import annotations

from contextlib import contextmanager
from ctypes import c_void_p
from threading import Lock
from typing import TYPE_CHECKING

import openslide

from slidelens.slide.reader import closed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["Handle"]

# openslide-python's own close marks a slide as closed after it has freed it: Ctrl-C in between,
# and its destructor frees it again, which crashes the program.
_close = openslide.lowlevel._lib["openslide_close"]
_close.argtypes, _close.restype = (c_void_p,), None


class Handle:
    """An open slide; after closing, its last reader frees it.

    OpenSlide itself frees what another thread is reading, and the program crashes. If an interrupt
    leaves the count too high, only time is lost: the slide is freed with this object.

    Parameters
    ----------
    path
        The opened file, for error messages.
    slide
        The slide, which nobody else closes.
    """

    def __init__(self, path: Path, slide: openslide.OpenSlide) -> None:
        self._path = path
        self._slide: openslide.OpenSlide | None = slide
        self._closed = False
        self._readers = 0
        self._lock = Lock()

    @contextmanager
    def reading(self) -> Iterator[openslide.OpenSlide]:
        """Provide the slide for one read, which closing does not interrupt.

        Raises
        ------
        SlideError
            It is closed.
        """
        with self._lock:
            slide = self._slide
            if self._closed or slide is None:
                raise closed(self._path)
            self._readers += 1
        try:
            yield slide
        finally:
            with self._lock:
                self._readers -= 1
                self._free_unused()

    def close(self) -> None:
        """Allow no more reads; may be called more than once, and does not wait for readers."""
        with self._lock:
            self._closed = True
            self._free_unused()

    def _free_unused(self) -> None:
        """Free a closed slide without readers; the lock is held."""
        if not self._closed or self._readers or self._slide is None:
            return
        slide, self._slide = self._slide, None
        native = slide._osr
        native.invalidate()  # first: an interrupt between the two leaves it open, which is harmless
        _close(native._as_parameter_)
