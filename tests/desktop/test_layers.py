import numpy as np
import pytest
import shapely
from known_slides import CELL, make_result, make_slide
from napari.components import ViewerModel
from napari.layers import Layer

from slidelens.desktop import layers as layers_module
from slidelens.desktop.layers import annotation_layers, result_layers, slide_layer
from slidelens.desktop.world import KEY, World, described, world_of
from slidelens.errors import ResultError
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.palette import class_colors
from slidelens.maps.result import ModelInfo, Result, SlideInfo
from slidelens.tiling.annotations import Annotation


def add(layers) -> ViewerModel:
    viewer = ViewerModel()
    for layer in layers:
        viewer.add_layer(Layer.create(*layer))
    return viewer


def result_with(*maps: Map, mpp=0.5, size=(1000, 800), **more) -> Result:
    slide = SlideInfo(id="square", width=size[0], height=size[1], mpp=mpp)
    return Result(slide, ModelInfo(name="m"), {"a": 0.5, "b": 0.5}, maps=maps, **more)


def test_every_layer_states_um_and_covers_the_slide(case):
    viewer = add([slide_layer(case.slide), *result_layers(case.result, case.slide)])
    assert [layer.name for layer in viewer.layers] == [
        "square",
        "oracle: probability",
        "oracle: regions",
        "oracle: tissue",
    ]
    for layer in viewer.layers:
        assert [str(u) for u in layer.units] == ["micrometer", "micrometer"]
    assert [layer.visible for layer in viewer.layers] == [True, True, True, False]
    extent = viewer.layers["square"].extent.world
    # From the first pixel's centre to the last one's.
    np.testing.assert_allclose(extent, [[0, 0], [799 * 0.2527, 999 * 0.2527]])


def test_slide_is_multiscale_and_not_read(case):
    data, options, kind = slide_layer(case.slide)
    assert (kind, options["rgb"], options["multiscale"]) == ("image", True, True)
    assert [level.shape for level in data] == [(800, 1000, 3), (240, 300, 3), (73, 91, 3)]
    assert described(options["metadata"])["mpp"] == (0.2527, 0.2527)


def test_oblong_pixels():
    mpp = Mpp(0.5, 0.25)
    slide = make_slide((0.5, 0.25))
    viewer = add([slide_layer(slide), *result_layers(make_result(slide, mpp), slide)])
    assert tuple(viewer.layers["square"].scale) == (0.25, 0.5)
    cell = CELL * mpp.mean
    np.testing.assert_allclose(viewer.layers["oracle: probability"].scale, (cell, cell))


def test_map_shows_the_positive_class_from_0_to_1_and_hides_what_is_low_or_unknown(case):
    (_, options, _) = result_layers(case.result)[0]
    assert options["contrast_limits"] == (0.0, 1.0)
    assert options["metadata"][KEY]["channel"] == "tumor"
    colors = options["colormap"].map(np.array([np.nan, 0.0, 0.25, 1.0]))
    assert colors[0, 3] == colors[1, 3] == 0
    assert 0 < colors[2, 3] < colors[3, 3]


def test_several_classes_have_a_layer_each_and_one_is_visible():
    values = np.zeros((3, 8, 10))
    source = Map.from_array(
        "probability", "probability", ["a", "b", "c"], values, Affine(100, 100), Mpp(0.5, 0.5)
    )
    names = {o["name"]: o["visible"] for _, o, _ in result_layers(result_with(source))}
    assert names == {"m: probability b": True, "m: probability c": False}


def test_every_channel_of_a_map_that_is_no_probability_has_a_layer():
    """Its channels leave nothing to one another: two densities, the attention of each class."""
    source = Map.from_array(
        "density", "attention", ["a", "b"], np.ones((2, 8, 10)), Affine(100, 100), Mpp(0.5, 0.5)
    )
    names = [o["name"] for _, o, _ in result_layers(result_with(source))]
    assert names == ["m: density a", "m: density b"]


def test_attention_is_scaled_to_its_own_largest_value():
    values = np.full((1, 8, 10), 0.001)
    values[0, 2, 3], values[0, 0, 0] = 0.004, np.nan
    source = Map.from_array(
        "attention", "attention", ["attention"], values, Affine(100, 100), Mpp(0.5, 0.5)
    )
    ((_, options, _),) = result_layers(result_with(source))
    assert options["contrast_limits"] == (0.0, pytest.approx(0.004))


