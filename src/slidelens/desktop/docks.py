"""Place the panels in the window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from npe2 import PluginManager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QDockWidget, QWidget

from slidelens.desktop.qt import alive

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import napari

__all__ = ["PANELS", "arrange", "bring_forward", "dock_of", "keep"]

PANELS = {
    "run": "Run",
    "maps": "Maps",
    "compare": "Compare",
    "review": "Review",
    "train": "Train",
    "navigator": "Navigator",
    "slide": "Slide",
    "more": "More panels",
}
"""Key of each panel and its name in the manifest."""

_ABOVE = ("navigator",)
_SHARE = 0.45
"""Fraction of the window's height for the panel above"""


def arrange(window: Any, docks: Mapping[str, Any]) -> None:
    """Keep the Navigator in sight above; the other panels are tabs below it.

    Parameters
    ----------
    window
        napari's main window.
    docks
        Panels by key; those that the user has let float stay where they are.
    """
    here = {
        name: dock
        for name, dock in docks.items()
        if alive(dock) and not dock.isFloating() and dock.parent() is window
    }
    above = [dock for name, dock in here.items() if name in _ABOVE]
    below = [dock for name, dock in here.items() if name not in _ABOVE]
    if above and below:
        vertical = Qt.Orientation.Vertical
        window.splitDockWidget(above[0], below[0], vertical)
        high = window.height()
        shares = [round(high * _SHARE), round(high * (1 - _SHARE))]
        window.resizeDocks([above[0], below[0]], shares, vertical)
    for dock in below[1:]:
        window.tabifyDockWidget(below[0], dock)


def dock_of(viewer: napari.Viewer, name: str) -> Any:
    """Return the dock of a panel, made if necessary: the same one that the Plugins menu shows.

    napari's own `add_plugin_dock_widget` gives it another name than its menu does, so the menu
    would make a second one.
    """
    title = f"{PANELS[name]} (SlideLens)"
    for dock in viewer.window._qt_window.findChildren(QDockWidget):
        if dock.objectName().casefold() == title.casefold() and dock.widget() is not None:
            return dock
    brought = PluginManager.instance().get_manifest("slidelens").contributions.widgets or ()
    make = next(one for one in brought if one.display_name == PANELS[name]).get_callable()
    return viewer.window.add_dock_widget(make(viewer), name=title)


def keep(dock: Any, leave: Callable[[], object] = lambda: None) -> None:
    """Let napari's × hide a panel, which comes back as it was; harmless when called again.

    napari would remove the panel from its dock. Its runs and timers would then go on, unseen, and
    the next panel to be opened would know nothing of them.

    Parameters
    ----------
    dock
        napari's dock of the panel.
    leave
        Called before its × hides it.
    """

    def close() -> None:
        leave()
        dock.close()

    if "destroyOnClose" not in vars(dock):
        dock.destroyOnClose = close


def bring_forward(widget: QWidget) -> None:
    """Show the dock that a widget is in, in front of the others."""
    dock: QWidget | None = widget
    while dock is not None and not isinstance(dock, QDockWidget):
        dock = dock.parentWidget()
    if dock is not None:
        dock.show()
        dock.raise_()
