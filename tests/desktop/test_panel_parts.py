"""What every panel has: a notice and a foot that stay in sight, a tab that can be read."""

from __future__ import annotations

import pytest
from hands import press
from known_slides import make_result, make_slide
from qtpy.QtWidgets import QTabBar

from slidelens.desktop.docks import PANELS
from slidelens.desktop.layers import slide_layer
from slidelens.desktop.panels.drawing import Curve, Curves
from slidelens.desktop.panels.parts import breakable, caption
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.geometry import Box, Mpp
from slidelens.maps.result import Result
from slidelens.maps.trajectory import Trajectory, Window

pytestmark = pytest.mark.gui

WAIT = 40_000


def test_what_a_run_is_started_and_watched_with_is_in_sight_on_a_laptop(bench, qtbot):
    bench.viewer.window.resize(1366, 700)
    bench.open_panel("navigator")
    panel = bench.open_panel("run")
    qtbot.waitUntil(lambda: bool(bench.cards), timeout=180_000)
    assert panel.scrolled.verticalScrollBar().maximum() > 0  # the rest does not fit
    for widget in (panel.run_button, panel.stop_button, panel.why):
        assert widget.visibleRegion().boundingRect() == widget.rect()
    panel.scrolled.verticalScrollBar().setValue(9999)
    panel.notice.say("/a/b/c.geojson: " + "a sentence that goes on and on. " * 40, "error")
    qtbot.waitUntil(lambda: panel.notice.isVisible() and panel.notice.height() > 60)
    assert not panel.notice.visibleRegion().isEmpty()
    assert panel.notice.height() < panel.height() / 2
    assert not panel.run_button.visibleRegion().isEmpty()


def test_the_tabs_of_all_panels_can_be_read(bench, qtbot):
    for name in PANELS:
        bench.open_panel(name)
    window = bench.viewer.window._qt_window
    # Qt 6.11 keeps for a moment what the panels had for tabs on the way.
    qtbot.waitUntil(lambda: len(window.findChildren(QTabBar)) == 1)
    tabs = window.findChild(QTabBar)
    names = {tabs.tabText(number) for number in range(tabs.count())}
    assert names == {title.split()[0] for title in PANELS.values()} - {"Navigator"}
    needed = sum(tabs.fontMetrics().horizontalAdvance(name) + 14 for name in names)
    assert needed <= bench.open_panel("run").width()


def test_the_windows_of_one_model_are_hidden_with_its_maps(bench, qtbot):
    slide, mpp = make_slide(0.5), Mpp(0.5, 0.5)
    for model in ("looks", "maps"):
        made = make_result(slide, mpp, model)
        windows = (
            Window(0, None, Box(0, 0, 900, 700), 4.0),
            Window(1, 0, Box(100, 100, 200, 200), 1.0, (0.2, 0.8)),
        )
        looked = Trajectory(windows if model == "looks" else (), tuple(made.classes), mpp)
        maps, known = list(made.maps.values()), made.probabilities
        made = Result(made.slide, made.model, known, maps=maps, trajectory=looked)
        made.save(bench.results / model / slide.id)
    add_layer(bench.viewer, slide_layer(slide))

    def seen():
        kinds = ("map", "regions", "windows", "path")
        shown = layers_of(bench.viewer, *kinds)
        return {layer.name.partition(":")[0] for layer in shown if layer.visible}

    for model in ("looks", "maps"):
        done = []
        bench.show_result(bench.results / model / slide.id, then=done.append)
        qtbot.waitUntil(lambda d=done: bool(d), timeout=WAIT)
        assert seen() == {model}


def test_drawn_text_is_dark_in_the_light_theme(bench, qtbot):
    legend = bench.open_panel("maps").legend
    assert legend.ink.lightness() > 180
    bench.viewer.theme = "light"
    qtbot.waitUntil(lambda: legend.ink.lightness() < 80, timeout=WAIT)


def test_what_is_said_again_takes_its_room_without_a_scroll_bar(bench, qtbot):
    notice = bench.open_panel("run").notice
    text = "; ".join(f"demo-model-{number}: tumor 7.2%" for number in range(6))
    for _ in range(3):
        notice.say("")
        qtbot.wait(50)
        notice.say(text, "good")
        qtbot.wait(50)
        assert not notice._text.verticalScrollBar().isVisible()
        assert notice._text.height() >= notice._text.document().size().height()


def test_of_many_warnings_the_first_are_shown_and_all_on_a_click(bench, qtbot):
    notice = bench.open_panel("run").notice
    found = [f"s{number}: tumor 7.2%" for number in range(300)]
    warnings = [f"s{number}.svs: is coarse" for number in range(200)]
    notice.say("\n".join(found), "good", warnings=warnings)
    first = [*found[:5], "and 295 more", *warnings[:5], "and 195 more warnings"]
    assert notice.text.splitlines() == first
    press(qtbot, notice._more)
    assert notice.text.splitlines() == [*found, *warnings]
    assert not notice._more.isVisible()
    assert notice._text.verticalScrollBar().maximum() > 0
    notice.say("", warnings=warnings[:6])
    assert notice.text.splitlines() == warnings[:6]
    assert not notice._more.isVisible()


def test_long_names_are_wrapped_and_what_is_copied_is_as_it_was(bench, qtbot):
    notice, slide = bench.open_panel("run").notice, "TCGA_CR_7395_01A_" * 5 + "x.svs"
    notice.say(f"/{slide}: is gone.", "error")
    qtbot.wait(50)
    lines = notice._text.document().firstBlock().layout().lineCount()
    assert lines > 1
    assert notice.text == f"/{slide}: is gone."
    assert not notice._text.horizontalScrollBar().maximum()
    label = caption(breakable(slide))
    qtbot.addWidget(label)
    assert label.heightForWidth(200) > 2 * label.fontMetrics().height()
    assert breakable("a - b. -0.5, a_b.svs") == "a - b. -0.5, a_\u200bb.\u200bsvs"


def test_small_numbers_beside_a_curve_are_not_cut(qtbot):
    chart = Curves("Loss", 0.0)
    qtbot.addWidget(chart)
    chart.resize(340, 120)
    chart.show_curves([Curve("training", "#56b4e9", (0.000921, 0.0002))])
    drawn = chart.grab().toImage()
    edge = {drawn.pixelColor(x, y).name() for x in (0, 1) for y in range(chart.height())}
    assert len(edge) == 1


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_boxes_to_tick_are_seen(bench, qtbot, theme):
    bench.viewer.theme = theme
    models = bench.open_panel("run").models
    qtbot.waitUntil(lambda: models.list.count() > 1, timeout=180_000)
    row = models.list.visualItemRect(models.list.item(1))  # the first is the current one
    box = models.list.viewport().grab(row).toImage().copy(0, 0, row.height() + 4, row.height())
    grey = {
        box.pixelColor(x, y).lightness() for x in range(box.width()) for y in range(box.height())
    }
    assert max(grey) - min(grey) > 50
