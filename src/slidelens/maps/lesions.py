"""Lesions: nearby regions joined into one, with area, largest diameter and peak."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.geometry import Affine, Mpp
    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region

__all__ = ["Lesion", "Peak", "find_lesions", "find_peaks", "largest_diameter", "peaks_of"]

GAP_UM = 75.0
"""Areas closer than this are one lesion: the rule of the CAMELYON16 evaluation, where 75 µm is the
width of five tumour cells (Ehteshami Bejnordi et al. 2017)."""
_STRIP = 256  # rows of a map that are searched together


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


def find_lesions(regions: Sequence[Region], source: Map, *, gap_um: float = GAP_UM) -> list[Lesion]:
    """Join regions of a map into lesions, largest diameter first.

    Parameters
    ----------
    regions
        Of ``source`` (:func:`~slidelens.maps.regions.positive_regions`).
    source
        The probability map that they were found in.
    gap_um
        Regions of one class that are closer than this belong to one lesion.
    """
    found: list[Lesion] = []
    for label in dict.fromkeys(region.label for region in regions):
        some = [region for region in regions if region.label == label]
        groups = [[some[i] for i in g] for g in _close(some, source.slide_mpp, gap_um)]
        joined = [_joined(group) for group in groups]
        peaks = peaks_of(source, joined, label)
        found += map(_lesion, groups, joined, peaks, repeat(source.slide_mpp))
    return sorted(found, key=lambda lesion: -lesion.diameter_mm)


def largest_diameter(polygon: Any, mpp: Mpp) -> float:
    """Return the largest distance in mm between two points of a polygon in level-0 px."""
    import shapely

    hull = shapely.get_coordinates(polygon.convex_hull) * (mpp.x / 1000, mpp.y / 1000)
    return float(max(np.hypot(*(hull - corner).T).max() for corner in hull))


def peaks_of(source: Map, polygons: Sequence[Any], label: str) -> list[Peak]:
    """Return the highest cell of a map in each of some polygons (level-0 px).

    A cell lies in a polygon if the centre of its part within the polygon's bounds does: cells at
    the border of a slide extend beyond it, and regions do not. If there is none, as in an area
    smaller than a cell, it is the cell under a point of the area. The map is read once, strip by
    strip.
    """
    import shapely

    channel = source.channel(label)
    windows = [source.window(_bounds(polygon)) for polygon in polygons]
    left = min((columns.start for _, columns in windows), default=0)
    right = max((columns.stop for _, columns in windows), default=0)
    found = [Peak(-1.0, *p.representative_point().coords[0]) for p in polygons]
    waiting = sorted(range(len(polygons)), key=lambda n: -windows[n][0].start)  # the last is next
    first = windows[waiting[-1]][0].start if waiting else 0
    last = max((rows.stop for rows, _ in windows), default=0)
    shapely.prepare(polygons)
    active: list[int] = []
    for start in range(first, last, _STRIP):
        stop = min(start + _STRIP, last)
        while waiting and windows[waiting[-1]][0].start < stop:
            active.append(waiting.pop())
        active = [n for n in active if windows[n][0].stop > start]
        if not active:
            continue
        strip = np.asarray(source.levels[0][channel, start:stop, left:right])
        for n in active:
            rows, columns = windows[n]
            part = slice(max(rows.start, start), min(rows.stop, stop))
            values = strip[
                part.start - start : part.stop - start, columns.start - left : columns.stop - left
            ]
            found[n] = _higher(
                found[n], values, (columns.start, part.start), source.affine, polygons[n]
            )
    return [
        peak
        if peak.probability >= 0
        else Peak(float(source.at(peak.x, peak.y)[channel]), peak.x, peak.y)
        for peak in found
    ]


def _higher(
    peak: Peak, values: NDArray[Any], origin: tuple[int, int], affine: Affine, polygon: Any
) -> Peak:
    """Return the highest of the cells that lie in a polygon, if it is above a peak."""
    import shapely

    left, top, right, bottom = polygon.bounds
    with np.errstate(invalid="ignore"):
        y, x = np.nonzero(values > peak.probability)
    at = np.stack([x, y], 1) + origin
    corners = [affine.apply(at + n).clip((left, top), (right, bottom)) for n in (0, 1)]
    centres = (corners[0] + corners[1]) / 2
    inside = np.flatnonzero(shapely.contains_xy(polygon, centres[:, 0], centres[:, 1]))
    if not len(inside):
        return peak
    best = inside[values[y, x][inside].argmax()]
    return Peak(float(values[y[best], x[best]]), *centres[best].tolist())


def _bounds(polygon: Any) -> Box:
    left, top, right, bottom = polygon.bounds
    return Box(left, top, right - left, bottom - top)


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


def _joined(parts: Sequence[Region]) -> Any:
    import shapely

    return parts[0].polygon if len(parts) == 1 else shapely.union_all([p.polygon for p in parts])


def _lesion(parts: Sequence[Region], polygon: Any, peak: Peak, mpp: Mpp) -> Lesion:
    areas = np.array([p.area_mm2 for p in parts])
    return Lesion(
        polygon,
        parts[0].label,
        float(areas.sum()),
        largest_diameter(polygon, mpp),
        float(np.average([p.probability for p in parts], weights=areas)),
        peak,
    )
