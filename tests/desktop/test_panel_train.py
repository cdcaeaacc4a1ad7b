"""The Train panel, used as a person does: real clicks, real training in a real worker."""

from __future__ import annotations

import json
import os
import shutil
import signal
from dataclasses import replace

import numpy as np
import pytest
from hands import canvas_of, click, double_click, press
from qtpy.QtCore import QPoint
from qtpy.QtWidgets import QApplication, QLabel

from slidelens.desktop.state.train import at_work
from slidelens.engine.locks import locked
from slidelens.engine.packages.manifest import read_manifest
from slidelens.tiling.annotations import read_annotations
from train_cohort import TILE, make_cohort

pytestmark = pytest.mark.gui

WAIT, LONG = 40_000, 180_000
EPOCHS = 12


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def panel(bench, qtbot):
    panel = bench.open_panel("train")
    qtbot.waitUntil(lambda: panel.options.chosen is not None, timeout=LONG)
    return panel


def choose_data(qtbot, panel, cohort):
    panel.data.set_slides(cohort / "slides")
    qtbot.waitUntil(lambda: panel.data.slides is not None, timeout=WAIT)
    panel.data.set_labels(cohort / "labels.csv")


def choose_small_model(panel, epochs=EPOCHS):
    """A network and tiles that learn in seconds."""
    options = panel.options
    options.choose("mil")
    options.base.setCurrentIndex(options.base.findData("none"))
    backbone = options.config.control("backbone")
    if hasattr(backbone, "findData"):
        backbone.setCurrentIndex(backbone.findData("squeezenet1_1"))
    else:
        backbone.setText("squeezenet1_1")
        backbone.editingFinished.emit()
    options.config.control("tile").setValue(TILE)
    options.config.control("min_tissue").setValue(0)
    options.training.control("patience").setValue(0)
    options.device.setCurrentIndex(options.device.findData("cpu"))
    options.epochs.setValue(epochs)


def begin(qtbot, panel):
    qtbot.waitUntil(panel.start_button.isEnabled, timeout=LONG)
    press(qtbot, panel.start_button)


def test_methods_are_listed_though_the_worker_has_other_work(bench, qtbot):
    bench.runner.submit("catalogue", {"folders": []})  # not for the window
    panel = bench.open_panel("train")
    qtbot.waitUntil(lambda: panel.options.chosen is not None, timeout=WAIT)


def test_it_says_step_by_step_what_is_missing(panel, made, qtbot):
    assert panel.why.text() == "Choose the folder with your slides."
    assert not panel.start_button.isEnabled()
    panel.data.set_slides(made / "slides")
    qtbot.waitUntil(lambda: "table of labels" in panel.why.text(), timeout=WAIT)
    panel.options.choose("multistage")
    assert panel.data.outlines.isVisible()
    panel.data.set_labels(made / "labels.csv")
    assert "learns from outlines" in panel.why.text()
    panel.options.choose("mil")
    assert not panel.data.outlines.isVisible()
    panel.data.set_slides(made / "gone")
    qtbot.waitUntil(lambda: "no such folder" in panel.notice.text, timeout=WAIT)


def test_labels_by_clicking_show_the_split_at_once(panel, made, bench, qtbot, tmp_path):
    panel.data.set_slides(made / "slides")
    qtbot.waitUntil(lambda: panel.data.slides is not None, timeout=WAIT)
    panel.data.set_labels(tmp_path / "mine.csv")
    panel.data.by_click.expand(animate=False)
    labelling = panel.data.labelling
    labelling.choose("s0")
    qtbot.waitUntil(
        lambda: labelling.buttons["tumor"].visibleRegion().isEmpty() is False, timeout=WAIT
    )
    for number in range(6):  # each press goes on to the next slide
        press(qtbot, labelling.buttons["tumor" if number % 2 else "normal"])
        name = "tumor" if number % 2 else "normal"
        assert panel.notice.text == f"s{number} is labelled {name}."
    assert (tmp_path / "mine.csv").read_text().splitlines()[1:3] == ["s0,normal", "s1,tumor"]
    assert labelling.counts.text() == "3 normal, 3 tumor"
    press(qtbot, labelling.undo_button)
    assert labelling.counts.text() == "3 normal, 2 tumor"
    assert labelling.chosen() == ["s5"]
    assert panel.notice.text == "", "its Undo would take back another label"
    qtbot.waitUntil(lambda: panel.split is not None, timeout=LONG)
    assert panel.split.classes == ("normal", "tumor")
    assert sum(panel.split.train) + sum(panel.split.tune) == 5
    assert "slides for training" in panel.split_text.text()
    assert panel.split_view.height() > 40
    labelling.tree.itemActivated.emit(labelling.tree.topLevelItem(1), 0)
    qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.id == "s1", timeout=WAIT)


