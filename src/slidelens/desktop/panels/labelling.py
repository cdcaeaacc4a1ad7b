"""Label slides by clicking: choose a slide, look at it, press its class."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QHBoxLayout,
    QHeaderView,
    QLabel,
    QLineEdit,
    QTreeWidget,
    QTreeWidgetItem,
    QVBoxLayout,
    QWidget,
)

from slidelens.desktop.panels.parts import button, calm, caption, empty, row
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.labelling import class_names
from slidelens.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.desktop.panels.notice import Notice
    from slidelens.desktop.state.labelling import LabelBook
    from slidelens.desktop.workbench import Workbench

__all__ = ["Labelling"]

_CLASSES = "normal, tumor"


class Labelling(QWidget):
    """The slides of a folder with their labels.

    Signals
    -------
    changed
        A label was set or removed, and is in the file.
    """

    changed = Signal()

    def __init__(self, bench: Workbench, notice: Notice) -> None:
        super().__init__()
        self._bench, self._notice = bench, notice
        self.book: LabelBook | None = None
        self._said = ""
        """What the notice says of the last label."""
        self.tree = QTreeWidget()
        self.tree.setHeaderLabels(["Slide", "Label"])
        self.tree.setRootIsDecorated(False)
        self.tree.setUniformRowHeights(True)
        self.tree.setFixedHeight(130)
        self.tree.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        self.tree.setAccessibleName("Slides in the folder")
        self.tree.setToolTip("Double-click a slide to open it; select one or more to label")
        header = self.tree.header()
        if header is not None:
            header.setSectionResizeMode(0, QHeaderView.ResizeMode.Stretch)
        self.tree.itemActivated.connect(self._look)
        self.classes = QLineEdit(_CLASSES)
        calm(self.classes).setToolTip("Classes, separated by commas")
        self.classes.editingFinished.connect(self._make_buttons)
        self.buttons: dict[str, QWidget] = {}
        self._row = QHBoxLayout()
        self.undo_button = button("Undo", "Take back the last label", self.undo)
        self.counts = caption()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addWidget(self.tree)
        layout.addLayout(row(QLabel("Classes"), self.classes, stretch=1))
        layout.addLayout(self._row)
        layout.addLayout(row(self.counts, self.undo_button, stretch=0))
        self._make_buttons()

    def show_book(self, book: LabelBook | None) -> None:
        """Use another table for the labels."""
        self.book = book
        if book is not None and book.classes:
            self.classes.setText(", ".join(book.classes))
            self._make_buttons()
        self._fill()

    def chosen(self) -> list[str]:
        """Return the ids of the slides that are selected in the list."""
        return [item.text(0) for item in self.tree.selectedItems()]

    def choose(self, *slides: str) -> None:
        """Select slides by id."""
        for number in range(self.tree.topLevelItemCount()):
            item = self.tree.topLevelItem(number)
            if item is not None:
                item.setSelected(item.text(0) in slides)

    def set_label(self, label: str) -> None:
        """Label the selected slides, say which, and go on to the next slide and its picture."""
        chosen = self.chosen()
        if self.book is None or not chosen:
            self._notice.say("Select one or more slides in the list first.")
            return
        if not self._change(lambda book: book.set(chosen, label)):
            return
        who = chosen[0] if len(chosen) == 1 else f"{len(chosen)} slides"
        verb = "is" if len(chosen) == 1 else "are"
        self._said = f"{who} {verb} labelled {label}." if label else f"{who}: label removed."
        self._notice.say(self._said, action="Undo", then=self.undo)
        last = [i for i in range(self.tree.topLevelItemCount()) if self._id(i) in chosen][-1]
        if last + 1 < self.tree.topLevelItemCount():
            self._go(self._id(last + 1))

    def undo(self) -> None:
        """Take back the last label and go back to its slide."""
        back: list[str] = []
        if self._change(lambda book: back.extend(book.undo())) and back:
            if self._notice.text == self._said:
                self._notice.hide()  # its Undo would take back another one
            self._go(*back)

    def _go(self, *slides: str) -> None:
        """Select slides; a single one is opened, so that what is labelled next is on the screen."""
        self.tree.clearSelection()
        self.choose(*slides)
        if self.book is not None and len(slides) == 1:
            self._bench.open_slide(self.book.slides[slides[0]])

    def _change(self, work: Callable[[LabelBook], object]) -> bool:
        if self.book is None:
            return False
        try:
            work(self.book)
        except LabelError as error:
            self._notice.say(str(error), "error")
            return False
        self._fill()
        self.changed.emit()
        return True

    def _id(self, number: int) -> str:
        item = self.tree.topLevelItem(number)
        return "" if item is None else item.text(0)

    def _fill(self) -> None:
        chosen = self.chosen()
        self.tree.clear()
        labels = {} if self.book is None else self.book.labels
        for name, path in {} if self.book is None else self.book.slides.items():
            item = QTreeWidgetItem([name, labels.get(name, "")])
            item.setToolTip(0, str(path))
            self.tree.addTopLevelItem(item)
        self.choose(*chosen)
        counts = {} if self.book is None else self.book.counts
        self.counts.setText(", ".join(f"{n} {name}" for name, n in counts.items()) or "no labels")
        self.undo_button.setEnabled(self.book is not None and self.book.can_undo)

    def _make_buttons(self) -> None:
        names = class_names(self.classes.text())
        if tuple(self.buttons) == names:
            return
        empty(self._row)
        self.buttons = {
            name: button(name, f"Label the selected slides {name}", partial(self.set_label, name))
            for name in names
        }
        clear = button("none", "Remove the label of the selected slides", self._clear_label)
        for made in (*self.buttons.values(), clear):
            self._row.addWidget(made)

    def _clear_label(self) -> None:
        self.set_label("")

    def _look(self, item: QTreeWidgetItem) -> None:
        if self.book is not None and item is not None:
            self._bench.open_slide(self.book.slides[item.text(0)])
        self.tree.setFocus(Qt.FocusReason.OtherFocusReason)
