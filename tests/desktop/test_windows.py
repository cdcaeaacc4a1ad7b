"""Nested windows in the viewer: layers, what a click means, and the flight of the camera."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from napari.layers import Layer
from test_layers import result_with

from slidelens.desktop.layers import result_layers
from slidelens.desktop.state.viewport import Look
from slidelens.desktop.windows import Flight, Tour, caption, window_at, window_layers
from slidelens.desktop.world import World, described
from slidelens.geometry import Box, Mpp
from slidelens.maps.palette import depth_color
from slidelens.maps.trajectory import Trajectory, Window

MPP = Mpp(0.5, 0.25)
WORLD = World.of(MPP)
CANVAS = (600.0, 900.0)


@pytest.fixture
def trajectory():
    return Trajectory(
        (
            Window(0, None, Box(-100, 0, 1000, 2000), 8.0),
            Window(1, 0, Box(100, 200, 400, 800), 4.0),
            Window(2, 1, Box(150, 250, 100, 200), 1.0, (0.8, 0.2)),
            Window(2, 1, Box(300, 600, 100, 200), 0.5, (0.4, 0.6)),
            Window(1, 0, Box(400, 900, 300, 600), 6.0, (0.4, 0.6)),
            Window(2, 4, Box(450, 950, 50, 100), 0.25, (0.1, 0.9)),
        ),
        ("a", "b"),
        MPP,
    )


def test_windows_lie_on_the_slide_coloured_by_depth(trajectory):
    result = result_with(mpp=tuple(MPP), trajectory=trajectory)
    viewer = ViewerModel()
    for data in result_layers(result):
        viewer.add_layer(Layer.create(*data))
    assert [layer.name for layer in viewer.layers] == ["m: path", "m: windows"]
    path, windows = viewer.layers
    assert len(windows.data) == 6
    corner = windows.data_to_world(windows.data[2][0])
    # The corner of a pixel lies half a pixel before its centre, where napari counts from.
    assert corner == pytest.approx(((250 - 0.5) * 0.25, (150 - 0.5) * 0.5))
    for window, color in zip(trajectory.windows, windows.edge_color, strict=True):
        assert color[:3] * 255 == pytest.approx(depth_color(window.layer))
    assert list(windows.features["layer"]) == [0, 1, 2, 2, 1, 2]
    assert list(windows.features["magnification"])[2:4] == [10, 20]
    assert windows.features["probability b"][5] == 0.9
    assert np.isnan(windows.features["probability b"][1])
    windows.add_rectangles([np.array([[0, 0], [0, 9], [9, 9], [9, 0]])])
    added = windows.features.iloc[-1]
    assert (added["window"], added["layer"]) == (-1, -1), "what a person adds is no window"
    assert np.isnan(added["probability b"])
    assert len(path.data[0]) == 5
    assert described(windows.metadata)["layer"] == "windows"


def test_a_result_without_a_trajectory_has_no_windows():
    assert window_layers(result_with(), WORLD) == []
    empty = Trajectory((), ("a", "b"), MPP)
    assert window_layers(result_with(trajectory=empty), WORLD) == []


def test_a_click_means_the_smallest_window_there(trajectory):
    assert window_at(trajectory, 160, 260) == 2
    assert window_at(trajectory, 110, 210) == 1
    assert window_at(trajectory, 460, 960) == 5
    assert window_at(trajectory, 0, 0) == 0
    assert window_at(trajectory, 2000, 0) is None


def test_captions_say_what_a_person_asks(trajectory):
    assert caption(trajectory, 0) == "1/6 · whole slide · 1.2x · 8 µm/px"
    assert caption(trajectory, 3) == "4/6 · layer 2 · 20x · 0.5 µm/px · b 0.60"


place = st.floats(-1e5, 1e5)
zoom = st.floats(1e-3, 10)


@settings(max_examples=60)
@given(place, place, zoom, place, place, zoom)
def test_a_flight_begins_and_ends_where_it_should(x, y, z, x2, y2, z2):
    flight = Flight(Look(y, x, z), Look(y2, x2, z2), 600)
    assert flight.at(0) == flight.start
    assert flight.at(1) == flight.end
    for part, end in ((1e-9, flight.start), (1 - 1e-9, flight.end)):
        near = flight.at(part)
        assert near.zoom == pytest.approx(end.zoom, rel=1e-3)
        reach = 1e-3 * 600 / end.zoom
        assert (near.x, near.y) == pytest.approx((end.x, end.y), abs=reach)
    assert flight.length >= 0
    assert flight.length == pytest.approx(Flight(flight.end, flight.start, 600).length, abs=1e-6)


def test_a_flight_is_even_and_goes_out_between_far_places():
    flight = Flight(Look(0, 0, 1), Look(0, 50_000, 1), 600)
    looks = [flight.at(k / 200) for k in range(201)]
    assert min(look.zoom for look in looks) < 0.1
    assert [look.x for look in looks] == sorted(look.x for look in looks)
    # Their measure of motion: what moves past, relative to what is seen, and how it grows.
    motion = [
        np.hypot(1.4 * (b.x - a.x) * a.zoom / 600, np.log(b.zoom / a.zoom) / 1.4)
        for a, b in pairwise(looks)
    ]
    assert max(motion) < 1.3 * min(motion)


def test_a_flight_on_the_spot_only_zooms():
    flight = Flight(Look(5, 7, 0.1), Look(5, 7, 10), 600)
    assert flight.at(0.5) == pytest.approx((5, 7, 1))


def test_a_tour_stands_at_every_window_in_turn(trajectory):
    tour = Tour(trajectory, WORLD, CANVAS)
    assert tour.starts[0] == 0
    assert list(tour.starts) == sorted(tour.starts)
    for index, start in enumerate(tour.starts):
        at, look = tour.at(start)
        assert at == index
        assert look == pytest.approx(tour.looks[index])
        seen = look.box(CANVAS, WORLD)
        box = trajectory.windows[index].box
        assert seen.intersect(box) == pytest.approx(box)
        assert max(box.w / seen.w, box.h / seen.h) == pytest.approx(0.9)
    assert tour.at(-1)[0] == 0
    assert tour.at(1e6) == (5, tour.looks[5])
    assert tour.seconds > tour.starts[-1]


def test_a_tour_moves_without_jumps(trajectory):
    tour = Tour(trajectory, WORLD, CANVAS)
    looks = [tour.at(k / 30)[1] for k in range(int(tour.seconds * 30) + 2)]
    for a, b in pairwise(looks):
        assert abs(np.log(b.zoom / a.zoom)) < 0.25
        assert np.hypot(b.x - a.x, b.y - a.y) * a.zoom < 0.25 * max(CANVAS)


def test_a_faster_tour_is_the_same_in_less_time(trajectory):
    one, two = Tour(trajectory, WORLD, CANVAS), Tour(trajectory, WORLD, CANVAS, speed=2)
    assert two.seconds == pytest.approx(one.seconds / 2)
    for k in range(20):
        time = k / 20 * one.seconds
        assert two.at(time / 2)[1] == pytest.approx(one.at(time)[1])


def test_an_empty_trajectory_is_no_tour():
    with pytest.raises(ValueError, match="needs a window"):
        Tour(Trajectory((), ("a", "b"), MPP), WORLD, CANVAS)


def test_a_hidden_canvas_is_no_fault(trajectory):
    assert np.isfinite(Tour(trajectory, WORLD, (0, 0)).at(3.0)[1]).all()
