"""The Compare panel in a real window: two methods that differ in one place."""

from __future__ import annotations

import numpy as np
import pytest
from hands import close_panel, press
from known_slides import CELL, SQUARE, make_slide
from qtpy.QtCore import Qt

from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.desktop.window import camera
from slidelens.geometry import Affine, Mpp
from slidelens.maps.map import Map
from slidelens.maps.result import ModelInfo, Result, SlideInfo
from slidelens.maps.run_settings import RunSettings

pytestmark = pytest.mark.gui

MPP = Mpp(0.5, 0.5)
WAIT = 40_000


def result_of(slide, model, score, *, wrong=False) -> Result:
    """The square is tumour; a model that is wrong sees a smaller one far to the right, too."""
    tumor = np.full((21, 27), 0.05, np.float32)
    x, y, w, h = (round(v / CELL) for v in SQUARE)
    tumor[y : y + h, x : x + w] = 0.9
    if wrong:
        tumor[14:17, 20:22] = 0.8
    source = Map.from_array(
        "probability",
        "probability",
        ["normal", "tumor"],
        np.stack([1 - tumor, tumor]),
        Affine(CELL, CELL),
        MPP,
    )
    info = SlideInfo(id=slide.id, path=str(slide.path), width=1000, height=800, mpp=tuple(MPP))
    probabilities = {"normal": 1 - score, "tumor": score}
    return Result(info, ModelInfo(name=model), probabilities, maps=[source])


@pytest.fixture
def panel(bench, tmp_path, qtbot):
    slide = make_slide(MPP.x)
    for model, score, wrong in (("first", 0.97, False), ("second", 0.41, True)):
        made = result_of(slide, model, score, wrong=wrong)
        made.save(bench.results / model / slide.id)
    panel = bench.open_panel("compare")
    add_layer(bench.viewer, slide_layer(slide))
    bench.viewer.reset_view()
    qtbot.waitUntil(lambda: panel.compared.comparison is not None, timeout=WAIT)
    return panel


def shown(bench, kind="compare"):
    return [layer.name for layer in layers_of(bench.viewer, kind) if layer.visible]


def test_scores_calls_and_the_region_in_dispute(panel, bench):
    rows = {item.text(0): (item.text(1), item.text(2)) for item in panel._items()}
    assert rows == {"first": ("tumor 97.0%", "tumor"), "second": ("tumor 41.0%", "normal")}
    share = 1 - 6 / (21 * 27)
    assert f"They agree on {share:.1%} of the cells. 1 region in" in panel.agreed.text()
    item = panel.regions.topLevelItem(0)
    assert item.text(1) == "second"
    panel.regions.setCurrentItem(item)
    at = np.array(camera(bench.viewer).center[-2:])
    want = np.array([(14 + 1.5) * CELL * MPP.y, (20 + 1) * CELL * MPP.x])
    np.testing.assert_allclose(at, want - MPP.y / 2, atol=1e-6)


def test_a_result_from_elsewhere_is_listed_when_it_is_opened(panel, bench, tmp_path, qtbot):
    slide = make_slide(MPP.x)
    made = result_of(slide, "third", 0.6, wrong=False)
    made.save(tmp_path / "elsewhere" / slide.id)
    bench.show_result(tmp_path / "elsewhere" / slide.id)

    def listed():
        return [item.text(0) for item in panel._items()]

    qtbot.waitUntil(lambda: "third" in listed(), timeout=WAIT)
    assert sorted(listed()) == ["first", "second", "third"]


def test_pictures_side_by_side_move_as_one(panel, bench, qtbot):
    press(qtbot, panel._buttons["two"])
    cells = panel.canvases.cells
    assert [c.title.text().split("  ·")[0] for c in cells] == [
        one.method.name for one in panel.compared.opened
    ]
    own = bench.viewer.window._qt_viewer
    assert not own.isVisible()
    camera(cells[1].model).center = (0, 123.0, 77.0)
    camera(cells[1].model).zoom = 1.5
    for model in (bench.viewer, cells[0].model):
        assert tuple(camera(model).center[-2:]) == (123.0, 77.0)
        assert camera(model).zoom == 1.5
    cells[0].model.cursor.position = (100.0, 90.0)
    assert cells[1].cross.isVisible()
    assert not cells[0].cross.isVisible()
    press(qtbot, panel._buttons["four"])
    titles = [c.title.text() for c in panel.canvases.cells]
    assert len(titles) == 4
    assert "alone" in titles[0]
    assert titles[3].startswith("Agreement")
    press(qtbot, panel._buttons["off"])
    assert own.isVisible()
    assert not panel.canvases.cells


def test_blend_and_blink_cover_what_was_seen_and_give_it_back(panel, bench, qtbot):
    first = next(one for one in panel.compared.opened if one.method.name == "first")
    result = Result.load(first.folder)
    for data in result_layers(result, world=bench.slide.world):
        add_layer(bench.viewer, data)
    assert shown(bench, "map") == ["first: probability"]
    press(qtbot, panel._buttons["blend"])
    assert shown(bench, "map") == []
    panel.mix.setValue(0.25)
    heat = list(layers_of(bench.viewer, "compare"))
    assert [layer.opacity for layer in heat] == pytest.approx([0.75 * 0.75, 0.75 * 0.25])
    press(qtbot, panel._buttons["blink"])
    seen = shown(bench)
    assert len(seen) == 1
    panel.speed.setValue(0.2)
    qtbot.waitUntil(lambda: shown(bench) not in (seen, []), timeout=5000)
    assert "Now showing" in panel.now.text()
    press(qtbot, panel._buttons["off"])
    assert not list(layers_of(bench.viewer, "compare"))
    assert shown(bench, "map") == ["first: probability"]


