"""Maps that grow while a model runs: nothing is lost while another slide is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from known_slides import make_slide
from napari.components import ViewerModel

from slidelens.desktop.display import Style, restyle
from slidelens.desktop.layers import slide_layer
from slidelens.desktop.live import LiveMaps
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.desktop.worker.messages import Message
from slidelens.desktop.worker.preview import Preview
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map


class Run:
    """A worker whose map of slide ``a`` grows by a column each time."""

    def __init__(self, name: str = "probability", kind: str = "probability") -> None:
        self.name, self.kind = name, kind
        self.values = np.full((1, 8, 10), np.nan, np.float32)
        self._sent: list[Message] = []
        at = {"slide": "a", "model": "m"}
        self._preview = Preview(
            lambda facts, blob: self._sent.append(Message(1, "cells", {**at, **facts}, blob))
        )

    def step(self, column: int) -> Message:
        self.values[:, :, column] = 0.1 * column
        source = Map.from_array(
            self.name, self.kind, ["m"], self.values.copy(), Affine(100, 100), Mpp(0.5, 0.5)
        )
        self._preview.look("m/a", lambda: {self.name: source}, must=True)
        return self._sent[-1]


@pytest.fixture
def viewer():
    return ViewerModel()


def look_at(viewer, name):
    """Open a slide in the place of the other, as the workbench does."""
    viewer.layers.clear()
    add_layer(viewer, slide_layer(make_slide(0.5, name)))


def shown(viewer):
    return [np.asarray(layer.data) for layer in layers_of(viewer, "map", slide="a")]


def test_a_map_that_grew_while_another_slide_was_open_has_no_holes(viewer):
    run, live = Run(), LiveMaps()
    look_at(viewer, "a")
    assert live.feed(viewer, run.step(0))
    assert not live.grow(viewer)
    look_at(viewer, "b")
    assert not live.feed(viewer, run.step(1))
    assert not live.grow(viewer)
    assert [layer.name for layer in viewer.layers] == ["b"]
    look_at(viewer, "a")
    assert live.feed(viewer, run.step(2))
    live.grow(viewer)
    (values,) = shown(viewer)
    np.testing.assert_array_equal(values, run.values[0])


def test_a_run_that_began_on_another_slide_is_shown_at_once_when_its_slide_is_opened(viewer):
    first, second, live = Run(), Run("other"), LiveMaps()
    look_at(viewer, "b")
    live.feed(viewer, first.step(0))
    live.feed(viewer, second.step(0))
    assert not live.show(viewer)
    look_at(viewer, "a")
    assert live.show(viewer)
    assert live.grow(viewer), "the second one waits"
    assert not live.grow(viewer)
    assert [layer.visible for layer in layers_of(viewer, "map")] == [True, False]
    viewer.layers.remove(viewer.layers[-1])
    assert not live.feed(viewer, second.step(1)), "what a person took away stays away"
    assert len(shown(viewer)) == 1
    live.clear(viewer)
    assert not shown(viewer)


def test_a_layer_that_waits_is_not_lost_when_another_slide_is_chosen(viewer):
    run, live = Run(), LiveMaps()
    look_at(viewer, "a")
    add_layer(viewer, slide_layer(make_slide(0.5, "b")))
    first, second = viewer.layers
    viewer.layers.selection.active = first
    assert live.feed(viewer, run.step(0))
    viewer.layers.selection.active = second
    live.grow(viewer)
    assert not shown(viewer)
    viewer.layers.selection.active = first
    assert live.feed(viewer, run.step(1))
    live.grow(viewer)
    np.testing.assert_array_equal(shown(viewer)[0], run.values[0])


def test_the_result_that_a_map_hid_is_named_when_it_goes(viewer):
    run, live = Run(), LiveMaps()
    look_at(viewer, "a")
    live.feed(viewer, run.step(0))
    live.grow(viewer)
    live.finish("m")
    (layer,) = layers_of(viewer, "map")
    layer.metadata["slidelens"]["path"] = "results/m/a"  # as when its result is shown in it
    live.feed(viewer, run.step(1))
    live.grow(viewer)
    assert live.clear(viewer) == [Path("results/m/a")]
    assert not shown(viewer)


def test_what_grew_unseen_takes_nothing_away(viewer):
    """The other slide shows an earlier result of the same model."""
    run, live = Run(), LiveMaps()
    look_at(viewer, "a")
    live.feed(viewer, run.step(0))
    live.grow(viewer)
    live.finish("m")
    add_layer(viewer, slide_layer(make_slide(0.5, "b")))
    viewer.layers.selection.active = viewer.layers["b"]
    live.feed(viewer, Run().step(0))
    live.clear(viewer, "m")
    assert len(shown(viewer)) == 1


def test_hide_below_does_not_drift_as_a_map_without_a_fixed_scale_grows(viewer):
    run, live = Run(kind="attention"), LiveMaps()
    look_at(viewer, "a")
    live.feed(viewer, run.step(4))
    live.grow(viewer)
    (layer,) = layers_of(viewer, "map")
    restyle(layer, Style("magma", 0.2))
    live.feed(viewer, run.step(8))
    high = layer.contrast_limits[1]
    assert high == pytest.approx(0.8)
    parts = np.array([0.19, 0.21], np.float32) / high
    assert (layer.colormap.map(parts)[:, 3] > 0).tolist() == [False, True]


def test_limits_that_a_person_chose_stay_as_a_map_grows(viewer):
    run, live = Run(kind="attention"), LiveMaps()
    look_at(viewer, "a")
    live.feed(viewer, run.step(4))
    live.grow(viewer)
    (layer,) = layers_of(viewer, "map")
    live.feed(viewer, run.step(6))
    np.testing.assert_allclose(layer.contrast_limits, (0, 0.6), atol=1e-6)
    layer.contrast_limits = (0.1, 0.3)
    live.feed(viewer, run.step(9))
    np.testing.assert_allclose(layer.contrast_limits, (0.1, 0.3))
    np.testing.assert_allclose(layer.contrast_limits_range, (0, 0.9), atol=1e-6)
