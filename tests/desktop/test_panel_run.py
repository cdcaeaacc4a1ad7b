"""The Run panel, used as a person does: real clicks, real models, a real worker."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from threading import Event, current_thread

import numpy as np
import pytest
import tifffile
from hands import canvas_of, close_panel, drag, press
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog

from slidelens.desktop.layers import slide_layer
from slidelens.desktop.region import region_box
from slidelens.desktop.sample_data import phantom
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.desktop.state import runs
from slidelens.desktop.state.cards import Card
from slidelens.desktop.state.runs import RunRequest, checked
from slidelens.desktop.world import described
from slidelens.engine.slide_folder import slides_to_run
from slidelens.geometry import Box
from slidelens.maps.result import Result
from slidelens.maps.run_settings import RunSettings
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import PhantomSpec, write_phantom

pytestmark = pytest.mark.gui

LONG = 180_000
SLOW = {"overlap": 84, "batch_size": 4}


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides") / "phantom.tif"
    write_phantom(path, PhantomSpec(size=(2048, 1536), mpp=0.5, seed=5, lesions=1))
    return path


@pytest.fixture
def panel(bench, qtbot):
    panel = bench.open_panel("run")
    qtbot.waitUntil(lambda: bool(bench.cards), timeout=LONG)
    return panel


def show_slide(qtbot, bench, slide):
    bench.open_slide(slide)
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=40_000)


def set_options(panel, **options):
    for name, value in options.items():
        panel.models.form.control(name).setValue(value)


def choose_folder(panel, folder):
    """Have a folder run, without the dialog that asks for it."""
    panel.models.choose("demo-mil")
    panel.where.folder = folder
    panel.where.blockSignals(True)
    panel.where.setCurrentIndex(panel.where.findData("folder"))
    panel.where.blockSignals(False)
    panel._update()


def select_result(results, folder):
    """Choose a result in the list."""
    items = [results.tree.topLevelItem(n) for n in range(results.tree.topLevelItemCount())]
    (item,) = (i for i in items if i.data(0, Qt.ItemDataRole.UserRole) == str(folder))
    results.tree.setCurrentItem(item)


def test_empty_window_says_how_to_begin(panel):
    assert "Open a slide to begin" in panel.slide.text.text()
    assert panel.why.text() == "Open a slide to begin."
    assert not panel.run_button.isEnabled()
    assert "Research use only" in panel.models.card.toPlainText()
    assert not panel.bar.isVisible()


def test_what_is_done_with_results_is_in_sight_on_a_laptop(panel, bench, slide, qtbot):
    bench.viewer.window.resize(1366, 768)
    show_slide(qtbot, bench, slide)
    asked = panel.results.open, panel.results.delete
    qtbot.waitUntil(lambda: all(w.visibleRegion().boundingRect() == w.rect() for w in asked))


def test_run_shows_the_map_as_it_grows_and_keeps_the_result(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    set_options(panel, overlap=56, batch_size=4)
    press(qtbot, panel.run_button)
    viewer = bench.viewer
    growing = "demo-mil: probability (running)"
    qtbot.waitUntil(lambda: "Predicting" in panel.status.text(), timeout=LONG)
    assert panel.bar.isVisible()
    assert panel.stop_button.isEnabled()
    qtbot.waitUntil(lambda: growing in viewer.layers, timeout=LONG)
    layer = viewer.layers[growing]
    qtbot.waitUntil(lambda: np.isfinite(np.asarray(layer.data[0])).sum() > 5, timeout=LONG)
    layer.opacity = 0.4
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    qtbot.waitUntil(lambda: "demo-mil: regions" in viewer.layers, timeout=40_000)
    assert growing not in viewer.layers
    (shown,) = layers_of(viewer, "map", model="demo-mil")
    assert shown is layer  # napari takes its time for each layer that comes and goes
    assert shown.opacity == 0.4
    result = Result.load(bench.results / "demo-mil" / "phantom")
    assert described(shown.metadata)["path"] == str(result.path)
    np.testing.assert_array_equal(np.asarray(shown.data[0]), result.maps["probability"].read()[1])
    assert panel.notice.text.startswith("demo-mil: tumor")
    qtbot.waitUntil(lambda: panel.results.tree.topLevelItemCount() == 1, timeout=40_000)


def test_what_a_run_warns_of_stands_below_what_it_found(panel, bench, qtbot, tmp_path):
    dark = np.full((512, 512, 3), 4, np.uint8)
    dark[100:400, 100:400, 2] = 120
    resolution = {"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}  # 0.5 µm/px
    tifffile.imwrite(tmp_path / "dapi.tif", dark, photometric="rgb", tile=(256, 256), **resolution)
    show_slide(qtbot, bench, tmp_path / "dapi.tif")
    panel.models.choose("demo-mil")
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: panel.running is False, timeout=LONG)
    found, warning = panel.notice.text.splitlines()
    assert found.startswith("demo-mil: tumor")
    assert warning.startswith("dapi: looks like a fluorescence slide;")


def test_stop_keeps_nothing_half_done(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    set_options(panel, **SLOW)
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: panel.state.stage == "infer", timeout=LONG)
    press(qtbot, panel.stop_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=20_000)
    assert panel.notice.text == "Stopped."
    assert not list(layers_of(bench.viewer, "map"))
    assert not list(bench.results.glob("*/*/result.json"))
    assert panel.run_button.isEnabled()


def test_stop_shows_the_earlier_result_again(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    path = str(bench.results / "demo-mil" / "phantom")

    def shown():
        maps = layers_of(bench.viewer, "map", model="demo-mil")
        return [described(one.metadata).get("path") for one in maps if one.visible]

    qtbot.waitUntil(lambda: shown() == [path], timeout=40_000)
    set_options(panel, **SLOW)

    def run_and_stop():
        press(qtbot, panel.run_button)
        press(qtbot, panel.notice._action)
        qtbot.waitUntil(lambda: shown() == [None], timeout=LONG)
        press(qtbot, panel.stop_button)
        qtbot.waitUntil(lambda: not panel.running, timeout=20_000)

    run_and_stop()
    run_and_stop()  # before the result is back
    qtbot.waitUntil(lambda: shown() == [path], timeout=40_000)
    qtbot.waitUntil(lambda: "demo-mil: regions" in bench.viewer.layers, timeout=40_000)


def test_a_run_goes_on_in_a_panel_that_is_closed_and_opened_again(panel, bench, slide, qtbot):
    bench.open_panel("maps")
    bench.open_panel("run")
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    set_options(panel, **SLOW)
    press(qtbot, panel.run_button)
    close_panel(qtbot, panel)
    assert not panel.isVisible()
    assert panel.running
    assert bench.open_panel("run") is panel
    qtbot.waitUntil(panel.bar.isVisible, timeout=5000)
    press(qtbot, panel.stop_button)
    close_panel(qtbot, panel)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert bench.open_panel("run") is panel
    assert panel.notice.text == "Stopped."


def test_a_worker_that_dies_is_reported(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    set_options(panel, **SLOW)
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: panel.state.stage == "infer", timeout=LONG)
    os.kill(bench.runner.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: not panel.running, timeout=40_000)
    assert "was killed" in panel.notice.text
    assert not list(layers_of(bench.viewer, "map"))
    assert panel.run_button.isEnabled()


def test_region_is_drawn_with_the_mouse_and_restricts_the_run(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    panel.where.setCurrentIndex(panel.where.findData("region"))
    assert "Draw the region" in panel.why.text()
    canvas = canvas_of(bench.viewer)
    width, height = canvas.width(), canvas.height()
    drag(canvas, QPoint(width // 3, height * 2 // 5), QPoint(width * 2 // 3, height * 3 // 5))
    box = region_box(bench.viewer, bench.slide)
    assert box is not None
    assert 200 < box.w < 1500
    layer = next(layers_of(bench.viewer, "region"))
    qtbot.waitUntil(lambda: layer.mode == "pan_zoom", timeout=5000)
    assert not panel.why.isVisible()
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    tiles = Result.load(bench.results / "demo-mil" / "phantom").tiles.boxes
    assert len(tiles)
    assert (tiles[:, 0] + tiles[:, 2] > box.x).all()
    assert (tiles[:, 0] < box.right).all()


def test_a_slide_without_resolution_asks_for_it(panel, bench, tmp_path, qtbot):
    import tifffile
    from known_slides import make_slide

    path = tmp_path / "bare.tif"
    tifffile.imwrite(path, np.asarray(make_slide(None).pyramid()[0]), tile=(256, 256))
    show_slide(qtbot, bench, path)
    assert panel.mpp.isVisible()
    assert panel.mpp_label.width() >= panel.mpp_label.sizeHint().width() > 30, "it has a name"
    panel.models.choose("demo-mil")
    panel.mpp.setValue(2.0)
    assert panel._request().mpp == 2.0


def test_results_are_reopened_deleted_and_brought_back(panel, bench, case, qtbot):
    case.result.save(bench.results / "oracle" / "square")
    bench.results_changed.emit()
    tree = panel.results.tree
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 1, timeout=40_000)
    select_result(panel.results, bench.results / "oracle" / "square")
    press(qtbot, panel.results.open)
    qtbot.waitUntil(lambda: "oracle: regions" in bench.viewer.layers, timeout=40_000)
    assert panel.notice.text.startswith("Maps are shown without their slide")
    press(qtbot, panel.results.delete)
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 0, timeout=40_000)
    assert "was deleted" in panel.notice.text
    press(qtbot, panel.notice._action)
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 1, timeout=40_000)
    assert (bench.results / "oracle" / "square" / "result.json").is_file()


def test_a_result_of_regions_alone_goes_and_comes_back_with_its_outlines(panel, bench, case, qtbot):
    case.result.maps.clear()
    case.result.save(bench.results / "oracle" / "square")
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: panel.results.tree.topLevelItemCount() == 1, timeout=40_000)
    select_result(panel.results, bench.results / "oracle" / "square")
    press(qtbot, panel.results.open)
    qtbot.waitUntil(lambda: "oracle: regions" in bench.viewer.layers, timeout=40_000)
    press(qtbot, panel.results.delete)
    assert "oracle: regions" not in bench.viewer.layers
    press(qtbot, panel.notice._action)
    qtbot.waitUntil(lambda: "oracle: regions" in bench.viewer.layers, timeout=40_000)


def test_closing_during_a_run_ends_the_worker_and_leaves_no_half_result(
    home, make_napari_viewer, slide, qtbot
):
    from slidelens.desktop.workbench import workbench_of

    viewer = make_napari_viewer(show=True)
    bench = workbench_of(viewer)
    panel = bench.open_panel("run")
    qtbot.waitUntil(lambda: bool(bench.cards), timeout=LONG)
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    set_options(panel, **SLOW)
    panel.run()
    qtbot.waitUntil(lambda: panel.state.stage == "infer", timeout=LONG)
    results, pid = bench.results, bench.runner.pid
    viewer.close()
    qtbot.waitUntil(lambda: bench.runner.pid == 0, timeout=20_000)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not list(results.glob("*/*/result.json"))


def test_a_resolution_that_is_typed_is_not_for_a_folder_of_slides(panel, bench, tmp_path, qtbot):
    import tifffile
    from known_slides import make_slide

    path = tmp_path / "bare.tif"
    tifffile.imwrite(path, np.asarray(make_slide(None).pyramid()[0]), tile=(256, 256))
    show_slide(qtbot, bench, path)
    choose_folder(panel, tmp_path)
    assert not panel.mpp.isVisible()
    assert panel._request().mpp is None
    panel.where.setCurrentIndex(panel.where.findData("open"))
    assert panel.mpp.isVisible()


def test_a_run_of_other_settings_asks_before_it_replaces_a_result(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    folder = bench.results / "demo-mil" / "phantom"
    before = (folder / "result.json").stat().st_mtime_ns
    press(qtbot, panel.run_button)
    assert panel.running, "the same again is the same result"
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    set_options(panel, overlap=56)
    press(qtbot, panel.run_button)
    assert not panel.running
    assert panel.notice.text.startswith(
        "demo-mil on phantom: there is a result with other options."
    )
    assert (folder / "result.json").stat().st_mtime_ns == before
    press(qtbot, panel.notice._action)
    assert panel.running
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    after = (folder / "result.json").stat().st_mtime_ns
    assert after != before
    press(qtbot, panel.run_button)
    assert panel.running, "the same options again are the same result"
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    set_options(panel, overlap=0)
    press(qtbot, panel.run_button)
    assert not panel.running, "nor does a plain run replace it unasked"
    assert (folder / "result.json").stat().st_mtime_ns == after


def test_a_plain_run_asks_before_it_replaces_a_region_or_another_models_result(case, tmp_path):
    sha = "1" * 64
    case.result.settings = RunSettings(region=(0, 0, 100, 100))
    case.result.model = case.result.model.model_copy(update={"sha256": sha})
    case.result.save(tmp_path / "m" / "square")
    card = Card("m", tmp_path / "m.model", "mil", ("a", "b"), "", (), (), weights=sha)
    plain = RunRequest((Path("square.tif"),), ((card.path, {}),), tmp_path)
    assert "m on square: there is a result of region" in plain.replaces({card.path: card})
    same = replace(plain, region=Box(0, 0, 100, 100))
    assert not same.replaces({card.path: card})
    assert "with other weights" in same.replaces({card.path: replace(card, weights="0" * 64)})
    both = replace(plain, slides=(Path("square.tif"), Path("new.tif")))
    assert "more" not in both.replaces({card.path: card})


def test_a_deleted_result_leaves_its_slide_and_comes_back_to_it(panel, bench, case, qtbot):
    folder = bench.results / "oracle" / "square"
    case.result.save(folder)
    bench.show_result(folder)
    qtbot.waitUntil(lambda: "oracle: regions" in bench.viewer.layers, timeout=40_000)
    panel.results.refresh()
    qtbot.waitUntil(lambda: panel.results.tree.topLevelItemCount() == 1, timeout=40_000)
    select_result(panel.results, folder)
    press(qtbot, panel.results.delete)
    assert not list(layers_of(bench.viewer, model="oracle"))
    press(qtbot, panel.results.undo)
    qtbot.waitUntil(lambda: "oracle: regions" in bench.viewer.layers, timeout=40_000)
    (shown,) = layers_of(bench.viewer, "map", model="oracle")
    assert shown.visible


def test_undo_brings_back_what_a_newer_result_has_taken_the_place_of(panel, bench, case, qtbot):
    """Delete one and two, make two again, delete it, make it again: no undo is refused."""
    tree, folders = panel.results.tree, [bench.results / name / "square" for name in ("one", "two")]

    def make(folder, mark):
        copytree(case.result.path, folder)
        (folder / mark).touch()
        panel.results.refresh()
        qtbot.waitUntil(lambda: not bench.background.busy, timeout=40_000)
        select_result(panel.results, folder)

    for folder, mark in zip([*folders, folders[1]], "abc", strict=False):
        make(folder, mark)
        press(qtbot, panel.results.delete)
        qtbot.waitUntil(lambda: tree.topLevelItemCount() == 0, timeout=40_000)
    one, two = folders
    make(two, "d")
    press(qtbot, panel.results.undo)
    assert (two / "c").exists()
    assert "the newer one was deleted instead" in panel.notice.text
    press(qtbot, panel.notice._action)
    assert (two / "d").exists(), "and that is undone"
    for mark, folder in (("b", two), ("a", one), ("c", two), ("d", two)):
        press(qtbot, panel.results.undo)
        assert (folder / mark).exists()


def test_several_deleted_results_come_back_one_after_the_other(panel, bench, case, qtbot):
    for model in ("one", "two"):
        case.result.save(bench.results / model / "square")
    bench.results_changed.emit()
    tree = panel.results.tree
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 2, timeout=40_000)
    assert not panel.results.undo.isVisible()
    for left, model in ((1, "one"), (0, "two")):
        select_result(panel.results, bench.results / model / "square")
        press(qtbot, panel.results.delete)
        qtbot.waitUntil(lambda left=left: tree.topLevelItemCount() == left, timeout=40_000)
    for there, model in ((1, "two"), (2, "one")):
        press(qtbot, panel.results.undo)
        qtbot.waitUntil(lambda there=there: tree.topLevelItemCount() == there, timeout=40_000)
        assert (bench.results / model / "square").exists()
    assert not panel.results.undo.isVisible()


def test_a_region_that_is_gone_runs_nothing(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    panel.where.setCurrentIndex(panel.where.findData("region"))
    canvas = canvas_of(bench.viewer)
    width, height = canvas.width(), canvas.height()
    corners = QPoint(width // 3, height * 2 // 5), QPoint(width * 2 // 3, height * 3 // 5)
    drag(canvas, *corners)
    layer = next(layers_of(bench.viewer, "region"))
    qtbot.waitUntil(lambda: layer.mode == "pan_zoom", timeout=5000)
    assert panel.run_button.isEnabled()
    layer.selected_data = {0}
    layer.remove_selected()  # the Delete key
    assert not panel.run_button.isEnabled()
    panel.run()
    assert not panel.running
    assert panel.notice.text == "Draw the region: press Draw, then drag over the slide."
    press(qtbot, panel.region)
    drag(canvas, *corners)
    qtbot.waitUntil(panel.run_button.isEnabled, timeout=5000)
    bench.viewer.layers.remove(layer)
    assert not panel.run_button.isEnabled()
    assert "Draw the region" in panel.why.text()


@pytest.fixture
def region(panel, bench, slide, qtbot):
    """The layer of a region that was drawn, and what it covers."""
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    panel.where.setCurrentIndex(panel.where.findData("region"))
    layer = next(layers_of(bench.viewer, "region"))
    layer.add_rectangles(np.array([[100, 200], [100, 700], [400, 700], [400, 200]], float))
    layer.mode = "pan_zoom"
    assert panel._request().region == Box(200, 100, 500, 300)
    assert not panel.why.isVisible()
    return layer


def test_the_region_that_is_run_is_where_it_is_seen(panel, region):
    moved = np.eye(3)
    moved[:2, 2] = 30 * 0.5, 40 * 0.5  # µm: what napari's transform mode does
    region.affine = moved
    assert panel._request().region == Box(240, 130, 500, 300)
    assert not panel.why.isVisible()
    panel.draw_region()
    region.add_rectangles(np.array([[100, 200], [100, 700], [400, 700], [400, 200]], float))
    assert panel._request().region == Box(200, 100, 500, 300), "a new one begins where it is drawn"


def test_a_region_that_is_no_upright_rectangle_is_run_as_its_box_and_that_is_said(panel, region):
    region.rotate = 10
    assert "no upright rectangle: the box around it is run" in panel.why.text()
    assert panel.run_button.isEnabled()
    region.rotate = 0
    assert not panel.why.isVisible()
    region._data_view.rotate(0, 45, center=region.data[0].mean(0))
    region.events.data(value=region.data)
    assert "the box around it is run" in panel.why.text()
    box = panel._request().region
    assert box.w == pytest.approx(800 / 2**0.5, abs=2)
    region.data = []
    region.add_ellipses(np.array([[100, 200], [100, 700], [400, 700], [400, 200]], float))
    assert "the box around it is run" in panel.why.text()
    region.add_rectangles(np.array([[500, 200], [500, 700], [600, 700], [600, 200]], float))
    assert panel.why.text() == "Of the 2 shapes that are drawn, the last one is run."
    assert panel._request().region == Box(200, 500, 500, 100)


def test_a_question_is_withdrawn_when_something_else_would_be_run(
    panel, bench, slide, case, region, tmp_path, qtbot
):
    folder = bench.results / "demo-mil" / "phantom"
    case.result.save(folder)
    changes = [
        lambda: region.add_rectangles(np.array([[0, 0], [0, 300], [300, 300], [300, 0]], float)),
        lambda: set_options(panel, overlap=56),
        lambda: panel.where.setCurrentIndex(panel.where.findData("slide")),
        lambda: bench.use_results(tmp_path / "elsewhere"),
    ]
    for change in changes:
        press(qtbot, panel.run_button)
        assert not panel.running
        assert "This run will replace it." in panel.notice.text
        change()
        assert panel.notice.text == ""
    assert not panel.running


def test_what_is_confirmed_is_what_the_panel_says_then(
    panel, bench, case, region, tmp_path, qtbot, monkeypatch
):
    case.result.save(bench.results / "demo-mil" / "phantom")
    press(qtbot, panel.run_button)
    started = []
    monkeypatch.setattr(panel, "_start", started.append)
    bench._results = tmp_path / "elsewhere"  # nobody tells the panel
    press(qtbot, panel.notice._action)
    assert [request.out for request in started] == [tmp_path / "elsewhere"]


def test_a_resolution_is_given_only_where_the_file_does_not_state_it(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    panel.models.choose("demo-mil")
    assert panel._request().mpp is None, "else the result would not say that the file states it"
    bench.viewer.layers.clear()
    qtbot.waitUntil(lambda: bench.slide is None, timeout=5000)
    bench.open_slide(slide, mpp=0.25)
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=40_000)
    assert panel._request().mpp == (0.25, 0.25)


def test_the_sample_slide_can_be_run(panel, bench, qtbot):
    (data,) = phantom()
    add_layer(bench.viewer, data)
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=40_000)
    panel.models.choose("demo-mil")
    press(qtbot, panel.run_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert panel.notice.text.startswith("demo-mil: tumor")
    made = Result.load(bench.results / "demo-mil" / "phantom")
    assert made.slide.mpp_source not in (None, "given")


def test_a_picture_in_memory_is_not_run(panel, bench, case, qtbot):
    add_layer(bench.viewer, slide_layer(case.slide))
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=40_000)
    panel.models.choose("demo-mil")
    assert not panel.run_button.isEnabled()
    assert "not opened from a file" in panel.why.text()


def test_what_is_skipped_in_a_folder_is_said_while_and_after_it_runs(panel, slide, tmp_path, qtbot):
    folder = tmp_path / "slides"
    (folder / "letters").mkdir(parents=True)
    (folder / slide.name).symlink_to(slide)
    choose_folder(panel, folder)
    panel.run()
    skipped = f"{folder}: skipped, since they are not slides: letters."
    qtbot.waitUntil(lambda: skipped in panel.notice.text, timeout=40_000)
    assert panel.running
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert panel.state.findings[0].status == "done"
    assert skipped in panel.notice.text
    nothing = tmp_path / "nothing"
    (nothing / "within").mkdir(parents=True)
    (nothing / "within" / "notes.xyz").touch()
    choose_folder(panel, nothing)
    panel.run()
    qtbot.waitUntil(lambda: not panel.running, timeout=40_000)
    assert "no slide in this folder" in panel.notice.text
    assert "within: skipped, since they are not slides: notes.xyz." in panel.notice.text


def slides_of(panel):
    """Return what a run would take."""
    cards = {card.path: card for card, _ in panel.models.chosen()}
    return checked(panel._request(), cards).request.slides


def test_a_folder_of_dicom_files_is_run_as_the_slides_they_are(panel, tmp_path):
    folder = tmp_path / "case"
    folder.mkdir()
    for name in "abc":
        own = b"\x20\0\x0d\0UI\x04\x001.2\0" + b"\x20\0\x0e\0UI\x04\x001.5\0"
        (folder / f"{name}.dcm").write_bytes(bytes(128) + b"DICM" + own)
    choose_folder(panel, folder)
    assert slides_of(panel) == (folder,)


def test_the_window_does_not_wait_for_a_folder_on_a_slow_share(
    panel, bench, slide, tmp_path, qtbot, monkeypatch
):
    arrived, threads = Event(), []

    def slow(given):
        threads.append(current_thread())
        assert arrived.wait(40)
        return slides_to_run(given)

    monkeypatch.setattr(runs, "slides_to_run", slow)
    choose_folder(panel, slide.parent)
    for _ in range(2):
        press(qtbot, panel.run_button)
        assert panel.running
        assert panel.status.text() == "Looking for slides"
        assert panel.bar.isVisible()
        assert not panel.run_button.isEnabled()
        press(qtbot, panel.stop_button)
        assert not panel.running
        assert panel.notice.text == "Stopped."
        assert not panel.bar.isVisible()
    press(qtbot, panel.run_button)
    arrived.set()
    qtbot.waitUntil(lambda: panel.state.stage == "infer", timeout=LONG)
    assert len(panel.state.request.slides) == 1
    assert current_thread() not in threads
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert len(threads) == 3
    assert [f.status for f in panel.state.findings] == ["done"], "searches that were stopped: none"


def test_a_slide_that_was_dropped_twice_is_run_once(panel, bench, slide, qtbot):
    show_slide(qtbot, bench, slide)
    add_layer(bench.viewer, slide_layer(open_slide(slide)))
    panel.models.choose("demo-mil")
    panel.where.setCurrentIndex(panel.where.findData("open"))
    assert panel._request().slides == (slide,)


def test_the_folder_that_is_run_is_named_and_can_be_another(panel, slide, monkeypatch):
    chosen, asked = ["", str(slide.parent)], []

    def ask(_, __, start):
        asked.append(start)
        return chosen.pop()

    monkeypatch.setattr(QFileDialog, "getExistingDirectory", ask)
    panel.models.choose("demo-mil")
    number = panel.where.findData("folder")

    def choose():
        panel.where.setCurrentIndex(number)
        panel.where.activated.emit(number)  # what a click in the list does besides

    panel.where.setCurrentIndex(number)
    assert panel.why.text() == "Choose the folder of slides to run on."
    choose()
    assert panel.where.currentText() == f"the slides in {slide.parent.name}…"
    assert slides_of(panel) == (slide,)
    choose()
    assert asked == ["", str(slide.parent)]
    assert slides_of(panel) == (slide,), "a dialog that was closed changes nothing"
