"""Outlines of one slide that are drawn in the window and are in a GeoJSON file at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer

from slidelens.desktop.annotate import annotation_options
from slidelens.desktop.layers import annotation_layers
from slidelens.desktop.qt import Signal
from slidelens.desktop.shown import add_layer, layers_of
from slidelens.desktop.world import described
from slidelens.desktop.writer import write_geojson
from slidelens.engine.annotations import annotation_files
from slidelens.errors import LabelError
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.desktop.workbench import Workbench

__all__ = ["Outlining"]

_SETTLE_MS = 300


class Outlining(QObject):
    """Draws into a folder of annotations, a file per slide.

    Signals
    -------
    saved
        The file that was written, and how many outlines are in it.
    failed
        One sentence.
    """

    saved = Signal(object, int)
    failed = Signal(str)

    def __init__(self, bench: Workbench, parent: QObject) -> None:
        super().__init__(parent)
        self._bench = bench
        self._file: Path | None = None
        self._layer: Any = None
        self._layers: dict[Path, Any] = {}
        """By file, also of slides that are not shown now: their outlines stay, hidden."""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SETTLE_MS)
        self._timer.timeout.connect(self.save)

    def draw(self, folder: Path, label: str, color: str) -> None:
        """Draw outlines of a class on the current slide; those in its file are shown.

        Parameters
        ----------
        color
            Of the outlines to come, ``#rrggbb``.

        Raises
        ------
        LabelError
            No slide is open, its outlines are in a file that is not GeoJSON, or one that cannot
            be read.
        """
        slide = self._bench.slide
        if slide is None:
            raise LabelError("Open a slide first: outlines are drawn on one.")
        folder.mkdir(parents=True, exist_ok=True)
        there = annotation_files(folder).get(slide.id)
        if there is not None and there.suffix != ".geojson":
            raise LabelError(
                f"{there}: holds the outlines of {slide.id} in another form; edit them in the "
                "program that made them, or move the file."
            )
        file = folder / f"{slide.id}.geojson"
        if file != self._file or self._layer not in self._bench.viewer.layers:
            self.end()
            self._file, self._layer = file, self._shown(file, there)
            self._layers[file] = self._layer
            self._layer.events.data.connect(self._changed)
        layer = self._layer
        layer.feature_defaults = {"class": [label], "name": [""], "id": [""]}
        layer.current_edge_color = color
        self._bench.viewer.layers.selection.active = layer
        layer.mode = "add_polygon"

    def save(self) -> None:
        """Write the file now, if there is something that is not in it."""
        self._timer.stop()
        if self._layer is None or self._file is None:
            return
        file, layer = self._file, self._layer.as_layer_data_tuple()
        try:
            write_geojson(str(file), [layer])
        except LabelError as error:
            self.failed.emit(str(error))
            return
        self.saved.emit(file, len(layer[0]))

    def end(self) -> None:
        """Write what is not in the file yet and let go of the layer."""
        if self._timer.isActive():
            self.save()
        if self._layer is not None:
            self._layer.events.data.disconnect(self._changed)
        self._layer = self._file = None

    def _shown(self, file: Path, there: Path | None) -> Any:
        """Return the slide's layer of outlines: the one that is shown, else one from its file."""
        slide, viewer = self._bench.slide, self._bench.viewer
        assert slide is not None
        options = annotation_options(slide.layer.metadata)
        known = self._layers.get(file)
        if known is None and there is None:  # drawn before a folder was chosen
            drawn = layers_of(viewer, "annotations", slide=slide.id)
            known = next((layer for layer in drawn if layer.name == options["name"]), None)
        if known is not None and known in viewer.layers:
            known.visible = True
            return known
        found = [] if there is None else read_annotations(there)
        if found:
            (data,) = annotation_layers(found, slide.world, name=options["name"], slide_id=slide.id)
            if data[2] != "shapes":
                raise LabelError(f"{there}: holds {len(found)} outlines, too many to be edited.")
            return add_layer(viewer, data)
        return viewer.add_shapes(None, **options)

    def _changed(self, event: Any) -> None:
        if described(event.source.metadata) and self._layer is event.source:
            self._timer.start()
