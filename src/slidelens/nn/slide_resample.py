"""Rotate images by any angle, or deform them, piece by piece.

A position is a function of the pixel's place alone and rounded to a 32nd of a pixel, so that pieces
agree with the whole image to the last bit.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import ceil, cos, sin
from typing import TYPE_CHECKING

import numpy as np

from slidelens.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.nn.source import LazyImage

    Places = tuple[NDArray[np.float64], NDArray[np.float64]]

__all__ = ["DEFORMED_PX", "Deformed", "Resampled", "Rotated"]

DEFORMED_PX = 150
"""Px between the points that an elastic deformation moves at random (streaming-prostate-2020, whose
code smooths noise over so many)."""
_SUB = 32
"""Steps per pixel to which a position is rounded."""
_ROWS = 256
"""Rows that are made at once."""
_WHITE = 255
_FARTHEST = 2.5
"""Standard deviations beyond which no point is moved."""
_SMOOTH = 2.0
"""A cubic B-spline halves, in two dimensions, the standard deviation of its points."""


class Resampled(ABC):
    """An image made of another by looking up where each pixel came from: bilinear, white outside.

    Parameters
    ----------
    image
        Where pixels come from.
    size
        Height and width in whole cells.
    cell
        Px per side of a cell of the image's mask.
    """

    def __init__(self, image: LazyImage, size: tuple[int, int], cell: int) -> None:
        self.image, self.cell = image, cell
        self.shape = (*size, image.shape[2])

    @abstractmethod
    def back(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Places:
        """Return where points at x ``(1, w)`` and y ``(h, 1)`` came from, ``(h, w)`` each."""

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, C)`` of a box in whole pixels."""
        x, y, w, h = (int(v) for v in box)
        strips = [self._strip(x, top, w, min(_ROWS, y + h - top)) for top in range(y, y + h, _ROWS)]
        return np.concatenate(strips)

    def mask(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return the image's mask: cells that any cell of the other one's mask comes near to."""
        rows, columns = self.shape[0] // self.cell, self.shape[1] // self.cell
        x = (np.arange(columns, dtype=np.float64)[None] + 0.5) * self.cell
        y = (np.arange(rows, dtype=np.float64)[:, None] + 0.5) * self.cell
        u, v = self.back(x, y)
        padded = np.pad(mask, 1)
        # A cell's corners are at most half a diagonal from its centre: its neighbours count too.
        near = np.zeros((rows, columns), bool)
        for shift in np.ndindex(3, 3):
            j = np.floor(u / self.cell).astype(int) + shift[1]
            i = np.floor(v / self.cell).astype(int) + shift[0]
            near |= padded[i.clip(0, padded.shape[0] - 1), j.clip(0, padded.shape[1] - 1)]
        return near

    def _strip(self, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        rows = np.arange(y, y + h, dtype=np.float64)[:, None] + 0.5
        columns = np.arange(x, x + w, dtype=np.float64)[None] + 0.5
        u, v = self.back(columns, rows)
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


class Rotated(Resampled):
    """An image rotated about its centre by any angle.

    Its sides are those of the rotated image's bounding box in whole cells, at most ``limit``.
    """

    def __init__(self, image: LazyImage, angle: float, cell: int, limit: int) -> None:
        self.cos, self.sin = cos(angle), sin(angle)
        height, width, _ = image.shape
        c, s = abs(self.cos), abs(self.sin)
        largest = max(limit // cell, 1)
        rows, columns = (
            min(ceil(side / cell - 1e-9), largest)
            for side in (height * c + width * s, height * s + width * c)
        )
        super().__init__(image, (rows * cell, columns * cell), cell)

    def back(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Places:
        """Return where points came from."""
        dx, dy = x - self.shape[1] / 2, y - self.shape[0] / 2
        return (
            self.cos * dx - self.sin * dy + self.image.shape[1] / 2,
            self.sin * dx + self.cos * dy + self.image.shape[0] / 2,
        )


class Deformed(Resampled):
    """An image under a smooth random deformation: a cubic B-spline over points that lie on a grid.

    Parameters
    ----------
    image
        Where pixels come from; the deformed one has the same sides.
    amount
        Standard deviation of a pixel's move along each axis, in px.
    cell
        As of :class:`Resampled`.
    random
        Draws the moves.
    """

    def __init__(
        self, image: LazyImage, amount: float, cell: int, random: np.random.Generator
    ) -> None:
        super().__init__(image, image.shape[:2], cell)
        points = [ceil(side / DEFORMED_PX) + 4 for side in image.shape[:2]]
        moves = random.standard_normal((2, *points)).clip(-_FARTHEST, _FARTHEST)
        self._moves = moves * (_SMOOTH * amount)

    def back(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> Places:
        """Return where points came from."""
        (i, by_row), (j, by_column) = _spline(y[:, 0]), _spline(x[0])
        found = []
        for place, moves in zip((x, y), self._moves, strict=True):
            # Sums of four by hand: a matrix product's rounding depends on the size of the piece.
            rows = sum(by_row[k][:, None] * moves[i + k] for k in range(4))
            found.append(place + sum(by_column[k] * rows[:, j + k] for k in range(4)))
        return found[0], found[1]


def _spline(at: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the first of the four points that move a place, and the weights of all ``(4, n)``."""
    first = np.floor(at / DEFORMED_PX).astype(np.int64)
    t = at / DEFORMED_PX - first
    weights = [
        (1 - t) ** 3,
        3 * t**3 - 6 * t**2 + 4,
        -3 * t**3 + 3 * t**2 + 3 * t + 1,
        t**3,
    ]
    return first, np.stack(weights) / 6


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
