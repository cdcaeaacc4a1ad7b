"""Arrange slides in a viewer: one of them in sight, below its maps. Knows napari, not Qt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from slidelens.desktop.layers import slide_layer
from slidelens.desktop.shown import (
    add_layer,
    is_on,
    layers_of,
    layers_on,
    remove_layers,
    share_unit,
    shown_slides,
)
from slidelens.desktop.state.viewport import fit
from slidelens.desktop.window import canvas_size, dress, look_at
from slidelens.desktop.world import World, described
from slidelens.geometry import Box, Size

if TYPE_CHECKING:
    from collections.abc import MutableSet

    import napari

    from slidelens.desktop.shown import ShownSlide
    from slidelens.slide.base import Slide

__all__ = ["clear", "hide_others", "lay_below", "put_slide", "show_again"]


def put_slide(viewer: napari.Viewer, slide: Slide) -> None:
    """Add a slide below everything else, and look at all of it."""
    layer = add_layer(viewer, slide_layer(slide))
    viewer.layers.move(viewer.layers.index(layer), 0)
    viewer.reset_view()  # also of the annotations that stayed, which may be far away
    box, world = Box.of_size(Size(*slide.size)), World.of(slide.mpp)
    look_at(viewer, fit(box, canvas_size(viewer), world, margin=0.05))
    share_unit(viewer, slide, world)
    dress(viewer)


def clear(viewer: napari.Viewer, title: str) -> None:
    """Remove slides and everything on them; annotations stay, hidden. ``title`` is the window's."""
    kept = list(layers_of(viewer, "annotations"))
    for layer in kept:
        layer.visible = False
    remove_layers(viewer, (layer for layer in layers_of(viewer) if layer not in kept))
    viewer.title = title


def show_again(viewer: napari.Viewer, slide: ShownSlide, away: MutableSet[Any]) -> None:
    """Show a slide of the viewer in place of the other ones, and what was hidden with it.

    Parameters
    ----------
    viewer, slide
        Where it is, and which.
    away
        Layers that were hidden with their slides; those of this one leave it.
    """
    for one in shown_slides(viewer):
        one.layer.visible = one.layer is slide.layer
    for layer in layers_on(viewer, slide):
        if layer in away:
            layer.visible = True
            away.discard(layer)
    viewer.layers.selection.active = slide.layer


def hide_others(viewer: napari.Viewer, slide: ShownSlide, away: MutableSet[Any]) -> None:
    """Hide what lies on other slides than the one that is shown.

    Parameters
    ----------
    viewer, slide
        Where it is, and which.
    away
        Takes the layers that are hidden.
    """
    for layer in layers_of(viewer):
        named = described(layer.metadata)["slide"] != ""
        if layer.visible and named and not is_on(layer, slide):
            layer.visible = False
            away.add(layer)
    share_unit(viewer, slide, slide.world)


def lay_below(viewer: napari.Viewer, slide: ShownSlide) -> None:
    """Put a slide below its maps, if they were there before it."""
    own, layers = slide.layer, viewer.layers
    lowest = layers.index(next(layers_on(viewer, slide)))
    if layers[lowest] is not own and described(layers[lowest].metadata)["layer"] != "slide":
        layers.move(layers.index(own), lowest)
