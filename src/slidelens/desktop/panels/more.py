"""The panels that plugins add, each with a button to open it."""

from __future__ import annotations

from functools import partial
from html import escape
from typing import TYPE_CHECKING, Any

from slidelens.desktop.panels.parts import Panel, button, caption, row
from slidelens.errors import PluginError
from slidelens.panels import PANELS

if TYPE_CHECKING:
    from qtpy.QtWidgets import QWidget

__all__ = ["MorePanel"]

_NONE = "No plugin adds a panel. To write one, see the page “Write a plugin” in the documentation."


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
