"""Tumour points: false tiles that stand alone."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slidelens.engine.evaluation.tiles import isolated

SIDE = 224.5


def _boxes(rows, columns):
    y, x = np.mgrid[:rows, :columns] * SIDE
    side = np.full(rows * columns, SIDE)
    return np.stack([x.ravel(), y.ravel(), side, side], 1)


def test_a_tile_is_alone_until_company_touches_it():
    boxes = _boxes(3, 5)
    false, company = np.zeros((2, 15), bool)
    false[[0, 4, 12]] = company[[0, 4, 12]] = True
    assert isolated(boxes, false, company).nonzero()[0].tolist() == [0, 4, 12]
    company[6] = True  # at a corner of the first and of the last
    assert isolated(boxes, false, company).nonzero()[0].tolist() == [4]
    company[9] = True
    assert not isolated(boxes, false, company).any()
    assert not isolated(boxes, ~false & False, company).any()


@given(
    st.lists(st.booleans(), min_size=30, max_size=30),
    st.lists(st.booleans(), min_size=30, max_size=30),
)
def test_it_is_what_eight_neighbours_say(wanted, others):
    false, company = np.array(wanted), np.array(wanted) | np.array(others)
    padded = np.pad(company.reshape(5, 6), 1)
    around = sum(
        np.roll(padded, (dy, dx), (0, 1))[1:-1, 1:-1].astype(int)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if dy or dx
    )
    expected = false & (around.ravel() == 0)
    order = np.random.default_rng(0).permutation(30)
    found = isolated(_boxes(5, 6)[order], false[order], company[order])
    assert found.tolist() == expected[order].tolist()
