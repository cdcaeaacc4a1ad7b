"""Canvases side by side, all looking at the same place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari.components import ViewerModel
from napari.qt import QtViewer
from qtpy.QtCore import QEvent, QObject, QPointF, Qt
from qtpy.QtGui import QColor, QPainter, QPen
from qtpy.QtWidgets import QGridLayout, QLabel, QVBoxLayout, QWidget

from slidelens.desktop.qt import Signal
from slidelens.desktop.shown import add_layer
from slidelens.desktop.window import camera, canvas_size, dress, overlays, put_in_box

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari
    from qtpy.QtGui import QPaintEvent

    from slidelens.desktop.comparing import Picture

__all__ = ["Canvases", "Cell"]

_CROSS = 21
_COLUMNS = 2


class Cell(QWidget):
    """One canvas with its title.

    Parameters
    ----------
    picture
        What it shows, with its title above.
    """

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        self.model = ViewerModel(title=picture.title)
        self.title = QLabel(picture.title)
        self.title.setAlignment(Qt.AlignmentFlag.AlignCenter)
        self.view = QtViewer(self.model)
        self.cross = _Cross(self.view.canvas.native)
        for data in picture.layers:
            add_layer(self.model, data)
        dress(self.model)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(2)
        layout.addWidget(self.title)
        layout.addWidget(self.view, 1)

    def point(self, position: tuple[float, ...] | None) -> None:
        """Show a cross at a position in napari's world; ``None`` hides it."""
        self.cross.setVisible(position is not None)
        if position is None:
            return
        look = camera(self.model)
        height, width = canvas_size(self.model)
        y, x = position[-2:]
        centre_y, centre_x = look.center[-2:]
        at = QPointF(
            width / 2 + (x - centre_x) * look.zoom, height / 2 + (y - centre_y) * look.zoom
        )
        self.cross.move((at - QPointF(_CROSS / 2, _CROSS / 2)).toPoint())

    def end(self) -> None:
        """Release canvas and layers."""
        self.model._layer_slicer.shutdown()
        self.model.layers.clear()
        self.view.close()


class Canvases(QWidget):
    """Two to four cells in place of the window's own canvas; their cameras move together.

    The window's viewer follows too, so that navigator, magnification and bookmarks keep working.

    Signals
    -------
    closed
        The cells are gone because their window is closing.
    """

    closed = Signal()

    def __init__(self, viewer: napari.Viewer) -> None:
        super().__init__()
        self._viewer = viewer
        self.cells: list[Cell] = []
        self._moving = False
        self._grid = QGridLayout(self)
        self._grid.setContentsMargins(0, 0, 0, 0)
        self._grid.setSpacing(4)
        window = viewer.window._qt_window
        window.centralWidget().layout().addWidget(self)
        window.installEventFilter(self)
        self.hide()
        for event in (camera(viewer).events.center, camera(viewer).events.zoom):
            event.connect(self._main_moved)

    def eventFilter(  # noqa: N802  # reason: Qt's name
        self, _window: QObject | None, event: QEvent | None
    ) -> bool:
        """Release the canvases before their window closes: napari counts them as its own."""
        if event is not None and event.type() == QEvent.Type.Close and self.cells:
            self.clear()
            self.closed.emit()
        return False

    def show_cells(self, pictures: Sequence[Picture]) -> None:
        """Show these instead of the window's canvas; what was in view stays in view."""
        self.clear()
        look = camera(self._viewer)
        look.zoom /= _COLUMNS
        for number, picture in enumerate(pictures):
            cell = Cell(picture)
            self.cells.append(cell)
            self._grid.addWidget(cell, number // _COLUMNS, number % _COLUMNS)
            bar, text = overlays(cell.model)  # once is enough, and they would cover each other
            bar.visible = number == len(pictures) - 1
            text.opacity = float(number == 0)
            put_in_box(text, number == 0)
            look = camera(cell.model)
            for event in (look.events.center, look.events.zoom):
                event.connect(self._cell_moved)
            cell.model.cursor.events.position.connect(self._pointed)
        self._own_canvas().hide()
        self.show()
        self._follow(camera(self._viewer))

    def clear(self) -> None:
        """Go back to the window's canvas."""
        cells, self.cells = self.cells, []
        if cells:
            camera(self._viewer).zoom *= _COLUMNS
        for cell in cells:
            cell.end()
            self._grid.removeWidget(cell)
            cell.setParent(None)
            cell.deleteLater()
        self.hide()
        own = self._own_canvas()
        own.show()
        own.canvas.native.update()  # vispy waits for a paint that it asked for while it was hidden

    def _own_canvas(self) -> Any:
        return self._viewer.window._qt_viewer

    def _main_moved(self) -> None:
        self._follow(camera(self._viewer))

    def _cell_moved(self, event: Any) -> None:
        self._follow(event.source)

    def _follow(self, source: Any) -> None:
        """Point all cameras where one is looking."""
        if self._moving or not self.cells:
            return
        self._moving = True
        try:
            for model in (self._viewer, *(cell.model for cell in self.cells)):
                own = camera(model)
                if own is not source:
                    own.center = source.center
                    own.zoom = source.zoom
        finally:
            self._moving = False

    def _pointed(self, event: Any) -> None:
        """Show the pointer's position in all other cells, and tell the window's viewer."""
        position = event.source.position
        self._viewer.cursor.position = position
        for cell in self.cells:
            cell.point(None if cell.model.cursor is event.source else position)


class _Cross(QWidget):
    """A small cross that ignores the mouse."""

    def __init__(self, parent: QWidget) -> None:
        super().__init__(parent)
        self.setFixedSize(_CROSS, _CROSS)
        self.setAttribute(Qt.WidgetAttribute.WA_TransparentForMouseEvents)
        self.hide()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint it yellow on black, visible on anything."""
        with QPainter(self) as painter:
            middle, end = _CROSS // 2, _CROSS - 1
            for color, width in (("#000000", 3), ("#f0e442", 1)):
                painter.setPen(QPen(QColor(color), width))
                painter.drawLine(middle, 0, middle, end)
                painter.drawLine(0, middle, end, middle)
