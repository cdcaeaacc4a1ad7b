"""Convolution, pooling and padding on a piece of an image, padded only at real borders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from slidelens.nn.pooling import max_pool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.nn.receptive import Window

__all__ = ["Rect", "WindowOp", "crop", "joined"]


class Rect(NamedTuple):
    """Rows ``[top, bottom)`` and columns ``[left, right)`` of one tensor of the network."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        """Rows."""
        return self.bottom - self.top

    @property
    def width(self) -> int:
        """Columns."""
        return self.right - self.left

    @property
    def area(self) -> int:
        """Cells; 0 where the rectangle is empty."""
        return max(self.height, 0) * max(self.width, 0)

    def intersect(self, other: Rect) -> Rect:
        """Return the common part, perhaps empty."""
        return Rect(
            max(self.top, other.top),
            min(self.bottom, other.bottom),
            max(self.left, other.left),
            min(self.right, other.right),
        )


def crop(values: Tensor, have: Rect, want: Rect, dims: tuple[int, int] = (2, 3)) -> Tensor:
    """Return the part ``want`` of ``values``, which cover ``have``; a view."""
    if have.top != want.top or have.bottom != want.bottom:
        values = values.narrow(dims[0], want.top - have.top, want.height)
    if have.left != want.left or have.right != want.right:
        values = values.narrow(dims[1], want.left - have.left, want.width)
    return values


def joined(parts: Sequence[Tensor], dim: int) -> Tensor:
    """Concatenate along an axis those that have any cells; one alone is not copied."""
    some = [part for part in parts if part.shape[dim]]
    return some[0] if len(some) == 1 else torch.cat(some or list(parts), dim)


class _Fit(NamedTuple):
    """How one axis of a piece is padded: natively on both sides, or explicitly on each.

    Native padding by ``both`` leaves ``skip`` surplus outputs in front, and perhaps some behind.
    """

    both: int
    skip: int
    start: int
    end: int


def _fit(window: Window, outputs: tuple[int, int], low: int, high: int) -> _Fit:
    a, b = window.span_of(*outputs)
    start, end = low - a, b - high
    skip = max(-(start // window.stride), -((start - end) // window.stride), 0)
    return _Fit(start + window.stride * skip, skip, start, end)


# Share of surplus outputs up to which native padding is cheaper than a padded copy.
_WASTE = 1 / 32


@dataclass(frozen=True)
class WindowOp:
    """A layer whose output cell reads a window of input cells.

    ``fill`` is what zero padding is filled with; ``groups`` is for convolutions,
    ``count_padding`` and ``divisor`` are for average pooling, as in PyTorch.
    """

    kind: Literal["conv", "max", "average", "pad", "opaque"]
    y: Window
    x: Window
    groups: int = 1
    fill: float = 0.0
    count_padding: bool = True
    divisor: int | None = None

    def run(
        self,
        values: Tensor,
        have: Rect,
        out: Rect,
        size: tuple[int, int],
        weights: tuple[Tensor | None, ...] = (),
    ) -> tuple[Tensor, Rect]:
        """Compute the outputs ``out`` from ``values``, which cover ``have`` of a ``size`` input.

        Returns
        -------
        The values and the rectangle they cover: ``out`` or a little more.
        """
        rows = self.y.reads(out.top, out.bottom, size[0])
        columns = self.x.reads(out.left, out.right, size[1])
        need = Rect(*rows, *columns)
        values = crop(values, have, need)
        fit_y = _fit(self.y, (out.top, out.bottom), *rows)
        fit_x = _fit(self.x, (out.left, out.right), *columns)
        if self._native(fit_y, fit_x, out):
            result = self._apply(values, (fit_y.both, fit_x.both), weights, self._divisor)
            top, left = out.top - fit_y.skip, out.left - fit_x.skip
            return result, Rect(top, top + result.shape[2], left, left + result.shape[3])
        values = self._pad(values, out, need, size, fit_y, fit_x)
        result = self._apply(values, (0, 0), weights, 1)
        if self.kind == "average":
            result = result * self._scale(result, out, size)
        return result, out

    def _apply(
        self,
        values: Tensor,
        padding: tuple[int, int],
        weights: tuple[Tensor | None, ...],
        divisor: int,
    ) -> Tensor:
        kernel = (self.y.kernel, self.x.kernel)
        stride = (self.y.stride, self.x.stride)
        dilation = (self.y.dilation, self.x.dilation)
        if self.kind == "conv":
            weight, bias = weights
            assert weight is not None
            return F.conv2d(values, weight, bias, stride, padding, dilation, self.groups)
        if self.kind == "max":
            return max_pool(values, kernel, stride, padding, dilation)
        if self.kind == "average":
            return F.avg_pool2d(values, kernel, stride, 0, divisor_override=divisor)
        return values

    @property
    def _divisor(self) -> int:
        return self.divisor or self.y.kernel * self.x.kernel

    def _native(self, fit_y: _Fit, fit_x: _Fit, out: Rect) -> bool:
        """Whether to let the layer pad: no copy of its input, but padding on both sides."""
        if fit_y.both == fit_x.both == 0:
            return True
        if self.kind == "max":
            # PyTorch takes half of the dilated kernel; its shape inference, half of the plain one.
            return fit_y.both <= self.y.kernel // 2 and fit_x.both <= self.x.kernel // 2
        if self.kind == "conv" and self.y.mode == "constant":
            # Padding on the side that has none makes outputs that are thrown away.
            surplus = fit_y.both > fit_y.end, fit_x.both > fit_x.end
            surplus_rows = fit_y.skip + surplus[0] * fit_y.both // self.y.stride
            surplus_columns = fit_x.skip + surplus[1] * fit_x.both // self.x.stride
            return surplus_rows / out.height + surplus_columns / out.width <= _WASTE
        return False

    def _pad(
        self,
        values: Tensor,
        out: Rect,
        need: Rect,
        size: tuple[int, int],
        fit_y: _Fit,
        fit_x: _Fit,
    ) -> Tensor:
        """Make exactly the padded piece that the outputs ``out`` read."""
        if self.y.mode == "constant":
            sides: list[int] = []
            for dim, fit in ((3, fit_x), (2, fit_y)):
                start, end, length = fit.start, fit.end, values.shape[dim]
                if min(start, end) <= -length:  # the outputs read padding alone
                    values = values.narrow(dim, 0, 0)
                    start, end = length + start + end, 0
                sides += [start, end]
            return F.pad(values, sides, value=self.fill)
        spans = (self.y.span_of(out.top, out.bottom), self.x.span_of(out.left, out.right))
        lows, ends = (need.top, need.left), (need.bottom, need.right)
        for dim, window in enumerate((self.y, self.x)):
            (a, b), low = spans[dim], lows[dim]
            if (a, b) == (low, ends[dim]):
                continue
            places = [window.source(i, size[dim]) - low for i in range(a, b)]
            index = torch.tensor(places, device=values.device)
            values = values.index_select(dim + 2, index)
        return values

    def _scale(self, like: Tensor, out: Rect, size: tuple[int, int]) -> Tensor | float:
        """1 / divisor of each cell of an average pooling near the border, by PyTorch's rule."""
        if self.divisor:
            return 1 / self.divisor
        counts = []
        spans = ((out.top, out.bottom), (out.left, out.right))
        for window, n, (first, last) in zip((self.y, self.x), size, spans, strict=True):
            cells = torch.arange(first, last, device=like.device, dtype=torch.float64)
            start = cells * window.stride - window.before
            end = (start + window.kernel).clamp(max=n + window.after)
            if not self.count_padding:
                start, end = start.clamp(min=0), end.clamp(max=n)
            counts.append(end - start)
        return (1 / (counts[0][:, None] * counts[1])).to(like.dtype)
