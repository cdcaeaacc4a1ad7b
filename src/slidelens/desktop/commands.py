"""Commands in napari's menus and command palette."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.desktop.keys import toggle
from slidelens.desktop.workbench import workbench_of

if TYPE_CHECKING:
    import napari

__all__ = ["compare", "navigate", "run_models", "toggle_maps"]


def run_models(viewer: napari.Viewer) -> None:
    """Open the Run panel."""
    workbench_of(viewer).open_panel("run")


def compare(viewer: napari.Viewer) -> None:
    """Open the Compare panel."""
    workbench_of(viewer).open_panel("compare")


def navigate(viewer: napari.Viewer) -> None:
    """Open the Navigator."""
    workbench_of(viewer).open_panel("navigator")


def toggle_maps(viewer: napari.Viewer) -> None:
    """Hide everything that models drew on the slide, or show it again."""
    toggle(workbench_of(viewer))
