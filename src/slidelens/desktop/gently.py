"""Add many layers one by one, so that the window stays responsive."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from slidelens.desktop.shown import put_layer, remove_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slidelens.desktop.layer_data import LayerData

__all__ = ["put_gently"]


def put_gently(
    viewer: Any,
    layers: Sequence[LayerData],
    old: list[Any],
    wanted: Callable[[], bool],
    then: Callable[[], object],
    put: tuple[tuple[Any, str], ...] = (),
) -> None:
    """Replace layers by new ones; those that cannot be reused are removed at the end.

    Parameters
    ----------
    layers
        Lowest first.
    old
        Layers that may be reused.
    wanted
        Asked before each: if it says no, the slide or the window has gone, and everything stops.
    then
        Called when all are there.
    put
        Layers that are already there, and their names: napari adds a number to a name while an old
        layer has it.
    """
    if not wanted():
        return
    if layers:
        put += ((put_layer(viewer, layers[0], old), layers[0][1]["name"]),)
    elif old:
        remove_layers(viewer, [old.pop()])
    else:
        for layer, name in put:
            layer.name = name
        then()
        return
    rest = layers[1:]
    QTimer.singleShot(0, lambda: put_gently(viewer, rest, old, wanted, then, put))
