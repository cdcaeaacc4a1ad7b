"""What is compared on a slide: which maps, in which colours. Knows no Qt."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.belonging import misfit
from slidelens.desktop.display import Legend
from slidelens.desktop.layers import map_layers
from slidelens.desktop.state.agreement import (
    Comparison,
    Method,
    compare,
    method_of,
    shared_class,
)
from slidelens.desktop.world import KEY, describe
from slidelens.errors import ResultError
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.shown import ShownSlide
    from slidelens.maps.map import Map

__all__ = [
    "MODES",
    "Compared",
    "Opened",
    "Picture",
    "agreement_layer",
    "agreement_legend",
    "difference_layer",
    "difference_legend",
    "heat_layer",
    "missing",
    "open_methods",
    "pictures",
]

MODES = {
    "off": ("Single", "One view, with the layers as they were"),
    "two": ("2 up", "Two views side by side that move together"),
    "four": ("4 up", "Four views side by side that move together"),
    "blend": ("Blend", "Cross-fade from the first method to the second"),
    "blink": ("Blink", "Show one method after the other in the same place"),
    "difference": ("Difference", "First method minus second"),
    "agreement": ("Agreement", "Where methods agree, and which one differs"),
}
"""Ways to compare: what the button says, and its help."""

_GREEN, _RED, _BLUE, _YELLOW = (0, 158, 115), (213, 94, 0), (0, 114, 178), (240, 228, 66)
_OPAQUE = 0.85
_NEEDS_TWO = ("blend", "blink", "difference", "agreement")


@dataclass(frozen=True)
class Opened:
    """A result that is compared.

    Attributes
    ----------
    method
        Its score and class for the slide.
    picture
        The map that is shown: its first probability map, otherwise its first map; ``None`` if it
        has none.
    channel
        The plane of that map that is shown.
    region
        Whether only a region of the slide was run.
    """

    folder: Path
    method: Method
    picture: Map | None
    channel: str
    region: bool = False

    @property
    def title(self) -> str:
        """Name and score of the slide, in one line."""
        method = self.method
        part = "  ·  region" if self.region else ""
        return f"{method.name}  ·  {method.positive} {method.score:.1%}{part}"


@dataclass(frozen=True)
class Compared:
    """Results for one slide, and what they agree on.

    ``None`` if fewer than two draw a map, or they have no class in common.
    """

    opened: tuple[Opened, ...]
    comparison: Comparison | None

    @property
    def drawn(self) -> list[Opened]:
        """Those with a probability map."""
        return [one for one in self.opened if one.method.map is not None]


@dataclass(frozen=True)
class Picture:
    """One of several views side by side."""

    title: str
    layers: tuple[LayerData, ...]


def open_methods(folders: Iterable[Path], slide: ShownSlide) -> Compared:
    """Open results for one slide and compare them; reads maps, so not for the window's thread.

    Parameters
    ----------
    folders
        One for each result.
    slide
        The slide that they are compared on.

    Raises
    ------
    ResultError
        A result cannot be read, or is of another slide.
    """
    results = {folder: Result.load(folder) for folder in folders}
    for folder, result in results.items():
        if fault := misfit(result.slide, result.model.name, slide):
            raise ResultError(f"{folder}: {fault}")
    maps = [r for r in results.values() if method_of(r).map is not None]
    label = shared_class(maps) if len(maps) > 1 else None
    opened: list[Opened] = []
    for folder, result in results.items():
        method = method_of(result, label if label in result.classes else None)
        same = sum(one.method.name.partition(" (")[0] == method.name for one in opened)
        if same:  # the same model from two folders of results
            method = replace(method, name=f"{method.name} ({same + 1})")
        picture, channel = method.map, method.channel
        if picture is None:
            others = (m for m in result.maps.values() if m.kind != "labels")
            picture = next(others, None)
            channel = "" if picture is None else picture.channels[-1]
        region = result.settings is not None and result.settings.region is not None
        opened.append(Opened(folder, method, picture, channel, region))
    drawn = [one.method for one in opened if one.method.map is not None]
    return Compared(tuple(opened), None if label is None else compare(drawn))


def missing(mode: str, compared: Compared) -> str:
    """Return what is missing for a comparison mode; empty if it can be shown."""
    count, drawn = len(compared.opened), len(compared.drawn)
    if mode == "off":
        return ""
    if not count:
        return "Tick a method to see it."
    if mode in _NEEDS_TWO and count < 2:
        return "Tick a second method to compare it with."
    if mode in _NEEDS_TWO and drawn < 2:
        bare = next(one for one in compared.opened if one.method.map is None)
        return (
            f"{bare.method.name} draws no probability map; "
            "its slide score and its own map can be seen side by side."
        )
    if mode in _NEEDS_TWO and compared.comparison is None:
        each = ", ".join(f"{one.method.name} draws {one.method.positive}" for one in compared.drawn)
        return (
            f"{each}: they have no class of one name, so they cannot be compared cell by cell. "
            "Side by side, each shows its own."
        )
    return ""


def pictures(
    mode: str, compared: Compared, slide: ShownSlide, like: Mapping[str, Any]
) -> list[Picture]:
    """Return what is shown side by side: ``two`` or ``four`` views.

    Views that no method needs show the agreement, then the slide alone. ``like`` is as in
    :func:`heat_layer`.
    """
    room = 2 if mode == "two" else 4
    base = _slide_again(slide)
    shown = [_picture(one, base, slide, like) for one in compared.opened[:room]]
    found = compared.comparison
    if found is not None and len(shown) < room:
        title = f"Agreement  ·  {found.agreed:.0%} of the cells"
        shown.append(Picture(title, (base, agreement_layer(found, slide))))
    if len(shown) < room:
        shown.insert(0, Picture(f"{slide.id}, alone", (base,)))
    return shown


def heat_layer(
    one: Opened, slide: ShownSlide, like: Mapping[str, Any], **options: Any
) -> LayerData:
    """Return a method's map as a layer of the comparison.

    Parameters
    ----------
    like
        Model to the layer that already shows its map: colours and threshold are kept.
    options
        Keywords of napari's layer.
    """
    assert one.picture is not None, "only methods with a map are drawn"
    name = one.method.name
    ((data, own, kind),) = map_layers(
        one.picture, slide.world, slide_id=slide.id, model=name, channel=one.channel
    )
    own["metadata"][KEY]["layer"] = "compare"
    if name in like:
        own["colormap"] = like[name].colormap
        own["contrast_limits"] = tuple(like[name].contrast_limits)
    return data, {**own, "name": f"Compare: {name}", **options}, kind


def difference_layer(found: Comparison, slide: ShownSlide) -> LayerData:
    """Return the difference of the first two methods: vermillion the first, blue the second."""
    from napari.utils.colormaps import Colormap

    source = found.difference
    options = {
        "name": "Compare: difference",
        "multiscale": True,
        "rgb": False,
        "colormap": Colormap(_diverging(), name="slidelens difference"),
        "contrast_limits": (-1.0, 1.0),
        "interpolation2d": "nearest",
        "metadata": describe(slide.world, "compare", slide.id),
        **slide.world.place(source.affine),
    }
    return source.planes(0), options, "image"


def agreement_layer(found: Comparison, slide: ShownSlide) -> LayerData:
    """Return the map of which methods are positive where."""
    from napari.utils.colormaps import DirectLabelColormap

    nothing = (0.0, 0.0, 0.0, 0.0)
    colors: dict[int | None, tuple[float, ...]] = {None: nothing, 0: nothing}
    for label, color in enumerate(_label_colors(found), 1):
        colors[label] = (*(c / 255 for c in color), 1.0)
    source = found.agreement
    options = {
        "name": "Compare: agreement",
        "colormap": DirectLabelColormap(color_dict=colors),
        "opacity": 0.6,
        "metadata": describe(slide.world, "compare", slide.id, classes=source.channels),
        **slide.world.place(source.affine),
    }
    return source.read()[0], options, "labels"


def agreement_legend(found: Comparison) -> Legend:
    """Return the colours of :func:`agreement_layer`."""
    pairs = zip(found.agreement.channels, _label_colors(found), strict=True)
    return Legend("Agreement", classes=tuple(pairs))


def difference_legend(found: Comparison) -> Legend:
    """Return the colours of :func:`difference_layer`."""
    return Legend(" − ".join(found.names[:2]), _diverging(), -1.0, 1.0)


def _picture(one: Opened, base: LayerData, slide: ShownSlide, like: Mapping[str, Any]) -> Picture:
    if one.picture is None:
        return Picture(f"{one.title}  ·  no map", (base,))
    what = "" if one.method.map is not None else f"  ·  {one.picture.kind}"
    return Picture(one.title + what, (base, heat_layer(one, slide, like)))


def _slide_again(slide: ShownSlide) -> LayerData:
    """Return the slide's layer for another canvas; the pixels are the same arrays."""
    layer = slide.layer
    options = {
        "name": slide.id,
        "rgb": True,
        "multiscale": layer.multiscale,
        "interpolation2d": "linear",
        "scale": tuple(layer.scale),
        "translate": tuple(layer.translate),
        "units": tuple(str(unit) for unit in layer.units),
        "metadata": dict(layer.metadata),
    }
    return list(layer.data) if layer.multiscale else layer.data, options, "image"


def _label_colors(found: Comparison) -> Sequence[tuple[int, int, int]]:
    return (_GREEN, _RED, _BLUE) if len(found.names) == 2 else (_GREEN, _YELLOW)


def _diverging() -> NDArray[np.float32]:
    """Return RGBA ``(256, 4)``: clear where both agree, opaque from a difference of a half on."""
    part = np.linspace(-1, 1, 256)[:, None]
    ends = np.where(part > 0, np.array(_RED), np.array(_BLUE)) / 255
    return np.concatenate([ends, np.minimum(2 * np.abs(part), 1) * _OPAQUE], 1).astype(np.float32)
