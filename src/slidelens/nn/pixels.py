"""From bytes to what a network takes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "normalize"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Normalise RGB images.

    Parameters
    ----------
    images
        ``(N, 3, H, W)``, uint8 (0 to 255) or float (0 to 1).
    mean, std
        Per channel, for values from 0 to 1.

    Returns
    -------
    Tensor
        float32, channels last in memory: the layout that convolutions are fastest in, on CPU
        and GPU.
    """
    full = 255.0 if images.dtype == torch.uint8 else 1.0
    shift = torch.tensor(mean, device=images.device).view(1, -1, 1, 1) * full
    scale = torch.tensor(std, device=images.device).view(1, -1, 1, 1) * full
    images = images.to(torch.float32, memory_format=torch.channels_last)
    return (images - shift).div_(scale)
