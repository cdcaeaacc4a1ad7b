"""What one asks for last is what one sees, however long files take to read."""

from __future__ import annotations

import json
import threading

import numpy as np
import pytest
import tifffile
from known_slides import make_result, make_slide
from napari._app_model import get_app_model
from qtpy.QtWidgets import QApplication

import slidelens.slide.open
from slidelens.desktop import picture, workbench
from slidelens.desktop.annotate import annotation_options
from slidelens.desktop.layers import slide_layer
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.desktop.window import camera, canvas_size, overlays
from slidelens.geometry import Mpp
from slidelens.slide.open import open_slide

pytestmark = pytest.mark.gui

WAIT = 40_000


@pytest.fixture
def files(tmp_path):
    """Slides a, b and c, and a result of each."""
    pixels = np.asarray(make_slide(None).pyramid()[0])
    for name in "abc":
        slide = make_slide(0.5, name)
        slide.path = tmp_path / f"{name}.tif"
        tifffile.imwrite(slide.path, pixels, tile=(256, 256))
        make_result(slide, Mpp(0.5, 0.5)).save(tmp_path / "results" / name)
    return tmp_path


@pytest.fixture
def held(monkeypatch):
    """Folder to an event that reading its result waits for."""
    gates = {}
    read = picture.read_result

    def read_when_let(folder, *rest):
        gate = gates.get(folder.name)
        assert gate is None or gate.wait(60)
        return read(folder, *rest)

    monkeypatch.setattr(picture, "read_result", read_when_let)
    yield lambda name: gates.setdefault(name, threading.Event())
    for gate in gates.values():
        gate.set()


def shows(bench, name):
    return lambda: bench.slide is not None and bench.slide.id == name


def visible(bench):
    return [layer.name for layer in bench.viewer.layers if layer.visible]


def quiet(bench):
    return lambda: not bench.background.busy


def test_a_slide_that_was_replaced_since_the_run_is_said(bench, files, qtbot):
    facts = files / "results" / "a" / "result.json"
    content = json.loads(facts.read_text())
    content["slide"]["fingerprint"] = "2:of another file of its name and size"
    facts.write_text(json.dumps(content))
    told = []
    bench.told.connect(lambda text, _: told.append(text))
    for name in "ab":
        bench.show_result(files / "results" / name)
        qtbot.waitUntil(shows(bench, name), timeout=WAIT)
    (text,) = told
    assert text.startswith("a.tif was changed or replaced after oracle was run on it")


def test_a_slide_that_comes_after_its_maps_lies_below_them(bench, files, qtbot):
    (files / "a.tif").rename(files / "moved.tif")
    told = []
    bench.told.connect(lambda text, _: told.append(text))
    bench.show_result(files / "results" / "a")
    qtbot.waitUntil(lambda: "oracle: probability" in bench.viewer.layers, timeout=WAIT)
    assert "drop it on the maps" in told[0]
    (files / "moved.tif").rename(files / "a.tif")
    add_layer(bench.viewer, slide_layer(open_slide(files / "a.tif", mpp=0.5)))
    qtbot.waitUntil(lambda: bench.viewer.layers[0].name == "a", timeout=WAIT)
    add_layer(bench.viewer, slide_layer(open_slide(files / "b.tif", mpp=0.5)))
    qtbot.wait(50)
    assert bench.viewer.layers[-1].name == "b", "a further slide is seen, as ever"


