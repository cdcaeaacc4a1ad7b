"""Panels that plugins add to the desktop workbench (group ``slidelens.panels``)."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from slidelens.errors import PluginError
from slidelens.registry import Registry

__all__ = ["PANELS", "PanelPlugin"]


@dataclass(frozen=True)
class PanelPlugin:
    """A panel of the workbench.

    Attributes
    ----------
    name, title, about
        Key, what its tab is called, one sentence for the list of panels.
    widget
        ``"module:Class"``: a ``QWidget`` whose one argument is the
        :class:`~slidelens.desktop.workbench.Workbench` that it belongs to. Named, not imported: Qt
        is loaded when the panel is opened.
    """

    name: str
    title: str
    about: str
    widget: str

    def load(self) -> type[Any]:
        """Import the widget's class.

        Raises
        ------
        PluginError
            Its module cannot be imported, or has no such class.
        """
        where = f"panel {self.name!r} ({self.widget})"
        module, _, name = self.widget.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (Exception, SystemExit) as error:  # reason: a plugin may raise anything
            raise PluginError(
                f"{where} does not load: {type(error).__name__}: {error}. "
                "Update or uninstall the package that brings it."
            ) from error
        if not isinstance(found, type):
            raise PluginError(f"{where} is a {type(found).__name__}, expected a class of QWidget.")
        return found


PANELS: Registry[PanelPlugin] = Registry("slidelens.panels", "slidelens.panels:PanelPlugin", {})
