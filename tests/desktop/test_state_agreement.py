from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from slidelens.desktop.state.agreement import Method, compare, method_of
from slidelens.geometry import Affine, Box, Mpp
from slidelens.maps.map import Map
from slidelens.maps.result import ModelInfo, Result, SlideInfo

MPP = Mpp(0.5, 0.5)


CELLS = Affine(100, 100)


def method(name, tumor, affine=CELLS, threshold=0.5):
    tumor = np.asarray(tumor, np.float32)
    both = np.stack([1 - tumor, tumor])
    source = Map.from_array("probability", "probability", ["normal", "tumor"], both, affine, MPP)
    return Method(name, 0.5, "tumor", source, "tumor", threshold)


A = np.zeros((6, 8))
A[1:3, 1:4] = 0.9  # agreed
A[4, 6] = 0.8  # only a
B = np.zeros((6, 8))
B[1:3, 1:4] = 0.7
B[0:2, 6:8] = 1.0  # only b


def test_agreement_of_two_methods_cell_by_cell():
    found = compare([method("a", A), method("b", B)])
    assert found.agreement.channels == ("agreed positive", "only a", "only b")
    labels = found.agreement.read()[0]
    assert (labels[1:3, 1:4] == 1).all()
    assert labels[4, 6] == 2
    assert (labels[0:2, 6:8] == 3).all()
    assert (labels > 0).sum() == 6 + 1 + 4
    assert found.agreed == pytest.approx(1 - 5 / 48)
    np.testing.assert_allclose(found.difference.read()[0], A - B, atol=1e-6)
    assert found.difference.channels == ("a − b",)


def test_regions_in_dispute_largest_first_with_who_says_what():
    first, second = compare([method("a", A), method("b", B)]).regions
    assert first.box == Box(600, 0, 200, 200)
    assert first.positive == ("b",)
    assert first.area_mm2 == pytest.approx(4 * 50 * 50 * 1e-6)
    assert first.spread == pytest.approx(1)
    assert second.box == Box(600, 400, 100, 100)
    assert second.positive == ("a",)


def test_operating_points_are_each_method_s_own():
    assert not compare([method("a", A, threshold=0.85), method("b", A, threshold=0.85)]).regions
    found = compare([method("a", A, threshold=0.85), method("b", A, threshold=0.5)])
    assert [r.positive for r in found.regions] == [("b",)]


def test_finer_maps_are_averaged_onto_the_coarser_cells():
    fine = np.kron(B, np.ones((4, 4)))
    found = compare([method("a", fine, Affine(25, 25)), method("b", B)])
    assert found.agreement.shape == (1, 6, 8)
    assert not found.regions
    np.testing.assert_allclose(found.difference.read(), 0, atol=1e-6)


def test_cells_that_one_did_not_predict_are_neither_agreed_nor_disputed():
    part = A.copy()
    part[:, 5:] = np.nan
    found = compare([method("a", part), method("b", B)])
    assert not found.regions
    assert np.isnan(found.difference.read()[0, :, 5:]).all()
    assert found.agreed == 1


def test_three_methods_and_who_is_positive():
    found = compare([method("a", A), method("b", B), method("c", B)])
    assert found.agreement.channels == ("agreed positive", "disputed")
    assert [r.positive for r in found.regions] == [("b", "c"), ("a",)]


def test_very_fine_maps_are_compared_in_blocks():
    big = np.zeros((40, 4000), np.float32)
    big[:, 3000:3030] = 1
    found = compare([method("a", big), method("b", np.zeros_like(big))])
    assert max(found.agreement.shape) <= 1536
    (region,) = found.regions
    assert region.box.x <= 300_000 < region.box.right


def test_one_method_cannot_be_compared():
    with pytest.raises(ValueError, match="two methods"):
        compare([method("a", A)])


def test_method_of_a_result_has_its_operating_point():
    source = method("m", A).map
    slide = SlideInfo(id="s")
    result = Result(
        slide, ModelInfo(name="m", threshold=0.2), {"normal": 0.3, "tumor": 0.7}, maps=[source]
    )
    found = method_of(result)
    assert (found.score, found.threshold, found.channel) == (0.7, 0.2, "tumor")
    bare = method_of(Result(slide, ModelInfo(name="m"), {"normal": 0.3, "tumor": 0.7}))
    assert (bare.map, bare.threshold) == (None, 0.5)


values = arrays(np.float32, (5, 7), elements=st.floats(0, 1, width=32))


@settings(max_examples=30)
@given(values, values)
def test_disputed_area_is_that_of_the_regions(one, other):
    found = compare([method("a", one), method("b", other)])
    disputed = ((one >= 0.5) != (other >= 0.5)).sum()
    area = sum(region.area_mm2 for region in found.regions)
    assert area == pytest.approx(disputed * 50 * 50 * 1e-6)
    assert found.agreed == pytest.approx(1 - disputed / 35)
