"""What one asks for last is what one sees, however long files take to read."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tifffile
from known_slides import make_result, make_slide

from slidelens.desktop import workbench
from slidelens.desktop.shown import layers_of
from slidelens.geometry import Mpp

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
    read = workbench.read_result

    def read_when_let(folder, *rest):
        gate = gates.get(folder.name)
        assert gate is None or gate.wait(60)
        return read(folder, *rest)

    monkeypatch.setattr(workbench, "read_result", read_when_let)
    yield lambda name: gates.setdefault(name, threading.Event())
    for gate in gates.values():
        gate.set()


def shows(bench, name):
    return lambda: bench.slide is not None and bench.slide.id == name


def quiet(bench):
    return lambda: not bench.background.busy


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
