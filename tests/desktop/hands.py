"""A person's hands: real Qt events on real widgets."""

from __future__ import annotations

from itertools import pairwise

from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtWidgets import QApplication, QWidget

LEFT, NONE = Qt.MouseButton.LeftButton, Qt.MouseButton.NoButton


def press(qtbot, button: QWidget) -> None:
    """Click a button."""
    assert button.isEnabled(), f"{button.text()!r} cannot be pressed"
    qtbot.mouseClick(button, LEFT)


def close_panel(qtbot, panel: QWidget) -> None:
    """Click the × of a panel's dock."""
    press(qtbot, panel.parentWidget().title.close_button)


def drag(widget: QWidget, *points: QPoint) -> None:
    """Press at the first point, move over the others, release at the last."""
    mouse(widget, QEvent.Type.MouseMove, points[0], NONE, NONE)
    mouse(widget, QEvent.Type.MouseButtonPress, points[0], LEFT, LEFT)
    for start, end in pairwise(points):
        for step in (0.5, 1.0):
            mouse(widget, QEvent.Type.MouseMove, start + (end - start) * step, NONE, LEFT)
    mouse(widget, QEvent.Type.MouseButtonRelease, points[-1], LEFT, NONE)


def click(widget: QWidget, point: QPoint) -> None:
    """Move somewhere and click."""
    drag(widget, point)


def double_click(widget: QWidget, point: QPoint) -> None:
    """Click twice, as one ends a polygon."""
    click(widget, point)
    mouse(widget, QEvent.Type.MouseButtonDblClick, point, LEFT, LEFT)
    mouse(widget, QEvent.Type.MouseButtonRelease, point, LEFT, NONE)


def mouse(widget: QWidget, kind: QEvent.Type, at: QPoint, button, buttons) -> None:
    """Send one event."""
    where = QPointF(widget.mapToGlobal(at))
    event = QMouseEvent(kind, QPointF(at), where, button, buttons, Qt.KeyboardModifier.NoModifier)
    QApplication.sendEvent(widget, event)
    QApplication.processEvents()


def canvas_of(viewer) -> QWidget:
    """What napari draws on."""
    return viewer.window._qt_viewer.canvas.native
