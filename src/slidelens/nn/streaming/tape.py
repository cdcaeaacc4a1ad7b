"""Forward and backward pass of one image through a trunk, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch

from slidelens.nn.streaming.layout import Frame, frame
from slidelens.nn.streaming.repeats import Repeats
from slidelens.nn.streaming.seam import Seams, Strips
from slidelens.nn.streaming.stand_in import stand_in
from slidelens.nn.streaming.walk import Walk, frames
from slidelens.nn.windows import Rect, crop, joined
from slidelens.steps import finish

if TYPE_CHECKING:
    from torch import Tensor, nn

    from slidelens.nn.source import Source
    from slidelens.nn.streaming.graph import LocalGraph
    from slidelens.nn.streaming.layout import AxisLayout

__all__ = ["Band", "StreamingReport", "Tape"]

Tensors = Mapping[str, "Tensor"]
Tile = tuple[int, int]


class Settle(Protocol):
    """A function to call between tiles, and at the end."""

    def __call__(self, *, last: bool = False) -> None: ...


def _nothing(*, last: bool = False) -> None:
    """Do nothing after a tile."""


class Band(NamedTuple):
    """Full rows ``(N, C, h, W)`` from row ``top`` on, of the output or of the image's gradient."""

    top: int
    values: Tensor


@dataclass
class StreamingReport:
    """What was computed for one image, and what was skipped."""

    tiles: int
    """Tiles of the image."""
    reused: int = 0
    """Tiles of one colour whose output was taken from another."""
    idle: int = 0
    """Tiles that needed no backward pass of their own: no gradient, or summed with another's."""

    @property
    def skipped(self) -> float:
        """Fraction of tiles that were not computed in the forward pass."""
        return self.reused / self.tiles


class _Result(NamedTuple):
    """A tile that was run with a graph: the outputs and inputs to differentiate."""

    output: Tensor | None
    tokens: list[Tensor]
    image: Tensor
    weights: dict[str, Tensor]
    anchor: Tensor


class _Repeat(NamedTuple):
    """The results of a tile, for others of the same work and colour."""

    output: Tensor | None
    strips: Strips


