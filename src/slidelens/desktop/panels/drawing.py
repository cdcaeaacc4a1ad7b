"""Small plots in panels: histograms with a threshold, colour scales, curves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from qtpy.QtCore import QPointF, QRectF, Qt
from qtpy.QtGui import QBrush, QColor, QImage, QPainter, QPalette, QPen, QPolygonF
from qtpy.QtWidgets import QSizePolicy, QWidget

from slidelens.desktop.qt import Signal

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from qtpy.QtGui import QMouseEvent, QPaintEvent

    from slidelens.desktop.display import Histogram, Legend
    from slidelens.desktop.state.train import Split

__all__ = ["Curve", "Curves", "HistogramView", "LegendView", "SplitView", "to_image"]

_BLUE, _ORANGE = "#56b4e9", "#e69f00"  # for training, for tuning
_FAINT, _BAR = "#6b7280", "#7c9cb8"


def to_image(pixels: NDArray[np.uint8]) -> QImage:
    """Return RGB or RGBA pixels ``(H, W, 3 or 4)`` as Qt's image; it owns a copy."""
    height, width, channels = pixels.shape
    form = QImage.Format.Format_RGB888 if channels == 3 else QImage.Format.Format_RGBA8888
    data = np.ascontiguousarray(pixels)
    return QImage(data.data, width, height, channels * width, form).copy()


class _Picture(QWidget):
    """A painted widget that is as wide as possible."""

    def __init__(self, height: int) -> None:
        super().__init__()
        self.setFixedHeight(height)
        self.setSizePolicy(QSizePolicy.Policy.Expanding, QSizePolicy.Policy.Fixed)

    @property
    def ink(self) -> QColor:
        """The colour of text, in napari's dark theme and in its light one."""
        return self.palette().color(QPalette.ColorRole.WindowText)


