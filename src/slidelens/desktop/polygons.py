"""Convert polygons with holes and parts to napari's shapes and back.

napari's shapes have no holes, but an edge that a path takes twice is not drawn. So all rings of a
polygon go into one path: from the first vertex over a bridge to the next ring, around it, and back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = ["path_to_polygon", "polygon_to_path"]


def polygon_to_path(polygon: Any) -> NDArray[np.float64]:
    """Return a ``Polygon`` or ``MultiPolygon`` as one path ``(N, 2)``, x and y, not closed.

    A polygon of one ring is that ring.
    """
    rings = [
        shapely.get_coordinates(ring)
        for part in getattr(polygon, "geoms", [polygon])
        for ring in (part.exterior, *part.interiors)
    ]
    if len(rings) == 1:
        return np.asarray(rings[0][:-1])
    start = rings[0][:1]
    return np.concatenate([rings[0], *(step for ring in rings[1:] for step in (ring, start))])[:-1]


def path_to_polygon(path: ArrayLike) -> Any:
    """Return the area of a path with its holes and parts: the inverse of :func:`polygon_to_path`.

    A path that crosses itself, as one drawn by hand may, gives the valid areas it bounds; one
    without area an empty polygon.
    """
    rings = [_valid(ring) for ring in _loops(np.asarray(path, np.float64))]
    area = rings[0] if rings else shapely.Polygon()
    for ring in rings[1:]:
        area = shapely.symmetric_difference(area, ring)
    return area


def _loops(path: NDArray[np.float64]) -> list[NDArray[np.float64]]:
    """Cut a closed path wherever it returns to a vertex; bridges, taken out and back, fall away."""
    if not len(path):
        return []
    loops: list[NDArray[np.float64]] = []
    open_: list[tuple[float, float]] = []
    place: dict[tuple[float, float], int] = {}
    for x, y in [*path.tolist(), path[0].tolist()]:
        vertex = (x, y)
        if vertex in place:
            first = place[vertex]
            loop = open_[first:]
            if len(loop) > 2:
                loops.append(np.array(loop))
            for gone in open_[first + 1 :]:
                del place[gone]
            del open_[first + 1 :]
        else:
            place[vertex] = len(open_)
            open_.append(vertex)
    return loops


def _valid(ring: NDArray[np.float64]) -> Any:
    polygon = shapely.Polygon(ring)
    if polygon.is_valid:
        return polygon
    return _areas(shapely.make_valid(polygon))


def _areas(geometry: Any) -> Any:
    parts = [p for p in shapely.get_parts(geometry, return_index=False) if p.area > 0]
    return shapely.union_all([p for p in parts if p.geom_type in ("Polygon", "MultiPolygon")])
