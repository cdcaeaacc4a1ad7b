"""Boxes in level-0 pixels, resolutions in µm/px, and the transform between them and maps.

Level-0 pixel ``(i, j)`` covers the square ``[i, i + 1) x [j, j + 1)`` (x to the right, y down), so
a :class:`Box` is exactly the area it names and two boxes that touch share no pixel.
"""

from __future__ import annotations

from math import ceil, floor, inf
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Affine", "Box", "Mpp", "Size"]


class Size(NamedTuple):
    """``width`` and ``height`` in px."""

    width: int
    height: int


class Mpp(NamedTuple):
    """Resolution in micrometres per pixel along x and along y."""

    x: float
    y: float

    @classmethod
    def of(cls, value: float | Sequence[float]) -> Mpp:
        """Make an ``Mpp`` from one number (square pixels) or a pair.

        Raises
        ------
        ValueError
            A value that is not a finite number above zero, or two.
        """
        try:
            x, y = value if isinstance(value, tuple | list) else (value, value)
            usable = 0 < x < inf and 0 < y < inf
        except (TypeError, ValueError):
            usable = False
        if not usable:
            raise ValueError(f"resolution must be above 0 µm/px, a number or a pair, not {value!r}")
        return cls(float(x), float(y))

    @property
    def mean(self) -> float:
        """Geometric mean: the side in µm of the square with the pixel's area."""
        return float(np.sqrt(self.x * self.y))


class Box(NamedTuple):
    """A rectangle in level-0 px: left ``x``, top ``y``, width ``w``, height ``h``.

    Floats are exact positions.
    """

    x: float
    y: float
    w: float
    h: float

    @property
    def right(self) -> float:
        """X of the right edge."""
        return self.x + self.w

    @property
    def bottom(self) -> float:
        """Y of the bottom edge."""
        return self.y + self.h

    @property
    def area(self) -> float:
        """Area in square level-0 pixels."""
        return self.w * self.h

    @classmethod
    def of_size(cls, size: tuple[float, float]) -> Box:
        """Return the box of a whole slide of ``size`` (width, height) in px."""
        return cls(0.0, 0.0, float(size[0]), float(size[1]))

    def intersect(self, other: Box) -> Box:
        """Return the intersection, with zero width and height if there is none."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        w, h = min(self.right, other.right) - x, min(self.bottom, other.bottom) - y
        return Box(x, y, w, h) if w > 0 and h > 0 else Box(x, y, 0.0, 0.0)

    def contains(self, x: float, y: float) -> bool:
        """Return whether a point lies inside (left and top edges belong to the box)."""
        return self.x <= x < self.right and self.y <= y < self.bottom

    def scaled(self, fx: float, fy: float | None = None) -> Box:
        """Multiply all coordinates: level-0 px to level-n px with ``1 / downsample``."""
        fy = fx if fy is None else fy
        return Box(self.x * fx, self.y * fy, self.w * fx, self.h * fy)

    def snapped(self) -> tuple[int, int, int, int]:
        """Return the smallest box of whole pixels that covers this one, as ints x, y, w, h."""
        x, y = floor(self.x), floor(self.y)
        return x, y, ceil(self.right) - x, ceil(self.bottom) - y


class Affine(NamedTuple):
    """Scale and shift from the cells of an array to level-0 pixels.

    The cell in column ``j`` and row ``i`` covers ``[tx + j*sx, tx + (j+1)*sx)`` along x and the
    same with ``i``, ``sy`` and ``ty`` along y.
    """

    sx: float
    sy: float
    tx: float = 0.0
    ty: float = 0.0

    def apply(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map cell coordinates ``(..., 2)`` as x, y (corners, not centres) to level-0 px."""
        return np.asarray(xy, np.float64) * (self.sx, self.sy) + (self.tx, self.ty)

    def invert(self, xy: ArrayLike) -> NDArray[np.float64]:
        """Map level-0 px ``(..., 2)`` as x, y to cell coordinates."""
        return (np.asarray(xy, np.float64) - (self.tx, self.ty)) / (self.sx, self.sy)

    def box(self, column: float, row: float, columns: float = 1, rows: float = 1) -> Box:
        """Return the box, in level-0 px, of ``columns`` x ``rows`` cells from (column, row) on."""
        return Box(
            self.tx + column * self.sx, self.ty + row * self.sy, columns * self.sx, rows * self.sy
        )

    def centred(self, mpp: Mpp) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return ``(scale, translate)``, each (y, x) in µm, as viewers want them.

        napari draws an array's cell 0 from -0.5 to 0.5 cells, so a coarse map lies exactly on the
        slide only with a shift of half the difference of the two cell sizes (notes/formats).
        """
        scale = (self.sy * mpp.y, self.sx * mpp.x)
        translate = (
            (self.ty + (self.sy - 1) / 2) * mpp.y,
            (self.tx + (self.sx - 1) / 2) * mpp.x,
        )
        return scale, translate
