"""Keys of the Review panel: in the panel itself, and the arrow keys on the picture."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence

from slidelens.desktop.qt import Shortcut

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.desktop.panels.review import ReviewPanel

__all__ = ["bind_keys", "give_arrows_back", "take_arrows"]


def bind_keys(panel: ReviewPanel) -> None:
    """Make keys work anywhere in the panel, except in text fields."""
    for key, by in (("Down", 1), ("Right", 1), ("Up", -1), ("Left", -1)):
        _bind(panel, key, partial(panel.step, by))
    for number in range(10):
        _bind(panel, str(number), partial(panel.case.choose_category, number))
    _bind(panel, "E", panel.case.go_on)
    _bind(panel, "Ctrl+Z", panel.undo)


def take_arrows(panel: ReviewPanel) -> None:
    """Step with the arrow keys on the picture too."""

    def forth(_viewer: Any) -> None:
        panel.step(1)

    def back(_viewer: Any) -> None:
        panel.step(-1)

    for key, then in (("Right", forth), ("Left", back)):
        panel.bench.viewer.bind_key(key, then, overwrite=True)


def give_arrows_back(panel: ReviewPanel) -> None:
    """Let the arrow keys on the picture do what they do without the panel."""
    for key in ("Right", "Left"):
        panel.bench.viewer.bind_key(key, None)


def _bind(panel: ReviewPanel, key: str, then: Callable[[], object]) -> None:
    shortcut = Shortcut(QKeySequence(key), panel)
    shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
    shortcut.activated.connect(then)
