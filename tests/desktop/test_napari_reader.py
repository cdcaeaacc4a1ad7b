import json

import numpy as np
import pytest
import tifffile
from known_slides import SQUARE, make_result, make_slide
from npe2 import io_utils

from slidelens.desktop import reader as reader_module
from slidelens.desktop.reader import get_annotation_reader, get_result_reader, get_slide_reader
from slidelens.desktop.world import described
from slidelens.errors import LabelError
from slidelens.geometry import Mpp


@pytest.fixture
def notices(monkeypatch):
    """What a person is told."""
    told = []
    monkeypatch.setattr(
        reader_module, "notify", lambda message, error=False: told.append((message, error))
    )
    return told


@pytest.fixture
def tif(tmp_path):
    """The square as a plain TIFF: a file without a resolution."""
    path = tmp_path / "square.tif"
    tifffile.imwrite(path, np.asarray(make_slide(None).pyramid()[0]), tile=(256, 256))
    return path


def names(layers):
    return [options["name"] for _, options, _ in layers]


def test_slide(tif, notices):
    ((data, options, kind),) = get_slide_reader(str(tif))(str(tif))
    assert (kind, options["name"]) == ("image", "square")
    assert data[0].shape == (800, 1000, 3)
    ((message, error),) = notices
    assert message.startswith("square.tif states no resolution")
    assert "--mpp" in message
    assert not error


def test_several_slides(tif, tmp_path, notices):
    other = tmp_path / "other.tif"
    other.write_bytes(tif.read_bytes())
    paths = [str(tif), str(other)]
    assert names(get_slide_reader(paths)(paths)) == ["square", "other"]


def test_what_is_no_slide_is_declined(tmp_path):
    text = tmp_path / "text.svs"
    text.write_text("not a slide")
    empty = tmp_path / "empty.tif"
    empty.touch()
    for path in (text, empty, tmp_path, tmp_path / "missing.svs"):
        assert get_slide_reader(str(path)) is None


def test_result_opens_with_its_slide(tif, tmp_path, notices):
    slide = make_slide(0.2527)
    slide.path = tif  # the file states no resolution: the result's is used
    folder = tmp_path / "r" / "oracle" / "square"
    make_result(slide, Mpp(0.2527, 0.2527)).save(folder)
    expected = ["square", "oracle: probability", "oracle: regions", "oracle: tissue"]
    for path in (str(folder), str(folder / "result.json")):
        layers = get_result_reader(path)(path)
        assert names(layers) == expected
        assert layers[0][1]["units"] == ("um", "um")
    assert not notices


def test_result_whose_slide_is_gone_opens_its_maps(tmp_path, notices):
    folder = tmp_path / "r"
    make_result(make_slide(0.5), Mpp(0.5, 0.5)).save(folder)
    layers = get_result_reader(str(folder))(str(folder))
    assert names(layers) == ["oracle: probability", "oracle: regions", "oracle: tissue"]
    ((message, _),) = notices
    assert "without their slide" in message


def test_result_in_a_viewer_that_shows_the_slide(tmp_path, monkeypatch, notices):
    from napari.components import ViewerModel
    from napari.layers import Layer

    from slidelens.desktop.layers import slide_layer

    viewer = ViewerModel()
    viewer.add_layer(Layer.create(*slide_layer(make_slide(0.5))))
    monkeypatch.setattr(reader_module, "open_viewer", lambda: viewer)
    make_result(make_slide(0.5), Mpp(0.5, 0.5)).save(tmp_path / "r")
    layers = get_result_reader(str(tmp_path / "r"))(str(tmp_path / "r"))
    assert "square" not in names(layers)

    # Annotations find their slide there too.
    path = tmp_path / "square.geojson"
    path.write_text(json.dumps(collection(SQUARE)))
    ((data, options, _),) = get_annotation_reader(str(path))(str(path))
    assert options["scale"] == (0.5, 0.5)
    assert described(options["metadata"])["slide"] == "square"
    assert data[0].shape == (4, 2)
    assert not notices


def test_result_on_a_slide_in_pixels_lies_in_pixels(tmp_path, monkeypatch, notices):
    from napari.components import ViewerModel
    from napari.layers import Layer

    from slidelens.desktop.layers import slide_layer

    viewer = ViewerModel()
    viewer.add_layer(Layer.create(*slide_layer(make_slide(None))))
    monkeypatch.setattr(reader_module, "open_viewer", lambda: viewer)
    make_result(make_slide(0.5), Mpp(0.5, 0.5)).save(tmp_path / "r")
    layers = get_result_reader(str(tmp_path / "r"))(str(tmp_path / "r"))
    for layer in layers:
        viewer.add_layer(Layer.create(*layer))
    outline = viewer.layers["oracle: regions"].extent.world + 0.5
    want = [[SQUARE.y, SQUARE.x], [SQUARE.bottom, SQUARE.right]]
    np.testing.assert_allclose(outline, want, atol=1e-4)

    # The same name, another slide.
    other = make_result(make_slide(0.5), Mpp(0.5, 0.5))
    other.slide = other.slide.model_copy(update={"width": 500})
    other.save(tmp_path / "o")
    assert get_result_reader(str(tmp_path / "o"))(str(tmp_path / "o")) == [(None,)]
    ((message, error),) = notices
    assert "another file of the same name" in message
    assert error


