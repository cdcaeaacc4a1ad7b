"""Keep outlines equally thin on the screen at any zoom; napari measures them in slide px."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from slidelens.desktop.world import described

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["thin_outlines"]

_SCREEN_PX = 2.0
_STEP = 1.4
"""A width that is off by less is left: each change makes napari rebuild a layer's meshes."""
_MOST = 3000  # shapes in a layer: their meshes would take too long
_set: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Layer to the width that it was given here; another width is the user's choice."""


def thin_outlines(layers: Iterable[Any], zoom: float) -> None:
    """Give SlideLens's outlines and lines among ``layers`` the width that is legible at a zoom.

    An outline covers the margin of a lesion, so its line must not grow over it. A width that the
    user has chosen stays.

    Parameters
    ----------
    layers
        Any layers of napari's.
    zoom
        Screen px per unit of the world.
    """
    for layer in layers:
        if described(layer.metadata) and hasattr(layer, "edge_width"):
            _thin(layer, _SCREEN_PX / (zoom * float(layer.scale[-1])))


def _thin(layer: Any, wanted: float) -> None:
    count, before = len(layer.data), _set.get(layer)
    if count > _MOST:
        return
    if before is not None and count and not np.allclose(layer.edge_width, before):
        return
    if before is None or not 1 / _STEP < wanted / before < _STEP:
        _set[layer] = wanted
        if count:
            layer.edge_width = wanted
        if hasattr(layer, "current_edge_width"):
            layer.current_edge_width = wanted  # for what is drawn next
