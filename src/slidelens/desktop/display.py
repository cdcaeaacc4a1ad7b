"""How map layers look: colours, threshold, legend, value under the pointer. Knows no Qt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.world import KEY, described
from slidelens.maps.palette import COLORMAPS, class_colors

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "CHOICES",
    "Histogram",
    "Legend",
    "Reading",
    "Style",
    "histogram",
    "legend",
    "read_values",
    "restyle",
    "style_of",
    "top_of",
]

CHOICES = ("viridis", "cividis", "magma", "inferno", "Reds", "turbo")
"""Colormaps to choose from: the first three are those of probability, attention and saliency."""

_OPAQUE = 0.8
_EDGE = 1e-4  # width of the step at the threshold, as a part of the scale
_CELLS = 1 << 20  # cells of the level that a histogram is made from


@dataclass(frozen=True)
class Style:
    """How a map's values become colours.

    Attributes
    ----------
    colormap
        Matplotlib's name.
    threshold
        Values below are not shown.
    fade
        Whether opacity grows with the value, so that unsuspicious tissue looks unchanged.
    """

    colormap: str
    threshold: float = 0.0
    fade: bool = True


@dataclass(frozen=True)
class Reading:
    """A map's value at a place."""

    layer: Any
    model: str
    map: str
    label: str
    """Name of the class."""
    value: float | None
    """``None`` where nothing was predicted; in labels, 1 is inside."""

    @property
    def text(self) -> str:
        """The value as shown to people."""
        if self.value is None:
            return "–"
        return (
            self.label
            if described(self.layer.metadata)["kind"] == "labels"
            else f"{self.value:.3f}"
        )


@dataclass(frozen=True)
class Histogram:
    """How often values occur; ``edges`` has one more than ``counts``."""

    counts: NDArray[np.int64]
    edges: NDArray[np.float64]

    @property
    def total(self) -> int:
        """How many cells have a value."""
        return int(self.counts.sum())

    def share_above(self, threshold: float) -> float:
        """Return the fraction of the cells with at least this value (to a bin)."""
        if not self.total:
            return 0.0
        centres = (self.edges[:-1] + self.edges[1:]) / 2
        return float(self.counts[centres >= threshold].sum() / self.total)


@dataclass(frozen=True)
class Legend:
    """Colours and their meaning: a scale of values, or a list of classes."""

    title: str
    table: NDArray[np.float32] | None = None
    """``(256, 4)`` RGBA from the lowest value to the highest."""
    low: float = 0.0
    high: float = 1.0
    over: bool = False
    """Whether values may be higher; they have the last colour."""
    classes: tuple[tuple[str, tuple[int, int, int]], ...] = ()


def style_of(layer: Any) -> Style:
    """Return how a map layer looks now."""
    facts = described(layer.metadata)
    return facts.get("style") or Style(COLORMAPS.get(facts["kind"], CHOICES[0]))


def restyle(layer: Any, style: Style) -> None:
    """Change the colours of a map's image layer; they stay when its limits change."""
    from napari.utils.colormaps import AVAILABLE_COLORMAPS, Colormap

    at, colors = _table(style, _part(layer, style))
    # napari keeps every colormap that it has seen: one per layer and name is enough.
    name = f"{style.colormap} of {layer.name}"
    AVAILABLE_COLORMAPS.pop(name, None)
    layer.colormap = Colormap(colors, controls=at, name=name)
    layer.metadata[KEY]["style"] = style
    layer.events.contrast_limits.connect(_refit)  # once: napari knows it already the next time


def top_of(layer: Any) -> float:
    """Return the upper end of a map layer's values, whichever part of them is coloured."""
    return float(layer.contrast_limits_range[1])


def read_values(layers: Iterable[Any], position: ArrayLike) -> list[Reading]:
    """Read maps at a position, at their full resolution.

    Parameters
    ----------
    layers
        Map layers, image or labels.
    position
        In napari's world, y and x last.
    """
    return [_read(layer, position) for layer in layers]


