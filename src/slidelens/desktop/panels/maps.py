"""The Maps panel: values under the pointer, colours, threshold and histogram of each map."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QFormLayout,
    QHeaderView,
    QTreeWidget,
    QTreeWidgetItem,
    QWidget,
)

from slidelens.desktop.display import (
    CHOICES,
    Histogram,
    histogram,
    legend,
    read_values,
    restyle,
    style_of,
    top_of,
)
from slidelens.desktop.panels.drawing import HistogramView, LegendView
from slidelens.desktop.panels.parts import Panel, calm, caption, heading, slider
from slidelens.desktop.player import TrajectoryPlayer
from slidelens.desktop.shown import DRAWN, layers_on
from slidelens.desktop.world import described
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from slidelens.desktop.display import Style
    from slidelens.desktop.world import World
    from slidelens.maps.trajectory import Trajectory

__all__ = ["MapsPanel"]

_POINTER_MS = 60
_KINDS = (*DRAWN, "annotations", "tissue", "grid")


class MapsPanel(Panel):
    """The layers on the current slide: show them, read values, hide values below a threshold."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self._rows: list[tuple[Any, QTreeWidgetItem]] = []
        self._counted: Any = None
        """Weak reference to the layer whose histogram is shown."""
        self._toured: Any = None
        """Weak reference to the layer whose windows the player has, or is about to get."""
        self._build()
        viewer = self.bench.viewer
        self._pointer = QTimer(self)
        self._pointer.setSingleShot(True)
        self._pointer.setInterval(_POINTER_MS)
        self._pointer.timeout.connect(self._read)
        self._soon = QTimer(self)
        self._soon.setSingleShot(True)
        self._soon.timeout.connect(self._fill)
        self._rescaled = QTimer(self)
        self._rescaled.setSingleShot(True)
        self._rescaled.setInterval(_POINTER_MS)
        self._rescaled.timeout.connect(self._show)
        for event in (viewer.layers.events.inserted, viewer.layers.events.removed):
            event.connect(self._changed)
        viewer.layers.selection.events.active.connect(self._changed)
        viewer.cursor.events.position.connect(self._moved)
        self.bench.slide_changed.connect(self._fill)
        self._fill()

    @property
    def layer(self) -> Any:
        """The layer that the controls are about, or ``None``."""
        item = self.tree.currentItem()
        found = [layer for layer, own in self._rows if own is item]
        return found[0] if found and found[0] in self.bench.viewer.layers else None

    def values(self) -> dict[str, str]:
        """Return the value shown for each layer, by its name."""
        return {layer.name: item.text(1) for layer, item in self._rows}

    def _build(self) -> None:
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Layer", "Under the pointer"])
        self.tree.setRootIsDecorated(False)
        self.tree.setAccessibleName("Maps on this slide")
        self.tree.setFixedHeight(150)
        header = self.tree.header()
        header.setStretchLastSection(False)
        header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        header.setSectionResizeMode(1, QHeaderView.ResizeMode.ResizeToContents)
        self.empty = caption()
        self.title = heading("")
        self.threshold = slider("Hide below", "Values below this are hidden", 0, 1, 3)
        self.opacity = slider("Opacity", "Lower values show more of the slide", 0, 1, 2)
        self.colormap = QComboBox()
        calm(self.colormap).setToolTip("Colours from low to high values")
        self.colormap.addItems(CHOICES)
        self.fade = QCheckBox("low values fade")
        self.fade.setToolTip("Low values are more transparent, so that the tissue stays visible")
        self.histogram = HistogramView()
        self.share = caption()
        self.legend = LegendView()
        self.controls = QWidget()
        self._form = form = QFormLayout(self.controls)
        form.setContentsMargins(0, 0, 0, 0)
        form.addRow("Hide below", self.threshold)
        form.addRow("Opacity", self.opacity)
        form.addRow("Colours", self.colormap)
        form.addRow("", self.fade)
        form.addRow(self.histogram)
        form.addRow(self.share)
        self.player = TrajectoryPlayer(self.bench.viewer)
        self.player.setVisible(False)
        for widget in (self.empty, self.tree, self.player, self.title, self.legend, self.controls):
            self.body.addWidget(widget)
        self.body.addStretch()
        self.tree.itemChanged.connect(self._ticked)
        self.tree.currentItemChanged.connect(lambda *_: self._show())
        self.threshold.valueChanged.connect(lambda v: self._restyle(threshold=float(v)))
        self.opacity.valueChanged.connect(self._set_opacity)
        self.colormap.currentTextChanged.connect(lambda name: self._restyle(colormap=name))
        self.fade.toggled.connect(lambda on: self._restyle(fade=bool(on)))
        self.histogram.chosen.connect(self.threshold.setValue)

    def _changed(self) -> None:
        self._soon.start()

    def _fill(self) -> None:
        """List the layers of the current slide, topmost first."""
        slide = self.bench.slide
        viewer = self.bench.viewer
        found = [] if slide is None else list(layers_on(viewer, slide, *_KINDS))[::-1]
        before, active = self.layer, viewer.layers.selection.active
        with QSignalBlocker(self.tree):
            self.tree.clear()
            self._rows = []
            for layer in found:
                item = QTreeWidgetItem([layer.name, ""])
                item.setToolTip(0, layer.name)
                item.setCheckState(0, _check(layer.visible))
                for event in (layer.events.visible, layer.events.name, layer.events.opacity):
                    event.connect(self._followed)
                if hasattr(layer, "contrast_limits"):
                    layer.events.contrast_limits.connect(self._scaled)
                self.tree.addTopLevelItem(item)
                self._rows.append((layer, item))
            chosen = next((i for one, i in self._rows if one is active), None)
            chosen = chosen or next((i for one, i in self._rows if one is before), None)
            if chosen is None and self._rows:
                chosen = self._rows[0][1]
            if chosen is not None:
                self.tree.setCurrentItem(chosen)
        self.tree.setVisible(bool(found))
        what = "No maps on this slide yet: run a model (Alt+1)."
        if not slide:
            what = "Open a slide to begin: the maps that models draw on it are listed here."
        self.empty.setText("" if found else what)
        self.empty.setVisible(not found)
        self._find_windows()
        self._show()

    def _find_windows(self) -> None:
        """Give the player the topmost windows on the current slide."""
        slide, viewer = self.bench.slide, self.bench.viewer
        found = [] if slide is None else list(layers_on(viewer, slide, "windows"))
        layer = found[-1] if found else None
        if layer is not None and self._toured is not None and self._toured() is layer:
            return
        self._toured = None if layer is None else ref(layer)
        self.player.setVisible(False)
        self.player.show_trajectory(None, None)
        folder = None if layer is None else described(layer.metadata).get("path")
        if slide is None or folder is None:
            return
        self.bench.background.run(
            lambda: Result.load(Path(folder)).trajectory,
            partial(self._take_windows, layer, slide.world),
            owner=self,
        )

    def _take_windows(self, layer: Any, world: World, found: Trajectory | None) -> None:
        if found is not None and self._toured is not None and self._toured() is layer:
            self.player.show_trajectory(found, world, layer)
            self.player.setVisible(True)

    def _show(self) -> None:
        """Set the controls to the chosen layer."""
        layer = self.layer
        meaning = None if layer is None else legend(layer)
        self.title.setText("" if meaning is None else f"<b>{meaning.title}</b>")
        self.title.setVisible(meaning is not None)
        self.legend.show_legend(meaning)
        self.legend.setVisible(meaning is not None)
        scaled = meaning is not None and meaning.table is not None
        self.controls.setVisible(layer is not None)
        for widget in (self.threshold, self.colormap, self.fade, self.histogram, self.share):
            self._form.setRowVisible(widget, scaled)
        if layer is None:
            return
        with QSignalBlocker(self.opacity):
            self.opacity.setValue(layer.opacity)
        if not scaled:
            return
        style = style_of(layer)
        blockers = [QSignalBlocker(w) for w in (self.threshold, self.colormap, self.fade)]
        self.threshold.setRange(0, top_of(layer))
        self.threshold.setValue(style.threshold)
        self.colormap.setCurrentText(style.colormap)
        self.fade.setChecked(style.fade)
        del blockers
        self.histogram.set_threshold(style.threshold)
        self._count(layer)

    def _count(self, layer: Any) -> None:
        """Make the histogram, off the window's thread: it reads a level of the map."""
        if self._counted is None or self._counted() is not layer:
            self.histogram.show_histogram(None)
            self.share.setText("")
        self._counted = ref(layer)
        work = partial(histogram, layer)
        self.bench.background.run(work, partial(self._take, layer), owner=self)

    def _take(self, layer: Any, found: Histogram) -> None:
        if self.layer is layer:
            self.histogram.show_histogram(found)
            self._say_share(layer, found)

    def _say_share(self, layer: Any, found: Histogram) -> None:
        threshold = style_of(layer).threshold
        share = found.share_above(threshold)
        self._found = found
        self.share.setText(f"{share:.1%} of {found.total} cells are at {threshold:.3g} or above.")

    def _restyle(self, **changes: Any) -> None:
        layer = self.layer
        if layer is None or layer.__class__.__name__ != "Image":
            return
        style: Style = replace(style_of(layer), **changes)
        restyle(layer, style)
        self.histogram.set_threshold(style.threshold)
        self.legend.show_legend(legend(layer))
        if self._counted is not None and self._counted() is layer and self.share.text():
            self._say_share(layer, self._found)

    def _set_opacity(self, value: float) -> None:
        if self.layer is not None:
            self.layer.opacity = float(value)

    def _ticked(self, item: QTreeWidgetItem) -> None:
        for layer, own in self._rows:
            if own is item:
                layer.visible = item.checkState(0) == Qt.CheckState.Checked

    def _followed(self, event: Any) -> None:
        """Follow layers that are shown, renamed or made fainter elsewhere."""
        for layer, item in self._rows:
            if layer is event.source:
                with QSignalBlocker(self.tree):
                    item.setCheckState(0, _check(layer.visible))
                    item.setText(0, layer.name)
                    item.setToolTip(0, layer.name)
        if event.source is self.layer:
            with QSignalBlocker(self.opacity):
                self.opacity.setValue(event.source.opacity)

    def _scaled(self, event: Any) -> None:
        """Follow the ends of the colours, which napari's controls and growing maps change."""
        if event.source is self.layer:
            self._rescaled.start()

    def _moved(self) -> None:
        if self.isVisible() and not self._pointer.isActive():
            self._pointer.start()

    def _read(self) -> None:
        """Read all maps under the pointer."""
        viewer = self.bench.viewer
        maps = {
            id(layer): item
            for layer, item in self._rows
            if layer in viewer.layers and described(layer.metadata)["layer"] == "map"
        }
        layers = [layer for layer, _ in self._rows if id(layer) in maps]
        for reading in read_values(layers, viewer.cursor.position):
            label = f"{reading.label} {reading.text}"
            known = reading.value is not None and reading.text != reading.label
            maps[id(reading.layer)].setText(1, label if known else reading.text)


def _check(on: bool) -> Qt.CheckState:
    return Qt.CheckState.Checked if on else Qt.CheckState.Unchecked
