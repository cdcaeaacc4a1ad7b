"""One image through a trunk, tile by tile: forward, and backward from what was kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from slidelens.nn.graph import LocalGraph, Node, call_with
from slidelens.nn.layout import AxisLayout, frame
from slidelens.nn.seam import Seams, join
from slidelens.nn.source import Source
from slidelens.nn.windows import Rect, crop

__all__ = ["Band", "Tape"]

Tensors = Mapping[str, Tensor]


class Band(NamedTuple):
    """Gradient of full rows of the image: ``values`` ``(N, C, h, W)`` from row ``top`` on."""

    top: int
    values: Tensor


class _Result(NamedTuple):
    """A tile that was run with a graph: what to differentiate, and with respect to what."""

    output: Tensor | None
    tokens: list[Tensor]
    image: Tensor
    weights: dict[str, Tensor]
    anchor: Tensor


class Tape:
    """The forward pass of one image, and what its backward pass needs.

    Parameters
    ----------
    graph, module
        The trunk.
    layout
        Along y and x.
    source
        The image.
    record
        Keep what the backward pass needs.
    input_grad
        The gradient of the image will be asked for.
    """

    def __init__(
        self,
        graph: LocalGraph,
        module: nn.Module,
        layout: tuple[AxisLayout, AxisLayout],
        source: Source,
        *,
        record: bool,
        input_grad: bool = False,
    ) -> None:
        self.graph, self.rows, self.columns = graph, *layout
        self.source = source
        self.record, self.input_grad = record, input_grad
        self.live = graph.live(module, input_grad)
        self.seams = Seams(self.rows, self.columns, remember=record)
        self.module = module
        self._kept: _Result | None = None
        self._autocast = _autocast_state(source.device)

    @property
    def tiles(self) -> list[tuple[int, int]]:
        """Tiles in raster order."""
        return [(r, c) for r in range(self.rows.tiles) for c in range(self.columns.tiles)]

    def forward(self, tensors: Tensors) -> Tensor:
        """Compute the trunk's output with the weights and buffers ``tensors``."""
        out = self.graph.output
        output: Tensor | None = None
        weights = {name: value.detach() for name, value in tensors.items()}
        with torch.no_grad(), self._autocast():
            for at in self.tiles:
                if self.record and at == self.tiles[-1]:
                    # The backward pass begins with the last tile: keep its graph.
                    self._kept = self._run_with_graph(at, tensors)
                    values = self._kept.output
                else:
                    values, _ = self._run(at, self._read(at), weights, None)
                if values is not None:
                    if output is None:
                        output = _canvas(values, self.rows.size[out], self.columns.size[out])
                    new = frame(self.rows, self.columns, out, *at).new
                    output[:, :, new.top : new.bottom, new.left : new.right] = values
                self.seams.passed(*at)
                if at[1] + 1 == self.columns.tiles:
                    self.seams.passed(at[0])
        assert output is not None
        return output

    def backward(self, tensors: Tensors, grad: Tensor, into: dict[str, Tensor]) -> Iterator[Band]:
        """Backpropagate ``grad``, the gradient of the output.

        Adds to ``into`` the gradient of every tensor that requires one, and yields that of the
        image, last rows first, if it was asked for.
        """
        band = _BandSum(self.rows, self.columns) if self.input_grad else None
        out = self.graph.output
        for row in reversed(range(self.rows.tiles)):
            for column in reversed(range(self.columns.tiles)):
                at = (row, column)
                new = frame(self.rows, self.columns, out, *at).new
                part = grad[:, :, new.top : new.bottom, new.left : new.right]
                if self._owes(at, part):
                    image_grad = self._tile_backward(at, tensors, part, into)
                    if band is not None and image_grad is not None:
                        band.add(at, image_grad)
                self._kept = None
                self.seams.settled(*at)
            self.seams.settled(row)
            if band is not None:
                yield band.finish(row, self.source)

    # One tile ---------------------------------------------------------------------------------

    def _tile_backward(
        self, at: tuple[int, int], tensors: Tensors, grad: Tensor, into: dict[str, Tensor]
    ) -> Tensor | None:
        run = self._kept
        if run is None:
            with self._autocast():
                run = self._run_with_graph(at, tensors)
        roots, grads = list(run.tokens), [torch.zeros_like(token) for token in run.tokens]
        if run.output is not None and run.output.requires_grad:
            roots.append(run.output)
            grads.append(grad.to(run.output.dtype))
        names = [name for name, weight in run.weights.items() if weight.requires_grad]
        leaves = [run.weights[name] for name in names]
        leaves += [run.anchor, *([run.image] if self.input_grad else [])]
        if not roots:
            return None
        found = torch.autograd.grad(roots, leaves, grads, allow_unused=True)
        for name, value in zip(names, found, strict=False):
            if value is not None:
                _accumulate(into, name, value)
        return found[-1] if self.input_grad else None

    def _run_with_graph(self, at: tuple[int, int], tensors: Tensors) -> _Result:
        # Fresh leaves: hooks of the real parameters run once, on the sum over all tiles.
        weights = {
            name: value.detach().requires_grad_(value.requires_grad)
            for name, value in tensors.items()
        }
        image = self._read(at).requires_grad_(self.input_grad)
        anchor = torch.zeros((), device=image.device, requires_grad=True)
        with torch.enable_grad():
            output, tokens = self._run(at, image, weights, anchor)
        return _Result(output, tokens, image, weights, anchor)

    def _read(self, at: tuple[int, int]) -> Tensor:
        return self.source.read(frame(self.rows, self.columns, 0, *at).whole)

    def _run(
        self, at: tuple[int, int], image: Tensor, weights: Tensors, anchor: Tensor | None
    ) -> tuple[Tensor | None, list[Tensor]]:
        tokens: list[Tensor] = []

        def body(root: nn.Module) -> Tensor | None:
            return self._walk(root, at, image, anchor, tokens)

        return call_with(self.module, weights, body), tokens

    def _walk(
        self, root: nn.Module, at: tuple[int, int], image: Tensor, anchor: Tensor | None,
        tokens: list[Tensor],
    ) -> Tensor | None:  # fmt: skip
        values: dict[int, Tensor | None] = {}
        for node in self.graph.nodes:
            if node.kind == "input":
                values[0] = image
            elif node.kind == "constant":
                assert node.call is not None
                values[node.index] = node.call.run(root, values)
            elif node.kind == "local":
                values[node.index] = self._local(root, node, at, values)
            else:
                values[node.index] = self._joined(root, node, at, values, anchor, tokens)
            for i in {*node.inputs, *node.constants}:
                if self.graph.last_use[i] == node.index:
                    del values[i]
        result = values[self.graph.output]
        rects = frame(self.rows, self.columns, self.graph.output, *at)
        return (
            None if result is None or not rects.new.area else crop(result, rects.whole, rects.new)
        )

    def _inputs(
        self, node: Node, at: tuple[int, int], values: Mapping[int, Tensor | None], want: Rect
    ) -> dict[int, Tensor]:
        """Return the values that a node reads, each cropped to the cells ``want``."""
        result: dict[int, Tensor] = {}
        for i in node.inputs:
            value, whole = values[i], frame(self.rows, self.columns, i, *at).whole
            assert value is not None
            result[i] = crop(value, whole, want, self.graph.nodes[i].dims)
        for i in node.constants:
            constant = values[i]
            result[i] = constant  # type: ignore[assignment]  # weights are never absent
        return result

    def _local(
        self, root: nn.Module, node: Node, at: tuple[int, int],
        values: Mapping[int, Tensor | None],
    ) -> Tensor | None:  # fmt: skip
        whole = frame(self.rows, self.columns, node.index, *at).whole
        if not whole.area:
            return None
        assert node.call is not None
        source = node.inputs[0]
        if node.overwrites and frame(self.rows, self.columns, source, *at).whole == whole:
            value = values[source]
            assert value is not None
            return torch.relu_(value)
        result: Tensor = node.call.run(root, self._inputs(node, at, values, whole))
        return result

    def _joined(
        self, root: nn.Module, node: Node, at: tuple[int, int],
        values: Mapping[int, Tensor | None], anchor: Tensor | None, tokens: list[Tensor],
    ) -> Tensor | None:  # fmt: skip
        """Compute the new part of a window's or a join's value and assemble it with its seams."""
        rects = frame(self.rows, self.columns, node.index, *at)
        new, have = None, rects.new
        if rects.new.area and node.window is not None:
            i = node.inputs[0]
            source, whole = values[i], frame(self.rows, self.columns, i, *at).whole
            assert source is not None
            size = (self.rows.size[i], self.columns.size[i])
            weights = node.window_weights(root, values)
            new, have = node.window.run(source, whole, rects.new, size, weights)
        elif rects.new.area:
            assert node.call is not None
            new = node.call.run(root, self._inputs(node, at, values, rects.new))
        if rects.alone:
            return None if new is None else crop(new, have, rects.new, node.dims)
        if anchor is not None and self.live[node.index]:
            value, token = join(self.seams, node, at, rects, new, have, anchor)
            if token is not None:
                tokens.append(token)
            return value
        value = self.seams.assemble(node, at, rects, new, have)
        if anchor is None:
            self.seams.keep(node, at, rects, value)
        return value

    def _owes(self, at: tuple[int, int], grad: Tensor) -> bool:
        """Whether a tile has any gradient: its own, or one that later tiles handed back."""
        if grad.numel() and bool(grad.any()):
            return True
        for node in self.graph.nodes:
            if node.kind in ("window", "join"):
                rects = frame(self.rows, self.columns, node.index, *at)
                if any(bool(owed.any()) for owed, _ in self.seams.owed(node, at, rects)):
                    return True
        return False


