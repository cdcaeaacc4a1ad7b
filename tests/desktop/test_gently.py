"""Layers of many outlines come without holding up the window."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import shapely
from napari.layers import Layer

from slidelens.desktop import gently
from slidelens.desktop import layers as layers_module
from slidelens.desktop.gently import put_gently
from slidelens.desktop.layers import annotation_layers
from slidelens.desktop.window import dress
from slidelens.desktop.world import KEY, World
from slidelens.geometry import Mpp
from slidelens.tiling.annotations import Annotation

pytestmark = pytest.mark.gui

WAIT = 40_000


def outlines(count, name="m: regions"):
    """A layer of small squares, as that of a model's regions."""
    corners = np.random.default_rng(0).uniform(0, 900, (count, 2))
    areas = [Annotation(shapely.box(x, y, x + 9, y + 9), "tumor") for x, y in corners]
    (data,) = annotation_layers(
        areas, World.of(Mpp(0.5, 0.5)), name=name, slide_id="s", size=(1000, 1000)
    )
    data[1]["metadata"][KEY]["model"] = "m"
    return data


@pytest.fixture
def makers(monkeypatch):
    """The threads that layers are made on."""
    found = []

    class Watched(Layer):
        @classmethod
        def create(cls, *data):
            found.append(threading.current_thread())
            return Layer.create(*data)

    monkeypatch.setattr(gently, "Layer", Watched)
    return found


def test_a_layer_of_many_outlines_is_made_off_the_windows_thread(viewer, makers, qtbot):
    done = []
    put_gently(
        viewer, [outlines(300), outlines(3, "few")], [], lambda: True, lambda: done.append(1)
    )
    assert not viewer.layers, "the window goes on"
    qtbot.waitUntil(lambda: bool(done), timeout=WAIT)
    assert [layer.name for layer in viewer.layers] == ["m: regions", "few"]
    assert len(viewer.layers[0].data) == 300
    (maker,) = makers
    assert maker is not threading.main_thread()


def test_what_is_not_wanted_any_more_when_it_is_made_is_dropped(viewer, makers, qtbot):
    wanted = [True]
    put_gently(viewer, [outlines(300)], [], lambda: wanted[0], lambda: pytest.fail("not wanted"))
    wanted[0] = False
    qtbot.waitUntil(lambda: len(makers) == 1 and not makers[0].is_alive(), timeout=WAIT)
    qtbot.wait(100)
    assert not viewer.layers


def test_outlines_that_are_shown_as_a_picture_are_said(viewer, monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_POLYGONS", 3)
    said = []
    monkeypatch.setattr("slidelens.desktop.window.notify", said.append)
    dress(viewer)
    for count in (3, 4):
        data = outlines(count)
        viewer.add_layer(Layer.create(*data))
        assert data[2] == ("shapes" if count == 3 else "labels")
    (text,) = said
    assert text.startswith("m: regions [1]: 4 outlines are shown as a picture")