def test_the_slide_that_is_labelled_next_is_on_the_screen(panel, made, bench, qtbot, tmp_path):
    panel.data.set_slides(made / "slides")
    qtbot.waitUntil(lambda: panel.data.slides is not None, timeout=WAIT)
    panel.data.set_labels(tmp_path / "mine.csv")
    panel.data.by_click.expand(animate=False)
    labelling = panel.data.labelling

    def on_screen(name):
        return bench.slide is not None and bench.slide.id == name

    labelling.tree.itemActivated.emit(labelling.tree.topLevelItem(0), 0)
    labelling.choose("s0")
    qtbot.waitUntil(lambda: on_screen("s0"), timeout=WAIT)
    labelling.set_label("tumor")
    assert labelling.chosen() == ["s1"]
    qtbot.waitUntil(lambda: on_screen("s1"), timeout=WAIT)
    assert panel.notice.text == "s0 is labelled tumor."
    press(qtbot, panel.notice._action)
    assert labelling.book.labels == {}
    assert labelling.chosen() == ["s0"]
    qtbot.waitUntil(lambda: on_screen("s0"), timeout=WAIT)
    labelling.choose("s0", "s1")
    labelling.set_label("normal")
    assert panel.notice.text == "2 slides are labelled normal."
    labelling.set_label("")
    assert panel.notice.text == "s2: label removed."
    last = labelling.tree.topLevelItem(labelling.tree.topLevelItemCount() - 1).text(0)
    labelling.tree.clearSelection()
    labelling.choose(last)
    labelling.set_label("normal")
    assert labelling.chosen() == [last], "there is none after it"


def test_a_plan_that_cannot_be_is_one_sentence(panel, made, qtbot, tmp_path):
    (tmp_path / "one.csv").write_text("slide_id,label\ns0,normal\n")
    panel.data.set_slides(made / "slides")
    qtbot.waitUntil(lambda: panel.data.slides is not None, timeout=WAIT)
    panel.data.set_labels(tmp_path / "one.csv")
    qtbot.waitUntil(lambda: "at least two classes" in panel.why.text(), timeout=LONG)
    assert not panel.start_button.isEnabled()


