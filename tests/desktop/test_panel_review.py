"""The Review panel, used as a person does: arrow keys, clicks, typing; a real store."""

from __future__ import annotations

import shutil
from functools import partial

import pytest
from cohorts import MPP, make_cohort
from hands import canvas_of, press
from known_slides import SQUARE
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QApplication, QDialog

from sample_evaluation import evaluated
from slidelens.desktop.panels.categories import CategoriesDialog
from slidelens.desktop.shown import layers_of
from slidelens.desktop.window import camera
from slidelens.desktop.world import described
from slidelens.errors import ResultError
from slidelens.geometry import Box
from slidelens.review.foci import FIELD_UM, Focus
from slidelens.review.store import CaseKey, ReviewStore
from slidelens.review.taxonomy import save_taxonomy
from slidelens.slide.open import open_slide

pytestmark = pytest.mark.gui

WAIT = 40_000
FIRST = CaseKey("b", "weak", "fp")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("made"))


@pytest.fixture
def cohort(made, tmp_path):
    """A copy: reviews write into it. Result paths in it are those of the first."""
    shutil.copytree(made, made.parent / tmp_path.name)
    yield made.parent / tmp_path.name
    shutil.rmtree(made.parent / tmp_path.name)


@pytest.fixture
def panel(bench, cohort, qtbot):
    panel = bench.open_panel("review")
    panel.reviewer.setText("ann")
    panel.points.setText("0.5")
    panel.open(cohort)
    qtbot.waitUntil(lambda: panel.review is not None, timeout=WAIT)
    window = bench.viewer.window._qt_window
    window.activateWindow()  # shortcuts are for the active window
    qtbot.waitUntil(window.isActiveWindow, timeout=WAIT)
    return panel


def wait_for_evidence(qtbot, panel):
    qtbot.waitUntil(lambda: panel.case.place.text().startswith("Place 1"), timeout=WAIT)
    qtbot.waitUntil(lambda: not panel.bench.flight.flying, timeout=WAIT)


def in_sight(widget):
    return widget.visibleRegion().boundingRect() == widget.rect()


def key(qtbot, widget, which):
    qtbot.keyClick(widget, which)


def test_empty_window_says_how_to_begin(bench, qtbot):
    panel = bench.open_panel("review")
    assert "Open an evaluation" in panel.about.text()
    assert not panel.errors.isVisible()
    assert not panel.case.isVisible()
    panel.open(bench.preferences.home)
    qtbot.waitUntil(lambda: "evaluation.json" in panel.notice.text, timeout=WAIT)


def test_who_types_goes_on_typing_when_an_evaluation_comes(bench, cohort, qtbot):
    panel, canvas = bench.open_panel("review"), canvas_of(bench.viewer)
    window = bench.viewer.window._qt_window
    window.activateWindow()
    qtbot.waitUntil(window.isActiveWindow, timeout=WAIT)
    canvas.setFocus()
    key(qtbot, canvas, Qt.Key.Key_N)
    assert not panel.case.note.hasFocus(), "there is no error that it would be of"
    panel.reviewer.setText("ann")
    panel.reviewer.setFocus()
    panel.open(cohort)
    qtbot.waitUntil(lambda: panel.review is not None, timeout=WAIT)
    assert panel.reviewer.hasFocus()


def test_a_long_name_of_an_evaluation_leaves_its_middle_out(panel, bench, qtbot):
    folder = panel.review.saved.folder
    moved = folder.rename(folder.with_name("a_rather_long_name_of_an_evaluation_of_split_test"))
    panel.open(moved)
    qtbot.waitUntil(lambda: str(moved) in panel.name.toolTip(), timeout=WAIT)
    shown = panel.name.text()
    assert shown.startswith("a_")
    assert "…" in shown
    assert shown.endswith(" slides")
    assert panel.name.fontMetrics().horizontalAdvance(shown) <= panel.name.width()
    bench.viewer.window.resize(2400, 860)
    bench.viewer.window._qt_window.resizeDocks(
        [panel.parentWidget()], [900], Qt.Orientation.Horizontal
    )
    qtbot.waitUntil(lambda: "…" not in panel.name.text(), timeout=WAIT)
    moved.rename(folder)


