"""Reading a map: by box, at a point, averaged under boxes, and as viewers index it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import basic_indices

from slidelens.geometry import Affine, Box, Mpp
from slidelens.maps.map import Map, MapData, split_index

AFFINE = Affine(10.5, 7.25, 3.0, -2.0)
MPP = Mpp(0.25, 0.5)


def make(values: np.ndarray, affine: Affine = AFFINE) -> Map:
    names = [f"c{i}" for i in range(len(values))]
    return Map.from_array("m", "probability", names, values, affine, MPP)


def test_what_a_map_says_of_itself() -> None:
    one = make(np.zeros((2, 3, 4)))
    assert one.shape == (2, 3, 4)
    assert one.dtype == np.float32
    assert one.channels == ("c0", "c1")
    assert one.mpp == pytest.approx((10.5 * 0.25 * 7.25 * 0.5) ** 0.5)
    assert one.cell_area_mm2 == pytest.approx(10.5 * 0.25 * 7.25 * 0.5 * 1e-6)
    assert one.channel("c1") == one.channel(1) == one.channel(-1) == 1
    for missing in ("x", 2, -3):
        with pytest.raises(KeyError, match="no channel"):
            one.channel(missing)


def test_contents_are_opened_only_when_looked_at() -> None:
    opened = []

    def open_now() -> MapData:
        opened.append(1)
        return MapData(("a",), AFFINE, MPP, (np.zeros((1, 2, 2), np.float32),))

    one = Map("m", "attention", open_now)
    assert (one.name, one.kind, opened) == ("m", "attention", [])
    assert one.shape == (1, 2, 2)
    assert one.read().shape == (1, 2, 2)
    assert opened == [1]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected \(2, H, W\)"):
        Map.from_array("m", "probability", ("a", "b"), np.zeros((3, 4)), AFFINE, MPP)
    with pytest.raises(ValueError, match=r"expected \(1, H, W\)"):
        Map.from_array("m", "labels", ("a", "b"), np.zeros((2, 3, 4)), AFFINE, MPP)


boxes = st.builds(
    Box, st.floats(-60, 120), st.floats(-60, 120), st.floats(0.01, 90), st.floats(0.01, 90)
)
"""Anywhere; :data:`along_cells` are where rounding decides."""
along_cells = st.builds(
    lambda j, i, columns, rows, by: AFFINE.box(j + by, i + by, columns, rows),
    st.integers(-3, 9),
    st.integers(-3, 9),
    st.integers(1, 5),
    st.integers(1, 5),
    st.floats(-1e-5, 1e-5),
)


@given(boxes | along_cells)
@settings(max_examples=200)
def test_read_gives_every_cell_that_the_box_touches(box: Box) -> None:
    values = np.random.default_rng(0).random((1, 9, 8), np.float32)
    one = make(values)
    rows, columns = one.window(box)
    np.testing.assert_array_equal(one.read(box), values[:, rows, columns])
    for i in range(9):
        for j in range(8):
            shared = AFFINE.box(j, i).intersect(box)
            within = rows.start <= i < rows.stop and columns.start <= j < columns.stop
            if shared.w > 1e-4 and shared.h > 1e-4:
                assert within
            elif within:
                grown = Box(box.x - 1e-4, box.y - 1e-4, box.w + 2e-4, box.h + 2e-4)
                assert AFFINE.box(j, i).intersect(grown).area > 0


def test_a_box_along_cell_edges_reads_exactly_those_cells() -> None:
    cell = 112 / 0.2527  # not representable: k * cell / cell is not always k
    one = make(np.zeros((1, 100, 100)), Affine(cell, cell))
    for k in range(97):
        assert one.window(Box(k * cell, k * cell, 3 * cell, cell)) == (
            slice(k, k + 1),
            slice(k, k + 3),
        )


def test_the_value_under_a_point() -> None:
    values = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    one = make(values)
    assert one.at(3.0, -2.0).tolist() == [0, 12]
    assert one.at(3 + 10.5 * 3.99, -2 + 7.25 * 2.99).tolist() == [11, 23]
    assert np.isnan(one.at(2.9, 0)).all()
    assert np.isnan(one.at(3 + 10.5 * 4, 0)).all()
    labels = Map.from_array("l", "labels", ("a",), [[1]], Affine(1, 1), MPP)
    assert labels.at(0.5, 0.5).tolist() == [1]
    assert labels.at(5, 5).tolist() == [0]


@given(st.lists(boxes, min_size=1, max_size=8), st.integers(0, 99))
@settings(max_examples=150)
def test_the_mean_under_a_box_is_weighted_by_shared_area(some: list[Box], seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(2, 9, 8)).astype(np.float32)
    values[:, rng.random((9, 8)) < 0.3] = np.nan
    got = make(values).mean(some)
    for box, mean in zip(some, got, strict=True):
        area = np.array(
            [[AFFINE.box(j, i).intersect(box).area for j in range(8)] for i in range(9)]
        )
        area = np.where(np.isnan(values[0]), 0, area)
        if area.sum() > 1e-3:
            expected = (np.nan_to_num(values) * area).sum((1, 2)) / area.sum()
            np.testing.assert_allclose(mean, expected, rtol=1e-4, atol=1e-5)


def test_the_mean_far_down_a_tall_map_reads_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slidelens.maps.map._BAND", 80)  # ten rows of eight
    values = np.random.default_rng(0).random((1, 200, 8), np.float32)
    one = make(values, Affine(2, 2))
    where = [[0, 2 * i, 16, 2 * h] for i, h in ((190, 10), (3, 40), (0, 1), (100, 5))]
    expected = [[values[0, i : i + h].mean()] for i, h in ((190, 10), (3, 40), (0, 1), (100, 5))]
    np.testing.assert_allclose(one.mean(where), expected, rtol=1e-5)
    assert np.isnan(one.mean([[500, 500, 10, 10]])).all()
    assert one.mean(np.zeros((0, 4))).shape == (0, 1)


@given(basic_indices((7, 5), allow_newaxis=False))
@settings(max_examples=300)
def test_planes_index_like_numpy(key: object) -> None:
    values = np.arange(2 * 7 * 5).reshape(2, 7, 5)
    (plane,) = make(values).planes("c1")
    assert (plane.shape, plane.ndim, plane.dtype) == ((7, 5), 2, np.float32)
    np.testing.assert_array_equal(plane[key], values[1][key])
    np.testing.assert_array_equal(np.asarray(plane), values[1])


@given(basic_indices((3, 7, 5), allow_newaxis=False))
@settings(max_examples=300)
def test_an_index_is_a_window_and_what_follows(key: object) -> None:
    array = np.arange(105).reshape(3, 7, 5)
    window, rest = split_index(key, array.shape)
    assert all(s.step is None for s in window)
    np.testing.assert_array_equal(array[window][rest], array[key])
