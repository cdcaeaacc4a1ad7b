"""The Navigator in a real window: overview, place, magnification, bookmarks, scale bar."""

from __future__ import annotations

import numpy as np
import pytest
from hands import drag, press
from known_slides import make_slide
from qtpy.QtCore import QPoint, Qt

from slidelens.desktop.layers import slide_layer
from slidelens.desktop.shown import add_layer
from slidelens.desktop.state.bookmarks import Bookmark, Marked
from slidelens.desktop.state.viewport import Look
from slidelens.desktop.window import camera, overlays
from slidelens.geometry import Mpp, Size

pytestmark = pytest.mark.gui

WAIT = 40_000


@pytest.fixture
def panel(bench, qtbot):
    panel = bench.open_panel("navigator")
    assert panel.empty.isVisible()
    add_layer(bench.viewer, slide_layer(make_slide(0.5)))  # 1000 x 800 px, 500 x 400 µm
    bench.viewer.reset_view()
    qtbot.waitUntil(lambda: panel.overview.isVisible(), timeout=WAIT)
    return panel


def place(panel):
    """Where the camera looks, x and y in µm."""
    own = camera(panel.bench.viewer)
    return Look(own.center[-2], own.center[-1], own.zoom).place(panel.bench.slide.world)


def kept(bench, name, mpp=0.5):
    """The bookmarks on disk of a slide in memory."""
    return bench.memory.bookmarks(Marked(name, None, Size(1000, 800), Mpp(mpp, mpp)))


def test_click_and_drag_on_the_overview_move_the_picture(panel, bench, qtbot):
    view = panel.overview
    x, y, w, h = view.frame.box(bench.slide.box)
    at = QPoint(round(x + w / 4), round(y + h / 4))
    qtbot.mouseClick(view, Qt.MouseButton.LeftButton, pos=at)
    step = 500 / w
    assert place(panel) == pytest.approx((125, 100), abs=2 * step)
    drag(view, at, QPoint(round(x + w / 2), round(y + h / 2)))
    assert place(panel) == pytest.approx((250, 200), abs=2 * step)
    drag(view, at, QPoint(5000, 5000))
    assert place(panel) == pytest.approx((500, 400))


def test_box_is_what_the_window_shows_and_the_picture_is_the_slide(panel, bench, qtbot):
    panel.magnify(20)
    panel.go(250, 200)
    height, width = bench.canvas
    qtbot.waitUntil(lambda: "20x" in panel.look.text(), timeout=WAIT)
    seen = panel.overview._seen
    assert (seen.w, seen.h) == pytest.approx((width, height))  # 0.5 µm/px: a px is a px
    assert (seen.x + seen.w / 2, seen.y + seen.h / 2) == pytest.approx((500, 400))
    assert "Centre at 250, 200 µm" in panel.where.text()
    qtbot.waitUntil(lambda: panel.overview._image is not None, timeout=WAIT)
    picture = panel.overview.grab().toImage()
    x, y, w, h = panel.overview.frame.box(bench.slide.box)
    ratio = picture.width() / panel.overview.width()
    square = picture.pixelColor(round((x + w * 0.33) * ratio), round((y + h * 0.28) * ratio))
    assert square.red() > square.green() + 60


@pytest.mark.parametrize("times", [5, 10, 20, 40])
def test_magnifications_of_objectives(panel, bench, qtbot, times):
    before = place(panel)
    press(qtbot, panel.times[times])
    assert camera(bench.viewer).zoom == pytest.approx(times / 10)
    assert place(panel) == pytest.approx(before)


def test_place_that_is_typed(panel, qtbot):
    panel.place.setText("0.1 mm, 0.2 mm")
    qtbot.keyClick(panel.place, Qt.Key.Key_Return)
    assert place(panel) == pytest.approx((100, 200))
    panel.place.setText("9 mm, 0.2 mm")
    press(qtbot, panel._go)
    assert "ends at 500, 400 µm" in panel.notice.text
    assert place(panel) == pytest.approx((100, 200))


def test_bookmarks_are_kept_renamed_and_removed(panel, bench, qtbot):
    panel.go(120, 80, 0.25)
    press(qtbot, panel._add)
    item = panel.marks.item(0)
    assert item.text() == "Place 1"
    item.setText("Mitosis")
    (mark,) = kept(bench, "square")
    assert mark.name == "Mitosis"
    assert (mark.x, mark.y, mark.scale) == pytest.approx((240, 160, 0.5)), "in level-0 px"
    press(qtbot, panel.fit)
    assert camera(bench.viewer).zoom < 4
    panel.marks.itemClicked.emit(panel.marks.item(0))
    assert place(panel) == pytest.approx((120, 80))
    assert camera(bench.viewer).zoom == pytest.approx(4)
    panel.marks.setCurrentRow(0)
    press(qtbot, panel._remove)
    assert kept(bench, "square") == []
    press(qtbot, panel.notice._action)
    assert [m.name for m in kept(bench, "square")] == ["Mitosis"]


def test_scale_bar_goes_and_stays_away(panel, bench):
    from slidelens.desktop.window import dress

    dress(bench.viewer)
    assert overlays(bench.viewer)[0].visible
    panel.bar.setChecked(False)
    dress(bench.viewer)
    assert not overlays(bench.viewer)[0].visible


def test_slide_without_resolution_has_no_objectives(panel, bench, qtbot):
    bench.viewer.layers.clear()
    qtbot.waitUntil(lambda: panel.empty.isVisible(), timeout=WAIT)
    add_layer(bench.viewer, slide_layer(make_slide(None, "bare")))
    qtbot.waitUntil(lambda: panel.overview.isVisible(), timeout=WAIT)
    assert not panel.times[20].isVisible()
    assert "slide px per screen px" in panel.look.text()
    assert panel.place.placeholderText().endswith("px")
    np.testing.assert_allclose(place(panel), (500, 400), atol=1)


def test_a_removed_bookmark_comes_back_on_its_own_slide(panel, bench, qtbot):
    panel.go(120, 80, 0.25)
    press(qtbot, panel._add)
    press(qtbot, panel._add)
    panel.marks.setCurrentRow(0)
    press(qtbot, panel._remove)
    other = Marked("other", None, Size(1000, 800), Mpp(0.5, 0.5))
    bench.memory.set_bookmarks(other, [Bookmark("important", 1, 2, 3)])
    bench.viewer.layers.clear()
    add_layer(bench.viewer, slide_layer(make_slide(0.5, "other")))
    qtbot.waitUntil(lambda: panel.marks.item(0).text() == "important", timeout=WAIT)
    press(qtbot, panel.notice._action)
    assert [m.name for m in kept(bench, "other")] == ["important"]
    assert [m.name for m in kept(bench, "square")] == ["Place 1", "Place 2"]
    assert panel.marks.item(0).text() == "important"


def test_a_bookmark_holds_at_another_resolution(panel, bench, qtbot):
    panel.go(120, 80, 0.25)
    press(qtbot, panel._add)
    bench.viewer.layers.clear()
    qtbot.waitUntil(lambda: panel.empty.isVisible(), timeout=WAIT)
    add_layer(bench.viewer, slide_layer(make_slide(None)))
    qtbot.waitUntil(lambda: panel.marks.isVisible(), timeout=WAIT)
    panel.marks.itemClicked.emit(panel.marks.item(0))
    assert place(panel) == pytest.approx((240, 160))
    assert camera(bench.viewer).zoom == pytest.approx(2)
    assert panel.marks.item(0).toolTip() == "240, 160 px"