def test_the_first_error_opens_its_slide_and_the_camera_is_at_the_evidence(panel, bench, qtbot):
    wait_for_evidence(qtbot, panel)
    assert bench.slide.id == "b"
    assert [m.name for m in layers_of(bench.viewer, "map") if m.visible] == ["weak: probability"]
    centre = camera(bench.viewer).center
    x, y = centre[-1] / MPP, centre[-2] / MPP
    assert SQUARE.contains(x, y), "the method is surest of tumour in the square"
    assert panel.errors.tree.hasFocus(), "keys work at once"
    assert panel.errors.tree.topLevelItemCount() == 4
    assert panel.errors.bar.maximum() == 4
    panel.picture._foci = [Focus(Box(200, 200, 4, 4), "tiny tile")]
    panel.picture.fly(0)
    qtbot.waitUntil(lambda: not bench.flight.flying, timeout=WAIT)
    across = min(bench.canvas) / camera(bench.viewer).zoom
    assert across == pytest.approx(FIELD_UM / 0.9, rel=1e-3), "with what is around it"


def test_short_names_in_the_list_are_whole(bench, tmp_path, qtbot):
    scores = {f"phantom_00{n}": 0.9 - n / 100 for n in range(4)}
    evaluation = evaluated(
        tmp_path, dict.fromkeys(scores, 0) | {"x": 1}, {"segm": scores, "mil": scores}
    )
    panel = bench.open_panel("review")
    panel.open(evaluation)
    qtbot.waitUntil(lambda: panel.review is not None, timeout=WAIT)
    tree = panel.errors.tree
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 8, timeout=WAIT)
    panel.review.decide(panel.review.case, category="Normal mimicking tumor")
    panel.errors.show_current(panel.review)
    widths = [(tree.columnWidth(n), tree.sizeHintForColumn(n)) for n in range(5)]
    assert all(widths[n][0] >= widths[n][1] for n in (0, 2)), (widths, tree.viewport().width())
    assert not tree.horizontalScrollBar().maximum()


@pytest.mark.parametrize("models", [1, 2])
def test_no_column_of_the_list_is_out_of_sight_where_names_are_long(bench, tmp_path, qtbot, models):
    name = "TCGA-A6-2671-01Z-00-DX1.13ebd6e5-71a5-45b0-8a9d-fd8a0a0a0a0a"
    scores = {f"{name}{n}": 0.9 - n / 100 for n in range(4)}
    methods = {f"{name}-model-{n}": scores for n in range(models)}
    evaluation = evaluated(tmp_path, dict.fromkeys(scores, 0) | {"x": 1}, methods)
    panel = bench.open_panel("review")
    panel.open(evaluation)
    qtbot.waitUntil(lambda: panel.review is not None, timeout=WAIT)
    tree = panel.errors.tree
    qtbot.waitUntil(lambda: tree.topLevelItemCount() == 4 * models, timeout=WAIT)
    assert not tree.horizontalScrollBar().maximum()
    assert tree.isColumnHidden(2) == (models == 1)
    shown = [n for n in range(5) if not tree.isColumnHidden(n)]
    assert min(tree.columnWidth(n) for n in shown) > 20
    assert tree.topLevelItem(0).toolTip(0).startswith(name)


def test_what_decides_is_in_sight_on_a_laptop(panel, bench, qtbot):
    bench.viewer.window.resize(1366, 768)
    wait_for_evidence(qtbot, panel)
    panel.scrolled.verticalScrollBar().setValue(0)
    case = panel.case
    used = (panel.errors.tree, case.verdicts, case.next_place, *case.categories.buttons())
    for widget in (*used, case.label, case.note, panel.undo_button, panel.export):
        qtbot.waitUntil(partial(in_sight, widget), timeout=WAIT)
    panel.errors.methods.menu().actions()[0].trigger()
    panel.errors.methods.menu().actions()[1].trigger()
    assert not case.form.isVisible(), "there is no error to decide on"


