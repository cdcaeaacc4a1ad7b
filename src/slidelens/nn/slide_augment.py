"""Augmentation of whole images piece by piece; no more is held than is asked for.

Every pixel of an augmented image is a function of its position alone, in whole numbers where it is
interpolated, so that tiles agree with the whole image and a tile that is read twice is the same
twice. Source: streaming-prostate-2020, section IV.A (flips, rotations, elastic deformation, hue,
saturation and brightness); stain jitter is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import pi
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
import torch

from slidelens.geometry import Box
from slidelens.nn.augment import TileAugment
from slidelens.nn.slide_resample import Deformed, Rotated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.nn.source import LazyImage

__all__ = ["Colours", "Recoloured", "SlideAugment", "Turned"]

ScalarT = TypeVar("ScalarT", bound=np.generic)

_ROWS = 256
"""Rows that are recoloured at once."""
_DENSITIES = 4096
"""Steps of optical density from 0 (white) to `_DARKEST`, and as many of what is brighter."""
_DARKEST = 8.0
_WHITE = 255


@dataclass(frozen=True)
class SlideAugment:
    """Flips, rotations, elastic deformation, stain and colour jitter of a whole image.

    Attributes
    ----------
    rotation
        ``none``; ``quarter`` turns, which keep all pixels as they are; or ``free``: any angle,
        interpolated.
    flips
        Mirrored or not.
    stain, colour
        As of :class:`~slidelens.nn.augment.TileAugment`.
    elastic
        Px by which a pixel is moved, as of :class:`~slidelens.nn.slide_resample.Deformed`.
    """

    rotation: Literal["none", "quarter", "free"] = "quarter"
    flips: bool = True
    stain: float = 0.2
    colour: float = 0.05
    elastic: float = 0.0

    def __call__(
        self, image: LazyImage, mask: NDArray[np.bool_], key: Sequence[int], limit: int
    ) -> tuple[LazyImage, NDArray[np.bool_]]:
        """Return an augmented image and its mask.

        Parameters
        ----------
        image, mask
            The mask has one cell per so many whole pixels; where it is False is background.
        key
            Non-negative integers: the same key gives the same augmentation.
        limit
            Sides that a rotated image may have at most, in px; it is cut around its centre.
        """
        random = np.random.default_rng(key)
        turn, angle, flip = random.integers(4), random.uniform(-pi / 4, pi / 4), random.integers(2)
        quarters = 0 if self.rotation == "none" else int(turn)
        mirrored = self.flips and bool(flip)
        if quarters or mirrored:
            image = Turned(image, quarters, mirrored)
            mask = _turn(mask, quarters, mirrored)
        cell = image.shape[0] // mask.shape[0]
        if self.elastic:
            deformed = Deformed(image, self.elastic, cell, random)
            image, mask = deformed, deformed.mask(mask)
        if self.rotation == "free":
            rotated = Rotated(image, angle, cell, limit)
            image, mask = rotated, rotated.mask(mask)
        if self.stain or self.colour:
            image = Recoloured(image, Colours.draw(self.stain, self.colour, key))
        return image, mask


class Turned:
    """An image after quarter turns against the clock and, then, mirroring left to right."""

    def __init__(self, image: LazyImage, quarters: int, mirrored: bool) -> None:
        self.image, self.quarters, self.mirrored = image, quarters, mirrored
        height, width, channels = image.shape
        sides = (width, height) if quarters % 2 else (height, width)
        self.shape = (*sides, channels)

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, C)`` of a box in whole pixels."""
        x, y, w, h = box
        height, width, _ = self.shape
        if self.mirrored:
            x = width - x - w
        for _ in range(self.quarters):  # back, one turn with the clock each
            # (row r, column c) of a turned picture is (row c, column side - 1 - r) of the picture.
            x, y, w, h = height - y - h, x, h, w
            height, width = width, height
        return _turn(self.image.read(Box(x, y, w, h)), self.quarters, self.mirrored)


