"""What napari shows, as plain layer data: pure functions that read nothing in advance.

Every layer is in the slide's world (:mod:`slidelens.desktop.world`), exactly on its pixels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.desktop.grid import grid_layers
from slidelens.desktop.layer_data import nothing_known
from slidelens.desktop.polygons import polygon_to_path
from slidelens.desktop.windows import window_layers
from slidelens.desktop.world import KEY, World, describe
from slidelens.errors import ResultError
from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.maps.overlay import scale_top
from slidelens.maps.palette import TISSUE, class_colors, colormap
from slidelens.maps.regions import find_regions
from slidelens.slide.array import in_memory
from slidelens.tiling.annotations import Annotation, rasterize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.desktop.layer_data import LayerData
    from slidelens.maps.map import Map
    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide

__all__ = [
    "MAX_EDITED",
    "MAX_POLYGONS",
    "annotation_layers",
    "check_same_slide",
    "map_layers",
    "resolution_of",
    "result_layers",
    "slide_layer",
]

MAX_POLYGONS = 3_000
"""napari's shapes become slow above this; more polygons are drawn as labels."""
MAX_EDITED = 10_000
"""Outlines that somebody draws on stay shapes up to this many, though napari is slow by then."""

_MAX_LABELS = 4096  # cells: longest side of polygons drawn as labels
_TISSUE_MAP = "tissue"


def slide_layer(slide: Slide) -> LayerData:
    """Return a slide as a lazy multiscale image; nothing is read.

    Without a resolution it is in pixels.
    """
    world = World.of(slide.mpp)
    facts = {
        "path": None if in_memory(slide) else str(slide.path),
        "size": tuple(slide.size),
        "mpp_source": slide.mpp_source,
        "opened": slide,
    }
    options = {
        "name": slide.id,
        "rgb": True,
        "multiscale": True,
        "interpolation2d": "linear",
        "metadata": describe(world, "slide", slide.id, **facts),
        **world.place(Affine(1, 1)),
    }
    return slide.pyramid(), options, "image"


def result_layers(
    result: Result,
    slide: Slide | None = None,
    *,
    world: World | None = None,
    visible: bool = True,
    tissue: bool = True,
) -> list[LayerData]:
    """Return a result's layers, lowest first: maps, regions, windows, outlines of tissue and tiles.

    One map is visible, the others are hidden; a map with several classes has a layer for every
    class but the first (the negative one).

    Parameters
    ----------
    result
        Maps lie where the result says, in level-0 px.
    slide
        The slide that it is shown on; its resolution is then the world's.
    world
        The world to use if the slide is not open; by default the result's own.
    visible
        Whether the first map and the regions are shown.
    tissue
        Whether to add the outline of the tissue and the grid of tiles, hidden.

    Raises
    ------
    ResultError
        The result is of another slide, or damaged.
    """
    if slide is not None:
        check_same_slide(result, slide.id, slide.size)
        world = World.of(slide.mpp)
    place = world or World.of(resolution_of(result))
    layers: list[LayerData] = []
    for source in result.maps.values():
        if source.name != _TISSUE_MAP:
            layers += map_layers(source, place, slide_id=result.slide.id, model=result.model.name)
    for number, (_, options, _) in enumerate(layers):
        options["visible"] = visible and number == 0
    layers += _region_layers(result, place, visible)
    layers += window_layers(result, place, visible=visible)
    if tissue and _TISSUE_MAP in result.maps:
        layers += _tissue_layers(result, place)
    if tissue:
        layers += grid_layers(result, place)
    for _, options, _ in layers:
        options["metadata"][KEY]["path"] = None if result.path is None else str(result.path)
    return layers


