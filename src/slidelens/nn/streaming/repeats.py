"""Find tiles of one colour with equal results, such as slide background."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Hashable

    from torch import Tensor

    from slidelens.nn.streaming.graph import LocalGraph
    from slidelens.nn.streaming.layout import AxisLayout

__all__ = ["Repeats", "colour_of"]

Colour = tuple[float, ...]


class _Place(NamedTuple):
    """One tile along one axis: the shape of its work, and the first tile that reaches into it."""

    shape: Hashable
    since: int


class Repeats:
    """Finds tiles whose result equals that of an earlier one.

    Two tiles are equal if every layer's piece has the same size and place in the tile, no padding
    reaches it, and all tiles of the image that influence it have one colour. Their outputs and
    seams are then equal, so one result serves for all.
    """

    def __init__(self, graph: LocalGraph, rows: AxisLayout, columns: AxisLayout) -> None:
        self._places = (
            [_place(graph, rows, 0, t) for t in range(rows.tiles)],
            [_place(graph, columns, 1, t) for t in range(columns.tiles)],
        )
        self._colours: dict[tuple[int, int], Colour | None] = {}

    def key(self, at: tuple[int, int], pixels: Tensor) -> Hashable | None:
        """Return a key that is equal for tiles with equal results; None for a tile without.

        Call it for tiles in raster order; ``pixels`` are those that the tile reads.
        """
        return self.key_of(at, colour_of(pixels))

    def key_of(self, at: tuple[int, int], colour: Colour | None) -> Hashable | None:
        """Return `key` for a tile of one ``colour``, or None if it has several."""
        self._colours[at] = colour
        row, column = self._places[0][at[0]], self._places[1][at[1]]
        if colour is None or row is None or column is None:
            return None
        before = (
            self._colours[r, c]
            for r in range(row.since, at[0] + 1)
            for c in range(column.since, at[1] + 1)
        )
        if any(other != colour for other in before):
            return None
        return row.shape, column.shape, colour


def colour_of(pixels: Tensor) -> Colour | None:
    """Return the common colour of all pixels ``(N, C, h, w)``, or None."""
    if not pixels.numel():
        return None
    first = pixels[:, :, :1, :1]
    # Most tiles are told by two pixels.
    if not torch.equal(pixels[:, :, -1:, -1:], first) or not bool((pixels == first).all()):
        return None
    return tuple(first.flatten().tolist())


def _place(graph: LocalGraph, layout: AxisLayout, axis: int, tile: int) -> _Place | None:
    """Describe the work of a tile along one axis; None where the image's border matters."""
    shape: list[int] = []
    low, size = layout.size[0], layout.size[0]
    for node in graph.streamed:
        i = node.index
        start, first, last = (table[i][tile] for table in (layout.start, layout.first, layout.last))
        field = graph.fields[axis][i]
        assert field is not None
        if start < last:
            low = min(low, start * field.stride + field.first)
            if low < 0 or (last - 1) * field.stride + field.last >= size:
                return None
        shape += [first - start, last - start]
        if tile + 1 < layout.tiles:
            shape += [table[i][tile + 1] - start for table in (layout.start, layout.first)]
        for source in node.inputs:
            # Where the piece lies in its input, in cells of the input.
            window = graph.axis(node, axis)
            shape.append(start * (window.stride if window else 1) - layout.start[source][tile])
    since = tile
    while layout.start[0][since] > low:
        since -= 1
    return _Place(tuple(shape), since)
