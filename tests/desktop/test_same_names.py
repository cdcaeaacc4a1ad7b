"""Two slides of one name and size: each keeps its own maps, outlines and results."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile
from cohorts import make_cohort
from hands import press
from known_slides import make_result, make_slide
from napari.components import ViewerModel
from napari.layers import Layer, Shapes
from qtpy.QtWidgets import QLineEdit, QSlider

from slidelens.desktop import live as live_module
from slidelens.desktop import reader as reader_module
from slidelens.desktop.annotate import new_annotations
from slidelens.desktop.belonging import learn_content
from slidelens.desktop.comparing import open_methods
from slidelens.desktop.layers import slide_layer
from slidelens.desktop.live import LiveMaps
from slidelens.desktop.outlining import Outlining
from slidelens.desktop.panels.parts import breakable
from slidelens.desktop.reader import get_annotation_reader, get_result_reader
from slidelens.desktop.region import draw_region, region_box
from slidelens.desktop.shown import add_layer, current_slide, layers_of, layers_on, shown_slides
from slidelens.desktop.state.runs import RunRequest, RunState
from slidelens.desktop.tied import tie
from slidelens.desktop.worker.messages import Message
from slidelens.desktop.worker.preview import Preview
from slidelens.desktop.world import described
from slidelens.desktop.writer import write_geojson
from slidelens.engine.provenance import fingerprint
from slidelens.errors import LabelError, ResultError, SlideLensError
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.result import Result
from slidelens.slide.open import open_slide

MPP = Mpp(0.5, 0.5)
WAIT = 40_000


def write(path: Path, tone: int, size=(800, 1000)) -> Path:
    """A slide of one tone, at 0.5 µm/px."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), tone, np.uint8)
    tifffile.imwrite(
        path, pixels, tile=(256, 256), resolution=(20_000, 20_000), resolutionunit="CENTIMETER"
    )
    return path


def run_on(path: Path, folder: Path, model: str = "oracle") -> Path:
    """A result that states the slide's content, as the engine's do."""
    with open_slide(path) as slide:
        made = make_result(slide, MPP, model)
        facts = {"fingerprint": fingerprint(slide), "mpp_source": slide.mpp_source}
        made.slide = made.slide.model_copy(update=facts)
    made.save(folder)
    return folder


@pytest.fixture
def pair(tmp_path):
    """Two slides named case, and a result of the first."""
    first, second = write(tmp_path / "A" / "case.tif", 240), write(tmp_path / "B" / "case.tif", 200)
    return first, second, run_on(first, tmp_path / "results" / "oracle" / "case")


def open_in(bench, path, qtbot):
    bench.open_slide(path)
    qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.path == path, timeout=WAIT)


def show(bench, folder, qtbot):
    """Show a result; return what was said."""
    done, told = [], []
    bench.told.connect(lambda text, _: told.append(text))
    bench.show_result(folder, then=done.append)
    qtbot.waitUntil(lambda: bool(done), timeout=WAIT)
    return "\n".join(told)


@pytest.mark.gui
def test_the_slide_that_a_result_was_made_on_is_opened_in_place_of_its_namesake(bench, pair, qtbot):
    first, second, result = pair
    open_in(bench, second, qtbot)
    said = show(bench, result, qtbot)
    assert bench.slide.path == first
    assert str(first) in said
    assert str(second) in said
    assert {described(layer.metadata)["on"] for layer in layers_of(bench.viewer, "map")} == {
        str(first)
    }


@pytest.mark.gui
def test_maps_on_another_slide_of_the_name_are_said_to_be_doubtful(bench, pair, qtbot):
    first, second, result = pair
    first.unlink()
    open_in(bench, second, qtbot)
    said = show(bench, result, qtbot)
    assert said.startswith("case.tif was changed or replaced after oracle was run on it, or is")
    assert str(first) in said
    assert bench.slide.path == second


@pytest.mark.gui
def test_a_slide_that_is_replaced_while_it_is_open_is_opened_again(bench, pair, tmp_path, qtbot):
    first, second, _ = pair
    open_in(bench, first, qtbot)
    qtbot.waitUntil(lambda: not bench.background.busy, timeout=WAIT)
    second.replace(first)
    result = run_on(first, tmp_path / "again")
    layer = bench.slide.layer
    assert "opened again" in show(bench, result, qtbot)
    assert bench.slide.layer is not layer
    assert np.asarray(bench.slide.layer.data[-1]).mean() == 200


