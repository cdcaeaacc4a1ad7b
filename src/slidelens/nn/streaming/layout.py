"""Which cells of every tensor each tile computes, along one axis.

Both schemes are layouts, run by the same code. A layout gives, for node ``i`` and tile ``t``, three
positions: the tile computes cells ``[first, last)`` and holds ``[start, last)``. The cells from
``start`` to ``first`` are its seam, passed on by the previous tile; the halo scheme has no seams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slidelens.nn.windows import Rect

if TYPE_CHECKING:
    from slidelens.nn.streaming.graph import LocalGraph

__all__ = ["AxisLayout", "Frame", "frame", "halo_layout", "seam_layout"]

Table = Sequence[Sequence[int]]


@dataclass(frozen=True)
class AxisLayout:
    """Positions by node and tile (see the module's docstring), and ``size`` by node."""

    tiles: int
    size: Sequence[int]
    start: Table
    first: Table
    last: Table

    @property
    def independent(self) -> bool:
        """Whether tiles pass nothing on."""
        return self.start == self.first

    def seam(self, node: int, tile: int) -> int:
        """Cells of a node that tile ``tile`` takes over from the previous one."""
        return self.first[node][tile] - self.start[node][tile]


def seam_layout(graph: LocalGraph, axis: int, n: int, tile: int) -> AxisLayout:
    """Lay out seams: every cell of every layer is computed once.

    Tile ``t`` computes every cell that depends only on the image up to ``edge[t + 1]``. A seam
    holds the finished cells that later outputs still need, once per tensor: before norm and
    activation, or after a ReLU that was applied during assembly.
    """
    sizes = graph.sizes(axis, n)
    edges = [*range(0, n, tile), n]
    done: list[list[int]] = []
    for node in graph.nodes:
        window = graph.axis(node, axis)
        if node.kind == "input":
            done.append(edges)
        elif node.kind == "constant":
            done.append([])
        else:
            inputs = [done[i] for i in node.inputs]
            have = [min(column) for column in zip(*inputs, strict=True)]
            source = sizes[node.inputs[0]]
            done.append([window.ready(h, source) for h in have] if window else have)

    needed = [list(d) for d in done]
    for node in reversed(graph.nodes):
        window = graph.axis(node, axis)
        for i in node.inputs:
            for t, own in enumerate(done[node.index]):
                if window is not None:
                    if own == sizes[node.index]:
                        continue
                    need = window.reads(own, sizes[node.index], sizes[i])[0]
                else:
                    # A join is kept itself; a local node is computed again over its seam.
                    need = own if node.kind == "join" else needed[node.index][t]
                needed[i][t] = min(needed[i][t], need)
    return AxisLayout(
        len(edges) - 1,
        sizes,
        [s[:-1] for s in needed],
        [d[:-1] for d in done],
        [d[1:] for d in done],
    )


def halo_layout(graph: LocalGraph, axis: int, n: int, owned: int) -> AxisLayout:
    """Lay out halos: a tile owns ``owned`` output cells and computes all that they depend on."""
    sizes = graph.sizes(axis, n)
    edges = [*range(0, sizes[graph.output], owned), sizes[graph.output]]
    tiles = len(edges) - 1
    low: list[list[int]] = [[size] * tiles for size in sizes]
    high: list[list[int]] = [[0] * tiles for _ in sizes]
    low[graph.output], high[graph.output] = edges[:-1], edges[1:]
    for node in reversed(graph.nodes):
        window = graph.axis(node, axis)
        for i in node.inputs:
            for t in range(tiles):
                a, b = low[node.index][t], high[node.index][t]
                if a >= b:
                    continue
                if window is not None:
                    a, b = window.reads(a, b, sizes[i])
                low[i][t], high[i][t] = min(low[i][t], a), max(high[i][t], b)
    return AxisLayout(tiles, sizes, low, low, high)


@dataclass(frozen=True)
class Frame:
    """The rectangles of one node in one tile.

    ``new`` is computed; ``whole`` is held; ``top`` and ``left`` come from the tiles above and to
    the left; ``down`` and ``right`` are kept for those below and to the right.
    """

    new: Rect
    whole: Rect
    top: Rect
    left: Rect
    down: Rect
    right: Rect

    @property
    def alone(self) -> bool:
        """Whether nothing is taken over or passed on."""
        return not (self.top.area or self.left.area or self.down.area or self.right.area)


_NOTHING = Rect(0, 0, 0, 0)


def frame(rows: AxisLayout, columns: AxisLayout, node: int, row: int, column: int) -> Frame:
    """Return the rectangles of ``node`` in the tile at ``row``, ``column``."""
    y0, y1, y2 = (table[node][row] for table in (rows.start, rows.first, rows.last))
    x0, x1, x2 = (table[node][column] for table in (columns.start, columns.first, columns.last))
    down = right = _NOTHING
    if row + 1 < rows.tiles:
        down = Rect(rows.start[node][row + 1], rows.first[node][row + 1], x1, x2)
    if column + 1 < columns.tiles:
        right = Rect(y1, y2, columns.start[node][column + 1], columns.first[node][column + 1])
    return Frame(
        new=Rect(y1, y2, x1, x2),
        whole=Rect(y0, y2, x0, x2),
        top=Rect(y0, y1, x0, x2),
        left=Rect(y1, y2, x0, x1),
        down=down,
        right=right,
    )
