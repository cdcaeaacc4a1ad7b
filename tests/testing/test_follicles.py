"""Follicles: benign areas that only magnification tells from tumour; small sections."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import shapely

from slidelens.geometry import Box
from slidelens.testing.layout import layout_of
from slidelens.testing.phantom import PhantomSpec, draw, truth

SPEC = PhantomSpec(size=(1600, 1600), mpp=4.0, lesions=1, follicles=2, tumor_fraction=0.02)


def _mean(spec, blob):
    side = int(min(blob.rx, blob.ry) / spec.mpp)
    x, y = int(blob.x / spec.mpp - side / 2), int(blob.y / spec.mpp - side / 2)
    return draw(spec, Box(x, y, side, side)).mean((0, 1))


def test_follicles_are_not_tumour_and_keep_away_from_it():
    for seed in range(4):
        spec = replace(SPEC, seed=seed)
        layout = layout_of(spec)
        assert truth(replace(spec, lesions=0)).label == 0
        assert len(truth(spec).tumor) == 1
        areas = [shapely.Polygon(b.outline()) for b in layout.lesions + layout.follicles]
        assert len(areas) == 3
        assert shapely.union_all(areas).area == pytest.approx(sum(a.area for a in areas))


def test_mean_colour_does_not_tell_follicle_from_tumour():
    """The two means differ by less than tumours do among themselves."""
    tumor, follicle = [], []
    for seed in range(16):
        spec = replace(SPEC, seed=seed)
        layout = layout_of(spec)
        tumor.append(_mean(spec, layout.lesions[0]))
        follicle += [_mean(spec, blob) for blob in layout.follicles]
    gap = np.abs(np.mean(tumor, 0) - np.mean(follicle, 0))
    assert (gap < np.std(tumor, 0)).all()


def test_without_follicles_a_slide_is_what_it_was():
    plain = replace(SPEC, follicles=0)
    assert layout_of(plain).tones == ((1.0, 1.0),)
    with_them = layout_of(SPEC)
    assert layout_of(plain).lesions == with_them.lesions
    box = Box(0, 0, 1600, 64)
    assert np.array_equal(draw(plain, box), draw(SPEC, box))


def test_a_section_is_smaller_and_anywhere():
    places = set()
    for seed in range(4):
        spec = replace(SPEC, seed=seed, section=0.5)
        (whole,) = truth(replace(spec, section=1.0)).tissue
        (part,) = truth(spec).tissue
        assert part.polygon.area == pytest.approx(whole.polygon.area / 4)
        assert shapely.box(0, 0, 1600, 1600).contains(part.polygon)
        places.add(part.polygon.centroid.coords[0])
    assert len(places) == 4


@pytest.mark.parametrize("fault", [{"follicles": -1}, {"section": 0.0}, {"section": 1.1}])
def test_impossible_specs_are_refused(fault):
    with pytest.raises(ValueError, match="follicles must be at least 0 and section above 0"):
        replace(SPEC, **fault)