class HistogramView(_Picture):
    """How often values occur, on a logarithmic scale; click or drag to set the threshold.

    Signals
    -------
    chosen
        The value under the pointer.
    """

    chosen = Signal(float)

    def __init__(self) -> None:
        super().__init__(84)
        self.setToolTip("Histogram of the values; drag to hide lower ones")
        self.setAccessibleName("Histogram")
        self.setCursor(Qt.CursorShape.SplitHCursor)
        self._histogram: Histogram | None = None
        self._threshold = 0.0

    def show_histogram(self, histogram: Histogram | None) -> None:
        """Show other values."""
        self._histogram = histogram
        self.update()

    def set_threshold(self, value: float) -> None:
        """Move the line."""
        self._threshold = value
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint the bars, the line and the ends of the scale."""
        with QPainter(self) as painter:
            area = QRectF(self.rect()).adjusted(2, 2, -2, -16)
            painter.setPen(QPen(QColor(_FAINT)))
            painter.drawRect(area)
            found = self._histogram
            if found is None or not found.total:
                text = "" if found is None else "no values yet"
                painter.drawText(area, Qt.AlignmentFlag.AlignCenter, text)
                return
            low, high = float(found.edges[0]), float(found.edges[-1])
            heights = np.log1p(found.counts) / np.log1p(found.counts.max())
            step = area.width() / len(heights)
            at = (self._threshold - low) / (high - low)
            for number, share in enumerate(heights.tolist()):
                hidden = (number + 0.5) / len(heights) < at
                bar = QRectF(area.left() + number * step, 0, step, share * (area.height() - 2))
                bar.moveBottom(area.bottom())
                painter.fillRect(bar, QBrush(QColor(_FAINT if hidden else _BAR)))
            painter.setPen(QPen(self.ink, 2))
            x = area.left() + at * area.width()
            painter.drawLine(QPointF(x, area.top()), QPointF(x, area.bottom()))
            painter.setPen(self.ink)
            _ends(painter, QRectF(self.rect()).adjusted(2, 0, -2, 0), low, high)

    def mousePressEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Take the value that was clicked."""
        self._choose(event)

    def mouseMoveEvent(self, event: QMouseEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Follow the pointer while a button is down."""
        self._choose(event)

    def _choose(self, event: QMouseEvent) -> None:
        found = self._histogram
        if found is None or self.width() <= 4:
            return
        at = min(max((event.position().x() - 2) / (self.width() - 4), 0.0), 1.0)
        low, high = float(found.edges[0]), float(found.edges[-1])
        self.chosen.emit(low + at * (high - low))


class LegendView(_Picture):
    """A scale of colours with its ends, or classes with their colours."""

    def __init__(self) -> None:
        super().__init__(40)
        self._legend: Legend | None = None
        self.setToolTip("What the colours mean")

    def show_legend(self, legend: Legend | None) -> None:
        """Show another legend."""
        self._legend = legend
        lines = 1 if legend is None or legend.table is not None else len(legend.classes)
        self.setFixedHeight(18 + 20 * lines)
        self.setAccessibleName("" if legend is None else f"Legend of {legend.title}")
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint the scale or the list."""
        legend = self._legend
        if legend is None:
            return
        with QPainter(self) as painter:
            painter.setPen(self.ink)
            width = float(self.width())
            left = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter
            if legend.table is not None:
                pixels = _on_pink(legend.table)[None]
                painter.drawImage(QRectF(2, 2, width - 4, 16), to_image(pixels))
                area = QRectF(2, 0, width - 4, self.height())
                _ends(painter, area, legend.low, legend.high, over=legend.over)
                return
            for number, (name, color) in enumerate(legend.classes):
                painter.fillRect(QRectF(2, 4 + 20 * number, 14, 14), QColor(*color))
                painter.drawText(QRectF(22, 2 + 20 * number, width - 24, 18), left, name)


@dataclass(frozen=True)
class Curve:
    """One line of a chart; ``None`` in ``values`` leaves a gap."""

    name: str
    color: str
    values: Sequence[float | None]


class Curves(_Picture):
    """Curves over epochs, as they come.

    Parameters
    ----------
    title
        Label of the vertical axis.
    low, high
        Ends of the scale; ``None`` follows the values.
    """

    def __init__(self, title: str, low: float | None = None, high: float | None = None) -> None:
        super().__init__(120)
        self._title, self._low, self._high = title, low, high
        self._curves: tuple[Curve, ...] = ()
        self.setAccessibleName(title)

    @property
    def curves(self) -> tuple[Curve, ...]:
        """What is shown."""
        return self._curves

    def show_curves(self, curves: Sequence[Curve]) -> None:
        """Show other curves."""
        self._curves = tuple(curves)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint frame, ends of the scale, curves with a dot per value, and their names."""
        with QPainter(self) as painter:
            known = [v for curve in self._curves for v in curve.values if v is not None]
            low, high = self._scale(known)
            measure = painter.fontMetrics().horizontalAdvance
            wide = max(38, *(measure(f"{value:.2g}") for value in (low, high)))
            area = QRectF(self.rect()).adjusted(wide + 6, 20, -6, -6)
            painter.setPen(QColor(_FAINT))
            painter.drawRect(area)
            painter.setPen(self.ink)
            painter.drawText(QPointF(4, 14), self._title)
            if not known:
                painter.drawText(area, Qt.AlignmentFlag.AlignCenter, "after the first epoch")
                return
            for value, y in ((high, area.top() + 10), (low, area.bottom())):
                painter.drawText(QRectF(2, y - 12, wide, 14), _right(), f"{value:.2g}")
            self._draw(painter, area, low, high)

    def _scale(self, known: Sequence[float]) -> tuple[float, float]:
        """Return the lowest and highest value of the scale."""
        low = min(known, default=0.0) if self._low is None else self._low
        high = max(known, default=1.0) if self._high is None else self._high
        return low, high if high > low else low + 1

    def _draw(self, painter: QPainter, area: QRectF, low: float, high: float) -> None:
        painter.setRenderHint(QPainter.RenderHint.Antialiasing)
        count = max(len(curve.values) for curve in self._curves)
        name_at = area.right()
        for curve in reversed(self._curves):
            painter.setPen(QPen(QColor(curve.color), 2))
            painter.setBrush(QColor(curve.color))
            points = [
                QPointF(
                    area.left() + (number + 0.5) / count * area.width(),
                    area.bottom() - (value - low) / (high - low) * area.height(),
                )
                for number, value in enumerate(curve.values)
                if value is not None
            ]
            painter.drawPolyline(QPolygonF(points))
            for point in points:
                painter.drawEllipse(point, 2, 2)
            width = painter.fontMetrics().horizontalAdvance(curve.name)
            name_at -= width
            painter.setPen(self.ink)
            painter.drawText(QPointF(name_at, 14), curve.name)
            name_at -= 14
            painter.fillRect(QRectF(name_at, 7, 10, 4), QColor(curve.color))
            name_at -= 12


class SplitView(_Picture):
    """Number of slides of each class for training and for tuning."""

    def __init__(self) -> None:
        super().__init__(0)
        self._split: Split | None = None
        self.setToolTip("Slides to learn from (blue) and to tune on (orange), by class")

    def show_split(self, split: Split | None) -> None:
        """Show another split."""
        self._split = split
        self.setFixedHeight(0 if split is None else 20 * len(split.classes) + 4)
        self.setAccessibleName("" if split is None else split.text)
        self.update()

    def paintEvent(self, event: QPaintEvent) -> None:  # noqa: ARG002, N802  # reason: Qt's
        """Paint a bar per class: name, training slides, tuning slides."""
        split = self._split
        if split is None:
            return
        with QPainter(self) as painter:
            names = painter.fontMetrics()
            left = 8 + max(names.horizontalAdvance(name) for name in split.classes)
            room = self.width() - left - 4
            most = max(a + b for a, b in zip(split.train, split.tune, strict=True)) or 1
            for number, name in enumerate(split.classes):
                y = 2 + 20 * number
                painter.setPen(self.ink)
                painter.drawText(QRectF(2, y, left - 8, 18), _right(), name)
                x = float(left)
                for count, color in ((split.train[number], _BLUE), (split.tune[number], _ORANGE)):
                    bar = QRectF(x, y, count / most * room, 17)
                    painter.fillRect(bar, QColor(color))
                    painter.setPen(QColor("#101418"))
                    if count:
                        painter.drawText(bar, Qt.AlignmentFlag.AlignCenter, str(count))
                    x = bar.right()


def _ends(painter: QPainter, area: QRectF, low: float, high: float, *, over: bool = False) -> None:
    bottom = Qt.AlignmentFlag.AlignBottom
    painter.drawText(area, bottom | Qt.AlignmentFlag.AlignLeft, f"{low:.3g}")
    end = f"{'≥ ' if over else ''}{high:.3g}"
    painter.drawText(area, bottom | Qt.AlignmentFlag.AlignRight, end)


def _right() -> Qt.AlignmentFlag:
    return Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter


def _on_pink(table: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Paint a scale over the pink of stained tissue, as it looks on a slide."""
    alpha = table[:, 3:]
    under = np.array([0.91, 0.75, 0.85], np.float32)
    return np.asarray((table[:, :3] * alpha + under * (1 - alpha)) * 255, np.uint8)
