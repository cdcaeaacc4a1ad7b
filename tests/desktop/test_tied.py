"""Layers that napari's own button makes are written on the slide that they were drawn on."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hands import press
from known_slides import SQUARE, make_result, make_slide
from npe2 import io_utils

from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.shown import add_layer
from slidelens.desktop.window import dress
from slidelens.desktop.world import World
from slidelens.errors import SlideLensError
from slidelens.geometry import Mpp
from slidelens.tiling.annotations import read_annotations

pytestmark = pytest.mark.gui

WORLD = World.of(Mpp(0.25, 0.31))


@pytest.fixture(autouse=True)
def _plugin(npe2pm):
    with npe2pm.tmp_plugin(package="slidelens"):
        yield


def save(layer, path):
    """Save as napari's menu does."""
    io_utils.write(str(path), [layer], plugin_name="slidelens")


@pytest.fixture
def slide(viewer):
    """A window with a slide and maps on it, as SlideLens shows them."""
    slide = make_slide((0.25, 0.31))
    layer = add_layer(viewer, slide_layer(slide))
    for one in result_layers(make_result(slide, slide.mpp), slide):
        add_layer(viewer, one)
    dress(viewer)
    return layer


def draw_square(viewer, qtbot, selected: str):
    """Press napari's button while a layer is selected, and draw where the red square is seen."""
    viewer.layers.selection.active = viewer.layers[selected]
    press(qtbot, viewer.window._qt_viewer.layerButtons.newShapesButton)
    layer = viewer.layers[-1]
    x, y, w, h = SQUARE
    corners = np.array([[y, x], [y, x + w], [y + h, x + w], [y + h, x]])
    seen = (corners - 0.5) * (WORLD.mpp.y, WORLD.mpp.x)
    layer.add_rectangles(np.array([layer.world_to_data(one) for one in seen]))
    return layer


@pytest.mark.parametrize("selected", ["square", "oracle: probability", "oracle: regions"])
def test_a_new_shapes_layer_is_written_in_level_0_px(slide, viewer, qtbot, tmp_path, selected):
    layer = draw_square(viewer, qtbot, selected)
    path = tmp_path / "a.geojson"
    save(layer, path)
    (made,) = read_annotations(path)
    x, y, w, h = SQUARE
    np.testing.assert_allclose(made.polygon.bounds, (x, y, x + w, y + h), atol=1e-2)
    (feature,) = json.loads(path.read_text())["features"]
    area = w * h * 0.25 * 0.31 * 1e-6
    assert feature["properties"]["measurements"]["Area mm^2"] == pytest.approx(area, rel=1e-3)


def test_it_stays_on_its_slide_when_that_is_closed(slide, viewer, qtbot, tmp_path):
    layer = draw_square(viewer, qtbot, "oracle: probability")
    viewer.layers.remove(slide)
    save(layer, tmp_path / "a.geojson")
    (made,) = read_annotations(tmp_path / "a.geojson")
    np.testing.assert_allclose(made.polygon.bounds[:2], SQUARE[:2], atol=1e-2)


def test_it_is_not_written_while_a_slide_of_another_resolution_is_shown(
    slide, viewer, qtbot, tmp_path
):
    layer = draw_square(viewer, qtbot, "oracle: probability")
    slide.visible = False
    other = add_layer(viewer, slide_layer(make_slide(0.5, "other")))
    path = tmp_path / "a.geojson"
    with pytest.raises(SlideLensError, match="made on slide square, but other is shown"):
        layer.save(str(path), plugin="slidelens")
    other.visible, slide.visible = False, True
    save(layer, path)
    assert len(read_annotations(path)) == 1


def test_a_layer_that_was_there_before_the_slide_is_on_it_too(viewer, tmp_path):
    corners = np.array([[9, 19], [9, 29], [19, 29], [19, 19]], float)
    layer = viewer.add_shapes([corners], shape_type="rectangle")
    add_layer(viewer, slide_layer(make_slide(0.5)))
    save(layer, tmp_path / "a.geojson")
    (made,) = read_annotations(tmp_path / "a.geojson")
    np.testing.assert_allclose(made.polygon.bounds, (38.5, 18.5, 58.5, 38.5), atol=1e-4)
