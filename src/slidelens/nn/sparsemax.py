"""Sparsemax: a softmax with exact zeros, on vectors and on maps.

Source: Martins and Astudillo 2016 ("From Softmax to Sparsemax"), algorithm 1 and proposition 2;
over the cells of a map as in magnifying-networks-2023, section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["sparsemax", "spatial_sparsemax"]


class _Sparsemax(torch.autograd.Function):
    """Euclidean projection of the last axis onto the probability simplex."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor) -> Tensor:
        # Only differences count; without the maximum, large scores would lose digits in the sums.
        z = scores - scores.amax(-1, keepdim=True)
        ordered = z.sort(-1, descending=True).values
        sums = ordered.cumsum(-1) - 1
        rank = torch.arange(1, z.shape[-1] + 1, device=z.device, dtype=z.dtype)
        support = (ordered * rank > sums).sum(-1, keepdim=True)
        threshold = sums.gather(-1, support - 1) / support
        out = (z - threshold).clamp_(min=0)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """Centre the gradient over the support; elsewhere it is zero (proposition 2)."""
        out: Tensor = ctx.saved_tensors[0]
        support = (out > 0).to(out.dtype)
        inside = grads[0] * support
        mean = inside.sum(-1, keepdim=True) / support.sum(-1, keepdim=True)
        return inside - mean * support


def sparsemax(scores: Tensor, dim: int = -1) -> Tensor:
    """Return the point of the probability simplex that is nearest to ``scores`` along ``dim``.

    Exact, forward and backward; the gradient can be differentiated again.
    """
    moved = scores.movedim(dim, -1)
    out: Tensor = _Sparsemax.apply(moved)
    return out.movedim(-1, dim)


def spatial_sparsemax(maps: Tensor) -> Tensor:
    """Turn maps ``(..., H, W)`` of scores into probability mass over their cells."""
    return sparsemax(maps.flatten(-2)).view(maps.shape)
