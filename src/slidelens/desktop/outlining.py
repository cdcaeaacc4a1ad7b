"""Outline regions of a slide in the window; a GeoJSON file follows every change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QTimer

from slidelens.desktop.annotate import annotation_options
from slidelens.desktop.identities import identify
from slidelens.desktop.layers import MAX_EDITED, annotation_layers
from slidelens.desktop.qt import Signal
from slidelens.desktop.shown import add_layer, is_on, layers_on
from slidelens.desktop.world import described, lie_on
from slidelens.desktop.writer import shape_features, update_geojson
from slidelens.engine.annotations import annotation_files
from slidelens.errors import LabelError
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.desktop.workbench import Workbench

__all__ = ["Outlining"]

_SETTLE_MS = 300
_WRITTEN = ("data", "features", "edge_color", "affine", "translate", "scale", "rotate", "shear")
"""The layer's events after which its file would be another; a table edited in place has none."""


class Outlining(QObject):
    """Draws into a folder of annotations, one file per slide.

    Signals
    -------
    saved
        The file that was written, and the number of outlines in it.
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
        """By file, also for slides that are not shown now: their outlines stay, hidden."""
        self._kept: dict[Path, list[dict[str, Any]]] = {}
        """By file, the layer's features that it contains."""
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        """By file, time and size when it was last read or written here."""
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.setInterval(_SETTLE_MS)
        self._timer.timeout.connect(self.save)

    def draw(self, folder: Path, label: str, color: str) -> None:
        """Draw outlines of a class on the current slide; those in its file are shown.

        Parameters
        ----------
        color
            Of new outlines, ``#rrggbb``.

        Raises
        ------
        LabelError
            No slide is open, or its outlines are in a file that is not GeoJSON, cannot be read, or
            has those of another slide of its name. A file that another program has changed is read
            again; unsaved outlines stay in a separate layer.
        """
        slide = self._bench.slide
        if slide is None:
            raise LabelError("Open a slide first: outlines are drawn on it.")
        folder.mkdir(parents=True, exist_ok=True)
        there = annotation_files(folder).get(slide.id)
        if there is not None and there.suffix != ".geojson":
            raise LabelError(
                f"{there}: holds the outlines of {slide.id} in another format; edit them in "
                "the program that made them, or move the file."
            )
        file = there or folder / f"{slide.id}.geojson"
        known: Any = self._layers.get(file)
        shown = known is not None and known in self._bench.viewer.layers
        if shown and not is_on(known, slide):
            raise LabelError(
                f"{file}: holds the outlines that were drawn on {described(known.metadata)['on']}, "
                f"not on {slide.path}, another slide of that name; choose another folder for it."
            )
        if file != self._file or self._layer not in self._bench.viewer.layers or self._stale(file):
            self.end()
            self._file, self._layer = file, self._shown(file, there)
            self._layers[file] = self._layer
            for name in _WRITTEN:
                self._layer.events[name].connect(self._changed)
        layer = self._layer
        layer.selected_data = set()  # otherwise the selection gets the colour, too
        layer.feature_defaults = {"class": [label], "name": [""], "id": [""]}
        layer.current_edge_color = color
        self._bench.viewer.layers.selection.active = layer
        layer.mode = "add_polygon"

    def save(self) -> bool:
        """Write the file now, if something is not in it yet; return whether it is complete.

        Everything else in the file stays: points, properties of other programs.
        """
        self._timer.stop()
        if self._layer is None or self._file is None:
            return True
        file, features = self._file, _features(self._layer)
        if features == self._kept[file]:
            return True
        if self._stale(file):
            self.failed.emit(
                f"{file}: another program has changed it, so it was not written. Press Draw to "
                "read it again; what you drew stays in a separate layer."
            )
            return False
        try:
            update_geojson(file, features, {one["id"] for one in self._kept[file]})
        except LabelError as error:
            self.failed.emit(str(error))
            return False
        self._kept[file], self._stamps[file] = features, _stamp(file)
        self.saved.emit(file, len(features))
        return True

    def end(self) -> None:
        """Write what is not in the file yet and let go of the layer."""
        self.save()
        if self._layer is not None:
            for name in _WRITTEN:
                self._layer.events[name].disconnect(self._changed)
        self._layer = self._file = None

    def _shown(self, file: Path, there: Path | None) -> Any:
        """Return the slide's layer of outlines: the one shown, otherwise one from its file."""
        slide, viewer = self._bench.slide, self._bench.viewer
        assert slide is not None
        options = annotation_options(slide.layer.metadata)
        known = self._layers.get(file)
        if known is None and there is None:  # drawn before a folder was chosen
            drawn = layers_on(viewer, slide, "annotations")
            known = next((layer for layer in drawn if layer.name == options["name"]), None)
            self._kept[file], self._stamps[file] = [], None
        if known is not None and known in viewer.layers:
            if not self._stale(file):
                known.visible = True
                return known
            if _features(known) == self._kept[file]:
                viewer.layers.remove(known)
            else:
                known.name += " (not saved)"
        stamp, found = _stamp(file), [] if there is None else identify(read_annotations(there))
        if found:
            made = annotation_layers(
                found, slide.world, name=options["name"], slide_id=slide.id, most=MAX_EDITED
            )
            (data,) = lie_on(made, slide.path)
            if data[2] != "shapes":
                raise LabelError(f"{there}: holds {len(found)} outlines, too many to edit.")
            layer = add_layer(viewer, data)
        else:
            layer = viewer.add_shapes(None, **options)
        self._kept[file], self._stamps[file] = _features(layer), stamp
        return layer

    def _stale(self, file: Path) -> bool:
        """Whether a file exists and has changed since it was read or written here."""
        now = _stamp(file)
        return now is not None and now != self._stamps.get(file)

    def _changed(self, event: Any) -> None:
        if described(event.source.metadata) and self._layer is event.source:
            self._timer.start()


def _features(layer: Any) -> list[dict[str, Any]]:
    """Return the layer's shapes as they would be written."""
    data, attributes, _ = layer.as_layer_data_tuple()
    return list(shape_features(data, attributes))


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return time and size of a file; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