def test_a_dropped_result_comes_with_its_own_slide_or_a_warning(pair, monkeypatch):
    first, second, result = pair
    viewer, told = ViewerModel(), []
    viewer.add_layer(Layer.create(*slide_layer(open_slide(second))))
    monkeypatch.setattr(reader_module, "open_viewer", lambda: viewer)
    monkeypatch.setattr(reader_module, "notify", lambda text, error=False: told.append(text))
    (_, slide, _), *rest = get_result_reader(str(result))(str(result))
    assert described(slide["metadata"])["path"] == str(first)
    assert {described(o["metadata"])["on"] for _, o, _ in rest} == {str(first)}
    assert not told
    first.unlink()
    layers = get_result_reader(str(result))(str(result))
    assert {described(o["metadata"])["on"] for _, o, _ in layers} == {str(second)}
    assert "was changed or replaced after oracle" in told[0]


def test_outlines_of_another_name_are_drawn_and_said(pair, tmp_path, monkeypatch):
    first, _, _ = pair
    viewer, told = ViewerModel(), []
    viewer.add_layer(Layer.create(*slide_layer(open_slide(first))))
    monkeypatch.setattr(reader_module, "open_viewer", lambda: viewer)
    monkeypatch.setattr(reader_module, "notify", lambda text, error=False: told.append(text))
    ring = [[0, 0], [50, 0], [50, 50], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    feature = {"type": "Feature", "geometry": geometry, "properties": {}}
    text = json.dumps({"type": "FeatureCollection", "features": [feature]})
    for name in ("case_02", "case", "case.tif"):
        (tmp_path / f"{name}.geojson").write_text(text)
        path = str(tmp_path / f"{name}.geojson")
        ((_, options, _),) = get_annotation_reader(path)(path)
        assert described(options["metadata"])["slide"] == "case"
        assert described(options["metadata"])["on"] == str(first)
    (said,) = told
    assert "case_02.geojson is drawn on case: no open slide is named case_02" in said


def test_outlines_of_namesakes_are_not_written_into_one_file(pair, tmp_path):
    first, second, _ = pair
    viewer, out = ViewerModel(), tmp_path / "case.geojson"
    for path in (first, second):
        add_layer(viewer, slide_layer(open_slide(path)))
        new_annotations(viewer)
        viewer.layers[-1].add_polygons(np.array([[0, 0], [0, 90], [90, 90]]))
    drawn = viewer.add_shapes([[[0, 0], [0, 50], [50, 50]]], shape_type="polygon")
    tie(viewer, drawn)
    one, other, by_hand = (
        layer.as_layer_data_tuple() for layer in viewer.layers if isinstance(layer, Shapes)
    )
    named = f"of the slides {re.escape(str(first))}, {re.escape(str(second))}"
    for layers in ([one, other], [one, by_hand]):
        with pytest.raises(SlideLensError, match=named):
            write_geojson(str(out), layers)
    assert not out.exists()
    write_geojson(str(out), [other, by_hand])
    assert len(json.loads(out.read_text())["features"]) == 2


def test_the_slide_that_is_clicked_is_chosen_though_another_has_its_name(pair, tmp_path):
    first, second, _ = pair
    viewer = ViewerModel()
    for path in (first, second):
        add_layer(viewer, slide_layer(open_slide(path)))
    for layer, path in zip(list(viewer.layers), (first, second), strict=True):
        viewer.layers.selection.active = layer
        assert current_slide(viewer).path == path
    new_annotations(viewer)  # on the topmost
    viewer.layers[0].visible = viewer.layers[1].visible = True
    assert current_slide(viewer).path == second
    above, below = shown_slides(viewer)
    assert [layer.name for layer in layers_on(viewer, above)] == ["case [1]", "case annotations"]
    assert [layer.name for layer in layers_on(viewer, below)] == ["case"]


def test_a_region_is_run_on_the_file_that_it_was_drawn_on(pair):
    viewer = ViewerModel()
    for path in pair[:2]:
        add_layer(viewer, slide_layer(open_slide(path)))
    second, first = shown_slides(viewer)
    draw_region(viewer, first, lambda: None)
    viewer.layers[-1].add_rectangles([[10, 20], [10, 60], [50, 60], [50, 20]])
    assert region_box(viewer, first) == (20, 10, 40, 40)
    assert region_box(viewer, second) is None
    draw_region(viewer, second, lambda: None)
    assert region_box(viewer, first) == (20, 10, 40, 40)


def cells(path: Path, content: str = "") -> Message:
    """What the worker sends of a map that grows on a slide."""
    sent = []
    at = {"slide": "case", "file": str(path), "model": "m", "content": content}
    preview = Preview(lambda facts, blob: sent.append(Message(1, "cells", {**at, **facts}, blob)))
    values = np.full((1, 8, 10), 0.5, np.float32)
    source = Map.from_array("probability", "probability", ["m"], values, Affine(100, 100), MPP)
    preview.look("m/case", lambda: {"probability": source}, must=True)
    return sent[0]


def test_a_map_grows_on_the_file_that_is_run(pair):
    first, second, _ = pair
    viewer, sent = ViewerModel(), cells(first)
    live = LiveMaps()
    add_layer(viewer, slide_layer(open_slide(second)))
    assert not live.feed(viewer, sent)
    assert not live.grow(viewer)
    assert not list(layers_of(viewer, "map"))
    viewer.layers.clear()
    add_layer(viewer, slide_layer(open_slide(first)))
    assert live.show(viewer)
    live.grow(viewer)
    assert len(list(layers_of(viewer, "map"))) == 1


def test_no_map_grows_on_a_slide_that_was_replaced(pair, monkeypatch):
    first, second, _ = pair
    viewer, told = ViewerModel(), []
    monkeypatch.setattr(live_module, "notify", told.append)
    shown, run = open_slide(first), open_slide(second)
    add_layer(viewer, slide_layer(shown))
    learn_content(shown)
    for slide, grows in ((run, False), (shown, True)):
        live, sent = LiveMaps(), cells(first, fingerprint(slide))
        assert [live.feed(viewer, sent), live.show(viewer)] == [grows, grows]
    (said,) = told
    assert said.startswith("case.tif was replaced while it was open")


@pytest.mark.gui
def test_a_run_that_ends_leaves_the_namesake_that_was_opened_meanwhile(bench, pair, qtbot):
    first, second, result = pair
    panel = bench.open_panel("run")
    open_in(bench, second, qtbot)
    panel.state = RunState(RunRequest((first,), (), result.parent.parent))
    facts = {"slide": "case", "file": str(first), "model": "oracle", "status": "done", "error": ""}
    more = {"probabilities": {"normal": 0.1, "tumor": 0.9}, "folder": str(result)}
    panel._hear(Message(1, "outcome", facts | more))
    qtbot.waitUntil(lambda: not bench.background.busy, timeout=WAIT)
    assert bench.slide.path == second
    assert not list(layers_of(bench.viewer, "map"))


@pytest.mark.gui
def test_outlines_stay_with_the_slide_that_they_were_drawn_on(bench, pair, tmp_path, qtbot):
    first, second, _ = pair
    open_in(bench, first, qtbot)
    new_annotations(bench.viewer)
    bench.viewer.layers[-1].add_polygons(np.array([[0, 0], [0, 90], [90, 90]]))
    open_in(bench, second, qtbot)
    outlining = Outlining(bench, bench)
    outlining.draw(tmp_path / "outlines", "tumor", "#ff0000")
    assert not len(outlining._layer.data)
    outlining._layer.add_polygons(np.array([[0, 0], [0, 50], [50, 50]]))
    assert outlining.save()
    content = json.loads((tmp_path / "outlines" / "case.geojson").read_text())
    assert len(content["features"]) == 1
    open_in(bench, first, qtbot)
    with pytest.raises(LabelError, match="choose another folder"):
        outlining.draw(tmp_path / "outlines", "tumor", "#ff0000")
    outlining.end()


@pytest.mark.gui
def test_results_of_another_slide_are_not_listed_for_its_namesake(bench, pair, qtbot):
    first, second, result = pair
    bench.use_results(result.parent.parent)
    panel = bench.open_panel("run").results

    def listed():
        count = panel.tree.topLevelItemCount()
        return [panel.tree.topLevelItem(number).text(0) for number in range(count)]

    open_in(bench, first, qtbot)
    qtbot.waitUntil(lambda: listed() == ["oracle"], timeout=WAIT)
    open_in(bench, second, qtbot)
    qtbot.waitUntil(lambda: "another slide of this name" in panel._empty.text(), timeout=WAIT)
    assert not listed()
    assert not panel.delete.isEnabled()
    panel.all.setChecked(True)
    assert listed() == ["oracle"]
    panel.all.setChecked(False)
    moved = first.rename(first.parent / "aside")
    bench.viewer.layers.clear()
    second.unlink()
    moved.rename(second)
    open_in(bench, second, qtbot)
    qtbot.waitUntil(lambda: listed() == ["oracle"], timeout=WAIT)


@pytest.mark.gui
def test_compare_lists_what_does_not_fit_but_refuses_it(bench, pair, tmp_path, qtbot):
    _, second, result = pair
    bench.use_results(result.parent.parent)
    run_on(second, tmp_path / "results" / "other" / "case", "other")
    large = write(tmp_path / "C" / "case.tif", 90, (1500, 1800))
    run_on(large, tmp_path / "results" / "large" / "case", "large")
    open_in(bench, second, qtbot)
    panel = bench.open_panel("compare")
    qtbot.waitUntil(lambda: panel.methods.topLevelItemCount() == 3, timeout=WAIT)
    rows = {item.text(0): item for item in panel._items()}
    assert {name: item.isDisabled() for name, item in rows.items()} == {
        "oracle": True,
        "other": False,
        "large": True,
    }
    assert rows["oracle"].text(1) == rows["large"].text(1) == "does not fit"
    assert "changed or replaced" in rows["oracle"].toolTip(0)
    assert "1800 x 1500 px" in rows["large"].toolTip(0)
    with pytest.raises(ResultError, match="changed or replaced"):
        open_methods([result], bench.slide)


@pytest.mark.gui
def test_compare_takes_the_class_that_both_have(bench, pair, tmp_path, qtbot):
    first, _, folder = pair
    bench.use_results(folder.parent.parent)
    open_in(bench, first, qtbot)
    made = Result.load(folder)
    source = made.maps["probability"]

    def other(model, *classes):
        turned = source.read()[::-1].copy()
        own = Map.from_array(
            "probability", "probability", classes, turned, source.affine, source.slide_mpp
        )
        info = made.model.model_copy(update={"name": model, "threshold": 0.3})
        scores = dict(zip(classes, (0.9, 0.1), strict=True))
        out = tmp_path / "results" / model / "case"
        Result(made.slide, info, scores, maps=[own]).save(out)
        return out

    both = [folder, other("turned", "tumor", "normal")]
    last = open_methods(both[::-1], bench.slide)
    turned = open_methods(both, bench.slide)
    for found in (last, turned):
        assert [one.method.positive for one in found.opened] == ["tumor", "tumor"]
    assert [one.method.score for one in turned.opened] == [0.9, 0.9]
    assert turned.opened[1].method.threshold == pytest.approx(0.7)
    assert turned.comparison.agreed == 1
    panel = bench.open_panel("compare")
    qtbot.waitUntil(lambda: "Compared by " in panel.agreed.text(), timeout=WAIT)
    for mode in ("blend", "two"):  # the negative class of one of them is drawn
        press(qtbot, panel._buttons[mode])
    other("turned", "mitosis", "stroma")
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: "no class of one name" in panel.agreed.text(), timeout=WAIT)
    press(qtbot, panel._buttons["difference"])
    assert "turned draws stroma" in panel.why.text()
    assert not list(layers_of(bench.viewer, "compare"))