def test_thirty_categories_leave_the_list_its_room(panel, bench, cohort, qtbot):
    names = [f"Reason {number}" for number in range(1, 31)]
    save_taxonomy(cohort, {"fp": names, "fn": names[:2]})
    bench.viewer.window.resize(1366, 768)
    panel.step(2)
    wait_for_evidence(qtbot, panel)
    panel.scrolled.verticalScrollBar().setValue(0)
    case = panel.case
    assert len(case.categories.buttons()) == 31
    case.choose_category(30)
    for widget in (panel.errors.tree, case.categories.checkedButton(), case.note):
        qtbot.waitUntil(partial(in_sight, widget), timeout=WAIT)
    panel.step(-1)
    assert panel.review.case.kind == "fn"
    for widget in (*case.categories.buttons(), case.note):
        qtbot.waitUntil(partial(in_sight, widget), timeout=WAIT)


def test_arrow_keys_step_in_the_panel_and_on_the_picture(panel, bench, qtbot):
    wait_for_evidence(qtbot, panel)
    panel.errors.tree.setFocus()
    key(qtbot, panel.errors.tree, Qt.Key.Key_Right)
    assert panel.review.case.slide_id == "c"
    wait_for_evidence(qtbot, panel)
    assert bench.slide.id == "c"
    assert panel.errors.tree.currentItem().text(0) == "c"
    canvas = canvas_of(bench.viewer)
    canvas.setFocus()
    key(qtbot, canvas, Qt.Key.Key_Right)
    assert panel.review.index == 2
    key(qtbot, canvas, Qt.Key.Key_Left)
    assert panel.review.index == 1


def test_an_error_is_decided_by_keys_on_the_picture(panel, bench, cohort, qtbot):
    wait_for_evidence(qtbot, panel)
    store, canvas, keys = ReviewStore(cohort / "review.sqlite"), canvas_of(bench.viewer), Qt.Key
    canvas.setFocus()
    for which in (keys.Key_2, keys.Key_L, keys.Key_H):
        key(qtbot, canvas, which)
    assert store.get(FIRST, "ann").category == "Inflammation"
    assert store.get(FIRST, "ann").true_label == "tumor"
    assert not any(layer.visible for layer in layers_of(bench.viewer, "map", "regions"))
    key(qtbot, canvas, keys.Key_N)
    assert panel.case.note.hasFocus()
    qtbot.keyClicks(panel.case.note, "2 foci")
    key(qtbot, panel.case.note, keys.Key_Escape)
    assert panel.errors.tree.hasFocus()
    assert store.get(FIRST, "ann").note == "2 foci"
    canvas.setFocus()
    for _ in range(3):
        qtbot.keyClick(canvas, keys.Key_Z, Qt.KeyboardModifier.ControlModifier)
    assert panel.notice.text == "b, weak: reason undone."
    assert panel.errors.tree.currentItem().text(4) == ""
    bench.viewer.add_shapes(name="mine")
    key(qtbot, canvas, keys.Key_2)
    assert not store.get(FIRST, "ann").decided, "who draws has the keys of the drawing"
    bench.viewer.layers.selection.active = bench.viewer.layers[0]
    panel.parentWidget().hide()
    key(qtbot, canvas, keys.Key_2)
    assert not store.get(FIRST, "ann").decided, "keys are the panel's only while it is shown"


def test_category_label_and_note_are_in_the_file_at_once(panel, cohort, qtbot):
    store = ReviewStore(cohort / "review.sqlite")
    panel.errors.tree.setFocus()
    key(qtbot, panel.errors.tree, Qt.Key.Key_2)
    assert store.get(FIRST, "ann").category == "Inflammation"
    panel.case.label.setCurrentIndex(1)
    panel.case.label.activated.emit(1)
    assert store.get(FIRST, "ann").true_label == "tumor"
    panel.case.note.setFocus()
    qtbot.keyClicks(panel.case.note, "2 foci, dense")
    assert panel.case.categories.checkedId() == 2, "digits in a note are text"
    panel.errors.tree.setFocus()
    assert store.get(FIRST, "ann").note == "2 foci, dense"
    assert panel.errors.bar.value() == 1
    assert "Inflammation" in panel.errors.tree.currentItem().text(4)
    qtbot.keyClicks(panel.case.note, "!")
    panel.step(1)  # what was typed belongs to the error that was left
    assert store.get(FIRST, "ann").note == "2 foci, dense!"
    press(qtbot, panel.undo_button)
    assert panel.review.index == 0
    assert panel.case.note.toPlainText() == "2 foci, dense"
    assert "Inflammation" in panel.case.history.text()


