"""The Slide panel in a real window, and files dropped on panels and picture."""

from __future__ import annotations

from pathlib import Path
from threading import current_thread, main_thread

import numpy as np
import pytest
import tifffile
import zarr
from hands import press
from known_slides import make_result, make_slide
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QApplication

from slidelens.desktop import reader
from slidelens.desktop.shown import layers_of
from slidelens.desktop.world import described
from slidelens.geometry import Mpp
from slidelens.testing.phantom import PhantomSpec, write_phantom
from slidelens.tiling import annotations

pytestmark = pytest.mark.gui

WAIT = 40_000


@pytest.fixture
def panel(bench):
    return bench.open_panel("slide")


def drop(widget, *paths) -> None:
    """Drag files over a widget and let them fall."""
    data = QMimeData()
    data.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    how, left = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
    none = Qt.KeyboardModifier.NoModifier
    enter = QDragEnterEvent(QPointF(9, 9).toPoint(), how, data, left, none)
    QApplication.sendEvent(widget, enter)
    assert enter.isAccepted()
    QApplication.sendEvent(widget, QDropEvent(QPointF(9, 9), how, data, left, none))


def rows(tree) -> dict[str, str]:
    items = (tree.topLevelItem(i) for i in range(tree.topLevelItemCount()))
    return {i.text(0): i.text(1) for i in items if not i.isHidden()}


def test_facts_recent_slides_and_a_slide_that_is_dropped(panel, bench, tmp_path, qtbot):
    assert panel.no_recent.isVisible()
    assert not panel.facts.isVisible()
    paths = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path in paths:
        write_phantom(path, PhantomSpec(size=(1024, 512), mpp=0.5))
    drop(panel, *paths)
    qtbot.waitUntil(lambda: panel.about is not None, timeout=WAIT)
    assert bench.slide.id == "a"
    assert rows(panel.facts)["Size"] == "1024 × 512 px, 0.5 × 0.3 mm"
    names = [panel.recent.item(i).text() for i in range(panel.recent.count())]
    assert names == ["a.tif", "b.tif"]
    panel.search.setText("ImageWidth no such thing")
    assert not rows(panel.properties)
    panel.search.clear()
    assert rows(panel.properties)
    press(qtbot, panel.copy)
    assert "Size: 1024 × 512 px" in QApplication.clipboard().text()
    panel.recent.itemActivated.emit(panel.recent.item(1))
    qtbot.waitUntil(lambda: bench.slide.id == "b", timeout=WAIT)
    press(qtbot, panel.forget)
    assert not panel.recent.count()
    press(qtbot, panel.notice._action)
    assert panel.recent.count() == 2


def test_a_result_dropped_on_the_picture_is_shown_with_its_slide(panel, bench, tmp_path, qtbot):
    made = make_result(make_slide(0.5), Mpp(0.5, 0.5))
    made.save(tmp_path / "results" / "oracle" / "square")
    drop(bench.viewer.window._qt_viewer, tmp_path / "results" / "oracle" / "square")
    qtbot.waitUntil(lambda: bool(list(layers_of(bench.viewer, "map"))), timeout=WAIT)
    assert "oracle: probability" in bench.viewer.layers


def test_what_cannot_be_opened_is_said(panel, bench, tmp_path, qtbot):
    (tmp_path / "note.csv").write_text("x\n1\n")
    told = []
    bench.told.connect(lambda text, bad: told.append((text, bad)))
    drop(panel, tmp_path / "note.csv")
    qtbot.waitUntil(lambda: bool(told), timeout=WAIT)
    ((text, bad),) = told
    assert "note.csv: nothing to open" in text
    assert bad