def test_train_pause_go_on_and_run_what_came_of_it(panel, bench, made, qtbot, request):
    choose_data(qtbot, panel, made)
    choose_small_model(panel)
    begin(qtbot, panel)
    assert not panel.data.isEnabled()
    qtbot.waitUntil(lambda: len(panel.state.rows) > 0, timeout=LONG)
    press(qtbot, panel.pause_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert panel.notice.text == "Paused; progress is kept."
    epochs = len(panel.state.rows)
    assert 0 < epochs < EPOCHS
    line = panel._unfinished.itemAt(0).widget()
    press(qtbot, line.resume)
    assert len(panel.losses.curves[0].values) == epochs
    qtbot.waitUntil(lambda: len(panel.state.rows) >= EPOCHS - 1, timeout=LONG)
    take_picture(bench, request, "train.png")
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert panel.notice.text.startswith("my-model is trained.")
    assert len(panel.areas.curves[0].values) == EPOCHS
    assert not panel.unfinished.isVisible()
    assert read_manifest(bench.preferences.models / "my-model").classes == ("normal", "tumour")
    assert panel.options.name.text() == "my-model-2"
    qtbot.waitUntil(lambda: "my-model" in [c.name for c in bench.cards], timeout=LONG)
    press(qtbot, panel.notice._action)
    run = bench.open_panel("run")
    assert [card.name for card, _ in run.models.chosen()] == ["my-model"]


def test_cancel_throws_away_and_undo_brings_back(panel, bench, made, qtbot):
    choose_data(qtbot, panel, made)
    choose_small_model(panel)
    begin(qtbot, panel)
    qtbot.waitUntil(lambda: len(panel.state.rows) > 0, timeout=LONG)
    press(qtbot, panel.cancel_button)
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert "discarded" in panel.notice.text
    assert not (bench.preferences.models / "my-model").exists()
    assert not panel.unfinished.isVisible()
    press(qtbot, panel.notice._action)
    assert (bench.preferences.models / "my-model" / "training" / "config.yaml").is_file()
    assert panel.unfinished.isVisible()


def test_what_a_training_warns_of_is_shown(panel, made, qtbot, tmp_path):
    shutil.copytree(made, tmp_path / "cohort")
    (tmp_path / "cohort" / "slides" / "letters").mkdir()
    choose_data(qtbot, panel, tmp_path / "cohort")
    warning = "skipped, since they are not slides: letters"
    assert warning in panel.notice.text, "it is said as soon as the slides are searched"
    choose_small_model(panel, epochs=1)
    qtbot.waitUntil(panel.start_button.isEnabled, timeout=LONG)
    assert warning in panel.warning.text()
    begin(qtbot, panel)
    qtbot.waitUntil(lambda: warning in panel.notice.text, timeout=LONG)
    assert panel.running, "it is said while it trains"
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    text, *warned = panel.notice.text.splitlines()
    assert text.startswith("my-model is trained.")
    assert any(warning in line for line in warned)
    assert any("was chosen on only" in line for line in warned), "of few tuning slides"


def test_a_folder_of_models_that_cannot_be_made_is_said(panel, bench, made, qtbot):
    choose_data(qtbot, panel, made)
    choose_small_model(panel)
    bench.preferences.home.mkdir(parents=True, exist_ok=True)
    bench.preferences.models.write_text("a file in its place")
    begin(qtbot, panel)
    assert not panel.running
    assert "my-model: cannot be written (" in panel.notice.text
    assert "choose another folder" in panel.notice.text


def test_a_new_model_is_ticked_to_run_as_soon_as_it_is_listed(panel, bench, tmp_path):
    run = bench.open_panel("run")
    panel._to_run("fresh")
    assert run.models._waiting.text() == "Reading fresh…"
    assert run.models._waiting.isVisible()
    bench.models_changed.emit()  # read before the model was made
    assert not run.models.chosen()
    bench.cards = [*bench.cards, replace(bench.cards[0], name="fresh", path=tmp_path)]
    bench.models_changed.emit()
    assert [card.name for card, _ in run.models.chosen()] == ["fresh"]
    assert not run.models._waiting.isVisible()


def test_fine_tuning_begins_with_the_options_of_its_base(panel, bench, made, qtbot):
    panel.options.choose("mil", "demo-mil")
    base = next(c for c in bench.cards if c.name == "demo-mil")
    assert panel.options.model is base
    assert panel.options.config.values()["tile"] == base.config["tile"]
    choose_data(qtbot, panel, made)
    asked = panel.request
    assert asked.base == base.path
    assert asked.config == {}
    qtbot.waitUntil(lambda: "normal" in panel.why.text(), timeout=LONG)
    assert "tumour" in panel.why.text(), "its classes are others: said before it begins"
    assert panel.options.classes.placeholderText() == "normal, tumor"
    panel.options.classes.setText("normal, tumour")  # its last layers begin anew
    assert panel.request.facts()["classes"] == ["normal", "tumour"]
    panel.options.epochs.setValue(1)
    qtbot.waitUntil(panel.start_button.isEnabled, timeout=LONG)


def test_outlines_are_drawn_with_the_mouse_and_kept(panel, bench, made, qtbot, tmp_path):
    panel.options.choose("multistage")
    panel.data.set_annotations(tmp_path / "outlines")
    press(qtbot, panel.data.draw_button)
    assert "Open a slide first" in panel.notice.text
    bench.open_slide(made / "slides" / "s1.tif")
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=WAIT)
    press(qtbot, panel.data.draw_button)
    canvas = canvas_of(bench.viewer)
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    for dx, dy in ((-60, -60), (60, -60), (60, 60)):
        click(canvas, middle + QPoint(dx, dy))
    double_click(canvas, middle + QPoint(-60, 60))
    file = tmp_path / "outlines" / "s1.geojson"
    qtbot.waitUntil(file.is_file, timeout=WAIT)
    qtbot.waitUntil(lambda: len(read_annotations(file)) == 1, timeout=WAIT)
    (drawn,) = read_annotations(file)
    assert drawn.label == "tumor"
    assert drawn.polygon.area > 10
    x, y = drawn.polygon.centroid.coords[0]
    assert (x, y) == pytest.approx((1.5 * TILE, 1.5 * TILE), abs=TILE)
    assert json.loads(file.read_text())["type"] == "FeatureCollection"