def test_leaving_the_fields_of_reviewer_and_point_reads_nothing_anew(panel, bench, qtbot):
    panel.case.choose_category(2)
    panel.step(1)
    review, at = panel.review, panel.review.case
    for field in (panel.reviewer, panel.points):
        field.setFocus()
        panel.errors.tree.setFocus()
    qtbot.waitUntil(lambda: not bench.background.busy, timeout=WAIT)
    assert panel.review is review
    panel.points.setText("0.45")
    panel.points.editingFinished.emit()
    qtbot.waitUntil(lambda: panel.review is not review, timeout=WAIT)
    assert panel.review.case.key == at.key
    assert panel.undo_button.isEnabled()


def test_decisions_are_saved_under_the_name_in_the_field(panel, bench, cohort, qtbot):
    store = ReviewStore(cohort / "review.sqlite")
    panel.case.note.setPlainText("of ann")
    panel.points.setText("bogus")
    panel.points.editingFinished.emit()
    qtbot.waitUntil(lambda: "bogus" in panel.notice.text, timeout=WAIT)
    panel.reviewer.setText("bob")
    panel.reviewer.editingFinished.emit()
    assert panel.review.reviewer == "bob", "whatever stands in the other field"
    assert panel.review.case.key == FIRST
    assert panel.case.note.toPlainText() == ""
    panel.case.choose_category(1)
    assert store.get(FIRST, "bob").category
    assert store.get(FIRST, "bob").note == ""
    assert store.get(FIRST, "ann").note == "of ann"
    assert store.get(FIRST, "ann").category == ""
    panel.reviewer.setText("cy")  # a click on a category follows: not every system moves the focus
    panel.case.choose_category(2)
    assert store.get(FIRST, "cy").category != store.get(FIRST, "bob").category
    assert bench.memory.text("reviewer") == "cy"


def test_without_a_name_nothing_is_decided(panel, cohort, qtbot):
    store = ReviewStore(cohort / "review.sqlite")
    panel.case.choose_category(1)
    before = store.decisions()
    panel.reviewer.clear()
    panel.case.choose_category(2)
    assert store.decisions() == before
    assert "Enter your name" in panel.notice.text
    assert panel.case.categories.checkedId() == 1, "what is saved is shown"
    assert not panel.case.form.isEnabled()
    panel.undo()
    assert store.decisions() == before
    panel.reviewer.setText("ann")
    panel.reviewer.editingFinished.emit()
    assert panel.case.form.isEnabled()
    assert panel.notice.text == ""
    panel.undo()
    assert not store.get(FIRST, "ann").decided


def test_a_name_that_changes_while_an_evaluation_is_read_stays(panel, bench, qtbot):
    review = panel.review
    panel.points.setText("0.45")
    panel.points.editingFinished.emit()
    panel.reviewer.setText("bob")
    panel.reviewer.editingFinished.emit()
    qtbot.waitUntil(lambda: panel.review.points == "0.45", timeout=WAIT)
    assert panel.review is not review
    assert panel.review.reviewer == "bob"


def test_another_windows_decision_is_left_by_undo_and_said(panel, cohort, qtbot):
    panel.case.choose_category(2)
    ReviewStore(cohort / "review.sqlite").set(FIRST, reviewer="ann", category="Tissue artefacts")
    press(qtbot, panel.undo_button)
    assert "b: the reason has been changed in another window" in panel.notice.text
    assert "Tissue artefacts" in panel.errors.tree.currentItem().text(4)


def test_filters_and_their_empty_state(panel, qtbot):
    panel.errors.kind.setCurrentIndex(panel.errors.kind.findData("fn"))
    panel.errors.kind.activated.emit(2)
    assert panel.review.case.slide_id == "c"
    for action in panel.errors.methods.menu().actions():
        action.trigger()
    assert "No error matches" in panel.errors.empty.text()
    assert not panel.case.isVisible()


