"""Run one tile through the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from slidelens.nn.streaming.layout import frame
from slidelens.nn.streaming.seam import Seams, join
from slidelens.nn.windows import crop

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slidelens.nn.streaming.graph import LocalGraph, Node
    from slidelens.nn.streaming.layout import AxisLayout, Frame
    from slidelens.nn.windows import Rect

__all__ = ["Walk"]

Values = Mapping[int, "Tensor | None"]


class Walk:
    """Runs the graph on one tile.

    Parameters
    ----------
    graph, rows, columns, seams
        The network, its layout, and the strips that tiles pass on.
    at
        Row and column of the tile.
    anchor
        A leaf that requires a gradient: run with a graph, and exchange gradients at the seams of
        the nodes in ``live``. None: run without a graph.
    keep
        Keep the seams for the next tiles; if not, an earlier run has kept them.
    """

    def __init__(
        self, graph: LocalGraph, rows: AxisLayout, columns: AxisLayout, seams: Seams,
        at: tuple[int, int], anchor: Tensor | None = None, live: list[bool] | None = None,
        *, keep: bool = True,
    ) -> None:  # fmt: skip
        self.graph, self.rows, self.columns, self.seams = graph, rows, columns, seams
        self.at, self.anchor, self.live, self.keep = at, anchor, live or [], keep
        self.frames = frames(graph, rows, columns, at)
        self.tokens: list[Tensor] = []
        self._rectified: set[int] = set()

    def run(self, root: nn.Module, image: Tensor) -> Tensor | None:
        """Compute the tile's part of the output; None if it has none.

        ``image`` covers what the layout says the tile holds of the input.
        """
        values: dict[int, Tensor | None] = {}
        for node in self.graph.nodes:
            if node.kind == "input":
                values[0] = image
            elif node.kind == "constant":
                assert node.call is not None
                values[node.index] = node.call.run(root, values)
            elif node.kind == "local":
                values[node.index] = self._local(root, node, values)
            else:
                values[node.index] = self._joined(root, node, values)
            for i in {*node.inputs, *node.constants}:
                if self.graph.last_use[i] == node.index:
                    del values[i]
        result, rects = values[self.graph.output], self.frames[self.graph.output]
        if result is None or not rects.new.area:
            return None
        return crop(result, rects.whole, rects.new)

    def _inputs(self, node: Node, values: Values, want: Rect) -> dict[int, Tensor]:
        """Return the values that a node reads, each cropped to the cells ``want``."""
        result: dict[int, Tensor] = {}
        for i in (*node.constants, *node.inputs):
            value = values[i]
            assert value is not None
            result[i] = value
        for i in node.inputs:
            result[i] = crop(result[i], self.frames[i].whole, want, self.graph.nodes[i].dims)
        return result

    def _local(self, root: nn.Module, node: Node, values: Values) -> Tensor | None:
        whole = self.frames[node.index].whole
        if not whole.area:
            return None
        assert node.call is not None
        source = node.inputs[0]
        if node.overwrites and self.frames[source].whole == whole:
            value = values[source]
            assert value is not None
            return value if node.index in self._rectified else torch.relu_(value)
        result: Tensor = node.call.run(root, self._inputs(node, values, whole))
        return result

    def _joined(self, root: nn.Module, node: Node, values: Values) -> Tensor | None:
        """Compute the new part of a window's or a join's value; assemble it with its seams."""
        rects = self.frames[node.index]
        new, have = self._new(root, node, rects, values)
        if rects.alone:
            return None if new is None else crop(new, have, rects.new, node.dims)
        value: Tensor | None
        if self.anchor is not None and self.live[node.index]:
            value, token = join(self.seams, node, self.at, rects, new, have, self.anchor)
            if token is not None:
                self.tokens.append(token)
        else:
            # Strips that went through a ReLU before they were kept are the same behind it.
            relu = self.graph.rectified.get(node.index)
            rectify = relu is not None and self.frames[relu].whole == rects.whole
            value = self.seams.assemble(node, self.at, rects, new, have, rectify=rectify)
            if relu is not None and rectify:
                self._rectified.add(relu)
        if self.keep:
            self.seams.keep(node, self.at, rects, None if value is None else value.detach())
        return value

    def _new(
        self, root: nn.Module, node: Node, rects: Frame, values: Values
    ) -> tuple[Tensor | None, Rect]:
        if not rects.new.area:
            return None, rects.new
        if node.window is None:
            assert node.call is not None
            return node.call.run(root, self._inputs(node, values, rects.new)), rects.new
        i = node.inputs[0]
        source = values[i]
        assert source is not None
        size = (self.rows.size[i], self.columns.size[i])
        weights = node.window_weights(root, values)
        return node.window.run(source, self.frames[i].whole, rects.new, size, weights)


def frames(
    graph: LocalGraph, rows: AxisLayout, columns: AxisLayout, at: tuple[int, int]
) -> dict[int, Frame]:
    """Return the rectangles of every streamed node in one tile."""
    return {node.index: frame(rows, columns, node.index, *at) for node in graph.streamed}
