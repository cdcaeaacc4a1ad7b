"""Fully frozen batch norms, which keep nothing for the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import Function, once_differentiable

__all__ = ["FrozenNorm", "freeze_norms"]


class FrozenNorm(nn.BatchNorm2d):
    """A batch norm with constant statistics, scale and shift.

    PyTorch's own saves its input for the gradient of the scale even if that is not needed: half of
    what autograd saves for a ResNet.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # reason: torch's name
        """Scale and shift ``(N, C, H, W)``."""
        parts = (self.running_mean, self.running_var, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return F.batch_norm(input, *parts, eps=self.eps)
        result: Tensor = _Frozen.apply(input, *parts, self.eps)
        return result


def freeze_norms(module: nn.Module) -> None:
    """Replace every batch norm by a frozen one, in place, with the same names and values."""
    for name, child in module.named_children():
        if type(child) is nn.BatchNorm2d:
            frozen = FrozenNorm(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict(), assign=True)
            setattr(module, name, frozen.requires_grad_(False).train(child.training))
        else:
            freeze_norms(child)


class _Frozen(Function):
    @staticmethod
    def forward(
        ctx: Any,
        values: Tensor,
        mean: Tensor,
        var: Tensor,
        weight: Tensor,
        bias: Tensor,
        eps: float,
    ) -> Tensor:
        ctx.save_for_backward(weight * torch.rsqrt(var + eps))
        return F.batch_norm(values, mean, var, weight, bias, eps=eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None, None]:
        (scale,) = ctx.saved_tensors
        return grad * scale.to(grad.dtype).view(1, -1, 1, 1), None, None, None, None, None
