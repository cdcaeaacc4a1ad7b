from __future__ import annotations

import numpy as np
import pytest
from hands import press
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QToolButton
from test_windows import trajectory as trajectory

from slidelens.desktop.display import style_of
from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.shown import add_layer
from slidelens.maps.result import Result

pytestmark = pytest.mark.gui


@pytest.fixture
def panel(bench, case, qtbot):
    panel = bench.open_panel("maps")
    assert "Open a slide to begin" in panel.empty.text()
    for data in [slide_layer(case.slide), *result_layers(case.result, case.slide)]:
        add_layer(bench.viewer, data)
    bench.viewer.layers.selection.active = bench.viewer.layers["oracle: probability"]
    qtbot.waitUntil(
        lambda: panel.layer is bench.viewer.layers["oracle: probability"], timeout=30_000
    )
    return panel


def test_threshold_opacity_and_colours_of_the_chosen_map(panel, bench, qtbot):
    layer = panel.layer
    panel.threshold.setValue(0.4)
    panel.opacity.setValue(0.5)
    panel.colormap.setCurrentText("magma")
    panel.fade.setChecked(False)
    assert style_of(layer).threshold == pytest.approx(0.4)
    assert style_of(layer).colormap == "magma"
    assert layer.opacity == 0.5
    alpha = layer.colormap.map(np.array([0.3, 0.5], np.float32))[:, 3]
    assert alpha[0] == 0
    assert alpha[1] == pytest.approx(0.8)
    qtbot.waitUntil(lambda: "cells are at 0.4 or above" in panel.share.text(), timeout=30_000)


def test_dragging_in_the_histogram_sets_the_threshold(panel, qtbot):
    qtbot.waitUntil(lambda: bool(panel.share.text()), timeout=30_000)
    view = panel.histogram
    at = QPoint(2 + (view.width() - 4) // 4, 20)
    qtbot.mousePress(view, Qt.MouseButton.LeftButton, pos=at)
    assert panel.threshold.value() == pytest.approx(0.25, abs=0.01)
    qtbot.mouseRelease(view, Qt.MouseButton.LeftButton, pos=at)


def test_ticks_and_visibility_follow_each_other(panel, bench):
    layer = bench.viewer.layers["oracle: regions"]
    item = next(item for one, item in panel._rows if one is layer)
    item.setCheckState(0, Qt.CheckState.Unchecked)
    assert not layer.visible
    layer.visible = True
    assert item.checkState(0) == Qt.CheckState.Checked


def test_names_and_opacity_of_layers_are_followed(panel, bench):
    layer = panel.layer
    layer.name = "what I call it"
    layer.opacity = 0.25
    assert "what I call it" in panel.values()
    assert panel.opacity.value() == 0.25
    bench.viewer.layers["oracle: regions"].opacity = 0.5
    assert panel.opacity.value() == 0.25


def test_values_under_the_pointer(panel, bench, case, qtbot):
    layer = panel.layer
    hot = np.argwhere(np.asarray(layer.data[0]) > 0.5)[0]
    bench.viewer.cursor.position = tuple(layer.data_to_world(hot))
    value = float(np.asarray(layer.data[0])[tuple(hot)])
    expected = f"tumor {value:.3f}"
    qtbot.waitUntil(lambda: panel.values()["oracle: probability"] == expected, timeout=30_000)
    bench.viewer.cursor.position = (-1e4, -1e4)
    qtbot.waitUntil(lambda: panel.values()["oracle: probability"] == "–", timeout=30_000)


def test_regions_have_a_legend_of_classes_and_no_threshold(panel, bench):
    item = next(i for layer, i in panel._rows if layer.name == "oracle: regions")
    panel.tree.setCurrentItem(item)
    assert not panel.threshold.isVisible()
    assert panel.opacity.isVisible()
    assert panel.legend.isVisible()


def test_the_controls_follow_the_ends_of_the_colours(panel, qtbot):
    layer = panel.layer
    panel.threshold.setValue(0.6)
    layer.contrast_limits = (0, 0.8)
    qtbot.waitUntil(lambda: panel.legend._legend.high == 0.8, timeout=30_000)
    assert panel.threshold.value() == pytest.approx(0.6)
    assert panel.threshold.maximum() == 1
    assert style_of(layer).threshold == pytest.approx(0.6)


def test_windows_that_a_model_looked_through_can_be_flown_through(
    panel, bench, case, trajectory, tmp_path, qtbot
):
    assert panel.player.isHidden()
    case.result._trajectory = trajectory
    case.result.save(tmp_path / "tour")
    result = Result.load(tmp_path / "tour")
    for data in result_layers(result, case.slide, tissue=False):
        layer = add_layer(bench.viewer, data)  # the last one is of the windows
    qtbot.waitUntil(panel.player.isVisible, timeout=30_000)
    went = []
    panel.player.went.connect(went.append)
    press(qtbot, panel.player.findChildren(QToolButton)[-1])  # the next window
    assert went == [1]
    assert panel.player._clicked in layer.mouse_drag_callbacks
    bench.viewer.layers.remove(layer)
    qtbot.waitUntil(panel.player.isHidden, timeout=30_000)
    assert not layer.mouse_drag_callbacks
