from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Layer

from slidelens.desktop.display import (
    CHOICES,
    Style,
    histogram,
    legend,
    read_values,
    restyle,
    style_of,
    top_of,
)
from slidelens.desktop.layers import map_layers
from slidelens.desktop.world import World
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.palette import COLORMAPS, class_colors

MPP = Mpp(0.5, 0.5)
WORLD = World.of(MPP)


def layer_of(values, kind="probability", channels=("normal", "tumor")):
    source = Map.from_array("map", kind, channels, values, Affine(64, 64, 32, 0), MPP)
    *_, data = map_layers(source, WORLD, slide_id="s", model="m")
    return Layer.create(*data)


@pytest.fixture
def ramp():
    """Tumour grows from 0 to 1 over the columns; the last row is not predicted."""
    tumor = np.tile(np.linspace(0, 1, 101, dtype=np.float32), (5, 1))
    tumor[-1] = np.nan
    return layer_of(np.stack([1 - tumor, tumor]))


def shown(layer, values):
    return layer.colormap.map(np.asarray(values, np.float32))


@pytest.mark.parametrize("threshold", [0.0, 0.08, 0.5, 0.503, 0.93, 1.0])
@pytest.mark.parametrize("fade", [True, False])
def test_threshold_hides_what_is_below_and_nothing_else(ramp, threshold, fade):
    plain = Style("viridis", 0.0, fade)
    restyle(ramp, plain)
    values = np.linspace(0, 1, 501)
    before = shown(ramp, values)
    restyle(ramp, Style("viridis", threshold, fade))
    after = shown(ramp, values)
    below, above = values < threshold - 1e-3, values > threshold + 1e-3
    assert (after[below, 3] == 0).all()
    np.testing.assert_allclose(after[above], before[above], atol=0.01)
    assert ramp.contrast_limits == [0, 1]
    assert style_of(ramp) == Style("viridis", threshold, fade)


def test_style_of_a_new_layer_is_that_of_its_kind(ramp):
    before = shown(ramp, np.linspace(0, 1, 50))
    style = style_of(ramp)
    assert style.colormap == COLORMAPS["probability"]
    restyle(ramp, style)
    np.testing.assert_allclose(shown(ramp, np.linspace(0, 1, 50)), before, atol=0.01)


@pytest.mark.parametrize("name", CHOICES)
def test_every_colormap_there_is(ramp, name):
    restyle(ramp, Style(name, 0.5))
    assert ramp.colormap.name == f"{name} of m: map"


def test_napari_does_not_collect_a_colormap_for_every_threshold(ramp):
    from napari.utils.colormaps import AVAILABLE_COLORMAPS

    restyle(ramp, Style("turbo"))
    before = len(AVAILABLE_COLORMAPS)
    for threshold in np.linspace(0, 1, 20):
        restyle(ramp, Style("turbo", float(threshold)))
    assert len(AVAILABLE_COLORMAPS) == before


def test_threshold_is_in_the_values_of_a_map_of_any_scale():
    values = np.linspace(0, 40, 41, dtype=np.float32)[None, None]
    layer = layer_of(values, "attention", ("tumor",))
    assert layer.contrast_limits == [0, 40]
    restyle(layer, Style("magma", 10))
    assert (shown(layer, np.array([0.2, 0.3]))[:, 3] > 0).tolist() == [False, True]


def test_values_under_the_pointer_with_their_class(ramp):
    viewer = ViewerModel()
    viewer.add_layer(ramp)
    world = ramp.data_to_world((2.3, 25.4))
    (reading,) = read_values([ramp], world)
    assert (reading.model, reading.map, reading.label) == ("m", "map", "tumor")
    assert reading.value == pytest.approx(0.25)
    assert reading.text == "0.250"
    (unknown,) = read_values([ramp], ramp.data_to_world((4, 3)))
    (outside,) = read_values([ramp], ramp.data_to_world((-3, 3)))
    assert unknown.text == outside.text == "–"


def test_class_of_labels_under_the_pointer():
    values = np.array([[0, 1], [2, 3]])
    layer = layer_of(values, "labels", ("gland", "stroma", "fat"))
    texts = [read_values([layer], layer.data_to_world(at))[0].text for at in np.ndindex(2, 2)]
    assert texts == ["–", "gland", "stroma", "fat"]


def test_a_scale_that_ends_below_the_highest_values_says_so_and_counts_them(ramp):
    values = np.linspace(0.01, 1, 1000, dtype=np.float32).reshape(1, 20, 50)
    values[0, 0, :3] = 40  # specks of dust
    salient = layer_of(values, "saliency", ("tumor",))
    assert legend(salient).high < 1.1
    assert legend(salient).over
    assert histogram(salient).total == 1000
    assert not legend(ramp).over
    ramp.contrast_limits = (0, 0.5)
    assert legend(ramp).over


def test_histogram_counts_what_was_predicted(ramp):
    found = histogram(ramp, bins=10)
    assert found.total == 4 * 101
    assert found.counts.tolist() == [40] * 9 + [44]
    assert found.share_above(0.5) == pytest.approx(0.5, abs=0.02)


def test_histogram_of_nothing():
    found = histogram(layer_of(np.full((2, 3, 3), np.nan, np.float32)))
    assert found.total == 0
    assert found.share_above(0.5) == 0


def test_legend_is_what_the_picture_shows(ramp):
    restyle(ramp, Style("magma", 0.25))
    scale = legend(ramp)
    assert scale.title == "m: map tumor"
    assert (scale.low, scale.high) == (0, 1)
    values = np.array([0.1, 0.2, 0.3, 0.9])
    np.testing.assert_allclose(
        scale.table[np.rint(values * 255).astype(int)], shown(ramp, values), atol=0.02
    )
    classes = ("gland", "stroma")
    listed = legend(layer_of(np.array([[1, 2]]), "labels", classes))
    assert dict(listed.classes) == class_colors(classes)
    assert legend(Layer.create(np.zeros((2, 2)), {"metadata": {}}, "image")) is None


def test_hide_below_holds_when_the_ends_of_the_colours_move(ramp):
    restyle(ramp, Style("viridis", 0.3))
    for low, high in ((0.0, 0.5), (0.2, 1.0), (0.0, 0.25)):
        ramp.contrast_limits = (low, high)
        values = np.array([0.1, 0.29, 0.31, 0.9])
        alpha = shown(ramp, np.clip((values - low) / (high - low), 0, 1))[:, 3]
        assert (alpha[:2] == 0).all() or high < 0.3  # of what is above the end, all look alike
        assert (alpha[2:] > 0).all()
        scale = legend(ramp)
        assert (scale.low, scale.high) == (low, high)
    ramp.contrast_limits = (0.0, 0.5)
    assert legend(ramp).table[[150, 156], 3].astype(bool).tolist() == [False, True]
    assert top_of(ramp) == 1.0, "the values are still the same"
