"""Fields of view worth a reviewer's attention: where a method found most evidence.

It depends on what a result contains, not on the family's name, so results of plugins are shown too:
a trajectory, a saliency map, a table of tiles as coarse as the map, or any other map.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.geometry import Box
from slidelens.tiling.class_names import is_named

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from slidelens.geometry import Mpp
    from slidelens.maps.map import Map
    from slidelens.maps.regions import Region
    from slidelens.maps.result import Result, Tiles
    from slidelens.maps.trajectory import Trajectory
    from slidelens.tiling.annotations import Annotation

__all__ = ["Focus", "annotated_foci", "channel_of", "find_foci", "leading_map"]

FIELD_UM = 192.0
"""Side of a field if the method itself has none: 384 px at 20x (0.5 µm/px)."""
_LEAST_UM, _MOST_UM = 128.0, 512.0  # side of a field around a lesion
_WORTH = 0.25  # a peak below this share of the highest is ignored
_CELLS = 2**22  # cells of a map that are held in memory at once
_OVERLAP = 0.25  # share of a field that another may cover


@dataclass(frozen=True, slots=True)
class Focus:
    """One place.

    Attributes
    ----------
    box
        In level-0 px.
    what
        A description, such as "tile with the highest probability of tumor".
    value
        The value it was chosen by; ``None`` if it was not chosen by a value.
    """

    box: Box
    what: str
    value: float | None = None


def leading_map(result: Result) -> Map | None:
    """Return the map that says most about where a method looked.

    A saliency map comes first, then the first map of values, then one of labels.
    """
    maps = [m for m in result.maps.values() if m.name != "tissue"]
    ranked = sorted(maps, key=lambda m: (m.kind != "saliency", m.kind == "labels"))
    return ranked[0] if ranked else None


def channel_of(source: Map, target: str) -> str | None:
    """Return the channel of a class; the last one if the map has none for it."""
    if source.kind == "labels":
        return None
    return target if target in source.channels else source.channels[-1]


def find_foci(result: Result, target: str, count: int) -> list[Focus]:
    """Find the places with the strongest evidence for a class, the strongest first.

    If the method chose its own windows, these are windows of the last layer; otherwise the peaks of
    a saliency map; otherwise lesions (the regions of the result), if it segments, that is, has a
    map of labels; otherwise tiles, if the map is as coarse as they are; otherwise lesions of any
    other map; otherwise the strongest fields of whatever map there is.

    Parameters
    ----------
    result
        With its maps.
    target
        The class.
    count
        The most places to return; fields hardly overlap.
    """
    mpp, source, tiles = result.slide.resolution, leading_map(result), result.tiles
    mpp = mpp or (source.slide_mpp if source is not None else None)
    lesions = [region for region in result.regions if region.label == target]
    segments = any(m.kind == "labels" and m.name != "tissue" for m in result.maps.values())
    if result.trajectory is not None:
        found: Iterable[Focus] = _windows(result.trajectory, target)
    elif source is not None and source.kind == "saliency" and mpp is not None:
        found = _peaks(source, target, mpp, count)
    elif tiles is not None and _is_tiled(source, tiles) and not (lesions and segments):
        found = _tiles(tiles, target)
    elif mpp is not None and source is not None:
        found = _lesions(lesions, source, target, mpp) if lesions else ()
        found = list(found) or _peaks(source, target, mpp, count)
    else:
        found = ()
    return _apart(found, count)


def annotated_foci(
    annotations: Iterable[Annotation], target: str, mpp: Mpp, count: int
) -> list[Focus]:
    """Return fields on annotated areas, the largest first: what a false negative missed.

    Annotations named after another class are left out, if some are named after this one.
    """
    drawn = list(annotations)
    of_class = [a for a in drawn if is_named(a.label, [target])]
    ranked = sorted(of_class or drawn, key=lambda a: -a.polygon.area)
    what = f"annotated {target}"
    return _apart((Focus(_around(a.polygon, mpp), what) for a in ranked), count)


def _windows(trajectory: Trajectory, target: str) -> list[Focus]:
    """Return the last windows, by how much they contributed to the class."""
    k = trajectory.classes.index(target) if target in trajectory.classes else -1
    last = trajectory.last
    windows = [
        (window.probabilities[k] if window.probabilities else None, number, window)
        for number, window in enumerate(last, 1)
    ]
    windows.sort(key=lambda w: (-(w[0] if w[0] is not None else -1.0), w[1]))
    return [
        Focus(w.box, f"window {number} of {len(last)} in the last layer, {w.magnification:.3g}x", p)
        for p, number, w in windows
    ]


def _is_tiled(source: Map | None, tiles: Tiles) -> bool:
    """Return whether tiles are what the method saw, not means of a finer map over a grid."""
    if not len(tiles):
        return False
    if source is None or tiles.attention is not None:
        return True
    return source.affine.sx >= 0.45 * float(np.median(tiles.boxes[:, 2]))


def _tiles(tiles: Tiles, target: str) -> list[Focus]:
    if tiles.attention is not None and np.isfinite(tiles.attention).any():
        values, what = tiles.attention, "tile with the most attention"
    elif target in tiles.classes:
        values = tiles.probabilities[:, tiles.classes.index(target)]
        what = f"tile with the highest probability of {target}"
    else:
        return []
    order = np.argsort(-np.nan_to_num(values, nan=-np.inf), kind="stable")
    return [
        Focus(Box(*tiles.boxes[i].tolist()), what, float(values[i]))
        for i in order.tolist()
        if isfinite(values[i])
    ]


def _lesions(regions: Iterable[Region], source: Map, target: str, mpp: Mpp) -> Iterable[Focus]:
    """Return fields on lesions, by area times probability."""
    for region in sorted(regions, key=lambda r: -r.area_mm2 * r.probability):
        box = _around(region.polygon, mpp)
        left, top, right, bottom = region.polygon.bounds
        if max((right - left) * mpp.x, (bottom - top) * mpp.y) > _MOST_UM:
            # A large lesion is shown where it is strongest.
            inside = Box(left, top, right - left, bottom - top)
            strongest = _peaks(source, target, mpp, 1, inside)
            box = strongest[0].box if strongest else box
        what = f"lesion of {region.area_mm2:.3g} mm², mean probability"
        yield Focus(box, f"{what} {region.probability:.3g}")


def _around(polygon: Any, mpp: Mpp) -> Box:
    """Return a square field around a polygon, of a size that shows cells and architecture."""
    left, top, right, bottom = polygon.bounds
    side = 1.2 * max((right - left) * mpp.x, (bottom - top) * mpp.y)
    side = min(max(side, _LEAST_UM), _MOST_UM)
    if side < _MOST_UM:
        x, y = (left + right) / 2, (top + bottom) / 2
    else:
        point = polygon.representative_point()  # the middle of a ring lies outside it
        x, y = point.x, point.y
    return _field(x, y, side, mpp)


def _field(x: float, y: float, side_um: float, mpp: Mpp) -> Box:
    w, h = side_um / mpp.x, side_um / mpp.y
    return Box(x - w / 2, y - h / 2, w, h)


def _peaks(
    source: Map, target: str, mpp: Mpp, count: int, inside: Box | None = None
) -> list[Focus]:
    """Return the fields with the highest mean, each away from those before it."""
    from scipy.ndimage import uniform_filter

    plane, x, y, sx, sy = _plane(source, target, inside)
    rows, columns = (max(1, round(FIELD_UM / m / s)) for m, s in ((mpp.y, sy), (mpp.x, sx)))
    mean = uniform_filter(np.nan_to_num(plane), (rows, columns), mode="constant")
    # Of the fields that hold all of a small peak, take the one with the peak in its middle.
    centred = uniform_filter(mean, (rows, columns), mode="constant")
    name = target if source.kind == "labels" else channel_of(source, target)
    whole = min(FIELD_UM / mpp.x, plane.shape[1] * sx), min(FIELD_UM / mpp.y, plane.shape[0] * sy)
    found: list[Focus] = []
    while mean.size and len(found) < count:
        i, j = np.unravel_index(int(np.argmax(centred)), mean.shape)
        value = float(mean[i, j])
        if centred[i, j] <= 0 or (found and value < _WORTH * (found[0].value or 0.0)):
            break
        centre = float(x + (j + 0.5) * sx), float(y + (i + 0.5) * sy)
        box = Box(centre[0] - whole[0] / 2, centre[1] - whole[1] / 2, *whole)
        found.append(Focus(box, f"peak of {source.name} ({name})", value))
        centred[max(0, i - rows) : i + rows + 1, max(0, j - columns) : j + columns + 1] = 0
    return found


def _plane(
    source: Map, target: str, inside: Box | None
) -> tuple[NDArray[np.float32], float, float, float, float]:
    """Return a class's plane of a map at a size that fits in memory; its corner and cell sides.

    A label map gives 1 where it has the class.
    """
    window = source.window(inside)
    full = source.levels[0].shape
    cells = (window[0].stop - window[0].start) * (window[1].stop - window[1].start)
    level = source.levels[0]
    for coarser in source.levels:
        level = coarser
        if cells * (coarser.shape[1] / full[1]) * (coarser.shape[2] / full[2]) <= _CELLS:
            break
    fy, fx = full[1] / level.shape[1], full[2] / level.shape[2]
    top, left = int(window[0].start / fy), int(window[1].start / fx)
    bottom, right = ceil(window[0].stop / fy), ceil(window[1].stop / fx)
    name = channel_of(source, target)
    k = 0 if name is None else source.channel(name)
    plane = np.asarray(level[k : k + 1, top:bottom, left:right])[0]
    if source.kind == "labels":
        known = source.channels.index(target) + 1 if target in source.channels else -1
        plane = plane == known
    sx, sy = source.affine.sx * fx, source.affine.sy * fy
    x, y = source.affine.tx + left * sx, source.affine.ty + top * sy
    return plane.astype(np.float32), x, y, sx, sy


def _apart(found: Iterable[Focus], count: int) -> list[Focus]:
    """Keep the first fields that hardly overlap."""
    kept: list[Focus] = []
    for one in found:
        if len(kept) == count:
            break
        if all(
            one.box.intersect(other.box).area <= _OVERLAP * min(one.box.area, other.box.area)
            for other in kept
        ):
            kept.append(one)
    return kept
