"""Outlines of cells given as runs: connected parts with shells and holes, in integers.

All steps but the last are vectorised, and memory grows with the runs, not with the plane.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["Runs", "outlines"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Runs:
    """Cells of a plane of ``width`` as horizontal runs ``[start, stop)``, in reading order.

    ``total`` is the sum of the values in each run.
    """

    row: Ints
    start: Ints
    stop: Ints
    total: NDArray[np.float64]
    width: int

    @classmethod
    def of(cls, mask: NDArray[np.bool_], values: NDArray[np.float64], first_row: int) -> Runs:
        """Encode a strip of rows."""
        height, width = mask.shape
        padded = np.zeros((height, width + 2), np.int8)
        padded[:, 1:-1] = mask
        steps = np.diff(padded, axis=1)
        row, start = np.nonzero(steps == 1)
        _, stop = np.nonzero(steps == -1)
        sums = np.zeros((height, width + 1))
        np.cumsum(np.where(mask, values, 0.0), 1, out=sums[:, 1:])
        return cls(row + first_row, start, stop, sums[row, stop] - sums[row, start], width)

    @classmethod
    def join(cls, parts: Sequence[Runs], width: int) -> Runs:
        """Join strips, top to bottom."""
        return cls(
            np.concatenate([part.row for part in parts]),
            np.concatenate([part.start for part in parts]),
            np.concatenate([part.stop for part in parts]),
            np.concatenate([part.total for part in parts]),
            width,
        )

    def __len__(self) -> int:
        return len(self.row)

    def components(self) -> Ints:
        """Return the number of the 4-connected part of each run: 0, 1, ... in reading order."""
        from scipy.sparse import coo_array
        from scipy.sparse.csgraph import connected_components

        line = self.width + 1
        below = (self.row + 1) * line  # where the row below begins, rows laid end to end
        starts, stops = self.row * line + self.start, self.row * line + self.stop
        low = np.searchsorted(stops, below + self.start, "right")
        high = np.searchsorted(starts, below + self.stop, "left")
        count = np.maximum(high - low, 0)
        upper = np.repeat(np.arange(len(self)), count)
        offset = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
        lower = np.repeat(low, count) + offset
        graph = coo_array((np.ones(len(upper), np.int8), (upper, lower)), (len(self), len(self)))
        _, labels = connected_components(graph, directed=False)
        _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
        rank = np.empty(len(first), np.int64)
        rank[np.argsort(first)] = np.arange(len(first))
        return np.asarray(rank[inverse.ravel()], np.int64)


def outlines(runs: Runs) -> Iterator[tuple[list[Ints], int, float]]:
    """Yield each 4-connected part's rings, number of cells and sum of values.

    Rings are ``(M, 2)`` int64 corners x, y, not closed; the first is the shell, others are holes.
    Parts that touch only at a corner stay apart; a part that touches itself at a corner gives a
    shell and a hole that meet in that point, which is a valid polygon.
    """
    if not len(runs):
        return
    part = runs.components()
    cells = np.bincount(part, runs.stop - runs.start).astype(np.int64)
    totals = np.bincount(part, runs.total)
    corners = _corners(runs, part)
    rings = _walk(corners)
    begin = 0
    for number, (size, total) in enumerate(zip(cells.tolist(), totals.tolist(), strict=True)):
        end = begin
        while end < len(rings) and corners[rings[end][0], 0] == number:
            end += 1
        yield [corners[ring][:, [2, 1]] for ring in rings[begin:end]], size, total
        begin = end


def _corners(runs: Runs, part: Ints) -> Ints:
    """Return the corners ``(K, 4)``: part, y, x, side (0: right end of runs, 1: left), sorted.

    A run's end is a corner unless the run in the next row ends (on the same side) at the same x;
    such pairs cancel.
    """
    every = np.concatenate(
        [
            np.stack([part, y, x, np.full_like(x, side)], 1)
            for side, x in ((0, runs.stop), (1, runs.start))
            for y in (runs.row, runs.row + 1)
        ]
    )
    every = every[np.lexsort(every.T[::-1])]
    same = np.zeros(len(every) + 1, bool)
    same[1:-1] = (every[1:] == every[:-1]).all(1)
    return np.asarray(every[~(same[1:] | same[:-1])])


def _walk(corners: Ints) -> list[list[int]]:
    """Follow the edges from corner to corner, in turn along x and along y, into rings.

    Sorted by part, y, x, side, corners 2k and 2k + 1 are the ends of a horizontal edge; sorted by
    part, side, x, y those of a vertical one. Where a part meets itself in a point it has corners of
    both sides there: their vertical edges are exchanged, which joins the cells and so parts shell
    from hole.
    """
    n = len(corners)
    number, y, x, side = corners.T
    order = np.lexsort((y, x, side, number))
    vertical = np.empty(n, np.int64)
    vertical[order[0::2]], vertical[order[1::2]] = order[1::2], order[0::2]
    partner = vertical.tolist()
    for t in np.flatnonzero((corners[1:, :3] == corners[:-1, :3]).all(1)).tolist():
        a, b = partner[t], partner[t + 1]
        partner[t], partner[t + 1], partner[a], partner[b] = b, a, t + 1, t
    seen = bytearray(n)
    rings = []
    for first in range(n):
        if seen[first]:
            continue
        ring = []
        at = first
        while not seen[at]:
            other = at ^ 1
            seen[at] = seen[other] = 1
            ring += [at, other]
            at = partner[other]
        rings.append(ring)
    return rings
