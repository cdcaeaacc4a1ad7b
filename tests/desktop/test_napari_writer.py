import json

import numpy as np
import pytest
import shapely
from napari.layers import Layer, Shapes
from npe2 import io_utils

from slidelens.desktop.annotate import annotation_options
from slidelens.desktop.identities import identify
from slidelens.desktop.layers import annotation_layers, result_layers
from slidelens.desktop.world import World, describe
from slidelens.desktop.writer import shape_features, update_geojson, write_geojson
from slidelens.errors import SlideLensError
from slidelens.geometry import Mpp
from slidelens.tiling.annotations import Annotation, read_annotations

WORLD = World.of(Mpp(0.2527, 0.31))
HOLED = shapely.Polygon(
    [(10.5, 20), (210, 25), (200, 180), (12, 170)], [[(50, 50), (90, 50), (90, 90), (50, 90)]]
)


@pytest.fixture(autouse=True)
def _plugin(npe2pm):
    with npe2pm.tmp_plugin(package="slidelens"):
        yield


def save(path, *layers):
    """Save as napari's menu does."""
    io_utils.write(str(path), list(layers), plugin_name="slidelens")
    return read_annotations(path)


def test_annotations_survive_there_and_back(tmp_path):
    given = [
        Annotation(HOLED, "tumor", (213, 94, 0), "one", "id-1"),
        Annotation(shapely.MultiPolygon([HOLED, shapely.box(300, 0, 310, 10)]), "", None, "two"),
    ]
    (layer,) = annotation_layers(given, WORLD, name="n", size=(1000, 800))
    again = save(tmp_path / "a.geojson", Layer.create(*layer))
    assert (again[0].label, again[0].name, again[0].id) == ("tumor", "one", "id-1")
    assert again[0].color == (213, 94, 0)
    assert (again[1].label, again[1].name) == ("", "two")
    for a, b in zip(again, given, strict=True):
        # napari keeps vertices as float32.
        assert a.polygon.symmetric_difference(b.polygon).area < 1e-3
        assert len(shapely.get_coordinates(a.polygon)) == len(shapely.get_coordinates(b.polygon))


def test_qupath_gets_class_colour_and_area(tmp_path):
    (layer,) = annotation_layers([Annotation(HOLED, "tumor")], WORLD, name="n")
    save(tmp_path / "a.geojson", Layer.create(*layer))
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    properties = feature["properties"]
    assert properties["objectType"] == "annotation"
    assert properties["classification"] == {"name": "tumor", "color": [213, 94, 0]}
    area = HOLED.area * 0.2527 * 0.31 * 1e-6
    assert properties["measurements"]["Area mm^2"] == pytest.approx(area, rel=1e-6)


def test_layer_drawn_by_hand_on_new_annotations(tmp_path):
    slide = describe(WORLD, "slide", "s", size=(1000, 800))
    layer = Shapes(None, **annotation_options(slide))
    corner = np.array([100.0, 200.0])  # y, x in level-0 px
    world = (corner - 0.5) * (0.31, 0.2527)
    start = np.array(layer.world_to_data(world))
    layer.add_rectangles([start + np.array([[0, 0], [0, 40], [30, 40], [30, 0]])])
    (made,) = save(tmp_path / "a.geojson", layer)
    assert made.label == "tumor"
    np.testing.assert_allclose(made.polygon.bounds, (200, 100, 240, 130), atol=1e-3)


def by_hand(**options):
    """A layer that SlideLens did not make, with one rectangle."""
    corners = np.array([[9.5, 19.5], [9.5, 29.5], [19.5, 29.5], [19.5, 19.5]])
    return Shapes([corners], shape_type="rectangle", **options)


def test_a_layer_whose_scale_is_of_no_slide_is_not_written(tmp_path):
    path = tmp_path / "a.geojson"
    for options in ({"scale": (0.31, 0.25), "units": ("um", "um")}, {"scale": (8, 8)}):
        layer = by_hand(name="mine", **options)
        with pytest.raises(SlideLensError, match=r"'mine': its cells of .* are of no slide .*Open"):
            layer.save(str(path), plugin="slidelens")  # napari hides a ValueError
    assert not path.exists()
    (made,) = save(path, by_hand())
    np.testing.assert_allclose(made.polygon.bounds, (20, 10, 30, 20), atol=1e-4)


def test_layers_of_several_slides_are_not_mixed_in_one_file(tmp_path):
    layers = [
        Layer.create(
            *annotation_layers([Annotation(HOLED, "a")], WORLD, name=slide, slide_id=slide)[0]
        )
        for slide in ("one", "two")
    ]
    path = tmp_path / "a.geojson"
    with pytest.raises(SlideLensError, match="of the slides one, two"):
        save(path, *layers)
    assert not path.exists()
    layers[1].data = []
    assert len(save(path, *layers)) == 1, "an empty layer is of no slide"


def test_layer_that_was_moved_and_turned(tmp_path):
    (data, options, kind) = annotation_layers(
        [Annotation(shapely.box(0, 0, 40, 20))], World.of(Mpp(0.5, 0.5)), name="n"
    )[0]
    layer = Layer.create(data, {**options, "rotate": 90}, kind)
    layer.affine = np.array([[1, 0, 50.0], [0, 1, 100.0], [0, 0, 1]])
    want = np.array([layer.data_to_world(v) for v in layer.data[0]])[:, ::-1] / 0.5 + 0.5
    (made,) = save(tmp_path / "a.geojson", layer)
    np.testing.assert_allclose(made.polygon.bounds, (*want.min(0), *want.max(0)), atol=1e-3)
    assert made.polygon.bounds[0] > 100


