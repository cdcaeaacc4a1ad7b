"""What a person sees: real windows under Xvfb. Pictures go to tests/_pictures to be looked at."""

from pathlib import Path

import numpy as np
import pytest
from known_slides import SQUARE, make_result, make_slide
from napari.layers import Layer
from PIL import Image
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from slidelens.desktop import launch
from slidelens.desktop.annotate import new_annotations
from slidelens.desktop.launch import add_slides, view
from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.window import camera, dress, overlays, photograph
from slidelens.families.base import MapSpec
from slidelens.geometry import Affine, Box, Mpp
from slidelens.maps.canvas import Canvas
from slidelens.maps.map import Map
from slidelens.maps.regions import positive_regions
from slidelens.maps.result import ModelInfo, Result, SlideInfo
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import PhantomSpec, write_phantom
from slidelens.tiling.annotations import read_annotations

pytestmark = pytest.mark.gui

PICTURES = Path(__file__).parents[1] / "_pictures"


@pytest.fixture
def viewer(make_napari_viewer):
    """A shown viewer; the fixture fails the test if widgets or threads are left."""
    return make_napari_viewer(show=True, strict_qt=True)


def draw(viewer) -> np.ndarray:
    """What the canvas shows, (H, W, 3)."""
    QApplication.processEvents()
    return viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)


def zoom_to(viewer, um_per_pixel: float, y: float, x: float) -> None:
    camera(viewer).center = (y, x)
    camera(viewer).zoom = 1 / um_per_pixel
    QApplication.processEvents()


def box_of(mask: np.ndarray) -> np.ndarray:
    where = np.argwhere(mask)
    return np.array([where.min(0), where.max(0) + 1])