def check_same_slide(result: Result, slide_id: str, size: tuple[int, int] | None) -> None:
    """Refuse a result of another slide than the one it is shown on.

    Raises
    ------
    ResultError
        The id or the size in level-0 px differ.
    """
    where = result.path or "this result"
    if result.slide.id != slide_id:
        raise ResultError(
            f"{where}: belongs to slide {result.slide.id!r}, not to {slide_id!r}; "
            "open it with its own slide."
        )
    made_on = result.slide.size
    if made_on is not None and size is not None and tuple(made_on) != tuple(size):
        have, want = ("{} x {} px".format(*s) for s in (size, made_on))
        raise ResultError(
            f"{where}: was made from a slide of {want}, but slide {slide_id!r} has {have}; "
            "that is another file of the same name, so run the prediction again."
        )


def annotation_layers(
    annotations: Sequence[Annotation],
    world: World,
    *,
    name: str,
    slide_id: str = "",
    size: Size | None = None,
    most: int | None = None,
) -> list[LayerData]:
    """Return annotations as one layer of polygons, or as labels if there are very many.

    Parameters
    ----------
    annotations
        In level-0 px. None give no layer.
    world
        Of their slide.
    name
        Of the layer.
    slide_id, size
        Of the slide, if known.
    most
        More are drawn as labels; by default :data:`MAX_POLYGONS`.
    """
    classes = tuple(dict.fromkeys(a.label for a in annotations))
    colors = class_colors(classes)
    features = {
        "class": [a.label for a in annotations],
        "name": [a.name for a in annotations],
        "id": [a.id for a in annotations],
    }
    return _outlines(
        annotations,
        [a.color or colors[a.label] for a in annotations],
        features,
        world,
        size,
        {"name": name, "metadata": describe(world, "annotations", slide_id, classes=classes)},
        most,
    )


def map_layers(
    source: Map, world: World, *, slide_id: str, model: str, channel: str | None = None
) -> list[LayerData]:
    """Return the layers of one map: one for labels, otherwise one per channel.

    The first class, the negative one, has no layer: its probability is what the others leave.

    Parameters
    ----------
    source
        The map.
    world
        Of the slide.
    slide_id, model
        The slide and the model.
    channel
        The only one to be drawn, which may be the negative class.
    """
    title = f"{model}: {source.name}"
    classes = source.channels
    facts = {
        "model": model,
        "map": source.name,
        "kind": source.kind,
        "classes": classes,
    }
    if source.kind == "labels":
        metadata = describe(world, "map", slide_id, **facts)
        common = {"name": title, "metadata": metadata, **world.place(source.affine)}
        return [_label_image(source.planes(), classes, common)]
    several_classes = source.kind == "probability" and len(classes) > 1
    chosen = classes[1:] if several_classes else classes
    if channel is not None:
        chosen = (channel,)
    layers: list[LayerData] = []
    for name in chosen:
        levels = source.planes(name)
        options = {
            "name": title if len(chosen) == 1 else f"{title} {name}",
            "multiscale": True,
            "rgb": False,
            "colormap": _colormap(source),
            "contrast_limits": (0.0, scale_top(source, name)),
            "interpolation2d": "nearest",
            "blending": "translucent",
            "opacity": 0.7,
            "metadata": describe(world, "map", slide_id, channel=name, **facts),
            **world.place(source.affine),
        }
        layers.append((levels, options, "image"))
    return layers


def _colormap(source: Map) -> Any:
    from napari.utils.colormaps import Colormap

    return Colormap(colormap(source.kind), name=source.kind)


def _region_layers(result: Result, world: World, visible: bool) -> list[LayerData]:
    regions = result.regions
    features = {
        "class": [r.label for r in regions],
        "probability": [r.probability for r in regions],
        "area_mm2": [r.area_mm2 for r in regions],
    }
    colors = class_colors(result.classes)
    name = result.model.name
    options = {
        "name": f"{name}: regions",
        "visible": visible,
        "metadata": describe(world, "regions", result.slide.id, model=name, classes=result.classes),
    }
    return _outlines(
        [Annotation(r.polygon, r.label) for r in regions],
        [colors.get(r.label, TISSUE) for r in regions],
        features,
        world,
        result.slide.size,
        options,
    )


