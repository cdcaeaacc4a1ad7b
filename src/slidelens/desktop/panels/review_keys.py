"""Keys of the Review panel: in the panel itself and, while it is shown, on the picture."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence

from slidelens.desktop.keys import toggle
from slidelens.desktop.qt import Shortcut

if TYPE_CHECKING:
    from collections.abc import Callable

    from qtpy.QtWidgets import QWidget

    from slidelens.desktop.panels.review import ReviewPanel

__all__ = ["bind_keys", "give_keys_back", "take_keys"]


def bind_keys(panel: ReviewPanel) -> None:
    """Make keys work anywhere in the panel, except in text fields."""
    for key, by in (("Down", 1), ("Right", 1), ("Up", -1), ("Left", -1)):
        _bind(panel, key, partial(panel.step, by))
    for key, then in _deeds(panel).items():
        _bind(panel, key, then)
    _bind(panel.case.note, "Esc", panel.errors.tree.setFocus)


def take_keys(panel: ReviewPanel) -> None:
    """Take the keys on the picture too: whoever looks around there goes on without a click."""

    def forth(_viewer: Any) -> None:
        panel.step(1)

    def back(_viewer: Any) -> None:
        panel.step(-1)

    viewer = panel.bench.viewer
    for key, then in (("Right", forth), ("Left", back)):
        viewer.bind_key(key, then, overwrite=True)
    if not panel.lent:
        picture = viewer.window._qt_viewer
        panel.lent = [_bind(picture, key, then) for key, then in _deeds(panel).items()]
    for shortcut in panel.lent:
        shortcut.setEnabled(True)


def give_keys_back(panel: ReviewPanel) -> None:
    """Let the keys on the picture do what they do without the panel."""
    for key in ("Right", "Left"):
        panel.bench.viewer.bind_key(key, None)
    for shortcut in panel.lent:
        shortcut.setEnabled(False)


def _deeds(panel: ReviewPanel) -> dict[str, Callable[[], object]]:
    """Return what keys do."""
    case = panel.case
    why = {str(number): partial(case.choose_category, number) for number in range(10)}
    return {
        **why,
        "L": case.turn_label,
        "N": case.note.setFocus,
        "E": case.go_on,
        "H": partial(toggle, panel.bench),
        "Ctrl+Z": panel.undo,
    }


def _bind(widget: QWidget, key: str, then: Callable[[], object]) -> Any:
    shortcut = Shortcut(QKeySequence(key), widget)
    shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
    shortcut.activated.connect(then)
    return shortcut
