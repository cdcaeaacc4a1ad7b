"""The whole slide with a box around the current view; click or drag to move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QPointF, QRectF, QSize, Qt
from qtpy.QtGui import QColor, QPainter, QPen
from qtpy.QtWidgets import QSizePolicy, QWidget

from slidelens.desktop.panels.drawing import to_image
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.viewport import Overview

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray
    from qtpy.QtGui import QImage, QMouseEvent, QPaintEvent

    from slidelens.desktop.shown import ShownSlide
    from slidelens.geometry import Box

__all__ = ["OverviewView"]

_HEIGHT = 190
_YELLOW, _BLACK, _MARK = "#f0e442", "#000000", "#d55e00"
_LEAST = 7.0  # px: a smaller box would be invisible


class OverviewView(QWidget):
    """A map of the slide.

    Signals
    -------
    chosen
        x and y in level-0 px, where the pointer was pressed or dragged to.
    """

    chosen = Signal(float, float)

    def __init__(self) -> None:
        super().__init__()
        self.setMinimumHeight(_HEIGHT)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)
        self.setAccessibleName("Overview of the slide")
        self.setToolTip("The whole slide; click or drag to move")
        self._slide: ShownSlide | None = None
        self._image: QImage | None = None
        self._seen: Box | None = None
        self._marks: tuple[tuple[float, float], ...] = ()

    def sizeHint(self) -> QSize:  # noqa: N802  # reason: Qt's name
        """Return a size at which tissue is recognisable."""
        return QSize(320, _HEIGHT)

    def show_slide(self, slide: ShownSlide | None) -> None:
        """Take another slide; its picture follows by :meth:`show_pixels`."""
        self._slide, self._image, self._seen, self._marks = slide, None, None, ()
        self.setCursor(Qt.CursorShape.CrossCursor if slide else Qt.CursorShape.ArrowCursor)
        self.update()

    def show_pixels(self, pixels: NDArray[np.uint8]) -> None:
        """Take the slide's picture, ``(H, W, 3)``."""
        self._image = to_image(pixels)
        self.update()

    def show_box(self, box: Box) -> None:
        """Draw the box that is visible in the window, in level-0 px."""
        self._seen = box
        self.update()

    def show_marks(self, places: Sequence[tuple[float, float]]) -> None:
        """Draw bookmarks, x and y in level-0 px."""
        self._marks = tuple(places)
        self.update()

    @property
    def frame(self) -> Overview | None:
        """The slide's position in this widget."""
        slide = self._slide
        if slide is None:
            return None
        return Overview.of(slide.size, slide.world, (self.width(), self.height()))

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint slide, bookmarks and box."""
        frame, slide = self.frame, self._slide
        if frame is None or slide is None:
            return
        with QPainter(self) as painter:
            painter.setRenderHint(QPainter.RenderHint.SmoothPixmapTransform)
            x, y, w, h = frame.box(slide.box)
            if self._image is None:
                painter.fillRect(QRectF(x, y, w, h), QColor("#e8e8e8"))
            else:
                painter.drawImage(QRectF(x, y, w, h), self._image)
            painter.setRenderHint(QPainter.RenderHint.Antialiasing)
            painter.setPen(QPen(QColor(_BLACK), 1))
            painter.setBrush(QColor(_MARK))
            for place in self._marks:
                at = QPointF(frame.x + place[0] * frame.scale_x, frame.y + place[1] * frame.scale_y)
                painter.drawEllipse(at, 4, 4)
            if self._seen is not None:
                self._draw_box(painter, frame.box(self._seen))

    def _draw_box(self, painter: QPainter, seen: Box) -> None:
        """Draw it yellow on black, large enough to be found."""
        wide, high = max(seen.w, _LEAST), max(seen.h, _LEAST)
        middle = QPointF(seen.x + seen.w / 2, seen.y + seen.h / 2)
        area = QRectF(middle.x() - wide / 2, middle.y() - high / 2, wide, high)
        area = area.intersected(QRectF(self.rect()).adjusted(2, 2, -2, -2))
        painter.setBrush(Qt.BrushStyle.NoBrush)
        for color, width in ((_BLACK, 4), (_YELLOW, 2)):
            painter.setPen(QPen(QColor(color), width))
            painter.drawRect(area)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Go to the pressed position."""
        self._choose(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Follow while a button is down: Qt reports no other moves."""
        self._choose(event)

    def _choose(self, event: QMouseEvent) -> None:
        frame, slide = self.frame, self._slide
        if frame is None or slide is None:
            return
        x, y = frame.point(event.position().x(), event.position().y())
        self.chosen.emit(min(max(x, 0.0), slide.size[0]), min(max(y, 0.0), slide.size[1]))
