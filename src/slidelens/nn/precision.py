"""Where autocast must stay off, and weights that are cast once instead of at each step."""

from __future__ import annotations

from contextlib import nullcontext
from copy import deepcopy
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = [
    "ExactConv2d",
    "ExactLinear",
    "at_least_single",
    "cast_once",
    "halved",
    "stored",
    "without_autocast",
]

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_PRODUCTS = (nn.Conv2d, nn.Linear)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off for a while; there is none on the device ``meta``, where shapes flow."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def at_least_single(values: torch.Tensor) -> torch.Tensor:
    """Return values in float32, or in float64 if they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class ExactLinear(nn.Linear):
    """A linear layer in float32 or better, also under autocast: one that gives scores.

    Of scores that were rounded to 8 bits many are alike, and cannot be ranked.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # reason: torch's name
        """Return ``(..., out)`` of ``(..., in)``."""
        with without_autocast(input.device):
            return super().forward(at_least_single(input))


class ExactConv2d(nn.Conv2d):
    """A convolution in float32 or better, as :class:`ExactLinear`."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  # reason: torch's name
        """Return ``(N, out, h, w)`` of ``(N, in, H, W)``."""
        with without_autocast(input.device):
            return super().forward(at_least_single(input))


def cast_once(module: ModuleT) -> ModuleT:
    """Return a network whose weights are in the type that autocast multiplies in on its device.

    Autocast casts the weights of every convolution and linear layer each time the network runs: on
    a small network a third of what a GPU is told to do. The copy gives the same values; what is
    not multiplied it shares. The network itself is returned where autocast is off.
    """
    first = next(module.parameters(), None)
    kind = "cpu" if first is None else first.device.type
    if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
        return module
    dtype = torch.get_autocast_dtype(kind)
    shared: dict[int, Any] = {id(t): t for t in (*module.parameters(), *module.buffers())}
    for layer in module.modules():
        if isinstance(layer, _PRODUCTS) and not isinstance(layer, ExactConv2d | ExactLinear):
            for weights in layer.parameters(recurse=False):
                shared[id(weights)] = nn.Parameter(weights.to(dtype), requires_grad=False)
    return deepcopy(module, shared)  # of the layers: tensors are those, not copies


def halved(values: torch.Tensor) -> torch.Tensor:
    """Return values in half precision, or as they are where some are too large for it."""
    half = values.half()
    return half if bool(half.isfinite().all()) else values


def stored(values: torch.Tensor) -> torch.Tensor:
    """Return a copy to keep on the host, :func:`halved`, from which a head can learn.

    What is made in inference mode is an inference tensor, of which no gradient can be taken.
    """
    with torch.inference_mode(False):
        return halved(values).cpu().clone()
