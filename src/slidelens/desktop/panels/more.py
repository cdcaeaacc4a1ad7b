"""The panels that plugins bring: what each is for, and a button to open it."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any, cast

from qtpy.QtWidgets import QWidget

from slidelens.desktop.panels.parts import Panel, button, caption, row
from slidelens.errors import PluginError
from slidelens.panels import PANELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.panels import PanelPlugin

__all__ = ["MorePanel", "make_plugin_panel", "make_widget"]

_NONE = (
    "No plugin brings a panel. How to write one: the page “Write a plugin” of the documentation."
)


class MorePanel(Panel):
    """Lists the panels of plugins; one that does not work says why and harms nothing."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.buttons: dict[str, QWidget] = {}
        names = PANELS.plugins()
        if not names:
            self.body.addWidget(caption(_NONE))
        for name in names:
            try:
                plugin = PANELS.get(name)
            except PluginError as error:
                self.body.addWidget(caption(f"<b>{escape(name)}</b><br>{escape(str(error))}"))
                continue
            text = f"<b>{escape(plugin.title)}</b><br>{escape(plugin.about)}"
            made = button("Open", f"Open {plugin.title}", partial(self.open, name))
            self.buttons[name] = made
            self.body.addLayout(row(caption(text), made, stretch=0))
        self.body.addStretch()

    def open(self, name: str) -> None:
        """Open a plugin's panel."""
        self.notice.say("")
        try:
            self.bench.open_plugin(name)
        except PluginError as error:
            self.notice.say(str(error), "error")


def make_plugin_panel(name: str, bench: Any) -> tuple[QWidget, str]:
    """Make the widget of an installed plugin's panel; return it with its title.

    Raises
    ------
    PluginError
        It does not load, raises while it is made, or is no widget.
    """
    plugin = PANELS.get(name)
    return make_widget(plugin, bench), plugin.title


def make_widget(plugin: PanelPlugin, bench: Any) -> QWidget:
    """Make the widget of a panel for a window's workbench.

    Raises
    ------
    PluginError
        It does not load, raises while it is made, or is no widget.
    """
    make = cast("Callable[[Any], object]", plugin.load())
    where = f"panel {plugin.name!r} ({plugin.widget})"
    try:
        widget = make(bench)
    except Exception as error:  # reason: a plugin may raise anything; the window must live on
        raise PluginError(
            f"{where} cannot be opened: {type(error).__name__}: {error}. "
            "Update or uninstall the package that brings it."
        ) from error
    if not isinstance(widget, QWidget):
        raise PluginError(f"{where} is a {type(widget).__name__}, expected a QWidget.")
    return widget
