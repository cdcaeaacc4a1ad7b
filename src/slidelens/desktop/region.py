"""The rectangle on a slide that is run: drawing it, and where it lies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QTimer

from slidelens.desktop.shown import layers_on
from slidelens.desktop.world import describe, lie_on
from slidelens.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from napari.components import ViewerModel
    from numpy.typing import NDArray

    from slidelens.desktop.shown import ShownSlide

__all__ = ["draw_region", "region_box", "region_note"]

_NAME = "Region to run on"
_YELLOW = "#f0e442"
_UPRIGHT_PX = 0.5  # napari keeps vertices as float32
_MOVED = ("affine", "translate", "scale", "rotate", "shear")


def draw_region(viewer: ViewerModel, slide: ShownSlide, changed: Callable[[], object]) -> None:
    """Let the user draw a rectangle on a slide; it replaces the previous one.

    ``changed`` is called when it is drawn, moved or deleted.
    """
    layer = next(layers_on(viewer, slide, "region"), None)
    if layer is None:
        layer = viewer.add_shapes(None, **_options(slide))
        layer.mouse_drag_callbacks.append(partial(_drawing, changed))
    else:
        layer.data = []
        layer.affine = np.eye(3)  # where it was moved with the layer
    for event in (layer.events.data, *(layer.events[name] for name in _MOVED)):
        event.connect(changed)
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"


def region_box(viewer: ViewerModel, slide: ShownSlide) -> Box | None:
    """Return the region that was last drawn on a slide, in whole level-0 px; ``None``: none.

    It encloses the shape where it is seen, also if its layer was moved.
    """
    for layer in layers_on(viewer, slide, "region"):
        if len(layer.data):
            (left, top), (right, bottom) = _bounds(_corners(layer, slide))
            drawn = Box(float(left), float(top), float(right - left), float(bottom - top))
            inside = drawn.intersect(slide.box)
            if inside.area > 0:
                return Box(*map(float, inside.snapped())).intersect(slide.box)
    return None


def region_note(viewer: ViewerModel, slide: ShownSlide) -> str:
    """Say how the region that is run differs from what is drawn on a slide; empty: not at all."""
    for layer in layers_on(viewer, slide, "region"):
        said = []
        if len(layer.data) > 1:
            said.append(f"Of the {len(layer.data)} shapes that are drawn, the last one is run.")
        if len(layer.data) and not _is_upright(layer, slide):
            said.append("The shape is no upright rectangle: the box around it is run.")
        return " ".join(said)
    return ""


def _corners(layer: Any, slide: ShownSlide) -> NDArray[np.float64]:
    """Return the vertices of the last shape of a layer, x and y in level-0 px of the slide."""
    seen = [layer.data_to_world(vertex)[-2:] for vertex in layer.data[-1]]
    return slide.world.to_level0(seen)


def _bounds(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([corners.min(0), corners.max(0)])


def _is_upright(layer: Any, slide: ShownSlide) -> bool:
    """Whether the last shape is a rectangle with each corner in one of its box."""
    if layer.shape_type[-1] != "rectangle":
        return False
    corners = _corners(layer, slide)
    off = np.abs(corners[:, None] - _bounds(corners)).min(1)  # to the nearer side, along x and y
    return bool((off < _UPRIGHT_PX).all())


def _options(slide: ShownSlide) -> dict[str, Any]:
    """Return the keywords of an empty layer to draw on."""
    options = {
        "ndim": 2,
        "name": _NAME,
        "edge_color": _YELLOW,
        "face_color": "transparent",
        "edge_width": max(1.0, max(slide.size) / 400),
        "opacity": 1.0,
        "metadata": describe(slide.world, "region", slide.id),
        **slide.world.place_outlines(),
    }
    lie_on([(None, options, "shapes")], slide.path)
    return options


def _drawing(changed: Callable[[], object], layer: Any, event: Any) -> Iterator[None]:
    """Switch back to panning once the rectangle is drawn, by napari's mouse protocol."""
    yield
    while event.type == "mouse_move":
        yield

    def drawn() -> None:
        if len(layer.data):
            layer.mode = "pan_zoom"
        changed()

    QTimer.singleShot(0, drawn)  # napari's own callback ends the shape first
