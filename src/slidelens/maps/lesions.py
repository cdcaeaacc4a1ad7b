"""Lesions: what lies close together in a map is one, with area, largest diameter and peak."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.geometry import Mpp
    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region

__all__ = ["Lesion", "Peak", "find_lesions", "find_peaks", "largest_diameter", "peak_of"]

GAP_UM = 75.0
"""Areas closer than this are one lesion: the rule of the CAMELYON16 evaluation, where 75 µm is the
width of five tumour cells (Ehteshami Bejnordi et al. 2017)."""
_STRIP = 256  # rows of a map that are looked at together


@dataclass(frozen=True)
class Peak:
    """The highest cell of an area: its value and its centre in level-0 px."""

    probability: float
    x: float
    y: float


@dataclass(frozen=True)
class Lesion:
    """Regions of one class that belong together.

    Attributes
    ----------
    polygon
        shapely ``Polygon`` or ``MultiPolygon``, in level-0 px.
    label
        Class name.
    area_mm2, diameter_mm
        Area, and the largest distance between two of its points, gaps included.
    probability
        Mean of its cells.
    peak
        Its highest cell.
    """

    polygon: Any
    label: str
    area_mm2: float
    diameter_mm: float
    probability: float
    peak: Peak


def find_lesions(
    regions: Sequence[Region], source: Map, *, gap_um: float = GAP_UM, min_area_mm2: float = 0.0
) -> list[Lesion]:
    """Join regions of a map into lesions, largest diameter first.

    Parameters
    ----------
    regions
        Of ``source`` (:func:`~slidelens.maps.regions.positive_regions`).
    source
        The map of probabilities that they were found in.
    gap_um
        Regions of one class that are closer than this belong to one lesion.
    min_area_mm2
        Smaller lesions are left out.
    """
    found = []
    for label in dict.fromkeys(region.label for region in regions):
        some = [region for region in regions if region.label == label]
        for group in _close(some, source.slide_mpp, gap_um):
            lesion = _lesion([some[i] for i in group], source)
            if lesion.area_mm2 >= min_area_mm2:
                found.append(lesion)
    return sorted(found, key=lambda lesion: -lesion.diameter_mm)


def largest_diameter(polygon: Any, mpp: Mpp) -> float:
    """Return the largest distance in mm between two points of a polygon in level-0 px."""
    import shapely

    hull = shapely.get_coordinates(polygon.convex_hull) * (mpp.x / 1000, mpp.y / 1000)
    return float(max(np.hypot(*(hull - corner).T).max() for corner in hull))


def peak_of(source: Map, polygon: Any, label: str) -> Peak:
    """Return the highest cell of a map in a polygon (level-0 px).

    A cell lies in it where the centre of its part within the polygon's bounds does: those at the
    border of a slide reach over it, and regions do not. Where there is none, for an area smaller
    than a cell, it is the cell under a point of the area.
    """
    import shapely

    left, top, right, bottom = polygon.bounds
    rows, columns = source.window(Box(left, top, right - left, bottom - top))
    cells, channel = source.levels[0], source.channel(label)
    shapely.prepare(polygon)
    found = Peak(-1.0, *polygon.representative_point().coords[0])
    for start in range(rows.start, rows.stop, _STRIP):
        strip = slice(start, min(start + _STRIP, rows.stop))
        values = np.asarray(cells[channel, strip, columns])
        with np.errstate(invalid="ignore"):
            y, x = np.nonzero(values > found.probability)
        at = np.stack([x + columns.start, y + strip.start], 1)
        corners = [source.affine.apply(at + n).clip((left, top), (right, bottom)) for n in (0, 1)]
        centres = (corners[0] + corners[1]) / 2
        inside = np.flatnonzero(shapely.contains_xy(polygon, centres[:, 0], centres[:, 1]))
        if len(inside):
            best = inside[values[y, x][inside].argmax()]
            found = Peak(float(values[y[best], x[best]]), *centres[best].tolist())
    if found.probability < 0:
        return Peak(float(source.at(found.x, found.y)[channel]), found.x, found.y)
    return found


def find_peaks(
    source: Map, label: str, *, least: float = 0.1, radius_um: float = 200.0
) -> list[Peak]:
    """Find the peaks of a map, highest first, none within ``radius_um`` of a higher one.

    Candidates of lesions over the whole range of probabilities, as a FROC curve needs them
    (non-maximum suppression as in Liu et al. 2017, with the radius in µm).

    Parameters
    ----------
    least
        Lower peaks are left out.
    """
    from scipy.spatial import cKDTree

    values = np.asarray(source.levels[0][source.channel(label)])
    with np.errstate(invalid="ignore"):
        rows, columns = np.nonzero(values >= least)
    heights = values[rows, columns].astype(np.float64)
    centres = source.affine.apply(np.stack([columns, rows], 1) + 0.5)
    tree = cKDTree(centres * tuple(source.slide_mpp))
    covered = np.zeros(len(heights), bool)
    peaks = []
    for cell in np.argsort(-heights, kind="stable"):
        if not covered[cell]:
            covered[tree.query_ball_point(tree.data[cell], radius_um)] = True
            peaks.append(Peak(float(heights[cell]), *centres[cell].tolist()))
    return peaks


def _close(regions: Sequence[Region], mpp: Mpp, gap_um: float) -> list[list[int]]:
    """Group regions closer than a gap, in the order of the first of each group."""
    import shapely
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    in_um = [shapely.transform(r.polygon, lambda xy: xy * (mpp.x, mpp.y)) for r in regions]
    a, b = shapely.STRtree(in_um).query(in_um, predicate="dwithin", distance=gap_um)
    graph = coo_array((np.ones(len(a), np.int8), (a, b)), (len(regions), len(regions)))
    _, number = connected_components(graph, directed=False)
    return [np.flatnonzero(number == k).tolist() for k in dict.fromkeys(number.tolist())]


def _lesion(parts: Sequence[Region], source: Map) -> Lesion:
    import shapely

    polygon = parts[0].polygon if len(parts) == 1 else shapely.union_all([p.polygon for p in parts])
    areas = np.array([p.area_mm2 for p in parts])
    return Lesion(
        polygon,
        parts[0].label,
        float(areas.sum()),
        largest_diameter(polygon, source.slide_mpp),
        float(np.average([p.probability for p in parts], weights=areas)),
        peak_of(source, polygon, parts[0].label),
    )