@dataclass(frozen=True)
class Colours:
    """Stain and colour jitter of one image, applied by tables.

    Optical density is scaled and shifted per stain, then hue, saturation and brightness change.
    """

    shift: NDArray[np.float32]
    stain: NDArray[np.float32]
    colour: NDArray[np.float32]

    @classmethod
    def draw(cls, stain: float, colour: float, key: Sequence[int]) -> Colours:
        """Draw the jitter that `TileAugment` would apply to a tile of this key."""
        shift, stains, colours = TileAugment(False, stain, colour).matrices([key])
        return cls(shift[0, :, 0].numpy(), stains[0].numpy(), colours[0].numpy())

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Recolour ``(h, w, 3)``."""
        density = self._density[image]
        light = [self._light[self._mixed(density, row)] for row in range(3)]
        out = np.empty_like(image)
        for row, weights in enumerate(self.colour):
            value = weights[0] * light[0] + weights[1] * light[1] + weights[2] * light[2]
            out[..., row] = np.rint(value.clip(0, _WHITE))
        return out

    def onto(self, image: torch.Tensor) -> torch.Tensor:
        """Recolour ``(N, 3, h, w)`` uint8 where it is, to the very same values."""
        tables = (torch.from_numpy(t).to(image.device) for t in (self._density, self._light))
        densities, lights = tables
        density = densities[image.int()]
        light = []
        for (a, b, c), shift in zip(self.stain.tolist(), self.shift.tolist(), strict=True):
            mixed = a * density[:, 0] + b * density[:, 1] + c * density[:, 2] + shift
            steps = (mixed * (_DENSITIES / _DARKEST)).round().clamp(-_DENSITIES, _DENSITIES)
            light.append(lights[steps.int() + _DENSITIES])
        rows = (a * light[0] + b * light[1] + c * light[2] for a, b, c in self.colour.tolist())
        return torch.stack([row.clamp(0, _WHITE).round().byte() for row in rows], 1)

    def _mixed(self, density: NDArray[np.float32], row: int) -> NDArray[np.int32]:
        a, b, c = self.stain[row]
        mixed = a * density[..., 0] + b * density[..., 1] + c * density[..., 2] + self.shift[row]
        steps = np.rint(mixed * np.float32(_DENSITIES / _DARKEST)).astype(np.int32)
        rows: NDArray[np.int32] = steps.clip(-_DENSITIES, _DENSITIES) + _DENSITIES
        return rows

    @cached_property
    def _density(self) -> NDArray[np.float32]:
        return (-np.log(np.arange(256).clip(0.5) / _WHITE)).astype(np.float32)

    @cached_property
    def _light(self) -> NDArray[np.float32]:
        """Brightness by step of density: 0 to 255, and more for what is brighter than white."""
        steps = np.arange(-_DENSITIES, _DENSITIES + 1)
        light: NDArray[np.float32] = (_WHITE * np.exp(-steps * (_DARKEST / _DENSITIES))).astype(
            np.float32
        )
        return light


class Recoloured:
    """An image in other colours."""

    def __init__(self, image: LazyImage, colours: Colours) -> None:
        self.image, self.colours, self.shape = image, colours, image.shape

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, C)`` of a box in whole pixels."""
        image = self.image.read(box)
        strips = [self.colours(image[i : i + _ROWS]) for i in range(0, len(image), _ROWS)]
        return np.concatenate(strips)

    def read_onto(self, box: Box, device: torch.device) -> torch.Tensor:
        """Pixels ``(1, C, h, w)`` of a box in whole pixels, recoloured on a device."""
        image = torch.from_numpy(np.ascontiguousarray(self.image.read(box)))
        return self.colours.onto(image.to(device).permute(2, 0, 1)[None])


def _turn(values: NDArray[ScalarT], quarters: int, mirrored: bool) -> NDArray[ScalarT]:
    turned = np.rot90(values, quarters)
    return turned[:, ::-1] if mirrored else turned
