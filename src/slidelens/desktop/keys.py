"""Key bindings of the workbench, which napari does not read from a plugin's manifest."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtGui import QKeySequence

from slidelens.desktop.docks import PANELS
from slidelens.desktop.qt import Shortcut
from slidelens.desktop.shown import DRAWN, layers_of

if TYPE_CHECKING:
    from slidelens.desktop.workbench import Workbench

__all__ = ["KEYS", "bind_keys", "toggle"]

_TOGGLE = "toggle"

KEYS = {**{f"Alt+{number}": name for number, name in enumerate(PANELS, 1)}, "Ctrl+Alt+H": _TOGGLE}
"""Key to the panel that it opens; the last one shows and hides the layers on the slide."""


def bind_keys(bench: Workbench) -> None:
    """Bind :data:`KEYS` in a window, wherever the focus is."""
    window: Any = bench.viewer.window._qt_window
    for key, name in KEYS.items():
        shortcut = Shortcut(QKeySequence(key), window)
        shortcut.activated.connect(partial(_pressed, bench, name))


def toggle(bench: Workbench) -> None:
    """Hide everything that models drew, to see the tissue, or show it again."""
    here = bench.viewer.layers
    seen = [layer for layer in layers_of(bench.viewer, *DRAWN, "compare") if layer.visible]
    for layer in seen or [layer for layer in bench.put_aside if layer in here]:
        layer.visible = not seen
    bench.put_aside = seen


def _pressed(bench: Workbench, name: str) -> None:
    if bench.closed:
        return
    if name == _TOGGLE:
        toggle(bench)
    else:
        bench.open_panel(name)
