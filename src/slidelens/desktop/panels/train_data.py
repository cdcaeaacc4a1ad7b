"""Training data: slides, labels, annotations."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qtpy.QtWidgets import QFileDialog, QLabel, QLineEdit, QVBoxLayout, QWidget
from superqt import QCollapsible

from slidelens.desktop.annotate import class_color
from slidelens.desktop.outlining import Outlining
from slidelens.desktop.panels.labelling import Labelling
from slidelens.desktop.panels.parts import button, calm, caption, row
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.labelling import LabelBook
from slidelens.desktop.warned import warned
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError, amount

if TYPE_CHECKING:
    from slidelens.desktop.panels.notice import Notice
    from slidelens.desktop.workbench import Workbench

__all__ = ["DataChooser"]

_SLIDES, _LABELS, _OUTLINES = "train_slides", "train_labels", "train_annotations"


class DataChooser(QWidget):
    """Choose slides, labels and outlines, or make them.

    Signals
    -------
    changed
        The choice, or a label, has changed.
    """

    changed = Signal()

    def __init__(self, bench: Workbench, notice: Notice) -> None:
        super().__init__()
        self._bench, self._notice = bench, notice
        self.slides: Path | None = None
        self.labels: Path | None = None
        self.annotations: Path | None = None
        self._found: dict[str, Path] = {}
        self.slides_text, self.labels_text, self.outlines_text = (caption() for _ in range(3))
        self.slides_button = button("Slides…", "Choose the folder of slides", self._ask_slides)
        self.labels_button = button(
            "Labels…", "Choose a CSV table with columns slide_id and label", self._ask_labels
        )
        self.new_button = button("New…", "Start a new table of labels", self._ask_new)
        self.labelling = Labelling(bench, notice)
        self.by_click = QCollapsible("Label slides by clicking")
        self.by_click.addWidget(self.labelling)
        self.outlines = self._build_outlines()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(self.slides_button, self.slides_text, stretch=1))
        layout.addLayout(row(self.labels_button, self.new_button, self.labels_text, stretch=2))
        layout.addWidget(self.by_click)
        layout.addWidget(self.outlines)
        self.outlining = Outlining(bench, self)
        self.outlining.failed.connect(lambda text: notice.say(text, "error"))
        self.outlining.saved.connect(self._saved)
        self.labelling.changed.connect(self._labelled)
        self._recall()
        self._show()

    def set_slides(self, folder: Path) -> None:
        """Take the slides of a folder."""

        def find() -> tuple[dict[str, Path], list[str]]:
            with warned() as warnings:
                return find_slides(folder), warnings

        def take(answer: tuple[dict[str, Path], list[str]]) -> None:
            self._found, warnings = answer
            self.slides = folder
            self._bench.memory.set_text(_SLIDES, str(folder))
            if warnings:
                self._notice.say("", warnings=warnings)
            self._open_book()

        self._bench.background.run(
            find,
            take,
            owner=self,
            failed=lambda text: self._notice.say(text, "error"),
        )

    def set_labels(self, path: Path) -> None:
        """Take the labels of a table; a new one is created by the first label."""
        self.labels = path
        self._bench.memory.set_text(_LABELS, str(path))
        self._open_book()

    def set_annotations(self, folder: Path) -> None:
        """Take the outlines of a folder; it is created by the first outline."""
        self.annotations = folder
        self._bench.memory.set_text(_OUTLINES, str(folder))
        self._show()
        self.changed.emit()

    def show_annotated(self, wanted: bool) -> None:
        """Ask for outlines or not, as the method requires."""
        self.outlines.setVisible(wanted)

    def draw(self) -> None:
        """Draw outlines on the current slide."""
        label = self.outline_class.text().strip()
        if self.annotations is None:
            self._ask_outlines()
        if self.annotations is None or not label:
            return
        try:
            book = self.labelling.book
            color = class_color(label, () if book is None else book.classes)
            self.outlining.draw(self.annotations, label, color)
        except (LabelError, OSError) as error:
            self._notice.say(str(error), "error")

    def _build_outlines(self) -> QWidget:
        self.outlines_button = button(
            "Outlines…",
            "Choose the folder of annotations: a GeoJSON, JSON or XML file for each slide",
            self._ask_outlines,
        )
        self.outline_class = QLineEdit("tumor")
        calm(self.outline_class).setToolTip("Class of the next outline")
        self.draw_button = button(
            "Draw", "Draw on the open slide: click the corners, double-click to finish", self.draw
        )
        box = QWidget()
        layout = QVBoxLayout(box)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(self.outlines_button, self.outlines_text, stretch=1))
        layout.addLayout(row(QLabel("Outline a"), self.outline_class, self.draw_button, stretch=1))
        return box

    def _recall(self) -> None:
        """Begin with the last choice."""
        text = self._bench.memory.text
        labels, outlines = Path(text(_LABELS)), Path(text(_OUTLINES))
        self.labels = labels if labels.is_file() else None
        self.annotations = outlines if text(_OUTLINES) and outlines.is_dir() else None
        folder = Path(text(_SLIDES))
        if text(_SLIDES) and folder.is_dir():
            self.set_slides(folder)

    def _open_book(self) -> None:
        book = None
        if self.slides is not None and self.labels is not None:
            try:
                book = LabelBook(self.labels, self._found)
            except LabelError as error:
                self.labels = None
                self._notice.say(str(error), "error")
        self.labelling.show_book(book)
        self._show()
        self.changed.emit()

    def _labelled(self) -> None:
        self._show()
        self.changed.emit()

    def _show(self) -> None:
        found = amount(len(self._found), "slide")
        slides = "none chosen" if self.slides is None else f"{self.slides.name}: {found}"
        self.slides_text.setText(slides)
        self.slides_text.setToolTip(str(self.slides or ""))
        book = self.labelling.book
        labels = "none chosen" if self.labels is None else self.labels.name
        if book is not None:
            labels += f": {len(book.labels)} of {found}"
        self.labels_text.setText(labels)
        self.labels_text.setToolTip(str(self.labels or ""))
        self.by_click.setEnabled(book is not None)
        outlines = "none chosen" if self.annotations is None else self.annotations.name
        self.outlines_text.setText(outlines)

    def _saved(self, file: Path, count: int) -> None:
        self.outlines_text.setText(f"{file.name}: {count} outlines saved")
        self.changed.emit()

    def _ask_slides(self) -> None:
        start = str(self.slides or Path.home())
        chosen = QFileDialog.getExistingDirectory(self, "Folder of slides", start)
        if chosen:
            self.set_slides(Path(chosen))

    def _ask_labels(self) -> None:
        start = str(self.labels or self.slides or Path.home())
        title = "Table with columns slide_id and label"
        chosen, _ = QFileDialog.getOpenFileName(self, title, start, "Tables (*.csv *.tsv *.txt)")
        if chosen:
            self.set_labels(Path(chosen))

    def _ask_new(self) -> None:
        start = str((self.slides or Path.home()) / "labels.csv")
        chosen, _ = QFileDialog.getSaveFileName(self, "New table of labels", start, "CSV (*.csv)")
        if chosen:
            self.set_labels(Path(chosen))
            self.by_click.expand(animate=False)

    def _ask_outlines(self) -> None:
        start = str(self.annotations or self.slides or Path.home())
        chosen = QFileDialog.getExistingDirectory(self, "Folder of annotations", start)
        if chosen:
            self.set_annotations(Path(chosen))