def test_another_method_of_the_same_slide_is_shown_on_a_click(panel, bench, qtbot):
    wait_for_evidence(qtbot, panel)
    panel.case.verdicts.linkActivated.emit("good")
    qtbot.waitUntil(
        lambda: any(m.visible for m in layers_of(bench.viewer, "map", model="good")), timeout=WAIT
    )
    assert not any(m.visible for m in layers_of(bench.viewer, "map", model="weak"))


def test_a_slide_that_is_gone_is_said_and_its_maps_are_shown(
    panel, bench, made, cohort, qtbot, monkeypatch
):
    wait_for_evidence(qtbot, panel)
    moved = made.parent / "moved"
    slide = made.parent / "slides" / "c.tif"
    moved.mkdir(exist_ok=True)
    slide.rename(moved / "c.tif")
    try:
        panel.step(1)
        wait_for_evidence(qtbot, panel)
        assert "The file of slide c is gone" in panel.notice.text
        assert bench.slide is None
        (shown,) = layers_of(bench.viewer, "map", model="weak")
        assert shown.visible
        wrong = cohort / "wrong"
        (wrong / "within").mkdir(parents=True)
        (wrong / "within" / "c.tif").touch()
        chosen = [str(moved), str(wrong)]
        monkeypatch.setattr(
            "slidelens.desktop.panels.review.QFileDialog.getExistingDirectory",
            lambda *_: chosen.pop(),
        )
        press(qtbot, panel.notice._action)
        qtbot.waitUntil(lambda: "no slide in this folder" in panel.notice.text, timeout=WAIT)
        assert "within: skipped, since they are not slides: c.tif" in panel.notice.text
        press(qtbot, panel.notice._action)
        qtbot.waitUntil(lambda: bench.slide is not None, timeout=WAIT)
        assert bench.slide.path == moved / "c.tif"
    finally:
        (moved / "c.tif").rename(slide)


def test_layers_of_a_slide_that_was_left_do_not_come_late(bench, made, qtbot):
    """The person opens another slide between the first and the second layer of a result."""
    other = open_slide(made.parent / "slides" / "d.tif")

    def leave():
        if bench.slide is not None and bench.slide.id == "a":
            QTimer.singleShot(0, lambda: bench._replace(other, bench._ask()))

    bench.slide_changed.connect(leave)
    bench.show_result(made.parent / "results" / "good" / "a")
    qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.id == "d", timeout=WAIT)
    qtbot.wait(200)
    assert {described(layer.metadata)["slide"] for layer in bench.viewer.layers} == {"d"}
    bench.slide_changed.disconnect(leave)


def test_categories_are_edited_and_offered(panel, cohort, qtbot):
    dialog = CategoriesDialog(cohort, panel)
    dialog.texts["fp"].setPlainText("Nerve\nNerve")
    dialog.save()
    assert "twice" in dialog.fault.text()
    dialog.texts["fp"].setPlainText("Nerve\nMuscle\n")
    dialog.save()
    assert dialog.result() == QDialog.DialogCode.Accepted
    dialog.deleteLater()
    panel.step(2)
    assert panel.review.case.kind == "fp"
    assert [b.property("category") for b in panel.case.categories.buttons()][1:] == [
        "Nerve",
        "Muscle",
    ]


def test_report_decisions_and_labels_are_exported(panel, bench, cohort, qtbot, tmp_path):
    panel.case.choose_category(2)
    panel.review.decide(panel.review.case, true_label="tumor")
    panel.export.write_decisions(tmp_path / "d.csv")
    assert "Inflammation" in (tmp_path / "d.csv").read_text()
    panel.export.write_labels(tmp_path / "l.csv")
    assert "b,tumor" in (tmp_path / "l.csv").read_text()
    table = panel.review.saved.labels_table
    before = table.read_bytes()
    panel.export.write_labels(table)
    assert "would be replaced" in panel.notice.text
    assert table.read_bytes() == before
    panel.export.write_report(tmp_path / "report.html")
    qtbot.waitUntil(lambda: not panel.export.busy, timeout=180_000)
    assert "The report was written" in panel.notice.text
    assert "Inflammation" in (tmp_path / "report.html").read_text()


