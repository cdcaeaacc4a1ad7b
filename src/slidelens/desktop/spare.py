"""Free memory during hours of looking around in a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QObject, QTimer

from slidelens.nn.heap import HeapGuard

if TYPE_CHECKING:
    from slidelens.desktop.background import Background

__all__ = ["SpareMemory"]

_EVERY_MS = 3000
_COMES_AND_GOES = 128 << 20
"""Bytes that one move over the slide may take: tiles that are read, pictures that are drawn."""


class SpareMemory(QObject):
    """Returns free memory in the C library's heap to the system, now and then.

    Tiles and textures of a few megabytes come and go between small objects that stay, and glibc's
    heap grows around the holes: in some sessions, by 6 MB with every move over a slide. The work is
    done off the window's thread.
    """

    def __init__(self, background: Background, parent: QObject) -> None:
        super().__init__(parent)
        self._background, self._guard = background, HeapGuard()
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._look)
        self._timer.start(_EVERY_MS)

    def stop(self) -> None:
        """Stop looking."""
        self._timer.stop()

    def _look(self) -> None:
        if not self._background.busy:
            self._background.run(lambda: self._guard(_COMES_AND_GOES), lambda _: None)
