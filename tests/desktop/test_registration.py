"""A painted square, predicted as a known map, lies exactly on itself: in µm in napari, in files."""

import json

import numpy as np
import pytest
from known_slides import SQUARE, make_result, make_slide
from napari.components import ViewerModel
from napari.layers import Layer

from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.geometry import Mpp
from slidelens.maps.result import Result


@pytest.fixture(params=[0.2527, 0.5, 1 / 3])
def shown(request, tmp_path):
    """Slide, result read back from disk, and a viewer with both."""
    mpp = request.param
    slide = make_slide(mpp)
    make_result(slide, Mpp(mpp, mpp)).save(tmp_path / "r")
    result = Result.load(tmp_path / "r")
    viewer = ViewerModel()
    for layer in [slide_layer(slide), *result_layers(result, slide)]:
        viewer.add_layer(Layer.create(*layer))
    return mpp, tmp_path / "r", viewer


def in_um(box, mpp: float) -> np.ndarray:
    """Corners (y, x) of a level-0 box in napari's world: pixel centres at whole numbers."""
    corners = np.array([[box.y, box.x], [box.bottom, box.right]])
    return (corners - 0.5) * mpp


def test_downsamples_are_not_whole():
    assert [round(level.downsample, 2) for level in make_slide(0.5).levels] == [1, 3.33, 10.97]


def test_square_of_the_slide_is_where_it_was_painted(shown):
    mpp, _, viewer = shown
    layer = viewer.layers["square"]
    red = np.argwhere(np.asarray(layer.data[0])[..., 1] < 100)
    low, high = layer.data_to_world(red.min(0) - 0.5), layer.data_to_world(red.max(0) + 0.5)
    np.testing.assert_allclose([low, high], in_um(SQUARE, mpp), atol=1e-6)


@pytest.mark.parametrize("level", [0, 1, 2])
def test_square_lies_there_in_every_level(shown, level):
    """Its centre of mass on each level, where napari draws that level's pixels."""
    mpp, _, viewer = shown
    layer = viewer.layers["square"]
    pixels = np.asarray(layer.data[level])[..., 1].astype(float)
    weight = 240 - pixels
    factors = layer.downsample_factors[level][:2]
    at = (np.indices(pixels.shape).reshape(2, -1).T + 0.5) * factors - 0.5
    centre = (at * weight.reshape(-1, 1)).sum(0) / weight.sum()
    world = np.array(layer.data_to_world(centre))
    np.testing.assert_allclose(world, in_um(SQUARE, mpp).mean(0), atol=0.02 * mpp * factors.max())


def test_heatmap_lies_on_the_square(shown):
    mpp, _, viewer = shown
    layer = viewer.layers["oracle: probability"]
    hot = np.argwhere(np.asarray(layer.data[0]) > 0.5)
    low, high = layer.data_to_world(hot.min(0) - 0.5), layer.data_to_world(hot.max(0) + 0.5)
    np.testing.assert_allclose([low, high], in_um(SQUARE, mpp), atol=1e-6)


def test_value_under_the_cursor_turns_at_the_edge(shown):
    mpp, _, viewer = shown
    layer = viewer.layers["oracle: probability"]
    (top, left), (bottom, right) = in_um(SQUARE, mpp)
    inch = 0.01 * mpp

    def value(y, x):
        return layer.get_value((y, x), world=True)[1]

    middle = (top + bottom) / 2
    assert value(middle, left + inch) == value(middle, right - inch) == 1
    assert value(middle, left - inch) == value(middle, right + inch) == 0
    assert value(top + inch, left + inch) == value(bottom - inch, right - inch) == 1
    assert value(top - inch, left + inch) == value(bottom + inch, right - inch) == 0


def test_outline_lies_on_the_square(shown):
    mpp, _, viewer = shown
    layer = viewer.layers["oracle: regions"]
    vertices = np.array([layer.data_to_world(v) for v in layer.data[0]])
    np.testing.assert_allclose([vertices.min(0), vertices.max(0)], in_um(SQUARE, mpp), atol=1e-6)


def test_geojson_holds_the_square_in_level_0_px(shown):
    _, folder, _ = shown
    (feature,) = json.loads((folder / "regions.geojson").read_text())["features"]
    corners = np.array(feature["geometry"]["coordinates"][0])
    want = [[SQUARE.x, SQUARE.y], [SQUARE.right, SQUARE.bottom]]
    np.testing.assert_allclose([corners.min(0), corners.max(0)], want, atol=1e-6)