class Tape:
    """The forward pass of one image, and the data that its backward pass needs.

    Parameters
    ----------
    graph, module
        The trunk.
    layout
        Along y and x.
    source
        The image.
    graphs
        Number of last tiles whose graph the forward pass keeps, so that the backward pass need
        not recompute them; 0 if there is no backward pass.
    input_grad
        Whether the gradient of the image is needed.
    settle
        Called after each tile, and with ``last=True`` after the backward pass.
    """

    def __init__(
        self,
        graph: LocalGraph,
        module: nn.Module,
        layout: tuple[AxisLayout, AxisLayout],
        source: Source,
        *,
        graphs: int,
        input_grad: bool = False,
        settle: Settle = _nothing,
    ) -> None:
        self.graph, self.module, self.source = graph, module, source
        self.rows, self.columns = layout
        self.record, self.input_grad = graphs > 0, input_grad
        self.live = graph.live(module, input_grad)
        self.seams = Seams(graph.kept, self.rows, self.columns, remember=self.record)
        self.tiles = [(r, c) for r in range(self.rows.tiles) for c in range(self.columns.tiles)]
        self.report = StreamingReport(len(self.tiles))
        self._keys: dict[Tile, Hashable] = {}
        # The backward pass begins with the last tiles: their graphs are kept.
        self._last = frozenset(self.tiles[-graphs:] if graphs else [])
        self._kept: dict[Tile, _Result] = {}
        self._autocast = _autocast_state(source.device)
        self._settle = settle

    def forward(self, tensors: Tensors) -> Tensor:
        """Compute the trunk's output with the weights and buffers ``tensors``."""
        return finish(self.iter_forward(tensors))

    def iter_forward(self, tensors: Tensors) -> Generator[int, None, Tensor]:
        """As `forward`, but yield the number of finished tiles after each; return the output."""
        output: Tensor | None = None
        for number, (at, values) in enumerate(self._iter_tiles(tensors), start=1):
            if values is not None:
                output = self._place(output, at, values)
            yield number
        assert output is not None
        return output

    def iter_bands(self, tensors: Tensors) -> Iterator[Band]:
        """Compute the output in bands of full rows from the top, holding only one at a time."""
        parts: list[Tensor] = []
        for (row, column), values in self._iter_tiles(tensors):
            if values is not None:
                parts.append(values)
            if parts and column + 1 == self.columns.tiles:
                yield Band(self.rows.first[self.graph.output][row], joined(parts, 3))
                parts = []

    def backward(self, tensors: Tensors, grad: Tensor, into: dict[str, Tensor]) -> Iterator[Band]:
        """Backpropagate ``grad``, the gradient of the output.

        Adds to ``into`` the gradient of every tensor that requires one, and yields that of the
        image, last rows first, if it was asked for.
        """
        band = _BandSum(self.rows, self.columns) if self.input_grad else None
        merged: dict[Hashable, _Sum] = {}
        merges = not self.input_grad and self.rows.independent and self.columns.independent
        idle = 0
        self.seams.forget_gradients()
        for at in reversed(self.tiles):
            part = self._part(at, grad)
            key = self._keys[at]
            if merges and key is not None:
                # Gradients of weights are linear in that of the output: tiles of the same work
                # and colour are backpropagated as one.
                merged[key] = _Sum(at, part) if key not in merged else merged[key].plus(at, part)
                idle += 1
            elif self._owes(at, part):
                image_grad = self._tile_backward(at, tensors, part, into)
                if band is not None and image_grad is not None:
                    band.add(self._input(at), image_grad)
            else:
                idle += 1
            self._kept.pop(at, None)
            self.seams.settled(at)
            self._settle()
            if band is not None and at[1] == 0:
                yield band.finish(at[0], self.source)
        for same in merged.values():
            self._tile_backward(same.at, tensors, same.mean, into, times=same.count)
        self.report.idle = idle - len(merged)
        self._settle(last=True)

    # One tile ---------------------------------------------------------------------------------

    def _iter_tiles(self, tensors: Tensors) -> Iterator[tuple[Tile, Tensor | None]]:
        """Compute the tiles in turn; yield each one's part of the output, if it has any."""
        repeats = Repeats(self.graph, self.rows, self.columns)
        done: dict[Hashable, _Repeat] = {}
        weights = {name: value.detach() for name, value in tensors.items()}
        for at in self.tiles:
            # Entered per tile: whoever iterates must not find gradients switched off.
            with torch.no_grad(), self._autocast():
                pixels = self.source.pixels(self._input(at))
                key = repeats.key(at, pixels) if self.source.noise is None else None
                self._keys[at] = key
                if key in done:
                    values = self._reuse(at, done[key])
                else:
                    if at in self._last:
                        self._kept[at] = run = self._run_with_graph(at, pixels, tensors, keep=True)
                        values = None if run.output is None else run.output.detach()
                    else:
                        values = self._run(at, pixels, weights)
                    if key is not None:
                        done[key] = _Repeat(values, self.seams.strips(self._frames(at), at))
                self.seams.passed(at)
            self._settle()
            yield at, values

    def _run(self, at: Tile, pixels: Tensor, weights: Tensors) -> Tensor | None:
        image = self.source.prepare(pixels, self._input(at))
        walk = Walk(self.graph, self.rows, self.columns, self.seams, at)
        return walk.run(self._with(weights), image)

    def _run_with_graph(self, at: Tile, pixels: Tensor, tensors: Tensors, *, keep: bool) -> _Result:
        # Fresh leaves: hooks of the real parameters run once, on the sum over all tiles.
        weights = {
            name: value.detach().requires_grad_(value.requires_grad)
            for name, value in tensors.items()
        }
        image = self.source.prepare(pixels, self._input(at)).requires_grad_(self.input_grad)
        anchor = torch.zeros((), device=image.device, requires_grad=True)
        layout = (self.graph, self.rows, self.columns, self.seams)
        walk = Walk(*layout, at, anchor, self.live, keep=keep)
        with torch.enable_grad():
            output = walk.run(self._with(weights), image)
        return _Result(output, walk.tokens, image, weights, anchor)

    def _with(self, weights: Tensors) -> nn.Module:
        return stand_in(self.module, weights, code=self.graph.opaque)

    def _reuse(self, at: Tile, repeat: _Repeat) -> Tensor | None:
        self.seams.repeat(self._frames(at), at, repeat.strips)
        self.report.reused += 1
        return repeat.output

    def _tile_backward(
        self, at: Tile, tensors: Tensors, grad: Tensor, into: dict[str, Tensor], times: int = 1
    ) -> Tensor | None:
        run = self._kept.pop(at, None)
        if run is None:
            with self._autocast():
                pixels = self.source.pixels(self._input(at))
                run = self._run_with_graph(at, pixels, tensors, keep=False)
        roots, grads = list(run.tokens), [torch.zeros_like(token) for token in run.tokens]
        if run.output is not None and run.output.requires_grad:
            roots.append(run.output)
            grads.append(grad.to(run.output.dtype))
        names = [name for name, weight in run.weights.items() if weight.requires_grad]
        leaves = [run.weights[name] for name in names]
        leaves += [run.anchor, *([run.image] if self.input_grad else [])]
        del run
        if not roots:
            return None
        found = torch.autograd.grad(roots, leaves, grads, allow_unused=True)
        for name, value in zip(names, found, strict=False):
            if value is not None:
                _accumulate(into, name, value, times)
        return found[-1] if self.input_grad else None

    # Where a tile is ---------------------------------------------------------------------------

    def _frames(self, at: Tile) -> dict[int, Frame]:
        return frames(self.graph, self.rows, self.columns, at)

    def _input(self, at: Tile) -> Rect:
        return frame(self.rows, self.columns, 0, *at).whole

    def _part(self, at: Tile, output: Tensor) -> Tensor:
        new = frame(self.rows, self.columns, self.graph.output, *at).new
        return output[:, :, new.top : new.bottom, new.left : new.right]

    def _place(self, output: Tensor | None, at: Tile, values: Tensor) -> Tensor:
        if output is None:
            i = self.graph.output
            output = _canvas(values, self.rows.size[i], self.columns.size[i])
        self._part(at, output).copy_(values)
        return output

    def _owes(self, at: Tile, grad: Tensor) -> bool:
        """Whether a tile has any gradient: its own, or one returned by later tiles."""
        if grad.numel() and bool(grad.any()):
            return True
        rects = self._frames(at)
        return any(
            bool(owed.any())
            for node in self.graph.kept
            for owed, _ in self.seams.owed(node, at, rects[node.index])
        )