def test_corrected_labels_say_what_was_not_corrected(panel, cohort, made, tmp_path):
    panel.review.decide(panel.review.case, true_label="tumor")
    ReviewStore(cohort / "review.sqlite").set(FIRST, reviewer="bob", category="Inflammation")
    panel.export.write_labels(tmp_path / "l.csv")
    first, second = panel.notice.text.splitlines()
    assert first.startswith("0 labels corrected")
    assert second == "Reviewers do not agree on b: it keeps its label."
    table = made.parent / "labels.csv"
    before = table.read_text()
    table.write_text(before + "e,normal\n")
    try:
        panel.export.write_labels(tmp_path / "l.csv")
    finally:
        table.write_text(before)
    assert "has changed" in panel.notice.text.splitlines()[2]


def test_results_are_evaluated_from_the_panel(bench, made, qtbot):
    panel = bench.open_panel("review")
    panel.reviewer.setText("ann")
    bench.memory.set_text("results", str(made.parent / "results"))
    panel.evaluate(made.parent / "labels.csv")
    qtbot.waitUntil(lambda: panel.review is not None, timeout=180_000)
    assert panel.review.saved.folder.parent == bench.preferences.home / "evaluations"
    panel.reviewer.setText("")
    panel.evaluate(made.parent / "labels.csv")
    qtbot.waitUntil(lambda: not bench.runner.busy, timeout=180_000)
    assert "Enter your name" in panel.notice.text, "what stops it from being opened is not hidden"
    panel.evaluate(made.parent / "gone.csv")
    qtbot.waitUntil(lambda: "gone.csv" in panel.notice.text, timeout=WAIT)


def test_what_an_evaluation_and_a_report_warn_of_is_shown(bench, made, qtbot, tmp_path):
    panel = bench.open_panel("review")
    panel.reviewer.setText("ann")
    results = tmp_path / "results"
    shutil.copytree(made.parent / "results", results)
    (results / "good" / "a" / "result.json").write_text("{")
    bench.memory.set_text("results", str(results))
    panel.evaluate(made.parent / "labels.csv")
    qtbot.waitUntil(lambda: panel.review is not None, timeout=180_000)
    assert "1 result is left out" in panel.notice.text, "it is logged"
    panel.notice._more.click()
    assert "resamples lack a class" in panel.notice.text, "the evaluation states it"
    shutil.rmtree(results / "weak" / "b")
    panel.export.write_report(tmp_path / "report.html")
    qtbot.waitUntil(lambda: not panel.export.busy, timeout=180_000)
    panel.notice._more.click()
    written, *missing = panel.notice.text.splitlines()
    assert "The report was written" in written
    assert any("The result of weak is gone." in line for line in missing)
    assert any("no package with these weights was found" in line for line in missing)


def test_pictures(panel, bench, qtbot, request):
    wait_for_evidence(qtbot, panel)
    panel.case.choose_category(2)
    QApplication.processEvents()
    out = request.config.rootpath / "tests" / "_pictures"
    out.mkdir(exist_ok=True)
    path = out / "review.png"
    bench.viewer.screenshot(str(path), canvas_only=False, flash=False)
    assert path.stat().st_size > 20_000


def test_a_note_that_cannot_be_kept_stays_to_be_tried_again(panel, cohort, qtbot, monkeypatch):
    """Another program holds the file for long."""
    store = ReviewStore(cohort / "review.sqlite")
    review = panel.review

    def refuse(*_args, **_options):
        raise ResultError("review.sqlite: another program holds the file; try again.")

    with monkeypatch.context() as patched:
        patched.setattr(review, "decide", refuse)
        panel.case.note.setFocus()
        qtbot.keyClicks(panel.case.note, "dense")
        panel.step(1)
        assert "try again" in panel.notice.text
        assert review.index == 0, "what was typed is not left behind"
        panel.case.choose_category(2)
        assert panel.case.categories.checkedId() == 0, "what is shown is what is kept"
        assert panel.case.note.toPlainText() == "dense"
    panel.step(1)
    assert review.index == 1
    assert store.get(FIRST, "ann").note == "dense"
