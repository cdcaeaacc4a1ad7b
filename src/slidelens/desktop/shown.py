"""Find the slides and layers that a viewer shows. Knows napari, not Qt."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import napari

from slidelens.desktop.belonging import same_file
from slidelens.desktop.window import slide_layers
from slidelens.desktop.world import KEY, World, described, is_stated, world_of
from slidelens.geometry import Box, Size

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from napari.components import ViewerModel

    from slidelens.desktop.layer_data import LayerData
    from slidelens.maps.schema import SlideInfo
    from slidelens.slide.base import Slide

__all__ = [
    "DRAWN",
    "ShownSlide",
    "add_layer",
    "current_slide",
    "is_on",
    "layers_of",
    "layers_on",
    "put_layer",
    "remove_layers",
    "select_map",
    "set_range",
    "share_unit",
    "shown_slides",
    "slide_for",
]

DRAWN = ("map", "regions", "windows", "path")
"""Kinds of layers that a model's result puts over the tissue; the others are hidden at first."""

_OF_MODEL = (*DRAWN, "tissue", "grid")


@dataclass(frozen=True)
class ShownSlide:
    """A slide in the viewer."""

    id: str
    path: Path | None
    size: Size
    world: World
    layer: Any
    stated: bool = False
    """Whether the file itself states the resolution that it is shown at."""

    @property
    def opened(self) -> Slide | None:
        """The open slide that the layer reads from, if it states one."""
        return cast("Slide | None", described(self.layer.metadata).get("opened"))

    def is_of(self, name: str, file: str | None) -> bool:
        """Return whether it is the slide of a name and, if both are known, a file.

        Parameters
        ----------
        name
            The slide's id.
        file
            Path of the slide; empty if it is not known.
        """
        known = bool(file) and self.path is not None
        return self.id == name and (not known or same_file(self.path, file))

    @property
    def box(self) -> Box:
        """All of the slide, in level-0 px."""
        return Box.of_size(self.size)


def shown_slides(viewer: ViewerModel) -> list[ShownSlide]:
    """Return the slides, topmost first."""
    return [_slide(layer) for layer in slide_layers(viewer)]


def current_slide(viewer: ViewerModel) -> ShownSlide | None:
    """Return the slide that the user means: the selected layer's, else the topmost visible one."""
    slides = shown_slides(viewer)
    active = viewer.layers.selection.active
    visible = [s for s in slides if s.layer.visible]
    # Two files can have one name, so a slide's own layer comes first, then the file.
    own = [s for s in visible if s.layer is active]
    chosen = own or [s for s in visible if active is not None and is_on(active, s)]
    return next(iter(chosen or visible or slides), None)


def slide_for(viewer: ViewerModel, names: Sequence[str]) -> ShownSlide | None:
    """Return the slide that a file of annotations is drawn on.

    Parameters
    ----------
    viewer
        Where the slides are.
    names
        Ids of slides that the file may be of, by its name: such a slide comes first, then the
        current one.
    """
    now = current_slide(viewer)
    same = [slide for slide in shown_slides(viewer) if slide.id in names]
    return now if now in same else next(iter(same), now)


def layers_of(viewer: ViewerModel, *kinds: str, **facts: Any) -> Iterator[Any]:
    """Yield SlideLens's layers of some kinds (``map``, ``regions``, ...; none: all), lowest first.

    ``facts`` are what their metadata must state, such as ``slide="a"`` or ``model="demo-mil"``.
    """
    for layer in list(viewer.layers):
        mine = described(layer.metadata)
        if not mine or (kinds and mine["layer"] not in kinds):
            continue
        if all(mine.get(name) == value for name, value in facts.items()):
            yield layer


def layers_on(
    viewer: ViewerModel, slide: ShownSlide | Slide | SlideInfo, *kinds: str, **facts: Any
) -> Iterator[Any]:
    """Yield SlideLens's layers that lie on a slide, itself among them, lowest first.

    Parameters
    ----------
    viewer
        Where they are.
    slide
        The slide; another one of its name is told apart by its file.
    kinds, facts
        As in :func:`layers_of`.
    """
    found = layers_of(viewer, *kinds, slide=slide.id, **facts)
    return (layer for layer in found if is_on(layer, slide))


def is_on(layer: Any, slide: ShownSlide | Slide | SlideInfo) -> bool:
    """Return whether a layer lies on a slide, or shows it.

    Parameters
    ----------
    layer
        One of the viewer's.
    slide
        If the layer states no file, as maps that are shown without their slide, the name counts.
    """
    mine = described(layer.metadata)
    if mine.get("slide") != slide.id:
        return False
    file = mine.get("path" if mine["layer"] == "slide" else "on")
    return not file or slide.path is None or same_file(file, slide.path)