@pytest.mark.slow
def test_closing_the_window_keeps_what_was_learnt_and_a_killed_worker_too(
    home, make_napari_viewer, made, qtbot
):
    """First the worker is killed, then the window is closed; each time the training can go on."""
    from slidelens.desktop.workbench import workbench_of

    viewer = make_napari_viewer(show=True)
    bench = workbench_of(viewer)
    panel = bench.open_panel("train")
    qtbot.waitUntil(lambda: panel.options.chosen is not None, timeout=LONG)
    choose_data(qtbot, panel, made)
    choose_small_model(panel, epochs=400)
    begin(qtbot, panel)
    out = panel.state.out
    qtbot.waitUntil(lambda: len(panel.state.rows) > 0, timeout=LONG)
    os.kill(bench.trainer.pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: not panel.running, timeout=WAIT)
    assert "was killed" in panel.notice.text
    assert "from the last checkpoint" in panel.notice.text
    before = len(panel.state.rows)
    press(qtbot, panel._unfinished.itemAt(0).widget().resume)
    qtbot.waitUntil(lambda: len(panel.state.rows) > before, timeout=LONG)
    pid = bench.trainer.pid
    viewer.close()
    qtbot.waitUntil(lambda: bench.trainer.pid == 0, timeout=WAIT)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert bench.memory.trainings() == [out]
    assert (out / "training").is_dir()
    assert not (out / "model.json").exists()


def test_what_was_begun_in_another_session_is_offered(bench, made, qtbot, home):
    folder = bench.preferences.models / "old"
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "config.yaml").write_text("family: mil\nslides: gone\n")
    bench.memory.training_began(folder)
    panel = bench.open_panel("train")
    line = panel._unfinished.itemAt(0).widget()
    press(qtbot, line.resume)
    assert at_work(folder), "for other windows, before the worker has read anything"
    qtbot.waitUntil(lambda: not panel.running, timeout=LONG)
    assert not at_work(folder)
    assert panel.notice.text
    assert "lacks labels" in panel.notice.text


def test_what_trains_in_another_window_can_be_neither_discarded_nor_resumed(bench, qtbot, home):
    folder = bench.preferences.models / "other"
    (folder / "training").mkdir(parents=True)
    (folder / "training" / "config.yaml").write_text("family: mil\n")
    bench.memory.training_began(folder)
    panel = bench.open_panel("train")
    offered = panel._unfinished.itemAt(0).widget()
    assert offered.discard.isVisible()
    with locked(folder / "training" / ".lock", timeout=0):  # as a training that begins now does
        press(qtbot, offered.discard)
        assert "other is under way in another window" in panel.notice.text
        assert (folder / "training" / "config.yaml").is_file()
        line = panel._unfinished.itemAt(0).widget()
        assert not line.discard.isVisible()
        assert not line.resume.isVisible()
        assert "running in another window" in line.findChild(QLabel).text()
        panel.resume(folder)
        assert not panel.running
    qtbot.waitUntil(lambda: panel._unfinished.itemAt(0).widget().discard.isVisible(), timeout=WAIT)
    press(qtbot, panel._unfinished.itemAt(0).widget().discard)
    assert not folder.exists()


def take_picture(bench, request, name):
    QApplication.processEvents()
    out = request.config.rootpath / "tests" / "_pictures"
    out.mkdir(exist_ok=True)
    bench.viewer.screenshot(str(out / name), canvas_only=False, flash=False)
    assert (out / name).stat().st_size > 20_000


QUPATH = {
    "type": "FeatureCollection",
    "features": [
        {
            "type": "Feature",
            "id": "area",
            "geometry": {
                "type": "Polygon",
                "coordinates": [[[10, 10], [60, 10], [60, 60], [10, 60], [10, 10]]],
            },
            "properties": {
                "objectType": "annotation",
                "classification": {"name": "tumor", "color": [200, 0, 0]},
                "isLocked": True,
                "metadata": {"by": "ann"},
                "measurements": {"Nuclei": 12},
            },
        },
        {
            "type": "Feature",
            "id": "spot",
            "geometry": {"type": "Point", "coordinates": [5, 5]},
            "properties": {"objectType": "annotation"},
        },
    ],
}


@pytest.fixture
def outlined(panel, bench, made, qtbot, tmp_path):
    """A slide whose outlines QuPath has written, being drawn on; the file."""
    file = tmp_path / "outlines" / "s1.tif.geojson"
    file.parent.mkdir()
    file.write_text(json.dumps(QUPATH))
    panel.options.choose("multistage")
    panel.data.set_annotations(file.parent)
    bench.open_slide(made / "slides" / "s1.tif")
    qtbot.waitUntil(lambda: bench.slide is not None, timeout=WAIT)
    press(qtbot, panel.data.draw_button)
    return file


def test_outlines_that_nothing_was_drawn_on_are_not_written(panel, outlined):
    before = outlined.read_text()
    panel.data.outlining.save()
    assert outlined.read_text() == before


