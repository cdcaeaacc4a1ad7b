"""The rectangle on a slide that is run: drawing it, and where it lies."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer

from slidelens.desktop.shown import layers_of
from slidelens.desktop.world import describe
from slidelens.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from napari.components import ViewerModel

    from slidelens.desktop.shown import ShownSlide

__all__ = ["draw_region", "region_box"]

_NAME = "Region to run on"
_YELLOW = "#f0e442"


def draw_region(viewer: ViewerModel, slide: ShownSlide, changed: Callable[[], object]) -> None:
    """Let the user draw a rectangle on a slide; it replaces the previous one.

    ``changed`` is called when it is drawn, moved or deleted.
    """
    layer = next(layers_of(viewer, "region", slide=slide.id), None)
    if layer is None:
        layer = viewer.add_shapes(None, **_options(slide))
        layer.mouse_drag_callbacks.append(partial(_drawing, changed))
    else:
        layer.data = []
    layer.events.data.connect(changed)
    viewer.layers.selection.active = layer
    layer.mode = "add_rectangle"


def region_box(viewer: ViewerModel, slide: ShownSlide) -> Box | None:
    """Return the region that was last drawn on a slide, in whole level-0 px; ``None``: none."""
    for layer in layers_of(viewer, "region", slide=slide.id):
        if len(layer.data):
            corners = layer.data[-1][:, -2:]
            (top, left), (bottom, right) = corners.min(0), corners.max(0)
            drawn = Box(float(left), float(top), float(right - left), float(bottom - top))
            inside = drawn.intersect(slide.box)
            if inside.area > 0:
                return Box(*map(float, inside.snapped())).intersect(slide.box)
    return None


def _options(slide: ShownSlide) -> dict[str, Any]:
    """Return the keywords of an empty layer to draw on."""
    return {
        "ndim": 2,
        "name": _NAME,
        "edge_color": _YELLOW,
        "face_color": "transparent",
        "edge_width": max(1.0, max(slide.size) / 400),
        "opacity": 1.0,
        "metadata": describe(slide.world, "region", slide.id),
        **slide.world.place_outlines(),
    }


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
