"""A new annotation layer for the current slide."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.window import notify, slide_layers
from slidelens.desktop.world import World, describe, described, world_of
from slidelens.maps.palette import class_colors

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari

__all__ = ["annotation_options", "class_color", "new_annotations"]

_CLASS = "tumor"


def new_annotations(viewer: napari.Viewer) -> None:
    """Add an empty layer of polygons to the topmost visible slide; saved as GeoJSON."""
    slides = list(slide_layers(viewer))
    if not slides:
        notify("Open a slide first: annotations are drawn on it.")
        return
    slide = next((layer for layer in slides if layer.visible), slides[0])
    layer = viewer.add_shapes(None, **annotation_options(slide.metadata))
    layer.mode = "add_polygon"


def annotation_options(slide_metadata: dict[str, Any]) -> dict[str, Any]:
    """Return the keywords of an empty layer of annotations on a slide, given its metadata.

    New shapes get the class in the layer's ``feature_defaults``, which may be edited.
    """
    world = world_of(slide_metadata) or World.of(None)
    slide = described(slide_metadata)
    none = np.array([], dtype=object)  # columns of text, though still empty
    return {
        "ndim": 2,
        "name": f"{slide['slide']} annotations",
        "features": {"class": none, "name": none, "id": none},
        "feature_defaults": {"class": [_CLASS], "name": [""], "id": [""]},
        "edge_color": class_color(_CLASS),
        "face_color": "transparent",
        "edge_width": max(1.0, max(slide.get("size", (1, 1))) / 600),
        "opacity": 1.0,
        "metadata": describe(
            world, "annotations", slide["slide"], on=slide.get("path"), classes=(_CLASS,)
        ),
        **world.place_outlines(),
    }


def class_color(label: str, classes: Sequence[str] = ()) -> str:
    """Return the colour of a class's outlines, ``#rrggbb``; ``classes`` are all, in label order."""
    red, green, blue = class_colors(classes if label in classes else [label])[label]
    return f"#{red:02x}{green:02x}{blue:02x}"
