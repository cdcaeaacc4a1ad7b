"""The tile grid of a model, as one layer of lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.desktop.world import describe
from slidelens.maps.palette import TISSUE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.world import World
    from slidelens.maps.result import Result

__all__ = ["grid_layers", "grid_lines"]


def grid_layers(result: Result, world: World) -> list[LayerData]:
    """Return the outlines of a result's tiles, hidden; none if it has no table of tiles.

    One vector is a whole line of tiles: rectangles would be slow from some thousands on.
    """
    if result.tiles is None or not len(result.tiles):
        return []
    name = result.model.name
    lines = grid_lines(result.tiles.boxes)
    options = {
        "name": f"{name}: grid",
        "visible": False,
        "vector_style": "line",
        "edge_color": np.array([[*TISSUE, 255]]) / 255,
        "edge_width": float(result.tiles.boxes[:, 2].min()) / 30,
        "metadata": describe(world, "grid", result.slide.id, model=name),
        **world.place_outlines(),
    }
    return [(np.stack([lines[:, :2], lines[:, 2:] - lines[:, :2]], 1), options, "vectors")]


def grid_lines(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """Join the edges of boxes that lie in one line.

    Parameters
    ----------
    boxes
        ``(N, 4)`` x, y, w, h in level-0 px.

    Returns
    -------
    ``(M, 4)`` float64 y, x of the start and y, x of the end, each part of an edge drawn once.
    """
    (x, y), (right, bottom) = boxes[:, :2].T, (boxes[:, :2] + boxes[:, 2:]).T
    flat_at, flat_from, flat_to = _joined(np.concatenate([y, bottom]), np.tile([x, right], 2))
    up_at, up_from, up_to = _joined(np.concatenate([x, right]), np.tile([y, bottom], 2))
    flat = np.stack([flat_at, flat_from, flat_at, flat_to], 1)
    return np.concatenate([flat, np.stack([up_from, up_at, up_to, up_at], 1)])


def _joined(at: NDArray[np.float64], spans: NDArray[np.float64]) -> tuple[NDArray[np.float64], ...]:
    """Join spans ``(2, N)`` from, to at equal positions ``(N,)`` where they touch or overlap."""
    at, spans = at.round(3), spans.round(3)  # a tile's end is the next one's start up to rounding
    order = np.lexsort((spans[0], at))
    at, (start, stop) = at[order], spans[:, order]
    fresh = np.ones(len(at), bool)
    # Boxes of one size: the span before reaches as far as any of its line.
    fresh[1:] = (at[1:] != at[:-1]) | (start[1:] > stop[:-1])
    first = np.flatnonzero(fresh)
    return at[first], start[first], stop[np.append(first[1:], len(at)) - 1]
