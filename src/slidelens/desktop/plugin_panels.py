"""Make the widgets of panels that plugins bring."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from qtpy.QtWidgets import QWidget

from slidelens.errors import PluginError
from slidelens.panels import PANELS

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.panels import PanelPlugin

__all__ = ["make_plugin_panel", "make_widget"]


def make_plugin_panel(name: str, bench: Any) -> tuple[QWidget, str]:
    """Make the widget of an installed plugin's panel; return it with its title.

    Raises
    ------
    PluginError
        It does not load, raises while it is made, or is not a widget.
    """
    plugin = PANELS.get(name)
    return make_widget(plugin, bench), plugin.title


def make_widget(plugin: PanelPlugin, bench: Any) -> QWidget:
    """Make the widget of a panel for a window's workbench.

    Raises
    ------
    PluginError
        It does not load, raises while it is made, or is not a widget.
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