def test_all_that_cannot_be_opened_of_one_drop_is_said_at_once(panel, bench, tmp_path, qtbot):
    names = [f"note_{number}.csv" for number in range(7)]
    for name in names:
        (tmp_path / name).write_text("x\n1\n")
    told = []
    bench.told.connect(lambda text, bad: told.append((text, bad)))
    drop(panel, *(tmp_path / name for name in names))
    qtbot.waitUntil(lambda: bool(told) and not bench.background.busy, timeout=WAIT)
    ((text, bad),) = told
    assert bad
    assert [name in text for name in names] == [True] * 5 + [False] * 2
    assert "and 2 more: nothing to open" in text


def test_what_turns_out_to_be_damaged_is_said_beside_the_others(panel, bench, tmp_path, qtbot):
    names = ["cut.geojson", "note.csv", "worse.xml", "a/result.json", "b/result.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{")
    told = []
    bench.told.connect(lambda text, bad: told.append((text, bad)))
    drop(panel, *(tmp_path / name for name in names))
    qtbot.waitUntil(lambda: bool(told) and not bench.background.busy, timeout=WAIT)
    text, bad = told[-1]  # the last is what a panel shows
    assert bad
    assert [name in text for name in names] == [True] * 5


def test_what_is_none_of_ours_falls_to_napari(panel, bench, tmp_path, qtbot, monkeypatch):
    (tmp_path / "points.csv").write_text("index,axis-0,axis-1\n0,1,1\n")
    (tmp_path / "stack").mkdir()
    canvas, opened, told = bench.viewer.window._qt_viewer, [], []
    monkeypatch.setattr(type(canvas), "_qt_open", lambda _, paths, **__: opened.extend(paths))
    bench.told.connect(lambda text, _: told.append(text))
    drop(canvas, tmp_path / "points.csv")
    drop(canvas, tmp_path / "stack")
    qtbot.waitUntil(lambda: len(opened) == 2, timeout=WAIT)
    assert opened == [str(tmp_path / "points.csv"), str(tmp_path / "stack")]
    assert not told


def test_a_slide_that_is_a_folder_falls_to_napari_too(panel, bench, tmp_path, monkeypatch):
    group = zarr.open_group(tmp_path / "b.zarr", mode="w", zarr_format=2)
    group.create_array("0", data=np.zeros((3, 64, 64), np.uint8))
    axes = [{"name": "c", "type": "channel"}, {"name": "y", "type": "space"}]
    axes.append({"name": "x", "type": "space"})
    group.attrs["multiscales"] = [{"version": "0.4", "axes": axes, "datasets": [{"path": "0"}]}]
    opened, canvas = [], bench.viewer.window._qt_viewer
    monkeypatch.setattr(type(canvas), "_qt_open", lambda _, paths, **__: opened.extend(paths))
    drop(canvas, tmp_path / "b.zarr")
    assert opened == [str(tmp_path / "b.zarr")], "its reader adds a layer; nothing is replaced"
    assert not bench.background.busy


def test_nobody_is_asked_for_a_reader_of_what_only_slidelens_reads(bench, tmp_path, monkeypatch):
    canvas, asked = bench.viewer.window._qt_viewer, []
    monkeypatch.setattr(
        "napari._qt.qt_viewer.handle_gui_reading", lambda paths, *_, **__: asked.extend(paths)
    )
    slide = tmp_path / "a.tif"
    write_phantom(slide, PhantomSpec(size=(1024, 512), mpp=0.5))
    drop(canvas, slide)
    assert bench.viewer.layers["a"].multiscale
    monkeypatch.setattr(
        "napari._qt.qt_viewer.QtViewer._open_file_dialog_uni", lambda *_: [str(slide)]
    )
    canvas._open_files_dialog()  # File > Open
    assert len(bench.viewer.layers) == 2
    assert not asked
    canvas._qt_open([str(slide)], stack=False, choose_plugin=True)
    assert asked == [str(slide)]
    plain = tmp_path / "plain.npy"
    np.save(plain, np.zeros((4, 4)))
    drop(canvas, plain)
    assert "plain" in bench.viewer.layers


