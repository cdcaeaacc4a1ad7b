"""Augmentation of annotated patches: as for tiles, plus crop, contrast and sharpness.

Source: multi-stage-segmentation-2019, section 4.1: crops of 224 of 256 px, quarter turns and flips,
and saturation, contrast, brightness and sharpness in 0.75..1.25.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from slidelens.nn.augment import TileAugment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["PatchAugment"]

_STREAM = 1
"""Behind each key, so that these draws are not those of :class:`TileAugment`."""


@dataclass(frozen=True)
class PatchAugment:
    """A function of the key alone, as :class:`~slidelens.nn.augment.TileAugment` is.

    Attributes
    ----------
    tile
        Orientation, stain and colour.
    crop
        Side of the random crop, as a share of the patch's; 1 is all of it.
    contrast, sharpness
        The distance of each pixel from the mean colour, and from its blurred neighbourhood, is
        scaled by 1 +- this.
    """

    tile: TileAugment = field(default_factory=TileAugment)
    crop: float = 0.875
    contrast: float = 0.0
    sharpness: float = 0.0

    def __call__(self, images: Tensor, keys: Sequence[Sequence[int]]) -> Tensor:
        """Augment ``(N, 3, H, H)`` uint8 RGB to ``(N, 3, crop * H, crop * H)`` float32 in 0..1."""
        draws = np.stack([np.random.default_rng([*key, _STREAM]).random(4) for key in keys])
        side = max(1, round(self.crop * images.shape[-1]))
        corners = (draws[:, :2] * (images.shape[-1] - side + 1)).astype(int).tolist()
        cropped = [
            image[:, y : y + side, x : x + side]
            for image, (y, x) in zip(images, corners, strict=True)
        ]
        found = self.tile(torch.stack(cropped), keys)
        jitter = torch.from_numpy(2 * draws[:, 2:] - 1).float().to(found.device)
        if self.contrast:
            mean = found.mean((2, 3), keepdim=True)
            found = torch.lerp(mean, found, _factor(self.contrast, jitter[:, 0]))
        if self.sharpness:
            padded = F.pad(found, (1, 1, 1, 1), mode="replicate")
            blurred = F.avg_pool2d(padded, 3, stride=1)
            found = torch.lerp(blurred, found, _factor(self.sharpness, jitter[:, 1]))
        return found.clamp(0, 1)


def _factor(strength: float, jitter: Tensor) -> Tensor:
    return (1 + strength * jitter)[:, None, None, None]
