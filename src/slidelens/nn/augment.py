"""Augmentation of tiles in batches on any device; each tile is augmented by its own key.

The same key gives the same augmentation, whatever the batch: multiple-instance learning shows a
tile once to choose it and once to learn from it, and both must be the same picture
(streaming-prostate-2020, section IV.B).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING

import numpy as np
import torch

from slidelens.nn.orientation import orient

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor

__all__ = ["TileAugment"]

# Optical densities of haematoxylin, eosin and the rest in RGB (Ruifrok & Johnston 2001), unit
# columns.
_STAINS = np.array(((0.650, 0.704, 0.286), (0.072, 0.990, 0.105), (0.268, 0.570, 0.776))).T
_STAINS /= np.linalg.norm(_STAINS, axis=0)
# RGB to luma and two colour differences: hue is a rotation of the latter, saturation their length.
_YIQ = np.array(((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312)))


def _parts(basis: NDArray[np.float64], *between: ArrayLike) -> tuple[Tensor, ...]:
    """Return ``basis @ m @ basis**-1`` of each matrix, so that their sums apply to RGB."""
    back = np.linalg.inv(basis)
    return tuple(torch.from_numpy(basis @ np.array(m) @ back).float() for m in between)


_EACH_STAIN = _parts(_STAINS, *(np.diag(row) for row in np.eye(3)))
_STAIN_COLOURS = tuple(torch.from_numpy(column[:, None]).float() for column in _STAINS.T)
_LIGHT_STRENGTH_HUE = _parts(
    np.linalg.inv(_YIQ),
    ((1, 0, 0), (0, 0, 0), (0, 0, 0)),
    ((0, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, 0, 0), (0, 0, -1), (0, 1, 0)),
)
_DRAWS = 10


@dataclass(frozen=True)
class TileAugment:
    """Flips and quarter turns, stain jitter, mild hue, saturation and brightness jitter.

    Attributes
    ----------
    flips
        One of the eight orientations, at random.
    stain
        Each stain's optical density is scaled by 1 +- this and shifted by +- a tenth of it.
    colour
        Saturation and brightness change by +- this, hue by +- a tenth of a turn times it (the
        paper: 5 %).
    """

    flips: bool = True
    stain: float = 0.2
    colour: float = 0.05

    def __call__(self, images: Tensor, keys: Sequence[Sequence[int]]) -> Tensor:
        """Augment ``(N, 3, H, W)`` uint8 RGB (H = W if ``flips``) to float32 in 0..1.

        ``keys`` holds one sequence of non-negative integers per image.
        """
        draws = _draws(keys)
        images = images.contiguous()
        if self.flips:
            images = _turn(images, (draws[:, 9] * 8).astype(int))
        shift, stain, colour = (m.to(images.device) for m in self._matrices(draws))
        density = images.to(torch.float32).clamp_(min=0.5).div_(255).log_().neg_().flatten(2)
        stained = torch.baddbmm(shift, stain, density)
        colours = torch.bmm(colour, stained.neg_().exp_())
        return colours.clamp_(0, 1).view(images.shape)

    def matrices(self, keys: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the colour transform of each key's jitter.

        A shift ``(N, 3, 1)`` and a matrix ``(N, 3, 3)`` on optical densities, and a matrix
        ``(N, 3, 3)`` on the RGB that they make.
        """
        return self._matrices(_draws(keys))

    def _matrices(
        self, draws: np.ndarray[tuple[int, int], np.dtype[np.float64]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        jitter = torch.from_numpy(2 * draws[:, :9] - 1).float()
        return *self._stain(jitter[:, :6]), self._colour(jitter[:, 6:])

    def _stain(self, jitter: Tensor) -> tuple[Tensor, Tensor]:
        """Return shift ``(N, 3, 1)`` and matrix ``(N, 3, 3)`` on optical densities."""
        shift = _sum(0.1 * self.stain * jitter[:, 3:], _STAIN_COLOURS)
        return shift, _sum(1 + self.stain * jitter[:, :3], _EACH_STAIN)

    def _colour(self, jitter: Tensor) -> Tensor:
        """Return the matrix ``(N, 3, 3)`` on RGB that turns hue, scales saturation and light."""
        angle = 0.2 * pi * self.colour * jitter[:, 0]
        light = 1 + self.colour * jitter[:, 2]
        strength = light * (1 + self.colour * jitter[:, 1])
        weights = torch.stack([light, strength * angle.cos(), strength * angle.sin()], 1)
        return _sum(weights, _LIGHT_STRENGTH_HUE)


def _sum(weights: Tensor, parts: Sequence[Tensor]) -> Tensor:
    """Return the sum of three parts, each ``(3, M)``, under weights ``(N, 3)``: ``(N, 3, M)``.

    Summed term by term, since a matrix product may round one image differently in larger batches.
    """
    first, second, third = (
        w[:, None, None] * part for w, part in zip(weights.unbind(1), parts, strict=True)
    )
    return first + second + third


def _draws(
    keys: Sequence[Sequence[int]],
) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    return np.stack([np.random.default_rng(key).random(_DRAWS) for key in keys])


def _turn(images: Tensor, orientations: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Tensor:
    """Bring each square image into one of eight orientations."""
    if images.shape[2] != images.shape[3]:
        raise ValueError(f"only square tiles can be turned, not {tuple(images.shape[2:])}")
    out = torch.empty_like(images)
    for way in np.unique(orientations):
        rows = torch.from_numpy(np.flatnonzero(orientations == way)).to(images.device)
        out[rows] = orient(images[rows], int(way))
    return out
