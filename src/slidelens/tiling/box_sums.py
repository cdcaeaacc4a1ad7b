"""Exact sums over many boxes with fractional edges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["BoxSums", "split"]


def split(positions: NDArray[np.float64], n: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Return which of ``n`` cells positions lie in, and how far; the end is all of the last."""
    at = np.minimum(positions.astype(np.intp), n - 1)
    return at, positions - at


class BoxSums:
    """Boxes, and where their sums are looked up in an integral image.

    The sum from the origin is bilinear within a cell, so it is interpolated between the four
    corners of that cell. Boxes of a grid have few edges: no more lines of the table are needed.

    Parameters
    ----------
    edges
        ``(N, 4)`` left, top, right, bottom in cells, none outside of the plane.
    shape
        Rows and columns of the plane.

    Attributes
    ----------
    lines
        ``(n,)`` which lines between rows, counted from the top of the plane, a table has: line
        ``k`` holds the sums of all rows above it.
    """

    def __init__(self, edges: NDArray[np.float64], shape: tuple[int, int]) -> None:
        height, width = shape
        self._width = width + 1
        self._columns = [split(edge, width) for edge in (edges[:, 0], edges[:, 2])]
        self._rows = [split(edge, height) for edge in (edges[:, 1], edges[:, 3])]
        wanted = np.zeros(height + 1, bool)
        for row, _ in self._rows:
            wanted[row] = wanted[row + 1] = True
        self.lines: NDArray[np.intp] = np.flatnonzero(wanted)
        self._start = (np.cumsum(wanted) - 1) * self._width

    def __call__(self, table: NDArray[np.int32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the boxes' sums ``(N,)``, of ``table (n, width + 1)``: the sums above and left."""
        left, right = self._columns
        top, bottom = self._rows

        def at(
            column: tuple[NDArray[np.intp], NDArray[np.float64]],
            row: tuple[NDArray[np.intp], NDArray[np.float64]],
        ) -> NDArray[np.float64]:
            (x, fx), (y, fy) = column, row
            above, below = self._start[y] + x, self._start[y + 1] + x
            upper = table.take(above) * (1 - fx) + table.take(above + 1) * fx
            lower = table.take(below) * (1 - fx) + table.take(below + 1) * fx
            return np.asarray(upper * (1 - fy) + lower * fy)

        return at(right, bottom) - at(left, bottom) - at(right, top) + at(left, top)
