"""Window means and patches of large maps, with one gradient for all of them.

Autograd gives every slice of a map a gradient of the map's size, in an order of memory that the
convolutions below it have to undo: with ten patches that took half of a training step, and room for
two maps more.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["cut_patches", "each_window", "whole_windows", "window_means"]


def each_window(features: Tensor, side: int, make: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply ``make``, which turns whole windows into cells, to a map ``(N, C, H, W)`` of any size.

    The last row and column of windows may reach past the map, whose border is then repeated.
    """
    rows, columns = features.shape[2] // side, features.shape[3] // side
    if not rows or not columns:
        return make(whole_windows(features, side))
    # The map itself is not padded, only what is left of it: it would be copied, and kept.
    made = make(features)
    if features.shape[3] > columns * side:
        right = features[:, :, : rows * side, columns * side :]
        made = torch.cat([made, make(whole_windows(right, side))], 3)
    if features.shape[2] > rows * side:
        below = features[:, :, rows * side :]
        made = torch.cat([made, make(whole_windows(below, side))], 2)
    return made


def whole_windows(features: Tensor, side: int) -> Tensor:
    """Repeat the last row and column of a map until its sides are whole windows."""
    down, right = (-features.shape[axis] % side for axis in (2, 3))
    return F.pad(features, (0, right, 0, down), mode="replicate") if down or right else features


def window_means(features: Tensor, side: int) -> Tensor:
    """Return the mean of each window of a map ``(N, C, H, W)``, as :func:`each_window` cuts it."""
    means: Tensor = _Means.apply(features, side)
    return means


def cut_patches(
    features: Tensor, ys: Sequence[int], xs: Sequence[int], height: int, width: int
) -> Tensor:
    """Return the patches of a map ``(N, C, H, W)`` at tops ``ys`` and lefts ``xs``, one by one."""
    patches: Tensor = _Patches.apply(features, ys, xs, height, width)
    return patches


class _Means(Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, side: int) -> Tensor:
        ctx.of, ctx.side = _Kind(features), side
        return each_window(features, side, partial(F.avg_pool2d, kernel_size=side))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        side, spread = ctx.side, grad.permute(0, 2, 3, 1) / ctx.side**2
        for axis, length in ((1, ctx.of.shape[2]), (2, ctx.of.shape[3])):
            cells = torch.arange(length, device=grad.device) // side
            spread = spread.index_select(axis, cells)
            if length % side:  # the last one was repeated
                spread.narrow(axis, length - 1, 1).mul_(1 + -length % side)
        return ctx.of.ordered(spread.permute(0, 3, 1, 2)), None


class _Patches(Function):
    @staticmethod
    def forward(
        ctx: Any, features: Tensor, ys: Sequence[int], xs: Sequence[int], height: int, width: int
    ) -> Tensor:
        ctx.of, ctx.places = _Kind(features), list(zip(ys, xs, strict=True))
        return torch.cat([features[:, :, y : y + height, x : x + width] for y, x in ctx.places])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
        found = ctx.of.zeros(grad)
        height, width = grad.shape[2:]
        for (y, x), part in zip(ctx.places, torch.split(grad, ctx.of.shape[0]), strict=True):
            found[:, :, y : y + height, x : x + width] += part
        return found, None, None, None, None


class _Kind:
    """Shape and order of memory of a map, which its gradient takes over."""

    def __init__(self, features: Tensor) -> None:
        self.shape = features.shape
        last = features.is_contiguous(memory_format=torch.channels_last)
        self._format = (
            torch.channels_last
            if last and not features.is_contiguous()
            else torch.contiguous_format
        )

    def zeros(self, like: Tensor) -> Tensor:
        return torch.empty(
            self.shape, dtype=like.dtype, device=like.device, memory_format=self._format
        ).zero_()

    def ordered(self, values: Tensor) -> Tensor:
        return values.contiguous(memory_format=self._format)