def histogram(layer: Any, bins: int = 64) -> Histogram:
    """Count the values of a map's image layer, on a level of at most a million cells."""
    levels = list(layer.data) if layer.multiscale else [layer.data]
    level = next((v for v in levels if v.shape[0] * v.shape[1] <= _CELLS), levels[-1])
    values = np.asarray(level)
    high = max(top_of(layer), 1e-12)
    # The scale of saliency ends below its highest values, which are counted nevertheless.
    found = np.minimum(values[np.isfinite(values)], high)
    counts, edges = np.histogram(found, bins, (0.0, high))
    return Histogram(counts, edges)


def legend(layer: Any) -> Legend | None:
    """Return the meaning of a layer's colours; ``None`` for layers without one."""
    facts = described(layer.metadata)
    kind, classes = facts.get("layer"), tuple(facts.get("classes", ()))
    if kind == "map" and facts["kind"] != "labels":
        style = style_of(layer)
        label = facts["channel"]
        name = facts["map"] if label == facts["map"] else f"{facts['map']} {label}"
        low, high = map(float, layer.contrast_limits)
        at, colors = _table(style, _part(layer, style))
        steps = np.linspace(0, 1, 256)
        table = np.stack([np.interp(steps, at, colors[:, k]) for k in range(4)], 1)
        over = facts["kind"] == "saliency" or high < top_of(layer)
        return Legend(f"{facts['model']}: {name}", table.astype(np.float32), low, high, over)
    if kind in ("map", "regions", "annotations") and classes:
        title = f"{facts['model']}: {kind}" if facts.get("model") else layer.name
        return Legend(title, classes=tuple(class_colors(classes).items()))
    return None


def _refit(event: Any) -> None:
    """Keep hiding what is below the same value."""
    restyle(event.source, style_of(event.source))


def _part(layer: Any, style: Style) -> float:
    """Return where the threshold lies in a layer's colours, 0..1."""
    low, high = layer.contrast_limits
    return float(np.clip((style.threshold - low) / ((high - low) or 1.0), 0, 1))


def _table(style: Style, part: float) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
    """Return positions and RGBA of a colormap that is clear below ``part`` of its scale."""
    from matplotlib import colormaps

    at = np.linspace(0, 1, 256)
    if 0 < part <= 1:
        edge = [max(part - _EDGE, 0.0), part]
        at = np.unique(np.concatenate([at, edge]))
        # Two positions closer than the edge would make the step uncertain.
        at = at[(np.abs(at - part) >= _EDGE) | np.isin(at, edge) | np.isin(at, (0.0, 1.0))]
    colors = np.asarray(colormaps[style.colormap](at), np.float32)
    colors[:, 3] = (
        np.linspace(0, _OPAQUE, 256)[np.rint(at * 255).astype(int)] if style.fade else _OPAQUE
    )
    colors[at < part, 3] = 0
    return at, colors


def _read(layer: Any, position: ArrayLike) -> Reading:
    facts = described(layer.metadata)
    data = layer.data[0] if layer.multiscale else layer.data
    row, column = np.rint(np.asarray(layer.world_to_data(position))[-2:]).astype(int).tolist()
    inside = 0 <= row < data.shape[0] and 0 <= column < data.shape[1]
    at = slice(row, row + inside), slice(column, column + inside)
    found = np.asarray(data[at]).reshape(-1)
    label, value = facts.get("channel", ""), None
    if len(found) and np.isfinite(found[0]):
        value = float(found[0])
        if facts["kind"] == "labels":
            label = _class(facts["classes"], int(value))
            value = 1.0 if label else None
    return Reading(layer, facts["model"], facts["map"], label, value)


def _class(classes: Sequence[str], label: int) -> str:
    return classes[label - 1] if 0 < label <= len(classes) else ""