def test_what_other_programs_wrote_beside_the_outlines_stays(panel, bench, outlined):
    layer = panel.data.outlining._layer
    layer.add_polygons([[100, 100], [100, 150], [150, 150]])
    panel.data.outlining.save()
    area, drawn, spot = json.loads(outlined.read_text())["features"]
    assert spot == QUPATH["features"][1]
    assert area["properties"]["isLocked"] is True
    assert area["properties"]["metadata"] == {"by": "ann"}
    assert area["properties"]["measurements"]["Nuclei"] == 12
    assert drawn["geometry"]["type"] == "Polygon"
    layer.selected_data = {0}
    layer.remove_selected()
    panel.data.outlining.save()
    left = json.loads(outlined.read_text())["features"]
    assert [one["id"] for one in left] == [drawn["id"], "spot"]
    layer.selected_data = {0}
    layer.remove_selected()
    panel.data.outlining.save()
    assert json.loads(outlined.read_text())["features"] == [QUPATH["features"][1]]


def test_classes_that_are_corrected_and_layers_that_are_moved_are_saved(
    panel, bench, made, outlined, qtbot
):
    def area():
        return json.loads(outlined.read_text())["features"][0]

    layer = panel.data.outlining._layer
    table = layer.features.copy()
    table.loc[0, "class"] = "normal"
    layer.features = table
    qtbot.waitUntil(
        lambda: area()["properties"]["classification"]["name"] == "normal", timeout=WAIT
    )
    moved = np.eye(3)
    moved[:2, 2] = np.array(bench.slide.world.mpp)[::-1] * (20, 30)  # y and x, level-0 px
    layer.affine = moved
    qtbot.waitUntil(
        lambda: np.allclose(area()["geometry"]["coordinates"][0][0], (40, 30), atol=1e-3),
        timeout=WAIT,
    )
    layer.features.loc[0, "class"] = "stroma"  # in place: napari tells nobody
    bench.open_slide(made / "slides" / "s2.tif")
    qtbot.waitUntil(lambda: bench.slide.id == "s2", timeout=WAIT)
    press(qtbot, panel.data.draw_button)
    assert area()["properties"]["classification"]["name"] == "stroma"


def test_a_file_that_another_program_changed_is_read_anew(panel, bench, outlined, qtbot):
    newer = json.loads(outlined.read_text())
    newer["features"].append({**newer["features"][0], "id": "second"})
    outlined.write_text(json.dumps(newer))
    layer = panel.data.outlining._layer
    layer.add_polygons([[100, 100], [100, 150], [150, 150]])
    panel.data.outlining.save()
    assert "another program has changed it" in panel.notice.text
    assert json.loads(outlined.read_text()) == newer
    press(qtbot, panel.data.draw_button)
    now = panel.data.outlining._layer
    assert now is not layer
    assert len(now.data) == 2
    assert layer in bench.viewer.layers, "what was drawn is not lost"
    assert "not saved" in layer.name


def test_nothing_is_trained_while_outlines_are_not_saved(panel, made, outlined, qtbot):
    choose_data(qtbot, panel, made)
    outlined.write_text(outlined.read_text() + "\n")
    panel.data.outlining._layer.add_polygons([[100, 100], [100, 150], [150, 150]])
    assert not panel._missing()
    panel.start()
    assert not panel.running
    assert "another program has changed it" in panel.notice.text


def test_an_outline_without_id_keeps_what_other_programs_say_of_it(panel, outlined):
    """As QuPath before 0.4 and other programs write it."""
    bare = {name: value for name, value in QUPATH["features"][0].items() if name != "id"}
    outlined.write_text(json.dumps({"type": "FeatureCollection", "features": [bare]}))
    panel.data.draw_button.click()
    layer = panel.data.outlining._layer
    layer.data = [layer.data[0] + [[5, 5], [0, 0], [0, 0], [0, 0]]]
    panel.data.outlining.save()
    (area,) = json.loads(outlined.read_text())["features"]
    assert area["geometry"] != bare["geometry"]
    assert area["properties"]["isLocked"] is True
    assert area["properties"]["metadata"] == {"by": "ann"}


def test_drawing_another_class_leaves_the_selected_outline_as_it_is(panel, outlined, qtbot):
    layer = panel.data.outlining._layer
    before = layer.edge_color.copy()
    layer.selected_data = {0}
    panel.data.outline_class.setText("normal")
    press(qtbot, panel.data.draw_button)
    np.testing.assert_array_equal(layer.edge_color, before)
    assert layer.feature_defaults["class"][0] == "normal"
