import numpy as np
import pytest
import tifffile
from known_slides import make_result, make_slide
from napari.components import ViewerModel

from slidelens.desktop import launch
from slidelens.desktop.launch import add_slides, view
from slidelens.desktop.window import camera, canvas_size, magnification
from slidelens.errors import ResultError, SlideLensError, SlideNotFoundError
from slidelens.geometry import Mpp


@pytest.fixture
def files(tmp_path):
    """Slides a and b without a resolution; results of m1 on both, of m2 on a."""
    pixels = np.asarray(make_slide(None).pyramid()[0])
    paths = {}
    for name in ("a", "b"):
        paths[name] = tmp_path / f"{name}.tif"
        tifffile.imwrite(paths[name], pixels, tile=(256, 256))
    for name, model in [("a", "m1"), ("a", "m2"), ("b", "m1")]:
        slide = make_slide(0.5, name)
        slide.path = paths[name]
        made = make_result(slide, Mpp(0.5, 0.5), model)
        made.save(tmp_path / "results" / model / name)
    return tmp_path


def visible(viewer):
    return [layer.name for layer in viewer.layers if layer.visible]


def test_all_models_of_the_slide(files):
    viewer = ViewerModel()
    add_slides(viewer, [files / "a.tif"], files / "results")
    assert [layer.name for layer in viewer.layers] == [
        "a",
        "m1: probability",
        "m1: regions",
        "m1: tissue",
        "m2: probability",
        "m2: regions",
    ]
    assert visible(viewer) == ["a", "m1: probability", "m1: regions"]
    assert viewer.layers.selection.active.name == "m1: probability"
    assert viewer.title == "a"


def test_resolution_of_the_result_serves_a_slide_without_one(files):
    viewer = ViewerModel()
    add_slides(viewer, [files / "a.tif"], files / "results")
    assert {str(layer.units[0]) for layer in viewer.layers} == {"micrometer"}
    assert tuple(viewer.layers["a"].scale) == (0.5, 0.5)


def test_resolution_that_is_given_wins(files):
    viewer = ViewerModel()
    add_slides(viewer, [files / "a.tif"], files / "results", mpp=0.25)
    assert tuple(viewer.layers["a"].scale) == (0.25, 0.25)
    extent = viewer.layers["m1: regions"].extent.world
    assert (extent >= 0).all()
    assert (extent <= viewer.layers["a"].extent.world[1]).all()


def test_several_slides_first_visible(files):
    viewer = ViewerModel()
    add_slides(viewer, [files / "b.tif", files / "a.tif"], files / "results")
    assert visible(viewer) == ["b", "b · m1: probability", "b · m1: regions"]
    assert "a · m2: probability" in viewer.layers


def test_results_alone_open_their_slide(files):
    viewer = ViewerModel()
    add_slides(viewer, results=files / "results" / "m2")
    assert viewer.layers[0].name == "a"


def test_results_of_several_slides_ask_for_one(files):
    with pytest.raises(ResultError, match="results of 2 slides; name a slide"):
        add_slides(ViewerModel(), results=files / "results")


def test_what_cannot_be_read_is_passed_over_unless_it_is_all(files, caplog):
    folders = [files / "results" / model / "a" for model in ("m1", "m2")]
    (folders[0] / "result.json").write_text("{")
    viewer = ViewerModel()
    add_slides(viewer, [files / "a.tif"], files / "results")
    assert "m2: probability" in viewer.layers
    assert "m1: probability" not in viewer.layers
    assert "result.json: not JSON" in caplog.text
    (folders[1] / "result.json").write_text("{")
    with pytest.raises(ResultError, match="not JSON"):
        add_slides(ViewerModel(), [files / "a.tif"], files / "results")


def test_one_result_folder_of_another_slide(files):
    viewer = ViewerModel()
    with pytest.raises(ResultError, match="belongs to slide 'a', not to 'b'"):
        add_slides(viewer, [files / "b.tif"], files / "results" / "m2" / "a")
    assert not viewer.layers


def test_slide_without_results_says_so(files):
    (files / "c.tif").write_bytes((files / "a.tif").read_bytes())
    with pytest.raises(ResultError, match=r"no result of slide 'c' \(there are: a, b\)"):
        add_slides(ViewerModel(), [files / "c.tif"], files / "results")


def test_missing_slide(tmp_path):
    with pytest.raises(SlideNotFoundError):
        add_slides(ViewerModel(), [tmp_path / "no.svs"])


def test_slide_without_resolution_is_told(files, monkeypatch):
    told = []
    monkeypatch.setattr(launch, "notify", told.append)
    viewer = ViewerModel()
    add_slides(viewer, [files / "a.tif"])
    assert "in pixels" in told[0]
    add_slides(ViewerModel(), [files / "a.tif"], mpp=0.5)
    assert len(told) == 1


def test_no_display_is_one_sentence(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "QT_QPA_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    with pytest.raises(SlideLensError, match="no display"):
        view()


@pytest.mark.parametrize(
    ("um_per_pixel", "text"),
    [
        (0.25, "40x · 0.25 µm/px"),
        (0.5, "20x · 0.5 µm/px"),
        (8, "1.2x · 8 µm/px"),
        (100, "0.1x · 100 µm/px"),
    ],
)
def test_magnification(um_per_pixel, text):
    assert magnification(um_per_pixel) == text


@pytest.mark.gui
def test_new_runs_go_beside_the_one_result_that_is_viewed(files, bench):
    for folder in ("results", "results/m1", "results/m1/a"):
        launch._open_panels(bench.viewer, (), files / folder)
        assert bench.results == files / "results"


@pytest.mark.gui
def test_each_of_several_slides_is_one_click_away_with_its_maps(files, bench, monkeypatch):
    monkeypatch.setattr("napari.Viewer", lambda show: bench.viewer)
    paths = [files / "a.tif", files / "b.tif"]
    view(paths, files / "results", task="look", show=False)
    assert bench.memory.recent_slides() == paths
    for path in (paths[1], paths[0]):
        bench.open_slide(path)
        name = path.stem
        assert visible(bench.viewer) == [name, f"{name} · m1: probability", f"{name} · m1: regions"]


@pytest.mark.gui
def test_the_whole_slide_is_in_view_beside_the_panels(files, bench, monkeypatch, qtbot):
    monkeypatch.setattr("napari.Viewer", lambda show: bench.viewer)
    bench.viewer.window.resize(1000, 800)
    view([files / "a.tif"], mpp=0.5, task="look", show=False)

    def in_view():
        zoom, (high, wide) = camera(bench.viewer).zoom, canvas_size(bench.viewer)
        return 500 * zoom <= wide < 700 and 400 * zoom <= high

    qtbot.waitUntil(in_view, timeout=5000)
