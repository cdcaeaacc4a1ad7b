"""Gaussian noise as a function of position: the same on every device and in every tile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

    from slidelens.nn.windows import Rect

__all__ = ["PositionNoise"]

_LEVELS = 1 << 16
_GOLDEN = -7046029254386353131  # 2^64 / golden ratio, as a signed number


@dataclass(frozen=True)
class PositionNoise:
    """Gaussian noise at every pixel and channel, by seed, sample index and absolute position.

    Each value is one of 65,536 quantiles of the normal distribution (largest 4.2 sd), chosen by 16
    bits of a counter-based hash. Whole numbers and a table make CPU and GPU agree to the last bit.
    The generator is our choice; Smilkov et al. (SmoothGrad, 2017) only ask for Gaussian noise.

    Parameters
    ----------
    sd
        Standard deviation, in units of the normalised image.
    seed, sample
        Which noise.
    """

    sd: float
    seed: int = 0
    sample: int = 0

    def __call__(self, rect: Rect, like: Tensor) -> Tensor:
        """Return the noise of a piece of the image, in the shape ``(1, C, h, w)`` of ``like``."""
        device = like.device
        rows = torch.arange(rect.top, rect.bottom, device=device)
        columns = torch.arange(rect.left, rect.right, device=device)
        key = _mix(torch.tensor(self.seed, device=device))
        key = _mix(key + torch.tensor(self.sample, device=device))
        place = _mix(_mix(rows + key)[:, None] + columns)
        table = _quantiles().to(device)
        channels = []
        for c in range(like.shape[1]):
            if c % 4 == 0:  # one hash gives four channels
                place = _mix(place)
            channels.append(table[(place >> (16 * (c % 4))) & (_LEVELS - 1)])
        return torch.stack(channels)[None].to(like.dtype).mul_(self.sd)


def _mix(x: Tensor) -> Tensor:
    """Hash 64-bit whole numbers, wrapping: the finaliser of SplitMix64 (Steele et al., 2014)."""
    x = x.add(_GOLDEN)
    x = x.bitwise_xor(_shift(x, 30)).mul(-4658895280553007687)
    x = x.bitwise_xor(_shift(x, 27)).mul(-7723592293110705685)
    return x.bitwise_xor(_shift(x, 31))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Shift right without the sign."""
    return x.bitwise_right_shift(bits).bitwise_and((1 << (64 - bits)) - 1)


@cache
def _quantiles() -> Tensor:
    places = (torch.arange(_LEVELS, dtype=torch.float64) + 0.5) / _LEVELS
    quantiles: Tensor = torch.special.ndtri(places)
    return quantiles