def truth_result(slide, truth) -> Result:
    """A result drawn from a phantom's truth, blurred as a model of 32 µm tiles would be."""
    cell = 32.0
    box = Box.of_size(slide.size)
    tumor = truth.mask(box, cell / 4).astype(float)
    tissue = truth.mask(box, cell / 4, "tissue")
    rows, columns = (n // 4 for n in tumor.shape)
    mean = tumor[: rows * 4, : columns * 4].reshape(rows, 4, columns, 4).mean((1, 3))
    inside = tissue[2 : rows * 4 : 4, 2 : columns * 4 : 4]
    spec = MapSpec("probability", "probability", ("normal", "tumor"), cell)
    canvas = Canvas.create(None, spec, slide.size, slide.mpp)
    step = cell / slide.mpp.x
    y, x = np.nonzero(inside)
    boxes = np.stack([x * step, y * step, np.full(len(x), step), np.full(len(x), step)], 1)
    canvas.add(boxes, np.stack([1 - mean[y, x], mean[y, x]], 1))
    probability = canvas.finish()
    outline = Map.from_array(
        "tissue", "labels", ["tissue"], tissue, Affine(step / 4, step / 4), slide.mpp
    )
    width, height = slide.size
    return Result(
        SlideInfo(id=slide.id, path=str(slide.path), width=width, height=height, mpp=slide.mpp.x),
        ModelInfo(name="truth"),
        {"normal": 0.03, "tumor": 0.97},
        maps=[probability, outline],
        regions=positive_regions(probability),
    )


def test_picture_of_slide_heatmap_polygons_and_scale_bar(viewer, tmp_path):
    path = tmp_path / "phantom.tif"
    truth = write_phantom(path, PhantomSpec(size=(2048, 1536), seed=3, lesions=2, pen="blue"))
    with open_slide(path) as slide:
        result = truth_result(slide, truth)
    result.save(tmp_path / "results" / "truth" / "phantom")
    add_slides(viewer, [path], tmp_path / "results")
    PICTURES.mkdir(exist_ok=True)
    photograph(viewer, PICTURES / "napari.png")
    picture = np.asarray(Image.open(PICTURES / "napari.png").convert("RGB")).astype(int)
    assert picture.shape == (800, 1280, 3)
    assert overlays(viewer)[0].visible
    assert {str(unit) for layer in viewer.layers for unit in layer.units} == {"micrometer"}
    canvas = picture[:, 400:]
    red, green, blue = canvas[..., 0], canvas[..., 1], canvas[..., 2]
    shown = {
        "tissue": (red > 180) & (green < 150) & (blue > 150),
        "heatmap": (red > 170) & (green > 150) & (blue < 110),
        "outline": (abs(red - 213) < 12) & (abs(green - 94) < 12) & (blue < 14),
        "pen": (red < 70) & (green < 90) & (blue > 130),
    }
    pixels = {name: int(mask.sum()) for name, mask in shown.items()}
    assert pixels["tissue"] > 30_000
    assert pixels["heatmap"] > 1_000
    assert pixels["outline"] > 300
    assert pixels["pen"] > 1_000
    hide = picture[700:, 1100:].copy()
    overlays(viewer)[0].visible = False
    photograph(viewer, tmp_path / "without.png")
    without = np.asarray(Image.open(tmp_path / "without.png").convert("RGB")).astype(int)
    assert (hide != without[700:, 1100:]).any()


@pytest.mark.parametrize("um_per_pixel", [0.25, 0.9, 3.1])
def test_heatmap_lies_on_the_square_on_screen(viewer, um_per_pixel):
    """At zooms that show each of the slide's levels, 1, 3.33 and 10.97, and at all of the map's."""
    mpp = Mpp(0.2527, 0.2527)
    slide = make_slide(mpp.x)
    for layer in [slide_layer(slide), *result_layers(make_result(slide, mpp), slide)]:
        viewer.add_layer(Layer.create(*layer))
    square, heatmap = viewer.layers["square"], viewer.layers["oracle: probability"]
    square.interpolation2d = "nearest"
    viewer.layers["oracle: regions"].visible = False
    centre = (SQUARE.y + SQUARE.h / 2 - 0.5, SQUARE.x + SQUARE.w / 2 - 0.5)
    zoom_to(viewer, um_per_pixel, centre[0] * mpp.y, centre[1] * mpp.x)
    heatmap.visible = False
    pixels = draw(viewer)
    painted = box_of(pixels[..., 0] > pixels[..., 1] + 60)
    square.visible, heatmap.visible = False, True
    pixels = draw(viewer)
    predicted = box_of(pixels.max(-1) > 100)
    assert square.data_level == [0.25, 0.9, 3.1].index(um_per_pixel)
    # A screen pixel of rounding on each side, and half a pixel of the level that is shown.
    slack = 1 + 0.5 * slide.levels[square.data_level].downsample * mpp.x / um_per_pixel
    assert abs(painted - predicted).max() <= slack
    expected = np.array([SQUARE.h, SQUARE.w]) * mpp.x / um_per_pixel
    np.testing.assert_allclose(np.diff(predicted, axis=0)[0], expected, atol=2)


def test_magnification_follows_the_zoom(viewer):
    dress(viewer)
    text = overlays(viewer)[1]
    assert not text.visible
    viewer.add_layer(Layer.create(*slide_layer(make_slide(0.5))))
    zoom_to(viewer, 0.5, 100, 100)
    assert text.visible
    assert text.text == "20x · 0.5 µm/px"
    zoom_to(viewer, 2, 100, 100)
    assert text.text == "5x · 2 µm/px"
    viewer.layers.clear()
    viewer.add_layer(Layer.create(*slide_layer(make_slide(None))))
    assert not text.visible


def test_broken_file_is_a_message_and_adds_nothing(viewer, tmp_path, monkeypatch):
    from napari.utils import notifications

    shown = []
    monkeypatch.setattr(
        notifications.notification_manager, "dispatch", lambda note: shown.append(note)
    )
    path = tmp_path / "broken.geojson"
    path.write_text(
        '{"type": "FeatureCollection", "features": [{"type": "Feature", "geometry": 1}]}'
    )
    viewer.open(str(path), plugin="slidelens")
    assert not viewer.layers
    (note,) = shown
    assert str(note.severity) == "error"
    assert "broken.geojson" in note.message
    assert "Traceback" not in note.message


def test_sample_slide(viewer):
    viewer.open_sample("slidelens", "phantom")
    (layer,) = viewer.layers
    assert layer.name == "phantom"
    assert str(layer.units[0]) == "micrometer"
    assert overlays(viewer)[0].visible
    tissue = draw(viewer)
    assert ((tissue[..., 0] > 180) & (tissue[..., 1] < 150)).sum() > 5_000


def test_annotations_are_drawn_and_saved(viewer, tmp_path):
    new_annotations(viewer)
    assert not viewer.layers  # nothing to draw on
    viewer.add_layer(Layer.create(*slide_layer(make_slide(0.2527))))
    new_annotations(viewer)
    layer = viewer.layers["square annotations"]
    assert layer.mode == "add_polygon"
    corners = [(SQUARE.y, SQUARE.x), (SQUARE.bottom, SQUARE.x), (SQUARE.bottom, SQUARE.right)]
    layer.add_polygons([np.array(corners)])
    path = tmp_path / "drawn.geojson"
    viewer.layers.save(str(path), selected=True, plugin="slidelens")
    (made,) = read_annotations(path)
    assert made.label == "tumor"
    bounds = (SQUARE.x, SQUARE.y, SQUARE.right, SQUARE.bottom)
    np.testing.assert_allclose(made.polygon.bounds, bounds, atol=1e-3)


def test_view_returns_when_its_window_is_closed(qapp, tmp_path, monkeypatch):
    run = launch.napari.run
    seen = []

    def run_then_close() -> None:
        QTimer.singleShot(0, close)
        run(force=True)

    def close() -> None:
        window = launch.napari.current_viewer()
        seen.append([layer.name for layer in window.layers])
        window.close()

    monkeypatch.setattr(launch.napari, "run", run_then_close)
    path = tmp_path / "phantom.tif"
    write_phantom(path, PhantomSpec(size=(512, 512)))
    view([path])
    assert seen == [["phantom"]]
