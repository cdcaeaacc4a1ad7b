"""Add many layers one by one, so that the window stays responsive."""

from __future__ import annotations

from concurrent.futures import Future
from threading import Thread
from typing import TYPE_CHECKING, Any

from napari.layers import Layer
from qtpy.QtCore import QTimer

from slidelens.desktop.shown import put_layer, remove_layers

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from slidelens.desktop.layer_data import LayerData

__all__ = ["put_gently"]

_MANY = 200
"""Outlines of a layer that is made on a thread: napari takes a fifth of a millisecond for each."""
_ASK_MS = 20


def put_gently(
    viewer: Any,
    layers: Sequence[LayerData],
    old: list[Any],
    wanted: Callable[[], bool],
    then: Callable[[], object],
    put: tuple[tuple[Any, str], ...] = (),
    made: Any = None,
) -> None:
    """Replace layers by new ones; those that cannot be reused are removed at the end.

    A layer of many outlines is made on a thread first.

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
    made
        The first of ``layers``, if it is already made.
    """
    if not wanted():
        return
    if layers and made is None and _is_slow(layers[0]):

        def go_on(layer: Any) -> None:
            put_gently(viewer, layers, old, wanted, then, put, layer)

        _make(layers[0], wanted, go_on)
        return
    if layers:
        layer = put_layer(viewer, layers[0], old, made)
        put += ((layer, layers[0][1]["name"]),)
    elif old:
        remove_layers(viewer, [old.pop()])
    else:
        for layer, name in put:
            layer.name = name
        then()
        return
    rest = layers[1:]
    QTimer.singleShot(0, lambda: put_gently(viewer, rest, old, wanted, then, put))


def _is_slow(data: LayerData) -> bool:
    return data[2] == "shapes" and len(data[0]) > _MANY


def _make(data: LayerData, wanted: Callable[[], bool], then: Callable[[Any], object]) -> None:
    """Make a layer on a thread; hand it over in the window's, if it is still wanted then."""
    made: Future[Any] = Future()

    def work() -> None:
        try:
            made.set_result(Layer.create(*data))
        except Exception as error:  # noqa: BLE001  # reason: raised in the window's thread
            made.set_exception(error)

    def ask() -> None:
        if not wanted():
            return
        if made.done():
            then(made.result())
        else:
            QTimer.singleShot(_ASK_MS, ask)

    Thread(target=work, name="layer of outlines", daemon=True).start()
    ask()
