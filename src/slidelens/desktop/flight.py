"""Fly the camera to a place instead of jumping, so that users keep their bearings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QElapsedTimer, QObject, QTimer

from slidelens.desktop.state.viewport import Look
from slidelens.desktop.window import camera, canvas_size, look_at
from slidelens.desktop.windows import Flight

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

__all__ = ["CameraFlight"]

_FRAME_MS = 33
_MOST_S = 1.2


class CameraFlight(QObject):
    """Flies a viewer's camera.

    Parameters
    ----------
    viewer
        Gives the viewer whose camera flies.
    parent
        As of any ``QObject``.
    """

    def __init__(self, viewer: Callable[[], napari.Viewer], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._flight: Flight | None = None
        self._clock = QElapsedTimer()
        self._timer = QTimer(self)
        self._timer.setInterval(_FRAME_MS)
        self._timer.timeout.connect(self._tick)

    @property
    def flying(self) -> bool:
        """Whether the camera is moving."""
        return self._timer.isActive()

    def fly(self, look: Look) -> None:
        """Fly from where the camera is now; a flight under way ends there."""
        viewer = self._viewer()
        own = camera(viewer)
        here = Look(own.center[-2], own.center[-1], own.zoom)
        self._flight = Flight(here, look, max(min(canvas_size(viewer)), 2.0))
        self._clock.start()
        self._timer.start()

    def stop(self) -> None:
        """Stand still."""
        self._timer.stop()

    def _tick(self) -> None:
        assert self._flight is not None
        seconds = min(self._flight.seconds, _MOST_S)
        part = min(1.0, self._clock.elapsed() / 1000 / seconds)
        look_at(self._viewer(), self._flight.eased(part))
        if part >= 1:
            self.stop()
