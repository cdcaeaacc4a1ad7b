"""Sums under boxes are exact, and look at no more lines of a plane than boxes have edges."""

from __future__ import annotations

import numpy as np
import pytest

from slidelens.tiling.box_sums import BoxSums


def table(plane: np.ndarray, lines: np.ndarray) -> np.ndarray:
    whole = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1))
    whole[1:, 1:] = plane.cumsum(0).cumsum(1)
    return whole[lines]


def covered(plane: np.ndarray, box: np.ndarray) -> float:
    """Sum cell by cell."""
    left, top, right, bottom = box
    rows, columns = (np.arange(n + 1, dtype=float) for n in plane.shape)
    high = np.diff(rows.clip(top, bottom))
    wide = np.diff(columns.clip(left, right))
    return float(high @ plane @ wide)


@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (40, 60)])
def test_boxes_sum_what_they_cover(shape):
    random = np.random.default_rng(0)
    plane = random.integers(0, 2, shape).astype(float)
    height, width = shape
    corners = random.random((200, 4)) * (width, height, width, height)
    corners[::3] = corners[::3].round()
    edges = np.concatenate(
        [np.minimum(corners[:, :2], corners[:, 2:]), np.maximum(corners[:, :2], corners[:, 2:])], 1
    )
    sums = BoxSums(edges, shape)
    expected = [covered(plane, box) for box in edges]
    assert np.allclose(sums(table(plane, sums.lines)), expected, rtol=0, atol=1e-9)


def test_a_grid_needs_the_lines_of_its_edges_alone():
    y = np.repeat(np.arange(10) * 50.5, 8)
    x = np.tile(np.arange(8) * 50.5, 10)
    sums = BoxSums(np.stack([x, y, x + 50.5, y + 50.5], 1), (505, 404))
    assert len(sums.lines) <= 2 * 11
    assert len(BoxSums(np.empty((0, 4)), (505, 404)).lines) == 0
