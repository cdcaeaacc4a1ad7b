"""Play, step and seek through a trajectory, and click its windows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QElapsedTimer, Qt, QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSlider, QToolButton, QVBoxLayout, QWidget

from slidelens.desktop.qt import Signal, alive
from slidelens.desktop.shown import layers_of
from slidelens.desktop.window import canvas_size, look_at
from slidelens.desktop.windows import Tour, caption, window_at

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari

    from slidelens.desktop.state.viewport import Look
    from slidelens.desktop.world import World
    from slidelens.maps.trajectory import Trajectory

__all__ = ["TrajectoryPlayer"]

_FRAME_MS = 33


class TrajectoryPlayer(QWidget):
    """Flies a viewer's camera through the windows of a trajectory.

    Parameters
    ----------
    viewer
        Whose camera flies. A click on a window of the layer that
        :func:`~slidelens.desktop.windows.window_layers` made goes there, if that one is selected.
    parent
        As of any widget.

    Signals
    -------
    went
        Index of the window that the camera is at or flying to, whenever that changes.
    """

    went = Signal(int)

    def __init__(self, viewer: napari.Viewer, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._trajectory: Trajectory | None = None
        self._world: World | None = None
        self._tour: Tour | None = None
        self._clickable: list[Any] = []
        self._index = 0
        self._at = 0.0
        self._timer = QTimer(self)
        self._timer.setInterval(_FRAME_MS)
        self._timer.timeout.connect(self._tick)
        self._clock = QElapsedTimer()
        self._caption = QLabel(self)
        self._caption.setWordWrap(True)
        self._seek = QSlider(Qt.Orientation.Horizontal, self)
        self._seek.setAccessibleName("Window")
        self._seek.valueChanged.connect(self._sought)
        back = self._button("|◀", "Previous window", lambda: self.go(self._index - 1))
        self._play = self._button("▶", "Fly through all windows", self.toggle)
        forth = self._button("▶|", "Next window", lambda: self.go(self._index + 1))
        buttons = QHBoxLayout()
        for widget in (back, self._play, forth):
            buttons.addWidget(widget)
        buttons.addWidget(self._seek, 1)
        layout = QVBoxLayout(self)
        layout.addLayout(buttons)
        layout.addWidget(self._caption)
        self.show_trajectory(None, None)

    @property
    def playing(self) -> bool:
        """Whether the camera is flying."""
        return self._timer.isActive()

    def show_trajectory(
        self, trajectory: Trajectory | None, world: World | None, layer: Any = None
    ) -> None:
        """Take the windows of another slide in its world; none empties the player.

        Windows of ``layer`` can be clicked; by default those of every layer that shows them.
        """
        self.stop()
        for one in self._clickable:
            one.mouse_drag_callbacks.remove(self._clicked)
        self._clickable = []
        self._trajectory, self._world = trajectory, world
        self._index, self._at = 0, 0.0
        count = 0 if trajectory is None else len(trajectory.windows)
        self.setEnabled(count > 0 and world is not None)
        self._seek.blockSignals(True)
        self._seek.setRange(0, max(0, count - 1))
        self._seek.setValue(0)
        self._seek.blockSignals(False)
        self._caption.setText("This result has no trajectory." if trajectory is None else "")
        if trajectory is not None and count:
            self._caption.setText(caption(trajectory, 0))
            shown = layers_of(self._viewer, "windows")
            self._clickable = list(shown) if layer is None else [layer]
            for one in self._clickable:
                one.mouse_drag_callbacks.append(self._clicked)

    def go(self, index: int) -> None:
        """Stop, and look at one window."""
        self.stop()
        tour = self._make_tour()
        if tour is None:
            return
        index = min(max(index, 0), len(tour.looks) - 1)
        self._at = tour.starts[index]
        self._show(index, tour.looks[index])

    def toggle(self) -> None:
        """Fly, from the start again if at the end; or stop."""
        if self.playing:
            self.stop()
            return
        tour = self._make_tour()
        if tour is None:
            return
        if self._at >= tour.starts[-1]:
            self._at = 0.0
        self._tour = tour
        self._clock.start()
        self._timer.start()
        self._play.setText("❚❚")

    def stop(self) -> None:
        """Stand still."""
        self._timer.stop()
        self._play.setText("▶")

    def _tick(self) -> None:
        assert self._tour is not None
        self._at += self._clock.restart() / 1000
        self._show(*self._tour.at(self._at))
        if self._at >= self._tour.seconds:
            self.stop()

    def _show(self, index: int, look: Look) -> None:
        assert self._trajectory is not None
        look_at(self._viewer, look)
        if index == self._index:
            return
        self._index = index
        self._seek.blockSignals(True)
        self._seek.setValue(index)
        self._seek.blockSignals(False)
        self._caption.setText(caption(self._trajectory, index))
        self.went.emit(index)

    def _sought(self, index: int) -> None:
        self.go(index)

    def _clicked(self, _layer: Any, event: Any) -> Any:
        """Go to the smallest window under a click; a drag moves the view as always."""
        yield
        if event.type == "mouse_move" or not alive(self):
            return
        if self._trajectory is None or self._world is None:
            return
        x, y = self._world.to_level0(event.position[-2:])
        found = window_at(self._trajectory, float(x), float(y))
        if found is not None:
            self.go(found)

    def _make_tour(self) -> Tour | None:
        if self._trajectory is None or self._world is None or not self._trajectory.windows:
            return None
        return Tour(self._trajectory, self._world, canvas_size(self._viewer))

    def _button(self, text: str, tip: str, action: Callable[[], object]) -> QToolButton:
        button = QToolButton(self)
        button.setText(text)
        button.setToolTip(tip)
        button.setAccessibleName(tip)
        button.clicked.connect(action)
        return button
