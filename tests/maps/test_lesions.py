"""Lesions and peaks of maps that are drawn by hand."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from slidelens.geometry import Affine, Box, Mpp
from slidelens.maps.lesions import find_lesions, find_peaks, largest_diameter, peaks_of
from slidelens.maps.map import Map
from slidelens.maps.regions import find_regions

MPP = Mpp(0.5, 0.25)


def _map(values, cell=200.0):
    """A map whose cells are ``cell`` level-0 px wide and twice as many high: 100 x 100 µm."""
    tumour = np.array(values, float)
    planes = np.stack([1 - tumour, tumour])
    affine = Affine(cell, 2 * cell)
    return Map.from_array("p", "probability", ("normal", "tumour"), planes, affine, MPP)


def _lesions(source, **options):
    return find_lesions(find_regions(source, "tumour"), source, **options)


def test_a_lesion_has_area_diameter_and_peak():
    source = _map([[0.1, 0.0, 0.0, 0.0], [0.0, 0.6, 0.8, 0.7], [0.0, 0.0, 0.0, 0.0]])
    (lesion,) = _lesions(source)
    assert lesion.label == "tumour"
    assert lesion.area_mm2 == pytest.approx(3 * 0.01)
    assert lesion.diameter_mm == pytest.approx(np.hypot(0.3, 0.1))
    assert lesion.probability == pytest.approx(0.7)
    assert (lesion.peak.x, lesion.peak.y) == (500, 600)
    assert lesion.peak.probability == pytest.approx(0.8)
    assert lesion.polygon.bounds == (200, 400, 800, 800)


def test_what_lies_closer_than_the_gap_is_one_lesion():
    """Cells that touch at a corner are two regions; a free cell between them is 100 µm."""
    source = _map([[0.9, 0, 0, 0.6, 0, 0.5], [0, 0.8, 0, 0, 0, 0]])
    assert [round(x.diameter_mm, 4) for x in _lesions(source)] == [0.2828, 0.1414, 0.1414]
    joined = _lesions(source, gap_um=101)
    assert [round(x.area_mm2, 4) for x in joined] == [0.04]
    assert joined[0].probability == pytest.approx((0.9 + 0.8 + 0.6 + 0.5) / 4)
    assert joined[0].peak.probability == pytest.approx(0.9)
    assert len(_lesions(source, gap_um=0)) == 3  # that they touch is close enough


def test_a_map_without_tumour_has_no_lesion():
    source = _map([[0.1, np.nan]])
    assert _lesions(source) == []
    assert find_peaks(source, "tumour", least=0.2) == []


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=3, max_size=9, unique=True)
)
def test_largest_diameter_is_that_of_the_farthest_corners(corners):
    polygon = shapely.MultiPoint(corners).convex_hull.buffer(0.01, quad_segs=1)
    points = shapely.get_coordinates(polygon) * (0.5e-3, 0.25e-3)
    expected = max(np.hypot(*(a - b)) for a in points for b in points)
    assert largest_diameter(polygon, MPP) == pytest.approx(expected)


def test_the_peak_of_an_area_ignores_what_lies_outside_and_what_is_not_predicted():
    source = _map([[0.2, np.nan, 0.9], [0.4, 0.3, 0.1]])
    (peak,) = peaks_of(source, [shapely.box(0, 0, 400, 800)], "tumour")
    assert peak.probability == pytest.approx(0.4)
    assert (peak.x, peak.y) == (100, 600)


def test_the_peak_of_an_area_at_the_border_of_a_slide_lies_on_the_slide():
    """The last cells reach over the border of a slide of 330 x 530 px, at which regions end."""
    source = _map([[0.1, 0.1, 0.2, 0.1], [0.1, 0.1, 0.1, 0.7], [0.3, 0.6, 0.5, 0.9]], 100.0)
    area = shapely.union(shapely.box(300, 200, 330, 530), shapely.box(100, 400, 330, 530))
    for polygon in (area, shapely.transform(area, lambda xy: xy - 1e-9)):
        (peak,) = peaks_of(source, [polygon], "tumour")
        assert peak.probability == pytest.approx(0.9)
        assert (peak.x, peak.y) == pytest.approx((315, 465))


def test_the_peak_of_an_area_smaller_than_a_cell_is_that_of_the_cell():
    source = _map([[0.2, 0.9], [0.4, 0.3]])
    speck = shapely.union(shapely.box(10, 10, 12, 14), shapely.box(10, 390, 190, 392))
    (peak,) = peaks_of(source, [speck], "tumour")
    assert peak.probability == pytest.approx(0.2)
    assert speck.covers(shapely.Point(peak.x, peak.y))


def test_peaks_of_many_areas_are_those_of_each_alone():
    """Areas that lie in one strip of the map, in several, and over the border of two."""
    random = np.random.default_rng(0)
    source = _map(random.random((700, 40)))
    corners = random.uniform((0, 0), (38 * 200, 690 * 400), (60, 2))
    sizes = random.uniform(50, (3000, 200_000), (60, 2))
    areas = [
        shapely.box(x, y, min(x + w, 8000), min(y + h, 280_000))
        for (x, y), (w, h) in zip(corners, sizes, strict=True)
    ]
    together = peaks_of(source, areas, "tumour")
    assert together == [peaks_of(source, [area], "tumour")[0] for area in areas]
    values = source.read()[1]
    for area, peak in zip(areas, together, strict=True):
        rows, columns = source.window(_box(area))
        assert peak.probability <= values[rows, columns].max()
        assert peak.probability >= values[rows, columns][1:-1, 1:-1].max(initial=0)
        assert area.covers(shapely.Point(peak.x, peak.y))
    assert peaks_of(source, [], "tumour") == []


def _box(polygon):
    left, top, right, bottom = polygon.bounds
    return Box(left, top, right - left, bottom - top)


def test_peaks_leave_out_what_a_higher_one_covers():
    values = np.zeros((1, 12))
    values[0, [0, 1, 4, 8]] = 0.9, 0.7, 0.8, 0.3
    found = find_peaks(_map(values), "tumour", radius_um=200)
    assert [round(p.probability, 4) for p in found] == [0.9, 0.8, 0.3]
    assert [p.x for p in found] == [100, 900, 1700]
    assert len(find_peaks(_map(values), "tumour", radius_um=0)) == 4
    assert len(find_peaks(_map(values), "tumour", radius_um=500)) == 2
    assert len(find_peaks(_map(values), "tumour", least=0.5)) == 2
