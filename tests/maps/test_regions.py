"""Regions follow the cells' edges exactly, whatever their shape."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from sample_results import Spec
from slidelens.geometry import Affine, Box, Mpp, Size
from slidelens.maps.canvas import Canvas
from slidelens.maps.map import Map
from slidelens.maps.outlines import Runs, outlines
from slidelens.maps.regions import find_regions, positive_regions

UNIT = Affine(1, 1)
MPP = Mpp(0.5, 0.5)
masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))


def of_mask(mask: np.ndarray) -> list[shapely.Polygon]:
    one = Map.from_array("m", "probability", ("a",), mask.astype(float), UNIT, MPP)
    return [region.polygon for region in find_regions(one, "a")]


@given(masks)
@settings(max_examples=250)
def test_polygons_cover_exactly_the_connected_parts(mask: np.ndarray) -> None:
    from skimage.measure import label

    parts, n = label(mask, connectivity=1, return_num=True)
    polygons = of_mask(mask)
    assert len(polygons) == n
    rows, columns = np.indices(mask.shape)
    for number, polygon in enumerate(polygons, 1):  # both in reading order
        assert polygon.is_valid, shapely.is_valid_reason(polygon)
        inside = shapely.contains_xy(polygon, columns + 0.5, rows + 0.5)
        np.testing.assert_array_equal(inside, parts == number)
        assert polygon.area == (parts == number).sum()
        for ring in (polygon.exterior, *polygon.interiors):
            steps = np.diff(np.asarray(ring.coords), axis=0)
            assert ((steps == 0).sum(1) == 1).all()  # along x or along y
            assert ((steps[1:, 0] == 0) != (steps[:-1, 0] == 0)).all()  # in turn: no idle corner


def test_parts_that_meet_in_a_corner_stay_apart_and_holes_meet_shells() -> None:
    assert len(of_mask(np.array([[1, 0], [0, 1]], bool))) == 2
    ring = np.array([[1, 1, 0], [1, 0, 1], [1, 1, 1]], bool)
    (polygon,) = of_mask(ring)
    assert polygon.is_valid
    assert len(polygon.interiors) == 1
    assert polygon.area == 7


def test_strips_join_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    mask = np.random.default_rng(0).random((50, 30)) > 0.4
    whole = of_mask(mask)
    monkeypatch.setattr("slidelens.maps.regions._STRIP", 7)
    stripes = of_mask(mask)
    assert [p.wkt for p in stripes] == [p.wkt for p in whole]


@pytest.mark.parametrize("mpp", [Mpp(0.2527, 0.2527), Mpp(0.5, 0.5), Mpp(0.2527, 0.2499)])
@pytest.mark.parametrize("cell", [112.0, 64 * 0.499, 2.0003 * 0.2527 * 224])
def test_a_painted_square_comes_back_exactly_as_that_square(mpp: Mpp, cell: float) -> None:
    canvas = Canvas.create(
        None, Spec("p", "probability", ("normal", "tumor"), cell), Size(30_000, 25_000), mpp
    )
    sx, sy = cell / mpp.x, cell / mpp.y
    rows, columns = canvas.shape
    i, j = np.divmod(np.arange(rows * columns), columns)
    boxes = np.stack([j * sx, i * sy, np.full(i.shape, sx), np.full(i.shape, sy)], 1)
    square = Box(21 * sx, 7 * sy, 9 * sx, 12 * sy)
    tumor = np.array([square.contains(x, y) for x, y in boxes[:, :2] + (sx / 2, sy / 2)], float)
    canvas.add(boxes, np.stack([1 - tumor, tumor], 1) * 0.9)
    (region,) = positive_regions(canvas.finish())
    expected = shapely.box(square.x, square.y, square.right, square.bottom)
    assert region.polygon.hausdorff_distance(expected) < 1e-6
    assert len(region.polygon.exterior.coords) == 5
    assert region.label == "tumor"
    assert region.area_mm2 == pytest.approx(9 * 12 * cell**2 * 1e-6)
    assert region.probability == pytest.approx(0.9)


def test_threshold_area_and_mean() -> None:
    values = np.array([[0.5, 0.7, 0.1, np.nan, 0.49], [0.9, np.nan, 0.1, 0.6, 0.0]])
    one = Map.from_array("m", "probability", ("a",), values, Affine(100, 100), MPP)
    left, right = find_regions(one, "a")  # at least 0.5; NaN is not
    assert left.probability == pytest.approx((0.5 + 0.7 + 0.9) / 3)
    assert left.area_mm2 == pytest.approx(3 * 0.05**2)
    assert right.probability == pytest.approx(0.6)
    assert [r.area_mm2 for r in find_regions(one, 0, min_area_mm2=0.005)] == [left.area_mm2]
    assert find_regions(one, "a", threshold=0.95) == []


def test_every_class_but_the_first_is_positive() -> None:
    values = np.zeros((3, 1, 3))
    values[[0, 1, 2], 0, [0, 1, 2]] = 1
    one = Map.from_array("m", "probability", ("x", "y", "z"), values, UNIT, MPP)
    assert [r.label for r in positive_regions(one)] == ["y", "z"]
    single = Map.from_array("m", "probability", ("x",), values[:1], UNIT, MPP)
    assert [r.label for r in positive_regions(single)] == ["x"]


def test_labels_have_regions_by_name() -> None:
    one = Map.from_array("l", "labels", ("a", "b"), [[1, 1, 2], [0, 2, 2]], UNIT, MPP)
    (region,) = find_regions(one, "b")
    assert region.polygon.area == 3
    assert region.probability == 1


@given(masks, st.integers(0, 99))
@settings(max_examples=50)
def test_sums_are_those_of_the_cells(mask: np.ndarray, seed: int) -> None:
    values = np.random.default_rng(seed).random(mask.shape)
    runs = Runs.of(mask, values, 0)
    found = list(outlines(runs))
    assert sum(cells for _, cells, _ in found) == mask.sum()
    np.testing.assert_allclose(sum(total for *_, total in found), values[mask].sum())


def test_what_lies_outside_of_the_slide_is_cut_off():
    """Cells of 10 px over a slide of 25 x 18 px: the last ones reach past it."""
    values = np.ones((1, 2, 3), np.float32)
    values[0, 0, 0] = 0
    one = Map.from_array("m", "probability", ("a",), values, Affine(10, 10), Mpp(0.5, 0.5))
    (whole,) = find_regions(one, "a")
    (cut,) = find_regions(one, "a", within=Size(25, 18))
    assert whole.polygon.bounds == (0, 0, 30, 20)
    assert cut.polygon.bounds == (0, 0, 25, 18)
    assert cut.polygon.area == 25 * 18 - 100
    assert cut.area_mm2 == pytest.approx(cut.polygon.area * 0.25e-6)
    assert find_regions(one, "a", within=Size(30, 20)) == [whole]
