"""Refine a first layer to twice the resolution: 1 µm/px is seen as if it were 0.5 µm/px.

Networks trained on ImageNet halve the image in their first convolution. On tissue at 1 µm/px that
leaves nuclei of three or four pixels, and what the network has learnt to see at 0.5 µm/px is lost.
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING

import torch
from torch import nn

from slidelens.errors import ModelError
from slidelens.nn.local_cuts import first_convolution

if TYPE_CHECKING:
    from torch import Tensor

    from slidelens.nn.backbones import Features

__all__ = ["refine"]


def refine(features: Features) -> Features:
    """Return a copy of a backbone that sees every image as if enlarged twice.

    The first convolution, of stride 2, becomes one of stride 1: bilinear interpolation and this
    convolution together are one linear operation on neighbourhoods of the image, so nothing is
    enlarged. All feature maps have twice as many rows and columns. The border is padded with zeros,
    where interpolation would repeat it. Not from a paper.

    Raises
    ------
    ModelError
        The first convolution has not stride 2, or is not plain.
    """
    fine = deepcopy(features)
    conv = first_convolution(fine.trunk)
    plain = conv.dilation == (1, 1) and conv.padding_mode == "zeros"
    if conv.stride != (2, 2) or not plain or not isinstance(conv.padding, tuple):
        raise ModelError(
            f"a fine first layer is made of one of stride 2: that of {features.name} has stride "
            f"{conv.stride[0]}. Give an image of finer resolution (mpp) instead."
        )
    rows, columns = (
        _interpolated(k, int(p)) for k, p in zip(conv.kernel_size, conv.padding, strict=True)
    )
    with torch.no_grad():
        weight = torch.einsum("ai,bj,ocij->ocab", rows, columns, conv.weight.double())
    conv.weight = nn.Parameter(weight.to(conv.weight))
    conv.stride = (1, 1)
    conv.kernel_size = (len(rows), len(columns))
    conv.padding = (len(rows) // 2, len(columns) // 2)
    return fine


def _interpolated(kernel: int, padding: int) -> Tensor:
    """Return the weight of each kernel tap on the pixels around one, ``(2 r + 1, kernel)``.

    Output ``o`` reads positions ``2 o + d`` of the enlarged axis; position ``2 i`` is a quarter of
    pixel ``i - 1`` and three quarters of ``i``, position ``2 i + 1`` the other way round.
    """
    taps = []
    for d in range(-padding, kernel - padding):
        left = d // 2 if d % 2 else d // 2 - 1
        share = 0.75 if d % 2 else 0.25
        taps.append((left, share))
    reach = max(max(-left, left + 1) for left, _ in taps)
    weights = torch.zeros(2 * reach + 1, kernel, dtype=torch.float64)
    for tap, (left, share) in enumerate(taps):
        weights[reach + left, tap] += share
        weights[reach + left + 1, tap] += 1 - share
    return weights
