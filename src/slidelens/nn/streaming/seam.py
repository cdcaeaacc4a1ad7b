"""Seams: strips of feature maps passed between tiles, and their gradients passed back.

A tile's feature map is the strip above (from a buffer as wide as the image, so that corners are in
it), the strip to the left, and what the tile computes. Forward, tiles go in raster order and keep
their last rows and columns for their neighbours; backward, in reverse order, each tile adds the
gradient that later tiles returned for what it kept, and returns the gradient of what it took
over. Strips may include parts of older strips, so a delay longer than a tile needs no special case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from slidelens.nn.streaming.layout import frame as frame_of
from slidelens.nn.windows import Rect, crop

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.streaming.graph import Node
    from slidelens.nn.streaming.layout import AxisLayout, Frame

__all__ = ["Seams", "Strips", "join"]

Dims = tuple[int, int]
# By node: the strips for the tile below and for that to the right.
Strips = dict[int, tuple["Tensor | None", "Tensor | None"]]


class Seams:
    """The strips of one image: ``top`` by (node, row), ``left`` by (node, row, column).

    Parameters
    ----------
    kept
        The nodes whose strips are kept.
    rows, columns
        The layout.
    remember
        Keep every strip for the backward pass; otherwise only those still to be read.
    """

    def __init__(
        self, kept: Sequence[Node], rows: AxisLayout, columns: AxisLayout, *, remember: bool
    ) -> None:
        self.kept = kept
        self.rows, self.columns, self.remember = rows, columns, remember
        self.top: dict[tuple[int, int], Tensor] = {}
        self.left: dict[tuple[int, int, int], Tensor] = {}
        self.top_grad: dict[tuple[int, int], Tensor] = {}
        self.left_grad: dict[tuple[int, int, int], Tensor] = {}
        self._spare = _Spare()
        self._laid: set[int] = set()

    @property
    def bytes(self) -> int:
        """Memory held by the strips."""
        return sum(strip.nbytes for strips in (self.top, self.left) for strip in strips.values())

    def band(self, node: int, row: int) -> Rect:
        """Rectangle of the strip above the tiles of ``row``, as wide as the image."""
        return Rect(
            self.rows.start[node][row], self.rows.first[node][row], 0, self.columns.size[node]
        )

    def assemble(
        self, node: Node, at: tuple[int, int], frame: Frame, new: Tensor | None, have: Rect,
        *, rectify: bool = False,
    ) -> Tensor | None:  # fmt: skip
        """Put strips and new values (which cover ``have``) together, or None where all is empty.

        ``rectify`` applies the ReLU that comes next on the way, which saves a pass over the values.
        """
        if not frame.whole.area:
            return None
        row, column = at
        dims = node.dims
        parts = [(new, have, frame.new)]
        if frame.top.area:
            parts.append((self.top[node.index, row], self.band(node.index, row), frame.top))
        if frame.left.area:
            parts.append((self.left[node.index, row, column], frame.left, frame.left))
        parts = [part for part in parts if part[0] is not None and part[2].area]
        like = parts[0][0]
        assert like is not None
        whole = _empty_like(like, frame.whole, dims)
        for values, covers, part in parts:
            assert values is not None
            target, values = crop(whole, frame.whole, part, dims), crop(values, covers, part, dims)
            if rectify:
                torch.clamp_min(values, 0, out=target)
            else:
                target.copy_(values)
        return whole

    def keep(self, node: Node, at: tuple[int, int], frame: Frame, whole: Tensor | None) -> None:
        """Keep what the tiles below and to the right will take over."""
        if whole is None:
            return
        (row, column), dims = at, node.dims
        if self.remember and whole.device.type == "cpu" and node.index not in self._laid:
            self._lay(node, whole)
        if frame.down.area:
            key, band = (node.index, row + 1), self.band(node.index, row + 1)
            if key not in self.top:
                self.top[key] = self._spare.take(whole, band, dims)
            target = crop(self.top[key], band, frame.down, dims)
            target.copy_(crop(whole, frame.whole, frame.down, dims))
        if frame.right.area:
            strip = self._spare.take(whole, frame.right, dims)
            self.left[node.index, row, column + 1] = strip.copy_(
                crop(whole, frame.whole, frame.right, dims)
            )

    def _lay(self, node: Node, like: Tensor) -> None:
        """Allocate all strips of a node at once, in the first tile that keeps one.

        Strips allocated one by one would lie between short-lived values and fragment the heap: by
        a quarter, measured on ResNet-18.
        """
        self._laid.add(node.index)
        for row in range(self.rows.tiles):
            if self.rows.seam(node.index, row):
                self._spare.give(_empty_like(like, self.band(node.index, row), node.dims))
            for column in range(self.columns.tiles):
                right = frame_of(self.rows, self.columns, node.index, row, column).right
                if right.area:
                    self._spare.give(_empty_like(like, right, node.dims))

    def strips(self, frames: dict[int, Frame], at: tuple[int, int]) -> Strips:
        """Return copies of what a tile has just kept, for tiles with equal results."""
        row, column = at
        found: Strips = {}
        for node in self.kept:
            down, right = frames[node.index].down, None
            if down.area:
                band = self.band(node.index, row + 1)
                below = crop(self.top[node.index, row + 1], band, down, node.dims).clone()
            else:
                below = None
            if frames[node.index].right.area:
                right = self.left[node.index, row, column + 1]
            found[node.index] = (below, right)
        return found

    def repeat(self, frames: dict[int, Frame], at: tuple[int, int], strips: Strips) -> None:
        """Keep the strips of another tile as this one's."""
        row, column = at
        for node in self.kept:
            below, right = strips[node.index]
            if below is not None:
                key, band = (node.index, row + 1), self.band(node.index, row + 1)
                if key not in self.top:
                    self.top[key] = self._spare.take(below, band, node.dims)
                crop(self.top[key], band, frames[node.index].down, node.dims).copy_(below)
            if right is not None:
                self.left[node.index, row, column + 1] = right

    def passed(self, at: tuple[int, int]) -> None:
        """Drop the strips that only this finished tile had still to read."""
        if self.remember:
            return
        self.left = {key: strip for key, strip in self.left.items() if key[1:] > at}
        if at[1] + 1 == self.columns.tiles:
            self.top = {key: strip for key, strip in self.top.items() if key[1] > at[0]}

    def owed(self, node: Node, at: tuple[int, int], frame: Frame) -> list[tuple[Tensor, Rect]]:
        """Gradients that later tiles returned for what this tile kept."""
        row, column = at
        found = []
        top = self.top_grad.get((node.index, row + 1))
        if top is not None and frame.down.area:
            band = self.band(node.index, row + 1)
            found.append((crop(top, band, frame.down, node.dims), frame.down))
        left = self.left_grad.get((node.index, row, column + 1))
        if left is not None and frame.right.area:
            found.append((left, frame.right))
        return found

    def hand_back(
        self, node: Node, at: tuple[int, int], frame: Frame, grads: list[tuple[Tensor, Rect]]
    ) -> None:
        """Return the gradient of what this tile took over to the tiles it came from."""
        row, column = at
        if frame.top.area:
            key, band = (node.index, row), self.band(node.index, row)
            if key not in self.top_grad:
                self.top_grad[key] = self._spare.take(grads[0][0], band, node.dims).zero_()
            _add(self.top_grad[key], band, frame.top, grads, node.dims)
        if frame.left.area:
            strip = self._spare.take(grads[0][0], frame.left, node.dims).zero_()
            _add(strip, frame.left, frame.left, grads, node.dims)
            self.left_grad[node.index, row, column] = strip

    def forget_gradients(self) -> None:
        """Drop all gradients, at the start of a backward pass."""
        self.top_grad, self.left_grad = {}, {}

    def settled(self, at: tuple[int, int]) -> None:
        """Drop the gradients that only this finished tile had still to take."""
        row, column = at
        for left in [key for key in self.left_grad if key[1:] == (row, column + 1)]:
            self._spare.give(self.left_grad.pop(left))
        if column == 0:
            for top in [key for key in self.top_grad if key[1] == row + 1]:
                self._spare.give(self.top_grad.pop(top))


