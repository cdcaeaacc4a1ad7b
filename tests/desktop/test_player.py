"""The player in a real window: buttons, clicks on windows, the camera."""

from __future__ import annotations

import pytest
from napari.layers import Layer
from qtpy.QtWidgets import QApplication
from test_layers import result_with
from test_windows import MPP, WORLD
from test_windows import trajectory as trajectory

from slidelens.desktop.player import TrajectoryPlayer
from slidelens.desktop.window import camera
from slidelens.desktop.windows import Tour, window_layers

pytestmark = pytest.mark.gui


@pytest.fixture
def shown(make_napari_viewer, trajectory, qtbot):
    viewer = make_napari_viewer(show=True)
    for data in window_layers(result_with(mpp=tuple(MPP), trajectory=trajectory), WORLD):
        viewer.add_layer(Layer.create(*data))
    QApplication.processEvents()
    player = TrajectoryPlayer(viewer)
    qtbot.addWidget(player)
    return viewer, player


def _look(viewer):
    return (*camera(viewer).center[-2:], camera(viewer).zoom)


def test_goes_to_windows_one_by_one_and_says_which(shown, trajectory):
    viewer, player = shown
    assert not player.isEnabled()
    player.show_trajectory(trajectory, WORLD)
    assert player.isEnabled()
    went = []
    player.went.connect(went.append)
    player.go(3)
    from slidelens.desktop.window import canvas_size

    tour = Tour(trajectory, WORLD, canvas_size(viewer))
    assert _look(viewer) == pytest.approx(tuple(tour.looks[3]))
    assert "4/6" in player._caption.text()
    player.go(99)
    player.go(-5)
    assert went == [3, 5, 0]
    player._seek.setValue(2)
    assert went[-1] == 2
    assert _look(viewer) == pytest.approx(tuple(tour.looks[2]))


def test_flies_through_all_windows_and_stops(shown, trajectory, qtbot, monkeypatch):
    _viewer, player = shown
    player.show_trajectory(trajectory, WORLD)
    monkeypatch.setattr(player, "_make_tour", lambda: Tour(trajectory, WORLD, (600, 800), 20.0))
    went = []
    player.went.connect(went.append)
    player.toggle()
    assert player.playing
    qtbot.waitUntil(lambda: not player.playing, timeout=20_000)
    assert went[-1] == 5
    assert went == sorted(went)
    player.toggle()  # from the start again; a busy machine may miss the first windows
    qtbot.waitUntil(lambda: went[-1] < 5, timeout=20_000)
    player.toggle()
    assert not player.playing


def test_a_click_on_a_window_goes_there(shown, trajectory):
    viewer, player = shown
    player.show_trajectory(trajectory, WORLD)
    went = []
    player.went.connect(went.append)
    (layer,) = [one for one in viewer.layers if one.name.endswith("windows")]

    class Event:
        position = (260 * 0.25, 160 * 0.5)
        type = "mouse_press"

    def click(*types):
        event = Event()
        steps = layer.mouse_drag_callbacks[-1](layer, event)
        next(steps)
        for kind in types:
            event.type = kind
            next(steps, None)

    click("mouse_release")
    assert went == [2]
    click("mouse_move", "mouse_release")
    assert went == [2]


def test_a_result_without_windows_leaves_it_empty(shown):
    _, player = shown
    player.show_trajectory(None, None)
    assert not player.isEnabled()
    player.go(1)
    player.toggle()
    assert not player.playing
    assert "no trajectory" in player._caption.text()