def test_difference_and_agreement_maps(panel, bench, qtbot):
    press(qtbot, panel._buttons["difference"])
    (layer,) = layers_of(bench.viewer, "compare")
    values = np.asarray(layer.data[0])
    sign = 1 if panel.compared.comparison.names[0] == "second" else -1
    assert values[15, 21] == pytest.approx(sign * 0.75)
    assert abs(values[0, 0]) < 1e-6
    press(qtbot, panel._buttons["agreement"])
    (layer,) = layers_of(bench.viewer, "compare")
    assert (
        layer.data[15, 21] == panel.compared.comparison.agreement.channels.index("only second") + 1
    )
    assert panel.legend.isVisible()


def test_one_method_says_what_is_missing(panel, bench, qtbot):
    panel.choose("first")
    qtbot.waitUntil(lambda: len(panel.compared.opened) == 1, timeout=WAIT)
    press(qtbot, panel._buttons["difference"])
    assert "second method" in panel.why.text()
    assert not list(layers_of(bench.viewer, "compare"))
    press(qtbot, panel._buttons["two"])
    assert "alone" in panel.canvases.cells[0].title.text()
    item = next(i for i in panel._items() if i.text(0) == "second")
    item.setCheckState(0, Qt.CheckState.Checked)
    qtbot.waitUntil(lambda: len(panel.compared.opened) == 2, timeout=WAIT)
    assert [c.title.text()[:5] for c in panel.canvases.cells] in (
        ["first", "secon"],
        ["secon", "first"],
    )


def test_another_slide_ends_the_comparison(panel, bench, qtbot):
    press(qtbot, panel._buttons["blend"])
    layer = bench.slide.layer
    bench.viewer.layers.remove(layer)
    qtbot.waitUntil(lambda: panel.mode == "off", timeout=WAIT)
    assert not list(layers_of(bench.viewer, "compare"))
    assert not panel.methods.isVisible()
    press(qtbot, panel._buttons["two"])
    assert panel.why.text() == "Open a slide to compare methods on it."


def test_a_panel_that_is_closed_leaves_one_picture_and_comes_back(panel, bench, qtbot):
    own = bench.viewer.window._qt_viewer
    for mode in ("two", "blink"):
        press(qtbot, panel._buttons[mode])
        close_panel(qtbot, panel)
        assert not panel.isVisible()
        assert own.isVisible()
        assert not panel.canvases.cells
        assert not panel._beat.isActive()
        assert not list(layers_of(bench.viewer, "compare"))
        assert bench.open_panel("compare") is panel
        assert panel.isVisible()
        assert panel._buttons["off"].isChecked()


def test_closing_the_window_with_pictures_side_by_side_leaves_nothing(panel, bench, qtbot):
    press(qtbot, panel._buttons["four"])
    assert len(panel.canvases.cells) == 4
    bench.viewer.close()  # the fixtures look for widgets and threads that are left


def test_the_window_draws_again_where_pictures_side_by_side_have_moved_it(panel, bench, qtbot):
    press(qtbot, panel._buttons["two"])
    camera(panel.canvases.cells[0].model).zoom = 3.0
    drawn = []
    bench.viewer.window._qt_viewer.canvas._scene_canvas.events.draw.connect(drawn.append)
    press(qtbot, panel._buttons["off"])
    qtbot.waitUntil(lambda: bool(drawn), timeout=WAIT)
    before = len(drawn)
    camera(bench.viewer).zoom = 0.7  # else what is seen stays as it was for good
    qtbot.waitUntil(lambda: len(drawn) > before, timeout=WAIT)


def test_a_second_result_is_ticked_until_one_has_ticked_some(panel, bench, tmp_path, qtbot):
    def ticked():
        return sorted(item.text(0) for item in panel._ticked())

    assert ticked() == ["first", "second"]
    second = next(one.folder for one in panel.compared.opened if one.method.name == "second")
    aside = second.rename(tmp_path / "aside")
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: ticked() == ["first"], timeout=WAIT)
    aside.rename(second)
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: ticked() == ["first", "second"], timeout=WAIT)
    panel.choose("first")
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: not bench.background.busy, timeout=WAIT)
    assert ticked() == ["first"]


def test_the_result_of_a_region_says_so(panel, bench, qtbot):
    slide = make_slide(MPP.x)
    made = result_of(slide, "third", 0.9)
    made.settings = RunSettings(region=(100, 50, 400, 300))
    made.save(bench.results / "third" / slide.id)
    bench.results_changed.emit()
    qtbot.waitUntil(lambda: panel.methods.topLevelItemCount() == 3, timeout=WAIT)
    (item,) = (item for item in panel._items() if item.text(0) == "third")
    assert item.text(1) == "tumor 90.0% (region)"
    assert "region 100,50,400,300" in item.toolTip(1)
    panel.choose("third")
    qtbot.waitUntil(lambda: [o.method.name for o in panel.compared.opened] == ["third"])
    assert panel.compared.opened[0].title == "third  ·  tumor 90.0%  ·  region"