def test_ellipses_lines_and_shapes_without_area(tmp_path):
    layer = Shapes(ndim=2, metadata=describe(World.of(Mpp(1, 1)), "annotations", "s"))
    layer.add_ellipses([np.array([[0, 0], [0, 100], [60, 100], [60, 0]])])
    layer.add_paths([np.array([[0, 0], [10, 10], [20, 0]])])
    layer.add_polygons([np.array([[5, 5], [5, 5], [5, 5]])])
    path = tmp_path / "a.geojson"
    (ellipse,) = save(path, layer)
    assert ellipse.polygon.area == pytest.approx(np.pi * 50 * 30, rel=1e-3)
    kinds = [f["geometry"]["type"] for f in json.loads(path.read_text())["features"]]
    assert kinds == ["Polygon", "LineString"]


def test_several_layers_go_into_one_file(tmp_path):
    layers = [
        Layer.create(*annotation_layers([Annotation(HOLED, label)], WORLD, name=label)[0])
        for label in "ab"
    ]
    assert [a.label for a in save(tmp_path / "a.geojson", *layers)] == ["a", "b"]


def test_what_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SlideLensError, match=r"a\.geojson: cannot be written"):
        write_geojson(str(tmp_path / "file" / "a.geojson"), [])


def test_a_polygon_that_is_added_gets_nothing_of_the_last_one_but_its_class(tmp_path):
    given = [Annotation(HOLED, "tumor", None, f"no {i}", f"id-{i}") for i in range(2)]
    layer = Layer.create(*annotation_layers(given, WORLD, name="n")[0])
    layer.add_polygons([np.array([[300, 300], [300, 340], [340, 340]])])
    *old, new = save(tmp_path / "a.geojson", layer)
    assert [(a.name, a.id) for a in old] == [("no 0", "id-0"), ("no 1", "id-1")]
    assert (new.label, new.name) == ("tumor", "tumor")
    assert new.color == old[-1].color
    assert new.id not in ("", "id-0", "id-1")


def test_a_polygon_that_is_added_to_regions_has_no_probability(case, tmp_path):
    layer = Layer.create(*result_layers(case.result)[1])
    layer.add_polygons([np.array([[300, 300], [300, 340], [340, 340]])])
    save(tmp_path / "a.geojson", layer)
    found, drawn = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert found["properties"]["measurements"]["Mean probability"] == 1
    assert set(drawn["properties"]["measurements"]) == {"Area mm^2"}


def test_a_copy_gets_an_id_of_its_own_and_keeps_it(tmp_path):
    given = [Annotation(shapely.box(0, 0, 40, 20), "tumor", None, "one", "id-1")]
    layer = Layer.create(*annotation_layers(given, WORLD, name="n")[0])
    layer.selected_data = {0}
    layer._copy_data()
    layer._paste_data()
    first, copy = (a.id for a in save(tmp_path / "a.geojson", layer))
    assert first == "id-1"
    assert copy not in ("", "id-1")
    layer.data = [layer.data[0], layer.data[1] + 5]
    assert [a.id for a in save(tmp_path / "a.geojson", layer)] == [first, copy]
    ids = [a.id for a in save(tmp_path / "b.geojson", layer, layer)]
    assert len(set(ids)) == 4, "nor do two layers share one"


SQUARE = [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]]
BOW_TIE = [[[100, 100], [160, 160], [160, 100], [100, 170], [100, 100]]]
PARTS = [SQUARE, [[[200, 10], [260, 10], [260, 60], [200, 10]]]]


def foreign(kind: str, coordinates: list, number: int, **more) -> dict:
    return {
        "type": "Feature",
        "geometry": {"type": kind, "coordinates": coordinates},
        "properties": {"isLocked": True, "myfield": number, **more},
    }


def drawn_on(path) -> Shapes:
    """Open a file as the Train panel does."""
    (data,) = annotation_layers(identify(read_annotations(path)), WORLD, name="n")
    return Layer.create(*data)


def written(path, layer, before=frozenset()) -> list[dict]:
    data, attributes, _ = layer.as_layer_data_tuple()
    update_geojson(path, list(shape_features(data, attributes)), before)
    return json.loads(path.read_text())["features"]


def test_outlines_without_id_keep_what_other_programs_say_of_them(tmp_path):
    path = tmp_path / "a.geojson"
    there = [
        foreign("Polygon", SQUARE, 0),
        foreign("Polygon", BOW_TIE, 1),
        foreign("Point", [5, 5], 2),
        foreign("MultiPolygon", PARTS, 3),
        foreign("Polygon", SQUARE, 4, classification={"name": "same place"}),
        foreign("Polygon", SQUARE, 5, id="in properties"),
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": there}))
    layer = drawn_on(path)
    layer.add_polygons([np.array([[300, 300], [300, 340], [340, 340]])])
    moved = layer.data
    moved[0] = moved[0] + [[7, 0], *[[0, 0]] * (len(moved[0]) - 1)]
    layer.data = moved
    found = written(path, layer)
    assert [one["properties"].get("myfield") for one in found] == [0, 1, 3, 4, 5, None, 2]
    assert [one["properties"]["isLocked"] for one in found] == [*[True] * 5, False, True]
    ids = [one["id"] for one in found[:-1]]
    assert len(set(ids)) == 6
    assert ids[4] == "in properties"
    again = drawn_on(path)
    once_more = written(path, again, set(ids))
    assert [(one.get("id"), one["properties"].get("myfield")) for one in once_more] == [
        (one.get("id"), one["properties"].get("myfield")) for one in found
    ]
    again.selected_data = {0}
    again.remove_selected()
    assert [one["id"] for one in written(path, again, set(ids))[:-1]] == ids[1:]


def test_a_bare_polygon_is_written_once(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": SQUARE}))
    (one,) = written(path, drawn_on(path))
    assert one["type"] == "Feature"
    assert "coordinates" not in one