def add_layer(viewer: ViewerModel, data: LayerData) -> Any:
    """Add one layer."""
    return viewer.add_layer(napari.layers.Layer.create(*data))


def put_layer(viewer: ViewerModel, data: LayerData, old: list[Any], made: Any = None) -> Any:
    """Show new data of a map in one of the ``old`` layers if possible, else add a layer.

    A layer is added above the others of its model: results come one layer at a time, and would mix.
    A reused layer is removed from ``old``; it keeps its place, and the colours and opacity that the
    user chose. Adding a layer costs napari a tenth of a second, and removing one a full garbage
    collection: a map that grows, is finished and is made again should not flicker for it.

    Parameters
    ----------
    viewer, data
        Where the layer goes, and what it shows.
    old
        Layers that may be reused.
    made
        The layer of ``data``, if it is already made.
    """
    layer = next((layer for layer in old if _can_show(layer, data)), None)
    if layer is None:
        return _add_to_model(viewer, napari.layers.Layer.create(*data) if made is None else made)
    old.remove(layer)
    levels, options, _ = data
    style = described(layer.metadata).get("style")
    layer.data = levels
    for name in ("name", "metadata", "scale", "translate", "visible"):
        setattr(layer, name, options.get(name, True))
    if style is not None:
        layer.metadata[KEY] = {**described(layer.metadata), "style": style}
    limits = options.get("contrast_limits")
    if limits is not None:
        set_range(layer, limits)
    return layer


def set_range(layer: Any, limits: tuple[float, float]) -> None:
    """Let a layer's colours span a range, except for limits within it that the user chose."""
    chosen = tuple(layer.contrast_limits) != tuple(layer.contrast_limits_range)
    if tuple(layer.contrast_limits_range) != tuple(limits):
        layer.contrast_limits_range = limits
        if not chosen:
            layer.contrast_limits = limits


def _add_to_model(viewer: ViewerModel, layer: Any) -> Any:
    facts = described(layer.metadata)
    mine = {name: facts.get(name) for name in ("slide", "model", "on")}
    kin = list(layers_of(viewer, *_OF_MODEL, **mine))
    at = viewer.layers.index(kin[-1]) + 1 if kin else len(viewer.layers)
    viewer.layers.insert(at, layer)
    return layer


def _can_show(layer: Any, data: LayerData) -> bool:
    """Whether a layer shows the same map and class, in the same world, and was made alike."""
    levels, options, kind = data
    own = {"path": None, "style": None}  # of a layer, not of what it shows
    wanted, has = ({**described(m), **own} for m in (options["metadata"], layer.metadata))
    if wanted["layer"] != "map" or wanted != has:
        return False
    several = bool(options["multiscale"])
    alike = kind == type(layer).__name__.lower() and layer.multiscale == several
    return alike and (not several or layer.data_level < len(levels))


def share_unit(viewer: ViewerModel, slide: ShownSlide | Slide, world: World) -> None:
    """Give layers of other slides, which are hidden, the unit of the slide that is shown.

    napari's scale bar has a unit only if all layers have it, whether they are visible or not. When
    their own slide is shown again, they get their own unit back.

    Parameters
    ----------
    viewer
        Where they are.
    slide, world
        The slide that is shown, and its world.
    """
    for layer in layers_of(viewer):
        own = world_of(layer.metadata)
        if own is not None and is_on(layer, slide):
            layer.units = (own.unit,) * layer.ndim
        elif not layer.visible:
            layer.units = (world.unit,) * layer.ndim


def remove_layers(viewer: ViewerModel, layers: Iterable[Any]) -> None:
    """Remove layers that are still there."""
    for layer in list(layers):
        if layer in viewer.layers:
            viewer.layers.remove(layer)


def select_map(viewer: ViewerModel) -> None:
    """Select the visible map's layer, so that napari shows its colours, limits and opacity."""
    maps = [layer for layer in layers_of(viewer, "map") if layer.visible]
    if maps:
        viewer.layers.selection.active = maps[-1]


def _slide(layer: Any) -> ShownSlide:
    facts = described(layer.metadata)
    path = facts.get("path")
    return ShownSlide(
        facts["slide"],
        None if path is None else Path(path),
        Size(*facts["size"]),
        world_of(layer.metadata) or World.of(None),
        layer,
        is_stated(facts.get("mpp_source")),
    )