class _Spare:
    """Buffers for strips to reuse, by shape, type and memory order."""

    def __init__(self) -> None:
        self._free: dict[Any, list[Tensor]] = {}

    def give(self, strip: Tensor) -> None:
        """Take back a buffer that is no longer used."""
        self._free.setdefault((strip.shape, strip.stride(), strip.dtype), []).append(strip)

    def take(self, like: Tensor, rect: Rect, dims: Dims) -> Tensor:
        """Return a buffer for a rectangle of the node that ``like`` is a value of."""
        wanted = _empty_like(like, rect, dims)  # costs nothing until it is written to
        free = self._free.get((wanted.shape, wanted.stride(), wanted.dtype))
        return free.pop() if free else wanted


def join(
    seams: Seams, node: Node, at: tuple[int, int], frame: Frame,
    new: Tensor | None, have: Rect, anchor: Tensor,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """Assemble a node's value so that its gradient is exchanged with the other tiles.

    Returns
    -------
    The value, and a token: an extra root of the backward pass, without which a node whose values
    reach no output of this tile would never receive the gradient from other tiles.
    """
    if not frame.whole.area:
        return None, None
    whole, token = _Join.apply(new, anchor, seams, node, at, frame, have)
    return whole, token


class _Join(Function):
    @staticmethod
    def forward(
        ctx: Any, new: Tensor | None, anchor: Tensor, seams: Seams, node: Node,
        at: tuple[int, int], frame: Frame, have: Rect,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        ctx.set_materialize_grads(False)
        ctx.work = (seams, node, at, frame, have)
        ctx.computes = new is not None
        whole = seams.assemble(node, at, frame, new, have)
        assert whole is not None
        return whole, torch.zeros_like(anchor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, _token: Tensor | None) -> Any:
        seams, node, at, frame, have = ctx.work
        nothing = (None,) * 7
        grads = [] if grad is None else [(grad, frame.whole)]
        grads += seams.owed(node, at, frame)
        if not grads:
            return nothing
        seams.hand_back(node, at, frame, grads)
        if not ctx.computes:
            return nothing
        result = _empty_like(grads[0][0], have, node.dims)
        if grad is None or have != frame.new:
            result.zero_()
        if grad is not None:
            # Never into the incoming gradient: others may hold it.
            inner = crop(grad, frame.whole, frame.new, node.dims)
            crop(result, have, frame.new, node.dims).copy_(inner)
            del grads[0]
        _add(result, have, frame.new, grads, node.dims)
        return result, *nothing[1:]


def _empty_like(like: Tensor, rect: Rect, dims: Dims) -> Tensor:
    shape = list(like.shape)
    shape[dims[0]], shape[dims[1]] = rect.height, rect.width
    nhwc = like.dim() == 4 and like.is_contiguous(memory_format=torch.channels_last)
    if nhwc and not like.is_contiguous():
        return torch.empty(
            shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last
        )
    return torch.empty(shape, dtype=like.dtype, device=like.device)


def _add(
    target: Tensor, covers: Rect, part: Rect, grads: list[tuple[Tensor, Rect]], dims: Dims
) -> None:
    """Add to ``part`` of a target what each gradient has of it."""
    for grad, rect in grads:
        common = part.intersect(rect)
        if common.area:
            crop(target, covers, common, dims).add_(crop(grad, rect, common, dims))
