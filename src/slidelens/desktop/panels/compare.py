"""The Compare panel: methods on one slide, side by side or overlaid."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtWidgets import QButtonGroup, QGridLayout, QLabel, QTreeWidgetItem

from slidelens.desktop.belonging import for_slide
from slidelens.desktop.comparing import (
    MODES,
    Compared,
    agreement_layer,
    agreement_legend,
    difference_layer,
    difference_legend,
    heat_layer,
    missing,
    open_methods,
    pictures,
)
from slidelens.desktop.panels.canvases import Canvases
from slidelens.desktop.panels.compare_rows import FOLDER, method_row, region_row
from slidelens.desktop.panels.drawing import LegendView
from slidelens.desktop.panels.parts import (
    Panel,
    boxed,
    button,
    caption,
    heading,
    row,
    slider,
    table,
)
from slidelens.desktop.panels.start import SlideLine
from slidelens.desktop.shown import (
    DRAWN,
    ShownSlide,
    add_layer,
    layers_of,
    layers_on,
    remove_layers,
)
from slidelens.desktop.state.library import Entry, entries
from slidelens.desktop.state.viewport import fit
from slidelens.desktop.window import look_at
from slidelens.desktop.world import described

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["ComparePanel"]

_MOST = 200  # regions that are listed
_OPACITY = 0.75


class ComparePanel(Panel):
    """Tick methods, choose how to view them, go to where they differ."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.mode = "off"
        self.compared = Compared((), None)
        self._entries: list[Entry] = []
        self._slide: ShownSlide | None = None
        self._hidden: list[Any] = []
        """Layers that were visible before the comparison covered them."""
        self._heat: list[Any] = []
        self._canvases: Canvases | None = None
        self._asked = 0
        self._picked = False
        """Whether the user has ticked methods for this slide."""
        self._build()
        self._load_soon = self._timer(0, self._load)
        self._beat = self._timer(800, self._next_blink, once=False)
        self.bench.slide_changed.connect(self._slide_changed)
        self.bench.results_changed.connect(self.refresh)
        self.bench.result_shown.connect(self.refresh)
        self._slide_changed()

    def refresh(self) -> None:
        """Read again which results there are for the slide."""
        slide = self.bench.slide
        if slide is None:
            self._take([])
            return
        folders = [self.bench.results, *self._shown_folders()]

        def take(found: list[Entry]) -> None:
            if self.bench.slide == slide:  # else that one's are on their way
                self._take(found)

        self.bench.background.run(lambda: for_slide(entries(folders), slide), take, owner=self)

    def set_mode(self, mode: str) -> None:
        """Compare in another way: a key of :data:`~slidelens.desktop.comparing.MODES`."""
        self.mode = mode
        self._buttons[mode].setChecked(True)
        self._show()

    def leave(self) -> None:
        """Return to the single view: without the panel nothing else leads there."""
        self.set_mode("off")

    def choose(self, *names: str) -> None:
        """Tick the methods of these names, and no others."""
        for item in self._items():
            on = item.text(0) in names
            item.setCheckState(0, Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)

    @property
    def canvases(self) -> Canvases:
        """The views side by side; made on first request."""
        if self._canvases is None:
            self._canvases = Canvases(self.bench.viewer)
            self._canvases.closed.connect(lambda: self.set_mode("off"))
        return self._canvases

    def _build(self) -> None:
        self.slide = SlideLine(self.bench)
        self.methods = table(["Method", "Slide score", "Call"], "Methods with a result", 110)
        self.methods.itemChanged.connect(self._ticks_changed)
        self.empty = caption()
        self._group = QButtonGroup(self)
        self._buttons: dict[str, Any] = {}
        grid = QGridLayout()
        grid.setSpacing(4)
        for number, (mode, (title, help_text)) in enumerate(MODES.items()):
            made = button(title, help_text, partial(self.set_mode, mode))
            made.setCheckable(True)
            self._group.addButton(made)
            self._buttons[mode] = made
            # Three that show views, then four that overlay them.
            place = (0, number * 4, 1, 4) if number < 3 else (1, (number - 3) * 3, 1, 3)
            grid.addWidget(made, *place)
        self._buttons["off"].setChecked(True)
        self.why = caption()
        self.mix = slider("Blend", "From the first method (0) to the second (1)", 0, 1, 2)
        self.mix.setValue(0.5)
        self.mix.valueChanged.connect(self._set_mix)
        seconds = "How long each method is shown, in seconds"
        self.speed = slider("Seconds per method", seconds, 0.2, 3, 1)
        self.speed.setValue(0.8)
        self.speed.valueChanged.connect(lambda s: self._beat.setInterval(round(1000 * s)))
        self.first, self.second = QLabel(), QLabel()
        ends = QGridLayout()
        ends.addWidget(self.first, 0, 0)
        ends.addWidget(self.second, 0, 1, Qt.AlignmentFlag.AlignRight)
        ends.addWidget(self.mix, 1, 0, 1, 2)
        self.mix_row = boxed(ends)
        self.speed_row = boxed(row(QLabel("Seconds per method"), self.speed, stretch=1))
        self.now = caption()
        self.legend = LegendView()
        self.agreed = caption()
        self.regions = table(["#", "Positive for", "mm²", "Spread"], "Disagreements", 170, wide=1)
        self.regions.setToolTip("Click a region, or step with the arrow keys, to go there")
        self.regions.currentItemChanged.connect(lambda item, _: self._go(item))
        self.regions.itemClicked.connect(lambda item, _: self._go(item))
        body = self.body
        body.addWidget(self.slide)
        body.addWidget(heading("Methods"))
        body.addWidget(self.empty)
        body.addWidget(self.methods)
        body.addWidget(heading("View"))
        body.addLayout(grid)
        for widget in (self.why, self.mix_row, self.speed_row, self.now, self.legend):
            body.addWidget(widget)
        body.addWidget(heading("Where they disagree"))
        body.addWidget(self.agreed)
        body.addWidget(self.regions)
        body.addStretch()

    def _timer(self, interval: int, then: Any, *, once: bool = True) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(once)
        timer.setInterval(interval)
        timer.timeout.connect(then)
        return timer

    def _items(self) -> list[QTreeWidgetItem]:
        found = (self.methods.topLevelItem(i) for i in range(self.methods.topLevelItemCount()))
        return [item for item in found if item is not None]

    def _slide_changed(self) -> None:
        slide = self.bench.slide
        if slide != self._slide:
            self._slide, self._picked = slide, False
            self.compared = Compared((), None)
            self._leave()
            self.set_mode("off")
        self.refresh()

    def _shown_folders(self) -> list[Path]:
        """Return the results that are in the window, from whatever folder."""
        from pathlib import Path

        slide = self.bench.slide
        if slide is None:
            return []
        found = (described(layer.metadata).get("path") for layer in self._heat_layers(slide))
        return [Path(path) for path in dict.fromkeys(found) if path]

    def _heat_layers(self, slide: ShownSlide) -> list[Any]:
        return list(layers_on(self.bench.viewer, slide, *DRAWN))

    def _take(self, found: list[Entry]) -> None:
        """List the methods; until the user has ticked some, the newest two are ticked."""
        ticked = {item.data(0, FOLDER) for item in self._ticked()}
        self._entries = found
        good = [str(entry.folder) for entry in found if not entry.error and not entry.misfit]
        if not (self._picked and ticked & set(good)):
            ticked = set(good[:2])
        with QSignalBlocker(self.methods):
            self.methods.clear()
            for entry in found:
                self.methods.addTopLevelItem(method_row(entry, str(entry.folder) in ticked))
        slide = self.bench.slide
        self.methods.setVisible(bool(found))
        self.empty.setVisible(not found)
        self.empty.setText(
            "Models that have run on the slide are listed here; tick two to compare them."
            if slide is None
            else "No results for this slide yet: run two models, then compare."
        )
        self._load()

    def _ticked(self) -> list[QTreeWidgetItem]:
        return [i for i in self._items() if i.checkState(0) == Qt.CheckState.Checked]

    def _ticks_changed(self) -> None:
        self._picked = True
        self._load_soon.start()

    def _load(self) -> None:
        """Open what is ticked, off the window's thread."""
        known = {str(entry.folder): entry.folder for entry in self._entries}
        folders = [known[item.data(0, FOLDER)] for item in self._ticked()]
        slide = self.bench.slide
        self._asked += 1
        asked = self._asked

        def take(compared: Compared) -> None:
            if asked == self._asked:  # otherwise another tick has overtaken it
                self.compared = compared
                self._list_regions()
                self._show()

        def failed(text: str) -> None:
            self.notice.say(text, "error")
            take(Compared((), None))

        if slide is None or not folders:
            take(Compared((), None))
            return
        self.bench.background.run(
            lambda: open_methods(folders, slide), take, owner=self, failed=failed
        )

    def _list_regions(self) -> None:
        found = self.compared.comparison
        regions = () if found is None else found.regions
        with QSignalBlocker(self.regions):
            self.regions.clear()
            for number, region in enumerate(regions[:_MOST], 1):
                self.regions.addTopLevelItem(region_row(number, region))
        self.regions.setVisible(bool(regions))
        if found is None:
            why = missing("agreement", self.compared) if len(self.compared.drawn) > 1 else ""
            hint = "Regions are listed once two methods with a map are ticked."
            self.agreed.setText(why or hint)
            return
        more = f" The {_MOST} largest are listed." if len(regions) > _MOST else ""
        count = "1 region" if len(regions) == 1 else f"{len(regions)} regions"
        many = f"{count} in dispute." if regions else "No region is in dispute."
        share = f"They agree on {found.agreed:.1%} of the cells."
        self.agreed.setText(f"Compared by {found.positive}. {share} {many}{more}")

    def _show(self) -> None:
        """Set the window to the choice."""
        slide, compared = self.bench.slide, self.compared
        nothing = "" if self.mode == "off" else "Open a slide to compare methods on it."
        why = nothing if slide is None else missing(self.mode, compared)
        self.why.setText(why)
        self.why.setVisible(bool(why))
        mode = "off" if why or slide is None else self.mode
        self._leave()
        if mode in ("two", "four"):
            assert slide is not None
            self.canvases.show_cells(pictures(mode, compared, slide, self._like(slide)))
            self.bench.beside = self.canvases.cells[0].model
        elif mode != "off":
            self._cover(mode)
        two = [one.method.name for one in compared.drawn[:2]]
        if len(two) == 2:
            self.first.setText(two[0])
            self.second.setText(two[1])
        self.mix_row.setVisible(mode == "blend")
        self.speed_row.setVisible(mode == "blink")
        self.now.setVisible(mode == "blink")
        found = compared.comparison
        meaning = None
        if found is not None and mode == "difference":
            meaning = difference_legend(found)
            self.now.setText(f"+1: only {two[0]} is sure.  −1: only {two[1]} is sure.")
            self.now.setVisible(True)
        elif found is not None and mode in ("agreement", "four") and self._agreement_seen(mode):
            meaning = agreement_legend(found)
        self.legend.show_legend(meaning)
        self.legend.setVisible(meaning is not None)

    def _agreement_seen(self, mode: str) -> bool:
        return mode == "agreement" or len(self.compared.opened) < 4

    def _like(self, slide: ShownSlide) -> dict[str, Any]:
        """Return the layers that already show the methods' maps."""
        shown = layers_on(self.bench.viewer, slide, "map")
        return {
            described(layer.metadata)["model"]: layer
            for layer in shown
            if described(layer.metadata)["kind"] == "probability"
        }

    def _cover(self, mode: str) -> None:
        """Put the comparison over the slide; what was visible there comes back later."""
        viewer, slide, found = self.bench.viewer, self.bench.slide, self.compared.comparison
        assert slide is not None
        assert found is not None
        self._hidden = [layer for layer in self._heat_layers(slide) if layer.visible]
        like = self._like(slide)
        for layer in self._hidden:
            layer.visible = False
        if mode == "difference":
            add_layer(viewer, difference_layer(found, slide))
        elif mode == "agreement":
            add_layer(viewer, agreement_layer(found, slide))
        else:
            drawn = self.compared.drawn[:2] if mode == "blend" else self.compared.drawn
            self._heat = [
                add_layer(viewer, heat_layer(one, slide, like, opacity=_OPACITY)) for one in drawn
            ]
            if mode == "blend":
                self._set_mix(self.mix.value())
            else:
                self._next_blink()
                self._beat.start()
        viewer.layers.selection.active = slide.layer

    def _leave(self) -> None:
        """Remove the comparison and show what was visible before."""
        self._beat.stop()
        self.bench.beside = None
        if self.bench.closed:
            return
        viewer = self.bench.viewer
        if self._canvases is not None and self._canvases.cells:
            self._canvases.clear()
        remove_layers(viewer, layers_of(viewer, "compare"))
        for layer in self._hidden:
            if layer in viewer.layers:
                layer.visible = True
        self._hidden, self._heat = [], []

    def _set_mix(self, value: float) -> None:
        if self.mode == "blend" and len(self._heat) == 2:
            self._heat[0].opacity = _OPACITY * (1 - value)
            self._heat[1].opacity = _OPACITY * value

    def _next_blink(self) -> None:
        """Show the next method, hide the others."""
        if self.bench.closed or not self._heat:
            self._beat.stop()
            return
        seen = [number for number, layer in enumerate(self._heat) if layer.visible]
        turn = (seen[0] + 1) % len(self._heat) if len(seen) == 1 else 0
        for number, layer in enumerate(self._heat):
            layer.visible = number == turn
        self.now.setText(f"Now showing: <b>{self.compared.drawn[turn].title}</b>")

    def _go(self, item: QTreeWidgetItem | None) -> None:
        """Go to a region in dispute."""
        found, slide = self.compared.comparison, self.bench.slide
        if item is None or found is None or slide is None:
            return
        region = found.regions[self.regions.indexOfTopLevelItem(item)]
        look = fit(region.box, self.bench.canvas, slide.world, margin=0.5)
        look_at(self.bench.viewer, look)
