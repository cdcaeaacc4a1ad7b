"""The Navigator: overview, position, magnification, bookmarks, scale bar."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtGui import QKeySequence
from qtpy.QtWidgets import QCheckBox, QLabel, QLineEdit, QListWidget, QListWidgetItem

from slidelens.desktop.docks import PANELS
from slidelens.desktop.keys import KEYS
from slidelens.desktop.panels.overview import OverviewView
from slidelens.desktop.panels.parts import Panel, boxed, button, caption, heading, row
from slidelens.desktop.panels.start import SlideLine
from slidelens.desktop.qt import Shortcut
from slidelens.desktop.state.bookmarks import Bookmark, Marked
from slidelens.desktop.state.viewport import (
    OBJECTIVES,
    Look,
    fit,
    parse_place,
    place_text,
    um_per_pixel,
)
from slidelens.desktop.window import camera, look_at, magnification, overlays

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.desktop.shown import ShownSlide

__all__ = ["NavigatorPanel"]

_NO_SLIDE = (
    "No slide at hand? <i>File > Open Sample > SlideLens</i> makes one.<br><br>All panels are in "
    "the menu <i>Plugins > SlideLens</i>, and a key away:<br>"
    + "<br>".join(f"{key}: {PANELS[name]}" for key, name in KEYS.items() if name in PANELS)
)
_LOOK_MS = 40
_SIDE = 640  # px: longest side of the overview's picture


class NavigatorPanel(Panel):
    """Shows the position on the slide, and goes to others."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._slide: ShownSlide | None = None
        self._marks: list[Bookmark] = []
        self._build()
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.setInterval(_LOOK_MS)
        self._soon.timeout.connect(self._look)
        own = camera(self.bench.viewer)
        own.events.center.connect(self._moved)
        own.events.zoom.connect(self._moved)
        overlays(self.bench.viewer)[0].events.visible.connect(self._bar_changed)
        self.bench.slide_changed.connect(self._slide_changed)
        self._slide_changed()

    def go(self, x: float, y: float, scale: float | None = None) -> None:
        """Go to a position in the world's unit; ``scale`` in units per screen px, if it changes."""
        if self._slide is None:
            return
        now = self._camera()
        wanted = Look.at(x, y, 1 / now.zoom if scale is None else scale, self._slide.world)
        look_at(self.bench.viewer, wanted)

    def magnify(self, times: float) -> None:
        """Show the middle as an objective of this magnification would."""
        if self._slide is not None:
            x, y = self._camera().place(self._slide.world)
            self.go(x, y, um_per_pixel(times))

    def whole(self) -> None:
        """Show the whole slide."""
        slide = self._slide
        if slide is not None:
            look_at(self.bench.viewer, fit(slide.box, self.bench.canvas, slide.world, margin=0.05))

    def add_bookmark(self) -> None:
        """Bookmark this place."""
        slide = self._slide
        if slide is None:
            return
        look = self._camera()
        taken = {mark.name for mark in self._marks}
        name = next(n for i in range(1, 10_000) if (n := f"Place {i}") not in taken)
        (x, y), mpp = look.place(slide.world), slide.world.mpp
        mark = Bookmark(name, x / mpp.x, y / mpp.y, 1 / (look.zoom * mpp.x))
        self._keep([*self._marks, mark])

    def _build(self) -> None:
        self.overview = OverviewView()
        self.overview.chosen.connect(self._chosen)
        self.empty, self.hint = SlideLine(self.bench), caption(_NO_SLIDE)
        self.where = caption()
        self.place = QLineEdit()
        self.place.setPlaceholderText("x, y in µm")
        self.place.setAccessibleName("Place to go to")
        self.place.setToolTip(
            "For example 1250, 3400 or 1.2 mm 3.4 mm or 800px 900px; then press Enter"
        )
        self.place.returnPressed.connect(self._go_to_text)
        self._go = button("Go", "Go to the place", self._go_to_text)
        self.times = {
            times: button(
                f"{times}x",
                f"As with a {times}x objective: {um_per_pixel(times):g} µm per screen px",
                partial(self.magnify, times),
            )
            for times in OBJECTIVES
        }
        self.fit = button("Fit", "The whole slide", self.whole)
        for made in (*self.times.values(), self.fit):
            made.setMinimumWidth(0)
        self.look = QLabel()
        self.bar = QCheckBox("Scale bar")
        self.bar.setToolTip("Show a scale bar on the picture")
        self.bar.setChecked(True)
        self.bar.toggled.connect(self._show_bar)
        self.marks = QListWidget()
        self.marks.setAccessibleName("Bookmarks")
        self.marks.setToolTip("Click to go there; double-click to rename; Delete removes")
        self.marks.setFixedHeight(110)
        self.marks.itemClicked.connect(self._go_to_mark)
        self.marks.itemActivated.connect(self._go_to_mark)
        self.marks.itemChanged.connect(self._renamed)
        self._add = button("Add", "Bookmark this place and magnification", self.add_bookmark)
        self._remove = button("Remove", "Delete the selected bookmark", self._forget)
        gone = Shortcut(QKeySequence("Delete"), self.marks)
        gone.setContext(Qt.ShortcutContext.WidgetShortcut)  # Delete means other things elsewhere
        gone.activated.connect(self._forget)
        self.no_marks = caption("No bookmarks on this slide yet.")
        layout = row(*self.times.values(), self.fit)
        self.controls = [
            self.overview,
            boxed(row(self.look, self.bar, stretch=0)),
            boxed(layout),
            self.where,
            boxed(row(self.place, self._go, stretch=0)),
            boxed(row(heading("Bookmarks"), self._add, self._remove, stretch=0)),
            self.no_marks,
            self.marks,
        ]
        for widget in (self.empty, self.hint, *self.controls):
            self.body.addWidget(widget)
        self.body.addStretch()

    def _camera(self) -> Look:
        own = camera(self.bench.viewer)
        return Look(float(own.center[-2]), float(own.center[-1]), float(own.zoom))

    def _moved(self) -> None:
        if not self._soon.isActive():
            self._soon.start()

    def _slide_changed(self) -> None:
        slide = self.bench.slide
        before, self._slide = self._slide, slide
        for widget in self.controls:
            widget.setVisible(slide is not None)
        for widget in (self.empty, self.hint):
            widget.setVisible(slide is None)
        if slide is None:
            self.overview.show_slide(None)
            return
        if before is None or before.layer is not slide.layer:
            self.overview.show_slide(slide)
            self._fetch(slide)
        known = slide.world.unit != "pixel"
        for made in self.times.values():
            made.setVisible(known)
        unit = "µm" if known else "px"
        self.place.setPlaceholderText(f"Go to x, y in {unit}")
        self._marks = self.bench.memory.bookmarks(_marked(slide))
        self._show_marks()
        self._bar_changed()
        self._look()

    def _fetch(self, slide: ShownSlide) -> None:
        """Read the slide's smallest level, off the window's thread."""

        def show(pixels: NDArray[np.uint8]) -> None:
            if self._slide is not None and self._slide.layer is slide.layer:
                self.overview.show_pixels(pixels)

        levels = slide.layer.data
        smallest = levels[-1] if slide.layer.multiscale else levels
        self.bench.background.run(lambda: _small(smallest), show, owner=self)

    def _look(self) -> None:
        """Show the current position."""
        slide = self._slide
        if slide is None or self.bench.closed:
            return
        look = self._camera()
        self.overview.show_box(look.box(self.bench.canvas, slide.world))
        self.where.setText(f"Centre at {place_text(*look.place(slide.world), slide.world)}")
        if slide.world.unit == "pixel":
            self.look.setText(f"<b>{1 / look.zoom:.3g} slide px per screen px</b>")
        else:
            self.look.setText(f"<b>{magnification(1 / look.zoom)}</b>")

    def _chosen(self, x: float, y: float) -> None:
        if self._slide is not None:
            mpp = self._slide.world.mpp
            self.go(x * mpp.x, y * mpp.y)
            self._look()  # the box follows the pointer at once

    def _go_to_text(self) -> None:
        slide, text = self._slide, self.place.text().strip()
        if slide is None or not text:
            return
        try:
            place = parse_place(text, slide.world, slide.size)
        except ValueError as error:
            self.notice.say(str(error), "error")
            return
        self.notice.say("")
        self.go(*place)

    def _bar_changed(self) -> None:
        """Follow the scale bar, which napari's View menu shows and hides too."""
        with QSignalBlocker(self.bar):
            self.bar.setChecked(bool(overlays(self.bench.viewer)[0].visible))

    def _show_bar(self, on: bool) -> None:
        overlays(self.bench.viewer)[0].visible = on

    def _keep(self, marks: list[Bookmark]) -> None:
        if self._slide is not None:
            self._marks = marks
            self.bench.memory.set_bookmarks(_marked(self._slide), marks)
            self._show_marks()

    def _show_marks(self) -> None:
        with QSignalBlocker(self.marks):
            self.marks.clear()
            for mark in self._marks:
                item = QListWidgetItem(mark.name)
                item.setFlags(item.flags() | Qt.ItemFlag.ItemIsEditable)
                assert self._slide is not None
                world = self._slide.world
                place = place_text(mark.x * world.mpp.x, mark.y * world.mpp.y, world)
                item.setToolTip(place)
                self.marks.addItem(item)
        shown = bool(self._marks) and self._slide is not None
        self.marks.setVisible(shown)
        self._remove.setVisible(shown)
        self.no_marks.setVisible(not shown)
        if self._slide is not None:
            self.overview.show_marks([(mark.x, mark.y) for mark in self._marks])

    def _go_to_mark(self, item: QListWidgetItem) -> None:
        mark = self._marks[self.marks.row(item)]
        if self._slide is not None:
            mpp = self._slide.world.mpp
            self.go(mark.x * mpp.x, mark.y * mpp.y, mark.scale * mpp.x)

    def _renamed(self, item: QListWidgetItem) -> None:
        number = self.marks.row(item)
        name = item.text().strip() or self._marks[number].name
        marks = list(self._marks)
        marks[number] = marks[number]._replace(name=name)
        self._keep(marks)

    def _forget(self) -> None:
        number = self.marks.currentRow()
        if not 0 <= number < len(self._marks):
            return
        marks = list(self._marks)
        assert self._slide is not None
        slide, mark = _marked(self._slide), marks.pop(number)
        self._keep(marks)
        said = f"{mark.name} was removed."
        self.notice.say(said, action="Undo", then=lambda: self._bring_back(slide, mark, number))

    def _bring_back(self, slide: Marked, mark: Bookmark, number: int) -> None:
        """Restore a bookmark at its place, on its own slide, whichever is shown now."""
        marks = self.bench.memory.bookmarks(slide)
        marks.insert(number, mark)
        self.bench.memory.set_bookmarks(slide, marks)
        if self._slide is not None and _marked(self._slide).key == slide.key:
            self._marks = marks
            self._show_marks()


def _marked(slide: ShownSlide) -> Marked:
    return Marked(slide.id, slide.path, slide.size, slide.world.mpp)


def _small(level: Any) -> NDArray[np.uint8]:
    """Read a level and thin it out to the size of an overview."""
    pixels = np.asarray(level)
    step = -(-max(pixels.shape[:2]) // _SIDE)
    height, width = (side // step for side in pixels.shape[:2])
    blocks = pixels[: height * step, : width * step, :3]
    blocks = blocks.reshape(height, step, width, step, 3)
    return np.asarray(blocks.mean((1, 3)), np.uint8)