@pytest.fixture
def review(bench, tmp_path, qtbot):
    """A review at an error of slide b, with its maps, that comes before one of slide c."""
    made = make_cohort(tmp_path / "cohort")
    panel = bench.open_panel("review")
    panel.reviewer.setText("ann")
    panel.points.setText("0.5")
    return panel, made


@pytest.mark.gui
def test_a_review_shows_its_own_slides(review, bench, tmp_path, qtbot):
    panel, made = review
    open_in(bench, write(tmp_path / "other" / "b.tif", 150), qtbot)
    panel.open(made)
    qtbot.waitUntil(lambda: panel.case.place.text().startswith("Place 1"), timeout=WAIT)
    assert bench.slide.path == made.parent / "slides" / "b.tif"
    header = panel.errors.tree.header()
    assert header.sectionSize(2) >= header.sectionSizeHint(2), "Method is cut"


@pytest.mark.gui
@pytest.mark.parametrize("there", [True, False])
def test_a_case_without_its_result_shows_its_slide_alone_or_nothing(review, bench, qtbot, there):
    panel, made = review
    panel.open(made)
    qtbot.waitUntil(lambda: panel.case.place.text().startswith("Place 1"), timeout=WAIT)
    assert bench.slide.id == "b"
    at = next(i for i, c in enumerate(panel.review.cases) if (c.slide_id, c.model) == ("c", "weak"))
    (made.parent / "results" / "weak" / "c").rename(made.parent / "aside")
    if not there:
        (made.parent / "slides" / "c.tif").unlink()
    panel.go(at)
    if there:
        qtbot.waitUntil(lambda: bench.slide is not None and bench.slide.id == "c", timeout=WAIT)
    else:
        qtbot.waitUntil(lambda: bench.slide is None, timeout=WAIT)
        assert "c.tif" in panel.notice.text
    assert "no map is shown" in panel.case.place.text()
    assert not list(layers_of(bench.viewer, "map"))


@pytest.mark.gui
def test_sliders_and_fields_have_names_for_screen_readers(bench):
    for name in ("maps", "slide", "compare"):
        panel = bench.open_panel(name)
        for control in [*panel.findChildren(QLineEdit), *panel.findChildren(QSlider)]:
            assert control.accessibleName(), f"{type(control).__name__} in {name}"


def test_an_unbroken_name_can_be_wrapped():
    parts = breakable("long" * 20 + "_end").split("\u200b")
    assert "".join(parts) == "long" * 20 + "_end"
    assert max(map(len, parts)) <= 24


def test_namesakes_in_memory_are_one_slide():
    """A slide without a file is known by its name alone."""
    viewer = ViewerModel()
    add_layer(viewer, slide_layer(make_slide(0.5)))
    assert list(layers_on(viewer, current_slide(viewer)))
