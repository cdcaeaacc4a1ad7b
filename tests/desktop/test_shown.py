"""Layers that show new data in the place of old."""

from __future__ import annotations

import numpy as np
from napari.components import ViewerModel

from slidelens.desktop.display import Style, restyle, style_of
from slidelens.desktop.layers import map_layers
from slidelens.desktop.shown import put_layer
from slidelens.desktop.world import World
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map

MPP = Mpp(0.5, 0.5)


def layers(name, kind="attention", model="m", shift=0.0, top=1.0, mpp=MPP, cells=40):
    values = np.linspace(0, top, cells * cells, dtype=np.float32).reshape(1, cells, cells)
    channels = ["tumor"]
    if kind == "labels":
        channels = ["healthy", "tumor"]
        values = (values > top / 2).astype(np.uint8)
    source = Map.from_array(name, kind, channels, values, Affine(8, 8, shift), mpp)
    return map_layers(source, World.of(mpp), slide_id="s", model=model)


def test_the_same_map_is_shown_where_it_was():
    viewer = ViewerModel()
    for kind in ("attention", "labels"):
        (data,) = layers("a", kind)
        first = put_layer(viewer, data, [])
        first.opacity = 0.3
        (data,) = layers("a", kind, shift=80, top=3.0, cells=60)
        old = [first]
        assert put_layer(viewer, data, old) is first
        assert not old
        assert first.opacity == 0.3  # a person chose it
        np.testing.assert_array_equal(
            np.asarray(first.data if kind == "labels" else first.data[0]),
            np.asarray(data[0] if kind == "labels" else data[0][0]),
        )
        np.testing.assert_allclose(first.translate, data[1]["translate"])
        assert first.extent.world[1, 1] == data[1]["translate"][1] + 59 * 4  # cells of 4 µm
    assert viewer.layers[0].contrast_limits == [0.0, 3.0]


def test_other_maps_models_and_worlds_have_layers_of_their_own():
    viewer = ViewerModel()
    first = put_layer(viewer, layers("a")[0], [])
    others = [
        layers("b"),
        layers("a", model="n"),
        layers("a", kind="labels"),
        layers("a", mpp=Mpp(0.25, 0.25)),
    ]
    for (data,) in others:
        old = [first]
        assert put_layer(viewer, data, old) is not first
        assert old == [first]
    assert len(viewer.layers) == 5


def test_colours_and_threshold_that_a_person_chose_stay():
    viewer = ViewerModel()
    (data,) = layers("a")
    first = put_layer(viewer, data, [])
    style = Style("turbo", 0.5)
    restyle(first, style)
    (data,) = layers("a", top=2.0)
    assert put_layer(viewer, data, [first]) is first
    assert style_of(first) == style
    alpha = first.colormap.map(np.array([0.24, 0.26], np.float32))[:, 3]  # of 0..2 now
    assert (alpha > 0).tolist() == [False, True]


def test_limits_that_a_person_chose_stay_while_the_range_grows():
    viewer = ViewerModel()
    (data,) = layers("a")
    first = put_layer(viewer, data, [])
    first.contrast_limits = (0.25, 0.75)
    for top in (2.0, 0.5, 3.0):
        (data,) = layers("a", top=top)
        put_layer(viewer, data, [first])
        assert first.contrast_limits_range == [0.0, top]
    assert first.contrast_limits == [0.25, 0.5], "cut to the range, when it was smaller"


def test_results_that_come_at_once_do_not_mix():
    viewer = ViewerModel()
    for name in ("a", "b"):
        for model in ("m", "n"):
            put_layer(viewer, layers(name, model=model)[0], [])
    assert [layer.name for layer in viewer.layers] == ["m: a", "m: b", "n: a", "n: b"]
    assert viewer.layers.selection.active.name == "n: b"
