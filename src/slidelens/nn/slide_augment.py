"""Augmentation of whole images, piece by piece: no more of one is held than is asked for.

Every pixel of an augmented image is a function of its position alone, in whole numbers where it is
interpolated, so that tiles agree with the whole image and a tile that is read twice is the same
twice. Source: streaming-prostate-2020, section IV.A (flips, rotations, hue, saturation and
brightness); stain jitter is ours, the paper's elastic deformation is not applied.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, cos, pi, sin
from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np

from slidelens.geometry import Box
from slidelens.nn.augment import TileAugment

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.nn.source import LazyImage

__all__ = ["Colours", "Recoloured", "Rotated", "SlideAugment", "Turned"]

ScalarT = TypeVar("ScalarT", bound=np.generic)

_SUB = 32
"""Steps per pixel to which a rotated position is rounded."""
_ROWS = 256
"""Rows that are rotated or recoloured at once."""
_DENSITIES = 4096
"""Steps of optical density from 0 (white) to `_DARKEST`, and as many of what is brighter."""
_DARKEST = 8.0
_WHITE = 255


@dataclass(frozen=True)
class SlideAugment:
    """Flips, rotations, stain and colour jitter of a whole image.

    Attributes
    ----------
    rotation
        ``none``; ``quarter`` turns, which keep all pixels as they are; or ``free``: any angle,
        interpolated.
    flips
        Mirrored or not.
    stain, colour
        As of :class:`~slidelens.nn.augment.TileAugment`.
    """

    rotation: Literal["none", "quarter", "free"] = "quarter"
    flips: bool = True
    stain: float = 0.2
    colour: float = 0.05

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
        if self.rotation == "free":
            cell = image.shape[0] // mask.shape[0]
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


class Rotated:
    """An image rotated about its centre by any angle, bilinear, white outside.

    Its sides are those of the rotated image's bounding box in whole cells, at most ``limit``.
    """

    def __init__(self, image: LazyImage, angle: float, cell: int, limit: int) -> None:
        self.image, self.cell = image, cell
        self.cos, self.sin = cos(angle), sin(angle)
        height, width, channels = image.shape
        c, s = abs(self.cos), abs(self.sin)
        sides = (height * c + width * s, height * s + width * c)
        largest = max(limit // cell, 1)
        rows, columns = (min(ceil(side / cell - 1e-9), largest) for side in sides)
        self.shape = (rows * cell, columns * cell, channels)

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, C)`` of a box in whole pixels."""
        x, y, w, h = (int(v) for v in box)
        strips = [self._strip(x, top, w, min(_ROWS, y + h - top)) for top in range(y, y + h, _ROWS)]
        return np.concatenate(strips)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the mask of the rotated image: cells that any cell of the mask comes near to."""
        rows, columns = self.shape[0] // self.cell, self.shape[1] // self.cell
        y, x = np.mgrid[:rows, :columns] + 0.5
        u, v = self._back(x * self.cell, y * self.cell)
        padded = np.pad(mask, 1)
        # A cell's corners are at most half a diagonal from its centre: its neighbours count too.
        near = np.zeros((rows, columns), bool)
        for shift in np.ndindex(3, 3):
            j = np.floor(u / self.cell).astype(int) + shift[1]
            i = np.floor(v / self.cell).astype(int) + shift[0]
            near |= padded[i.clip(0, padded.shape[0] - 1), j.clip(0, padded.shape[1] - 1)]
        return near

    def _back(
        self, x: NDArray[np.float64], y: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return where points of the rotated image lie in the image."""
        dx, dy = x - self.shape[1] / 2, y - self.shape[0] / 2
        return (
            self.cos * dx - self.sin * dy + self.image.shape[1] / 2,
            self.sin * dx + self.cos * dy + self.image.shape[0] / 2,
        )

    def _strip(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        rows = np.arange(y, y + h, dtype=np.float64)[:, None] + 0.5
        columns = np.arange(x, x + w, dtype=np.float64)[None] + 0.5
        u, v = self._back(columns, rows)
        # Pixel centres are at halves: position in steps of the centres' grid.
        at_x, at_y = (np.floor(p * _SUB + (0.5 - _SUB / 2)).astype(np.int32) for p in (u, v))
        left, top = at_x // _SUB, at_y // _SUB
        area = (left.min(), top.min(), left.max() + 2, top.max() + 2)
        block = _padded(self.image, *(int(a) for a in area))
        wide, colours = block.shape[1], block.reshape(-1, block.shape[2])
        first = (top - area[1]) * wide + (left - area[0])
        fx, fy = (at_x - left * _SUB)[..., None], (at_y - top * _SUB)[..., None]
        total = colours[first] * ((_SUB - fx) * (_SUB - fy))
        total += colours[first + 1] * (fx * (_SUB - fy))
        total += colours[first + wide] * ((_SUB - fx) * fy)
        total += colours[first + wide + 1] * (fx * fy)
        pixels: NDArray[np.uint8] = ((total + _SUB * _SUB // 2) // (_SUB * _SUB)).astype(np.uint8)
        return pixels


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


def _turn(values: NDArray[ScalarT], quarters: int, mirrored: bool) -> NDArray[ScalarT]:
    turned = np.rot90(values, quarters)
    return turned[:, ::-1] if mirrored else turned


def _padded(image: LazyImage, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
    """Read a box that may reach outside of the image, where it is white."""
    height, width, channels = image.shape
    left, top = min(max(x0, 0), width), min(max(y0, 0), height)
    right, bottom = min(max(x1, left), width), min(max(y1, top), height)
    out = np.full((y1 - y0, x1 - x0, channels), _WHITE, np.uint8)
    if left < right and top < bottom:
        part = image.read(Box(left, top, right - left, bottom - top))
        out[top - y0 : bottom - y0, left - x0 : right - x0] = part
    return out