def _tissue_layers(result: Result, world: World) -> list[LayerData]:
    source = result.maps[_TISSUE_MAP]
    found = [region for label in source.channels for region in find_regions(source, label)]
    name = result.model.name
    options = {
        "name": f"{name}: {_TISSUE_MAP}",
        "visible": False,
        "metadata": describe(world, "tissue", result.slide.id, model=name, classes=source.channels),
    }
    return _outlines(
        [Annotation(region.polygon, region.label) for region in found],
        [TISSUE] * len(found),
        {"class": [region.label for region in found]},
        world,
        result.slide.size,
        options,
    )


def _outlines(
    areas: Sequence[Annotation],
    colors: Sequence[tuple[int, int, int]],
    features: dict[str, Any],
    world: World,
    size: Size | None,
    common: dict[str, Any],
    most: int | None = None,
) -> list[LayerData]:
    """Return polygons as shapes, or as one label image if shapes would be slow."""
    if not areas:
        return []
    box = _extent(areas, size)
    if len(areas) > (MAX_POLYGONS if most is None else most):
        classes = tuple(dict.fromkeys(a.label for a in areas))
        return [_drawn(areas, classes, world, box, common)]
    options = {
        "shape_type": "polygon",
        "features": features,
        # napari's default is the last row, whose colour a new shape gets: keep only its class.
        "feature_defaults": {**nothing_known(features), "class": features["class"][-1:]},
        "edge_color": np.array([(*color, 255) for color in colors]) / 255,
        "face_color": "transparent",
        # napari measures it in level-0 px; this is visible with the whole slide in the window.
        "edge_width": max(1.0, max(box.w, box.h) / 600),
        "opacity": 1.0,
        **common,
        **world.place_outlines(),
    }
    return [([polygon_to_path(a.polygon)[:, ::-1] for a in areas], options, "shapes")]


def _drawn(
    areas: Sequence[Annotation],
    classes: Sequence[str],
    world: World,
    box: Box,
    common: dict[str, Any],
) -> LayerData:
    """Draw polygons as a label image of bounded size."""
    cell = max(1.0, max(box.w, box.h) / _MAX_LABELS) * world.mpp.mean
    affine = Affine(cell / world.mpp.x, cell / world.mpp.y, box.x, box.y)
    # Whole cells, so that what is drawn fills its box exactly.
    whole = affine.box(0, 0, np.ceil(box.w / affine.sx), np.ceil(box.h / affine.sy))
    labels = rasterize(areas, whole, world.mpp, cell, classes)
    facts = {**common["metadata"][KEY], "outlines": len(areas)}
    options = {**common, "metadata": {KEY: facts}, **world.place(affine)}
    return _label_image([labels], classes, options)


def _label_image(
    levels: Sequence[Any], classes: Sequence[str], common: dict[str, Any]
) -> LayerData:
    from napari.utils.colormaps import DirectLabelColormap

    several = len(levels) > 1  # napari's labels do not accept a pyramid of one level
    nothing = (0.0, 0.0, 0.0, 0.0)
    colors: dict[int | None, tuple[float, ...]] = {None: nothing, 0: nothing}
    for k, color in enumerate(class_colors(classes).values(), 1):
        colors[k] = (*(c / 255 for c in color), 1.0)
    options = {
        "multiscale": several,
        "colormap": DirectLabelColormap(color_dict=colors),
        "features": {"index": list(range(len(classes) + 1)), "class": ["", *classes]},
        "opacity": 0.5,
        **common,
    }
    return levels if several else np.asarray(levels[0]), options, "labels"


def _extent(areas: Sequence[Annotation], size: Size | None) -> Box:
    if size is not None:
        return Box.of_size(size)
    polygons = np.array([a.polygon for a in areas], dtype=object)
    left, top, right, bottom = shapely.total_bounds(polygons)
    return Box(left, top, right - left, bottom - top)


def resolution_of(result: Result) -> Mpp | None:
    """Return the slide's resolution as its result states it, in µm/px; ``None`` if it does not."""
    if result.slide.resolution is not None:
        return result.slide.resolution
    return next((m.slide_mpp for m in result.maps.values()), None)
