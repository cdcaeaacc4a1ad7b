from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidelens.desktop.state.viewport import Look, Overview, fit, parse_place, um_per_pixel
from slidelens.desktop.world import World
from slidelens.geometry import Box, Mpp, Size

UM = World.of(Mpp(0.25, 0.5))
PX = World.of(None)
SIZE = Size(4000, 3000)  # 1000 x 1500 µm

numbers = st.floats(0.1, 1e5)


@given(numbers, numbers, st.floats(1, 1e4), st.floats(1, 1e4), st.floats(0.01, 50))
def test_box_that_is_seen_lies_around_the_place(x, y, height, width, scale):
    look = Look.at(x, y, scale, UM)
    np.testing.assert_allclose(look.place(UM), (x, y))
    box = look.box((height, width), UM)
    np.testing.assert_allclose(box.w * UM.mpp.x, width * scale)
    np.testing.assert_allclose(box.h * UM.mpp.y, height * scale)
    np.testing.assert_allclose(box.x + box.w / 2, x / UM.mpp.x, rtol=1e-6, atol=1e-3)


@given(numbers, numbers, st.floats(1, 1e4), st.floats(1, 1e4))
def test_a_box_that_is_fitted_is_seen_whole_and_fills_one_side(x, y, w, h):
    box, canvas = Box(x, y, w, h), (600.0, 800.0)
    seen = fit(box, canvas, UM).box(canvas, UM)
    assert seen.x <= x + 1e-3
    assert seen.y <= y + 1e-3
    assert max(w / seen.w, h / seen.h) == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("250, 400", (250, 400)),
        ("250 400", (250, 400)),
        ("x=250 y=400", (250, 400)),
        ("0.25 mm; 0.4 mm", (250, 400)),
        ("0.25, 0.4 mm", (250, 400)),
        ("1000px 800px", (250, 400)),
        ("1000 px, 400 µm", (250, 400)),
    ],
)
def test_places_as_people_type_them(text, place):
    assert parse_place(text, UM, SIZE) == pytest.approx(place)


@pytest.mark.parametrize(
    ("text", "world", "why"),
    [
        ("here", UM, "two numbers"),
        ("1", UM, "two numbers"),
        ("1200, 3", UM, "ends at 1000, 1500 µm"),
        ("-1, 3", UM, "outside"),
        ("3 mm, 4 mm", PX, "no resolution"),
        ("9999, 4", PX, "ends at 4000, 3000 px"),
    ],
)
def test_places_that_are_none(text, world, why):
    with pytest.raises(ValueError, match=why):
        parse_place(text, world, SIZE)


def test_twentyfold_is_half_a_micrometre():
    assert [um_per_pixel(x) for x in (5, 10, 20, 40)] == [2, 1, 0.5, 0.25]


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.floats(20, 2000), st.floats(20, 2000))
def test_overview_holds_the_whole_slide_undistorted(width, height, across, down):
    frame = Overview.of((width, height), UM, (across, down))
    x, y, w, h = frame.box(Box(0, 0, width, height))
    assert min(x, y) >= -1e-6
    assert x + w <= across + 1e-6
    assert y + h <= down + 1e-6
    assert w / h == pytest.approx(width * UM.mpp.x / (height * UM.mpp.y))
    assert frame.point(x + w, y + h) == pytest.approx((width, height))