class _Sum:
    """The gradients of the output of tiles of the same work and colour, and the last such tile.

    They are summed in single precision: a sum of thousands in half precision stops growing. What
    goes back through the network is their mean, which half precision holds like each of them.
    """

    def __init__(self, at: Tile, part: Tensor) -> None:
        self.at, self.count, self._sum = at, 1, _single(part)

    def plus(self, at: Tile, part: Tensor) -> _Sum:
        """Add the gradient of one more tile."""
        self._sum = self._sum + part
        self.at, self.count = at, self.count + 1
        return self

    @property
    def mean(self) -> Tensor:
        """Gradient per tile."""
        return self._sum / self.count


class _BandSum:
    """Sums the image's gradient over tiles, one row of tiles at a time."""

    def __init__(self, rows: AxisLayout, columns: AxisLayout) -> None:
        self.rows, self.width = rows, columns.size[0]
        self.sum: Tensor | None = None
        self.top = self.bottom = rows.size[0]

    def add(self, where: Rect, grad: Tensor) -> None:
        have = self._reach(grad, where.top)
        crop(have, Rect(self.top, self.bottom, 0, self.width), where).add_(grad)

    def finish(self, row: int, source: Source) -> Band:
        """Return the rows that no remaining tile reaches."""
        # Reflection at the top may let the first tile reach further than the next ones.
        first = max(self.rows.last[0][:row], default=0)
        have = self._reach(source.empty(), min(first, self.top))
        keep = first - self.top
        self.sum, self.bottom = have[:, :, :keep], first
        return Band(first, have[:, :, keep:])

    def _reach(self, like: Tensor, top: int) -> Tensor:
        """Grow the sum upwards to row ``top``."""
        if self.sum is None or top < self.top:
            more = like.new_zeros((*like.shape[:2], self.top - top, self.width))
            self.sum = more if self.sum is None else torch.cat([more, self.sum], 2)
            self.top = top
        return self.sum


def _accumulate(into: dict[str, Tensor], name: str, value: Tensor, times: int) -> None:
    # Sums over many tiles are kept in float32 if weights are half precision: each sum would round.
    if name in into:
        into[name].add_(value, alpha=times)
    else:
        into[name] = _single(value, copy=True)
        if times > 1:
            into[name].mul_(times)


def _single(value: Tensor, *, copy: bool = False) -> Tensor:
    half = value.dtype in (torch.float16, torch.bfloat16)
    return value.to(torch.float32 if half else value.dtype, copy=copy)


def _canvas(values: Tensor, height: int, width: int) -> Tensor:
    shape = (*values.shape[:2], height, width)
    nhwc = values.is_contiguous(memory_format=torch.channels_last) and not values.is_contiguous()
    result = torch.empty(shape, dtype=values.dtype, device=values.device)
    return result.to(memory_format=torch.channels_last) if nhwc else result


def _autocast_state(device: torch.device) -> Callable[[], torch.autocast]:
    """Remember the current autocast, without its weight cache, which would mix tiles' graphs."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return lambda: torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
