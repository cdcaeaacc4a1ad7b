"""Regions: polygons around the cells of a map above a threshold, along the cells' edges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.maps.outlines import Runs, outlines

if TYPE_CHECKING:
    from collections.abc import Sequence

    import shapely
    from numpy.typing import NDArray

    from slidelens.geometry import Size
    from slidelens.maps.map import Map

__all__ = ["Region", "find_regions", "positive_regions"]

_STRIP = 512


@dataclass(frozen=True)
class Region:
    """A connected part of a map.

    Attributes
    ----------
    polygon
        shapely ``Polygon`` with holes, in level-0 px.
    label
        Class name.
    area_mm2
        Area in mm².
    probability
        Mean value of its cells.
    """

    polygon: shapely.Polygon
    label: str
    area_mm2: float
    probability: float


def find_regions(
    source: Map,
    channel: str | int,
    *,
    threshold: float = 0.5,
    min_area_mm2: float = 0.0,
    within: Size | None = None,
) -> list[Region]:
    """Find the 4-connected regions of cells whose value is at least ``threshold``.

    Only runs of such cells are held in memory, not the map. Regions are in reading order of their
    first cell.

    Parameters
    ----------
    source
        The map. In a label map, ``channel`` is a label's name and the threshold does not count.
    channel
        Which plane, by name or index.
    threshold
        Lowest value of a cell that belongs to a region.
    min_area_mm2
        Smaller regions are left out.
    within
        The slide's level-0 size: parts of border cells outside it are cut off. None: nothing is.
    """
    label = channel if isinstance(channel, str) else source.channels[channel]
    runs = _runs(source, label, threshold)
    found = []
    for rings, cells, total in outlines(runs):
        polygon, area = _polygon(source, rings), cells * source.cell_area_mm2
        if within is not None and (cut := _cut(polygon, within)) is not None:
            area *= cut.area / polygon.area
            polygon = cut
        if area >= min_area_mm2:
            found.append(Region(polygon, label, area, total / cells))
    return found


def positive_regions(
    source: Map,
    *,
    threshold: float = 0.5,
    min_area_mm2: float = 0.0,
    within: Size | None = None,
) -> list[Region]:
    """Find the regions of every class but the first (the negative one) of a probability map.

    Parameters
    ----------
    source
        The map, ``(C, H, W)``. A map with a single channel has only that class.
    threshold
        Lowest probability of a cell that belongs to a region.
    min_area_mm2
        Smallest area of a region, in mm².
    within
        See :func:`find_regions`.
    """
    chosen: Sequence[str] = source.channels if len(source.channels) == 1 else source.channels[1:]
    return [
        region
        for name in chosen
        for region in find_regions(
            source, name, threshold=threshold, min_area_mm2=min_area_mm2, within=within
        )
    ]


def _runs(source: Map, label: str, threshold: float) -> Runs:
    _, height, width = source.shape
    parts = []
    for y in range(0, height, _STRIP):
        rows = slice(y, min(y + _STRIP, height))
        if source.kind == "labels":
            wanted = source.channels.index(label) + 1
            values = np.asarray(source.levels[0][0:1, rows, :])[0]
            parts.append(Runs.of(values == wanted, np.ones(values.shape), y))
        else:
            plane = source.channel(label)
            values = np.asarray(source.levels[0][plane : plane + 1, rows, :], np.float64)[0]
            with np.errstate(invalid="ignore"):
                parts.append(Runs.of(values >= threshold, values, y))
    return Runs.join(parts, width)


def _cut(polygon: shapely.Polygon, size: Size) -> shapely.Polygon | None:
    """Return the part of a polygon in the slide; None: all of it, or (by rounding) nothing."""
    import shapely

    left, top, right, bottom = polygon.bounds
    if left >= 0 and top >= 0 and right <= size.width and bottom <= size.height:
        return None
    cut = shapely.intersection(polygon, shapely.box(0, 0, size.width, size.height))
    return cut if isinstance(cut, shapely.Polygon) and not cut.is_empty else None


def _polygon(source: Map, rings: list[NDArray[np.int64]]) -> Any:
    import shapely

    shell, *holes = [source.affine.apply(ring) for ring in rings]
    return shapely.Polygon(shell, holes)