def test_label_map_has_class_colours_and_names():
    cells = np.arange(80).reshape(8, 10) % 3
    source = Map.from_array("classes", "labels", ["a", "b"], cells, Affine(100, 100), Mpp(0.5, 0.5))
    viewer = add(result_layers(result_with(source)))
    layer = viewer.layers["m: classes"]
    assert layer._type_string == "labels"
    blue, vermillion = class_colors(["a", "b"]).values()
    np.testing.assert_allclose(layer.get_color(1)[:3], np.array(blue) / 255)
    np.testing.assert_allclose(layer.get_color(2)[:3], np.array(vermillion) / 255)
    assert layer.get_color(0) is None or layer.get_color(0)[3] == 0
    assert "class: b" in layer.get_status((50 * 0.5, 250 * 0.5), world=True)["coordinates"]


def test_regions_keep_class_probability_and_area(case):
    (vertices, options, kind) = result_layers(case.result)[1]
    assert kind == "shapes"
    assert len(vertices) == 1
    assert options["features"]["class"] == ["tumor"]
    assert options["features"]["probability"] == [1.0]
    np.testing.assert_allclose(options["edge_color"][0][:3], np.array([213, 94, 0]) / 255)


def test_outline_of_tissue_has_its_hole(case):
    layer = Layer.create(*result_layers(case.result)[2])
    assert layer.name == "oracle: tissue"
    assert not layer.visible
    assert len(layer.data[0]) > 8  # shell, bridge and hole


def test_many_polygons_are_drawn_as_labels(monkeypatch):
    monkeypatch.setattr(layers_module, "MAX_POLYGONS", 3)
    areas = [
        Annotation(shapely.box(x, 100, x + 50, 200), label)
        for x, label in [(0, "a"), (100, "b"), (200, "a"), (950, "b")]
    ]
    world = World.of(Mpp(0.2527, 0.2527))
    ((data, options, kind),) = annotation_layers(areas, world, name="n", size=(1000, 800))
    assert kind == "labels"
    ((_, _, edited),) = annotation_layers(areas, world, name="n", size=(1000, 800), most=4)
    assert edited == "shapes"
    layer = Layer.create(data, options, kind)
    assert described(layer.metadata)["outlines"] == 4
    for x, label in [(25, 1), (75, 0), (125, 2), (975, 2)]:
        assert layer.get_value((150 * 0.2527, x * 0.2527), world=True) == label
    # napari's extent of an image reaches from the first pixel's centre to the last one's.
    np.testing.assert_allclose(layer.extent.world / 0.2527, [[0, 0], [799, 999]], atol=1e-4)


def test_few_polygons_are_shapes():
    areas = [Annotation(shapely.box(10, 20, 30, 40), "a", (1, 2, 3), "n", "i")]
    ((_, options, kind),) = annotation_layers(areas, World.of(None), name="n")
    assert kind == "shapes"
    assert options["features"] == {"class": ["a"], "name": ["n"], "id": ["i"]}
    np.testing.assert_allclose(options["edge_color"][0][:3], np.array([1, 2, 3]) / 255)
    assert options["units"] == ("pixel", "pixel")
    assert annotation_layers([], World.of(None), name="n") == []


def test_slide_without_resolution_lies_in_pixels():
    data, options, kind = slide_layer(make_slide(None))
    layer = Layer.create(data, options, kind)
    assert [str(u) for u in layer.units] == ["pixel", "pixel"]
    assert tuple(layer.scale) == (1, 1)
    assert world_of(options["metadata"]) == World.of(None)


def test_result_of_another_slide_is_refused(case):
    with pytest.raises(ResultError, match="belongs to slide 'square', not to 'other'"):
        result_layers(case.result, make_slide(0.2527, "other"))


def test_result_of_another_file_of_the_same_name_is_refused(case):
    other = result_with(size=(500, 400))
    with pytest.raises(ResultError, match=r"500 x 400 px, but slide 'square' has 1000 x 800 px"):
        result_layers(other, case.slide)


def test_result_without_maps_gives_no_layers():
    assert result_layers(result_with()) == []