def test_a_slide_opened_while_a_result_is_read_stays(bench, files, held, qtbot):
    bench.open_slide(files / "a.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "a"), timeout=WAIT)
    gate, seen = held("a"), []
    bench.show_result(files / "results" / "a", then=seen.append)
    bench.open_slide(files / "b.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "b"), timeout=WAIT)
    gate.set()
    qtbot.waitUntil(quiet(bench), timeout=WAIT)
    qtbot.wait(50)
    assert shows(bench, "b")()
    assert not seen
    assert not list(layers_of(bench.viewer, "map"))


def test_the_result_asked_for_last_is_shown(bench, files, held, qtbot):
    bench.open_slide(files / "a.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "a"), timeout=WAIT)
    gate = held("b")
    bench.show_result(files / "results" / "b")
    bench.show_result(files / "results" / "c")
    qtbot.waitUntil(shows(bench, "c"), timeout=WAIT)
    gate.set()
    qtbot.waitUntil(quiet(bench), timeout=WAIT)
    qtbot.waitUntil(lambda: any(layers_of(bench.viewer, "map")), timeout=WAIT)
    assert {layer.metadata["slidelens"]["slide"] for layer in layers_of(bench.viewer)} == {"c"}


def test_the_result_of_a_slide_that_was_opened_meanwhile_lies_on_it(bench, files, held, qtbot):
    gate = held("b")
    bench.show_result(files / "results" / "b")
    bench.open_slide(files / "b.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "b"), timeout=WAIT)
    layer = bench.slide.layer
    gate.set()
    qtbot.waitUntil(lambda: any(layers_of(bench.viewer, "map")), timeout=WAIT)
    assert bench.slide.layer is layer


@pytest.mark.parametrize("read", [True, False])
def test_a_window_closed_before_files_are_shown_closes_what_was_opened(
    home, make_napari_viewer, files, monkeypatch, read
):
    """A slide, and a result with its slide, that are read but not shown yet, or being read."""
    gate, both, opened = threading.Event(), threading.Barrier(3), []
    open_slide = slidelens.slide.open.open_slide

    def open_when_let(path, **options):
        both.wait(60)
        assert gate.wait(60)
        opened.append(open_slide(path, **options))
        return opened[-1]

    monkeypatch.setattr(slidelens.slide.open, "open_slide", open_when_let)
    viewer = make_napari_viewer(show=True)
    bench = workbench.workbench_of(viewer)
    bench.open_slide(files / "a.tif", mpp=0.5)
    bench.show_result(files / "results" / "b")
    both.wait(60)
    if read:
        gate.set()
        bench.background._pool.shutdown(wait=True)
    else:
        threading.Timer(0.5, gate.set).start()
    bench.close()
    viewer.close()
    QApplication.processEvents()  # a queued signal that raises fails the test
    assert sorted(slide.id for slide in opened) == ["a", "b"]
    assert all(slide._closed for slide in opened)
    bench.background.run(lambda: 1, opened.append)  # by a signal that comes late


def test_key_and_plugins_menu_show_the_same_panel(bench):
    def menu():
        get_app_model().commands.execute_command("slidelens.maps_panel")

    panel = bench.open_panel("maps")
    menu()  # a second time is to hide it
    assert not panel.isVisible()
    menu()
    assert panel.isVisible()
    menu()
    assert bench.open_panel("maps") is panel
    get_app_model().commands.execute_command("slidelens.slide_panel")
    panel = bench.open_panel("slide")
    assert len(bench.viewer.window._qt_window.findChildren(type(panel))) == 1


def test_what_no_panel_shows_napari_shows(bench, tmp_path, qtbot):
    from napari.utils.notifications import notification_manager

    notification_manager.records.clear()
    (tmp_path / "torn.tif").write_text("no slide")
    bench.open_slide(tmp_path / "torn.tif")
    qtbot.waitUntil(lambda: len(notification_manager.records) == 1, timeout=WAIT)
    assert "torn.tif" in notification_manager.records[0].message
    panel = bench.open_panel("run")
    bench.open_slide(tmp_path / "torn.tif")
    qtbot.waitUntil(lambda: "torn.tif" in panel.notice.text, timeout=WAIT)
    assert len(notification_manager.records) == 1


def test_what_lies_on_a_slide_goes_and_comes_with_it(bench, files, qtbot):
    bench.open_slide(files / "a.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "a"), timeout=WAIT)
    done, seen = [], ["a", "oracle: probability", "oracle: regions"]
    bench.show_result(files / "results" / "a", then=done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=WAIT)
    assert visible(bench) == seen
    add_layer(bench.viewer, slide_layer(open_slide(files / "b.tif")))  # dropped on the picture
    covered = bench.viewer.layers["oracle: regions"]
    covered.visible = False  # by Compare, which shows it again when the slide is another
    bench.slide_changed.connect(lambda: setattr(covered, "visible", True))
    done.clear()
    bench.open_slide(files / "b.tif", then=lambda: done.append(bench.slide.id))
    assert done == ["b"]
    assert visible(bench) == ["b"]
    bench.open_slide(files / "a.tif", then=lambda: done.append(bench.slide.id))
    assert done == ["b", "a"]
    assert visible(bench) == seen
    assert "oracle: tissue" in bench.viewer.layers, "it was hidden and stays so"


def test_a_result_that_is_shown_again_keeps_its_names(bench, files, qtbot):
    shown = []
    for number in (1, 2):
        bench.show_result(files / "results" / "a", then=shown.append)
        qtbot.waitUntil(lambda number=number: len(shown) == number, timeout=WAIT)
    names = {layer.name for layer in layers_of(bench.viewer)}
    assert names == {"a", "oracle: probability", "oracle: regions", "oracle: tissue"}


def test_a_model_s_folder_that_was_remembered_stands_for_that_of_all_results(bench, files):
    model = files / "results" / "oracle"
    make_result(make_slide(0.5), Mpp(0.5, 0.5)).save(model / "square")
    bench.memory.set_text("results", str(model))
    assert bench.results == files / "results"


def test_outlines_that_stay_do_not_spoil_the_look_of_the_next_slide(bench, files, qtbot):
    bench.open_slide(files / "a.tif", mpp=0.5)
    qtbot.waitUntil(shows(bench, "a"), timeout=WAIT)
    options = annotation_options(bench.slide.layer.metadata)
    far = np.array([(0, 0), (0, 90_000), (90_000, 90_000)])
    bench.viewer.add_shapes(None, **options).add_polygons(far)
    assert overlays(bench.viewer)[1].visible
    bench.open_slide(files / "b.tif")
    qtbot.waitUntil(shows(bench, "b"), timeout=WAIT)
    assert [layer.visible for layer in layers_of(bench.viewer, "annotations")] == [False]
    look, (height, width) = camera(bench.viewer), canvas_size(bench.viewer)
    assert look.center[-2:] == pytest.approx((400, 500), abs=2)  # the middle of it
    assert look.zoom == pytest.approx(0.95 * min(width / 1000, height / 800), rel=0.01)
    assert not overlays(bench.viewer)[1].visible  # b states no resolution
    units = bench.viewer.layers.extent.units
    assert units is not None, "they differ: the scale bar has none"
    assert {str(u) for u in units} == {"pixel"}


def test_each_slide_s_scale_bar_has_its_unit_whatever_else_is_hidden(bench, files, qtbot):
    add_layer(bench.viewer, slide_layer(open_slide(files / "a.tif", mpp=0.5)))
    add_layer(bench.viewer, slide_layer(open_slide(files / "b.tif")))
    for name, unit in (("a", "micrometer"), ("b", "pixel"), ("a", "micrometer")):
        bench.open_slide(files / f"{name}.tif")
        assert visible(bench) == [name]
        units = bench.viewer.layers.extent.units
        assert units is not None, "they differ"
        assert {str(u) for u in units} == {unit}