def test_annotations_are_read_off_the_window_s_thread(panel, bench, tmp_path, qtbot, monkeypatch):
    slide, outlines = tmp_path / "a.tif", tmp_path / "a.geojson"
    write_phantom(slide, PhantomSpec(size=(1024, 512), mpp=0.5))
    outlines.write_text('{"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [50, 50], [0, 0]]]}')
    parse, threads, told = annotations.parse, [], []
    bench.told.connect(lambda text, _: told.append(text))

    def noted(path):
        threads.append(current_thread())
        return parse(path)

    monkeypatch.setattr(annotations, "parse", noted)
    drop(panel, outlines, slide)  # which they are drawn on, though it takes longer to open
    qtbot.waitUntil(lambda: len(bench.viewer.layers) == 2, timeout=WAIT)
    drop(bench.viewer.window._qt_viewer, outlines)
    qtbot.waitUntil(lambda: len(bench.viewer.layers) == 3, timeout=WAIT)
    on = [described(layer.metadata)["on"] for layer in bench.viewer.layers[1:]]
    assert on == [str(slide)] * 2
    assert len(threads) == 2
    assert main_thread() not in threads
    assert not told


def test_outlines_lie_on_their_slide_however_they_come(bench, tmp_path, qtbot):
    for name in ("a", "b"):
        write_phantom(tmp_path / f"{name}.tif", PhantomSpec(size=(1024, 512), mpp=0.5))
    text = '{"type": "Polygon", "coordinates": [[[0, 0], [50, 0], [50, 50], [0, 0]]]}'
    (tmp_path / "a.geojson").write_text(text)
    slide, outlines, other = (str(tmp_path / name) for name in ("a.tif", "a.geojson", "b.tif"))
    canvas, layers = bench.viewer.window._qt_viewer, bench.viewer.layers
    canvas._qt_open([slide, outlines], stack=False)
    qtbot.waitUntil(lambda: len(layers) == 2, timeout=WAIT)
    assert described(layers[-1].metadata)["on"] == slide
    bench.open_slide(Path(other))
    qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.id == "b", timeout=WAIT)
    canvas._qt_open([slide], stack=False)
    bench.open_slide(Path(other))
    qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.id == "b", timeout=WAIT)
    before = list(layers)
    canvas._qt_open([outlines], stack=False)
    qtbot.waitUntil(lambda: len(layers) > len(before), timeout=WAIT)
    (new,) = [layer for layer in layers if layer not in before]
    assert described(new.metadata)["on"] == slide
    qtbot.waitUntil(lambda: not new.visible, timeout=WAIT)  # as its slide is not


def test_a_slide_that_no_backend_reads_is_refused_in_our_words(bench, tmp_path, monkeypatch):
    told, canvas = [], bench.viewer.window._qt_viewer
    monkeypatch.setattr(reader, "notify", lambda text, error=False: told.append((text, error)))
    slide = tmp_path / "a.vsi"
    tifffile.imwrite(slide, np.zeros((64, 64, 3), np.uint8))
    drop(canvas, slide)
    ((text, error),) = told
    assert text.startswith("a.vsi: an Olympus VSI keeps its pixels in .ets files")
    assert error
    assert not bench.viewer.layers


def test_labels_that_are_dropped_reach_the_train_panel(panel, bench, tmp_path, qtbot):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id,label\na,0\nb,1\n")
    drop(bench.viewer.window._qt_viewer, labels)
    qtbot.waitUntil(lambda: "train" in bench._docks, timeout=WAIT)
    assert bench.open_panel("train").data.labels == labels


@pytest.mark.realdata
def test_pictures_in_the_file_and_a_label_only_when_asked(panel, bench, data, qtbot):
    bench.open_slide(data / "wsi" / "CMU-1-Small-Region.svs")
    qtbot.waitUntil(lambda: panel.about is not None, timeout=WAIT)
    assert panel.private.isVisible()
    assert not panel.picture.isVisible()
    panel.show_picture("macro")
    qtbot.waitUntil(panel.picture.isVisible, timeout=WAIT)
    assert panel.picture.pixmap().height() > 50
