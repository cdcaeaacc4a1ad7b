"""Lesions found against lesions annotated, on slides where every count is known."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import shapely
from skimage.measure import regionprops

from slidelens.engine.bootstrap import draws
from slidelens.engine.evaluation.froc import RATES, froc, true_lesions
from slidelens.engine.evaluation.froc import _Events as Events
from slidelens.engine.evaluation.froc import _major_axis as major_axis
from slidelens.engine.evaluation.lesions import _draw as picture_of
from slidelens.engine.evaluation.measure import Resampling
from slidelens.geometry import Mpp
from slidelens.maps.lesions import Peak
from slidelens.tiling.annotations import Annotation

MPP = Mpp(0.5, 0.5)


def _square(x, y, side):
    """An annotated square, all in µm."""
    return Annotation(shapely.box(x, y, x + side, y + side).buffer(0), "tumour")


def _in_px(annotations):
    return [
        Annotation(shapely.transform(a.polygon, lambda xy: xy / 0.5), a.label) for a in annotations
    ]


def test_annotations_within_75_um_are_one_lesion():
    for gap, count in ((74, 1), (76, 2)):
        drawn = _in_px([_square(0, 0, 300), _square(300 + gap, 0, 300)])
        assert len(true_lesions(drawn, MPP)) == count
    assert true_lesions([], MPP) == []


def test_lesions_grow_by_half_of_that_and_have_no_holes():
    ring = shapely.box(0, 0, 900, 900).difference(shapely.box(300, 300, 600, 600))
    (lesion,) = true_lesions(_in_px([Annotation(ring, "tumour")]), MPP)
    assert lesion.polygon.bounds == pytest.approx((-75, -75, 1875, 1875))
    assert shapely.contains_xy(lesion.polygon, 900, 900)
    assert not lesion.isolated_cells


def test_what_lies_in_a_filled_hole_is_the_same_lesion():
    ring = shapely.Point(0, 0).buffer(1500).difference(shapely.Point(0, 0).buffer(1200))
    core = shapely.Point(0, 0).buffer(200)
    drawn = [Annotation(ring, "tumour"), Annotation(core, "tumour")]
    assert len(true_lesions(_in_px(drawn), MPP)) == 1


def test_small_lesions_are_isolated_cells():
    """A disc of diameter d has the major axis d; it grows by 75 µm."""
    for diameter, small in ((195, True), (205, False)):
        disc = shapely.Point(0, 0).buffer(diameter / 2, quad_segs=32)
        (lesion,) = true_lesions(_in_px([Annotation(disc, "tumour")]), MPP)
        assert lesion.isolated_cells is small


def test_the_major_axis_is_that_of_the_moments():
    mask = np.zeros((300, 400), np.uint8)
    mask[40:90, 30:350] = 1
    mask[40:250, 30:80] = 1
    (expected,) = regionprops(mask)
    shape = shapely.union_all([shapely.box(30, 40, 350, 90), shapely.box(30, 40, 80, 250)])
    ring = shapely.get_coordinates(shape)
    assert major_axis(ring) == pytest.approx(expected.axis_major_length, rel=1e-4)
    assert major_axis(ring[::-1] + 1e6) == pytest.approx(expected.axis_major_length, rel=1e-4)


def brute_score(found, truth, drawn):
    """The score of a resample: every slide as often as it was drawn."""
    copies = {f"{slide}-{i}": slide for i, slide in enumerate(drawn)}
    again = froc(
        {name: found.get(slide, ()) for name, slide in copies.items()},
        {name: truth[slide] for name, slide in copies.items()},
        resampling=Resampling(1),
    )
    return again.score


@pytest.fixture
def truth():
    """Three lesions and one of isolated cells on two of four slides."""
    return {
        "a": true_lesions(_in_px([_square(0, 0, 500), _square(2000, 0, 500)]), MPP),
        "b": true_lesions(_in_px([_square(0, 0, 500), _square(2000, 0, 50)]), MPP),
        "c": [],
        "d": [],
    }


def test_the_curve_of_known_detections(truth):
    found = {
        "a": [Peak(0.9, 500, 500), Peak(0.4, 600, 600), Peak(0.7, 9000, 0), Peak(0.3, 4500, 500)],
        "b": [Peak(0.8, 4050, 50), Peak(0.6, 500, 500)],  # the first hits isolated cells
        "c": [Peak(0.95, 0, 0)],
    }
    curve = froc(found, truth)
    assert (curve.lesions, curve.slides) == (3, 4)
    # By falling probability: false (0.95), hit, false (0.7), hit (0.6), hit (0.3); the second
    # detection in a lesion that is found already changes nothing.
    points = [(0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (2, 3)]
    assert curve.rates.tolist() == [f / 4 for f, _ in points]
    assert curve.sensitivity.tolist() == pytest.approx([h / 3 for _, h in points])
    assert curve.at == pytest.approx((1 / 3, 1, 1, 1, 1, 1))
    assert curve.score == pytest.approx((1 / 3 + 5) / 6)


def test_the_interval_is_that_of_slides_drawn_again(truth):
    found = {
        "a": [Peak(0.9, 500, 500), Peak(0.7, 9000, 0)],
        "b": [Peak(0.6, 500, 500)],
        "c": [Peak(0.95, 0, 0), Peak(0.65, 0, 0)],
    }
    names = list(truth)
    drawn = [row for w in draws(np.arange(4), 300, np.random.default_rng(3)) for row in w]
    scores = [
        brute_score(
            found,
            truth,
            [n for n, times in zip(names, row, strict=True) for _ in range(int(times))],
        )
        for row in drawn
        if row[:2].any()
    ]  # "c" and "d" have no lesion
    low, high = froc(found, truth, resampling=Resampling(300, seed=3)).score_ci
    assert (low, high) == pytest.approx(tuple(np.quantile(scores, (0.025, 0.975))))
    assert low < high


def test_slides_of_one_patient_are_drawn_together(truth):
    found = {"a": [Peak(0.9, 500, 500)], "b": [Peak(0.6, 500, 500), Peak(0.8, 9000, 0)]}
    low, high = froc(found, truth, patients=np.array([5, 5, 5, 5])).score_ci
    assert low == high == froc(found, truth).score
    low, high = froc(found, truth, patients=np.array([0, 0, 1, 2])).score_ci
    assert low < high


def test_sensitivity_between_two_points_lies_on_a_line(truth):
    found = {"a": [Peak(0.9, 500, 500), Peak(0.1, 4500, 500)], "b": [Peak(0.1, 500, 500)]}
    found["c"] = [Peak(0.5, 100.0 * i, 0) for i in range(8)]
    curve = froc(found, truth)
    # A third at once; with two false detections per slide still a third, then all.
    expected = (1 / 3, 1 / 3, 1 / 3, 1.0, 1.0, 1.0)
    assert curve.at == pytest.approx(expected)
    assert len(RATES) == len(curve.at)


def test_the_picture_shows_the_sensitivities_on_the_curve(truth):
    found = {"a": [Peak(0.5, 500, 500), Peak(0.5, 9000, 0), Peak(0.5, 9999, 0)], "b": []}
    curve, points = picture_of(froc(found, truth), "m").axes[0].lines
    rates, sensitivity = points.get_data()
    assert rates.tolist() == list(RATES)
    assert sensitivity == pytest.approx(np.interp(rates, *curve.get_data()))
    assert curve.get_drawstyle() == "default"  # a line from point to point


def test_what_cannot_be_measured_is_refused(truth):
    with pytest.raises(ValueError, match="no truth for z"):
        froc({"z": []}, truth)
    with pytest.raises(ValueError, match=r"no slide has a lesion to find$"):
        froc({}, {"c": []})
    cells = true_lesions(_in_px([_square(0, 0, 100)]), MPP)
    with pytest.raises(ValueError, match="all 1 that are annotated are isolated tumour cells"):
        froc({}, {"c": cells})
    assert froc({}, truth).score == 0


def curve_of(false, hits, lesions, slides):
    """The curve's points, of detections that are all on the first slide."""
    seen = [(p, hit, 0) for of, hit in ((false, False), (hits, True)) for p in of.tolist()]
    on_slides = np.append(lesions, np.zeros(slides - 1))
    return Events(seen).curve(on_slides, np.ones(slides))


@pytest.mark.parametrize("decimals", [1, 2, 16])
def test_the_curve_counts_what_is_as_high_or_higher_also_among_equals(decimals):
    random = np.random.default_rng(decimals)
    false, hits = (random.random(n).round(decimals) for n in (70, 30))
    rates, sensitivity = curve_of(false, hits, 40, 9)
    levels = sorted({*false.tolist(), *hits.tolist()}, reverse=True)
    assert rates.tolist() == [0.0, *((false >= level).sum() / 9 for level in levels)]
    assert sensitivity.tolist() == [0.0, *((hits >= level).sum() / 40 for level in levels)]


def test_memory_grows_with_the_detections_and_not_with_their_square():
    random = np.random.default_rng(0)
    false, hits = random.random(5000), random.random(50)
    tracemalloc.start()
    curve_of(false, hits, 60, 50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * false.nbytes  # compared each with each, they take 600 times as much