def collection(*boxes):
    features = []
    for x, y, w, h in boxes:
        ring = [[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]]
        geometry = {"type": "Polygon", "coordinates": [ring]}
        properties = {"classification": {"name": "tumor"}}
        features.append({"type": "Feature", "geometry": geometry, "properties": properties})
    return {"type": "FeatureCollection", "features": features}


def test_annotations_without_a_slide_lie_in_pixels(tmp_path, notices):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(collection(SQUARE)))
    ((_, options, kind),) = get_annotation_reader(str(path))(str(path))
    assert kind == "shapes"
    assert options["units"] == ("pixel", "pixel")
    assert "in pixels" in notices[0][0]


def test_other_json_and_xml_are_declined(tmp_path):
    for name, text in [("a.json", '{"answer": 42}'), ("a.xml", "<note/>"), ("b.geojson", "")]:
        (tmp_path / name).write_text(text)
        assert get_annotation_reader(str(tmp_path / name)) is None
    assert get_annotation_reader(str(tmp_path / "missing.geojson")) is None
    assert get_result_reader(str(tmp_path)) is None


def test_empty_annotations_say_so(tmp_path, notices):
    path = tmp_path / "a.geojson"
    path.write_text(json.dumps(collection()))
    assert get_annotation_reader(str(path))(str(path)) == [(None,)]
    assert any("No areas in" in message for message, _ in notices)


def test_error_is_raised_without_a_window(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": 7}')
    with pytest.raises(LabelError, match=r"a\.geojson"):
        get_annotation_reader(str(path))(str(path))


def test_error_is_a_message_in_a_window(tmp_path, monkeypatch, notices):
    from napari.components import ViewerModel

    monkeypatch.setattr(reader_module, "open_viewer", ViewerModel)
    path = tmp_path / "a.geojson"
    path.write_text('{"type": "FeatureCollection", "features": 7}')
    assert get_annotation_reader(str(path))(str(path)) == [(None,)]
    ((message, error),) = notices
    assert message.startswith("a.geojson: ")  # not with a folder, of which napari has just room
    assert error


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "width", "mpp"),
    [
        ("CMU-1-Small-Region.svs", 2220, 0.499),
        ("CMU-1-Small-Region_dicom", 2220, 0.499),
        ("test3-DAPI-2-387.ndpi", 3968, 0.2282),
        ("google_camelyon_jpeg.dcm", 1152, 28.97),
        ("small_vectra.qptiff", None, None),
        ("TCGA-CR-7395-01A-01-TS1.svs", 4443, "pixel"),
    ],
)
def test_real_slides_through_npe2(data, name, width, mpp, notices, npe2pm):
    path = data / "wsi" / name
    with npe2pm.tmp_plugin(package="slidelens"):
        ((levels, options, kind),) = io_utils.read([str(path)], stack=False)
    assert kind == "image"
    assert max(levels[-1].shape) <= 2048
    assert np.asarray(levels[-1]).any()
    if width is not None:
        assert levels[0].shape[1] == width
    if mpp == "pixel":
        assert options["units"] == ("pixel", "pixel")
        assert "--mpp" in notices[0][0]
    else:
        assert options["units"] == ("um", "um")
        if mpp is not None:
            assert options["scale"][1] == pytest.approx(mpp, rel=1e-2)


def test_annotations_land_on_the_slide_that_is_seen(tmp_path, monkeypatch, notices):
    from napari.components import ViewerModel
    from napari.layers import Layer

    from slidelens.desktop.layers import slide_layer

    viewer = ViewerModel()
    for mpp, name in ((0.5, "seen"), (0.25, "hidden")):
        viewer.add_layer(Layer.create(*slide_layer(make_slide(mpp, name))))
    viewer.layers["hidden"].visible = False
    monkeypatch.setattr(reader_module, "open_viewer", lambda: viewer)
    path = tmp_path / "areas.geojson"
    path.write_text(json.dumps(collection(SQUARE)))
    ((_, options, _),) = get_annotation_reader(str(path))(str(path))
    assert described(options["metadata"])["slide"] == "seen"
    assert options["scale"] == (0.5, 0.5)


def test_a_result_says_whether_the_slide_s_resolution_is_its_own(tmp_path, notices):
    from slidelens.testing.phantom import PhantomSpec, write_phantom

    path = tmp_path / "square.tif"
    write_phantom(path, PhantomSpec(size=(1000, 800), mpp=0.5))
    for source, given in (("TIFF resolution tags", False), ("given", True)):
        made = make_result(make_slide(0.25), Mpp(0.25, 0.25))
        facts = {"path": str(path), "mpp_source": source}
        made.slide = made.slide.model_copy(update=facts)
        made.save(tmp_path / source)
        (_, options, _), *_ = get_result_reader(str(tmp_path / source))(str(tmp_path / source))
        facts = described(options["metadata"])
        assert (facts["mpp_source"] == "given") is given
        assert options["scale"] == ((0.25, 0.25) if given else (0.5, 0.5))
