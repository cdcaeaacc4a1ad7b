"""Keys of the Review panel: in the panel itself and, while it is shown, on the picture."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from napari.layers import Labels, Points, Shapes
from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence

from slidelens.desktop.keys import toggle
from slidelens.desktop.qt import Shortcut
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtWidgets import QWidget

    from slidelens.desktop.panels.review import ReviewPanel

__all__ = ["PictureKeys", "bind_keys"]


def bind_keys(panel: ReviewPanel) -> None:
    """Make keys work anywhere in the panel, except in text fields."""
    for key, by in (("Down", 1), ("Right", 1), ("Up", -1), ("Left", -1)):
        _bind(panel, key, partial(panel.step, by))
    for key, then in _deeds(panel).items():
        _bind(panel, key, then)
    _bind(panel.case.note, "Esc", panel.errors.tree.setFocus)


class PictureKeys:
    """Keys on the picture while the panel is shown: who looks around there goes on without a click.

    Those of a layer that the user edits, such as outlines, stay the layer's.
    """

    def __init__(self, panel: ReviewPanel) -> None:
        self._panel = panel
        self._lent: list[Any] = []

    def take(self) -> None:
        """Take the keys."""
        viewer, step = self._panel.bench.viewer, self._panel.step

        def forth(_viewer: Any) -> None:
            step(1)

        def back(_viewer: Any) -> None:
            step(-1)

        for key, then in (("Right", forth), ("Left", back)):
            viewer.bind_key(key, then, overwrite=True)
        if not self._lent:
            picture = viewer.window._qt_viewer
            self._lent = [_bind(picture, key, then) for key, then in _deeds(self._panel).items()]
        viewer.layers.selection.events.active.connect(self._lend)
        self._lend()

    def give_back(self) -> None:
        """Let the keys do what they do without the panel."""
        viewer = self._panel.bench.viewer
        for key in ("Right", "Left"):
            viewer.bind_key(key, None)
        viewer.layers.selection.events.active.disconnect(self._lend)
        for shortcut in self._lent:
            shortcut.setEnabled(False)

    def _lend(self) -> None:
        if self._panel.bench.closed:  # layers go with the window
            return
        layer = self._panel.bench.viewer.layers.selection.active
        drawn = isinstance(layer, Labels | Points | Shapes)
        edited = drawn and described(layer.metadata).get("layer") in (None, "annotations")
        for shortcut in self._lent:
            shortcut.setEnabled(not edited)


def _deeds(panel: ReviewPanel) -> dict[str, Callable[[], object]]:
    """Return what keys do."""
    case = panel.case
    why = {str(number): partial(case.choose_category, number) for number in range(10)}
    return {
        **why,
        "L": case.turn_label,
        "N": case.take_note,
        "E": case.go_on,
        "H": partial(toggle, panel.bench),
        "Ctrl+Z": panel.undo,
    }


def _bind(widget: QWidget, key: str, then: Callable[[], object]) -> Any:
    shortcut = Shortcut(QKeySequence(key), widget)
    shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
    shortcut.activated.connect(then)
    return shortcut