class _BandSum:
    """Sums the image's gradient over tiles, one row of tiles at a time."""

    def __init__(self, rows: AxisLayout, columns: AxisLayout) -> None:
        self.rows, self.columns = rows, columns
        self.sum: Tensor | None = None
        self.top = self.bottom = rows.size[0]

    def add(self, at: tuple[int, int], grad: Tensor) -> None:
        row, column = at
        whole = frame(self.rows, self.columns, 0, row, column).whole
        have = self._reach(grad, whole.top)
        crop(have, Rect(self.top, self.bottom, 0, self.columns.size[0]), whole).add_(grad)

    def finish(self, row: int, source: Source) -> Band:
        """Return the rows that no earlier tile reaches."""
        first = self.rows.last[0][row - 1] if row else 0
        have = self._reach(source.zeros(), min(first, self.top))
        keep = first - self.top
        self.sum, self.bottom = have[:, :, :keep], first
        return Band(first, have[:, :, keep:])

    def _reach(self, like: Tensor, top: int) -> Tensor:
        """Grow the sum upwards to row ``top``."""
        if self.sum is None or top < self.top:
            shape = (*like.shape[:2], self.top - top, self.columns.size[0])
            more = torch.zeros(shape, dtype=like.dtype, device=like.device)
            self.sum = more if self.sum is None else torch.cat([more, self.sum], 2)
            self.top = top
        return self.sum


def _accumulate(into: dict[str, Tensor], name: str, value: Tensor) -> None:
    # Sums over many tiles are kept in float32 where weights are half: each sum would round.
    dtype = torch.float32 if value.dtype in (torch.float16, torch.bfloat16) else value.dtype
    into[name] = into[name].add_(value) if name in into else value.to(dtype, copy=True)


def _canvas(values: Tensor, height: int, width: int) -> Tensor:
    shape = (*values.shape[:2], height, width)
    nhwc = values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()
    result = torch.empty(shape, dtype=values.dtype, device=values.device)
    return result.to(memory_format=torch.channels_last) if nhwc else result


def _autocast_state(device: torch.device) -> Callable[[], torch.autocast]:
    """Remember autocast as it is now. Its cache of cast weights would mix up graphs of tiles."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
