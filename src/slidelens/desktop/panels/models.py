"""The list of models with their cards and options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import Qt
from qtpy.QtWidgets import (
    QFileDialog,
    QListWidget,
    QListWidgetItem,
    QTextBrowser,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from slidelens.desktop.panels.form import Form
from slidelens.desktop.panels.parts import button, caption
from slidelens.desktop.qt import Signal
from slidelens.engine.packages.manifest import read_manifest
from slidelens.errors import ModelError

if TYPE_CHECKING:
    from slidelens.desktop.state.cards import Card
    from slidelens.desktop.workbench import Workbench

__all__ = ["ModelChooser"]


class ModelChooser(QWidget):
    """Tick the models to run; click one to read its card and set its options.

    Signals
    -------
    changed
        Other models are ticked.
    """

    changed = Signal()

    def __init__(self, bench: Workbench) -> None:
        super().__init__()
        self._bench = bench
        self._given: dict[Path, dict[str, Any]] = {}
        """Options that the user changed, by model."""
        self._shown: Card | None = None
        self._awaited: tuple[str, ...] = ()
        """What was to be ticked before everything was listed."""
        self.list = QListWidget()
        self.list.setToolTip("Tick one or more models; they run one after the other")
        self.list.setAccessibleName("Models")
        self.list.setMaximumHeight(120)
        self.card = QTextBrowser()
        self.card.setOpenLinks(False)
        self.card.setMaximumHeight(170)
        self.card.setAccessibleName("Model card")
        self.form = Form()
        self.options = QCollapsible("Options of this model")
        self.options.addWidget(self.form)
        self.options.setToolTip("Options of the run; the defaults are the model's")
        self._waiting = caption("Reading the models…")
        self.add_button = button(
            "Add model…", "Add a folder with model.json and weights", self._ask
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self._waiting, self.list, self.card, self.options):
            layout.addWidget(widget)
        self.list.currentItemChanged.connect(lambda *_: self._show())
        self.list.itemChanged.connect(lambda *_: self._ticked())
        self.form.edited.connect(self._keep)
        bench.models_changed.connect(self._fill)
        self._show()
        if bench.cards:
            self._fill()
        else:
            bench.load_models()

    def chosen(self) -> list[tuple[Card, dict[str, Any]]]:
        """Return the ticked models and, for each, the options that were changed."""
        ticked = {
            item.data(Qt.ItemDataRole.UserRole)
            for item in self._items()
            if item.checkState() == Qt.CheckState.Checked
        }
        cards = [card for card in self._bench.cards if str(card.path) in ticked]
        return [(card, self._given.get(card.path, {})) for card in cards]

    def choose(self, *names: str) -> None:
        """Tick these models and no others, as soon as they are listed; the first is shown."""
        for item in self._items():
            on = item.text() in names
            item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)
            if names and item.text() == names[0]:
                self.list.setCurrentItem(item)
        missing = set(names) - {item.text() for item in self._items()}
        self._awaited = names if missing else ()
        if missing:
            self._waiting.setText(f"Reading {', '.join(sorted(missing))}…")
            self._waiting.show()

    def add(self, folder: Path) -> str:
        """Add a model's folder; return why it cannot be added, or nothing."""
        try:
            read_manifest(folder)
        except ModelError as error:
            return str(error)
        self._bench.memory.add_model(folder)
        self._bench.load_models()
        return ""

    def _ask(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "Folder with model.json")
        if folder:
            error = self.add(Path(folder))
            if error:
                self._bench.told.emit(error, True)

    def _items(self) -> list[QListWidgetItem]:
        found = (self.list.item(i) for i in range(self.list.count()))
        return [item for item in found if item is not None]

    def _ticked(self) -> None:
        self._awaited = ()  # the user wants something else by now
        self.changed.emit()

    def _fill(self) -> None:
        """List the models again; ticks and the selected one stay."""
        ticked = {str(card.path) for card, _ in self.chosen()}
        current = str(self._shown.path) if self._shown else ""
        self.list.blockSignals(True)
        self.list.clear()
        for card in self._bench.cards:
            item = QListWidgetItem(card.name)
            item.setData(Qt.ItemDataRole.UserRole, str(card.path))
            if card.error:
                item.setFlags(item.flags() & ~Qt.ItemFlag.ItemIsUserCheckable)
                item.setToolTip(card.error)
            else:
                on = str(card.path) in ticked
                item.setCheckState(Qt.CheckState.Checked if on else Qt.CheckState.Unchecked)
            self.list.addItem(item)
            if str(card.path) == current:
                self.list.setCurrentItem(item)
        usable = [card for card in self._bench.cards if not card.error]
        self._waiting.setText("" if usable else "No models yet. Train one, or add a folder.")
        self._waiting.setVisible(not usable)
        if self.list.currentItem() is None and self.list.count():
            self.list.setCurrentRow(0)
        if not ticked and len(usable) == 1:
            self._items()[0].setCheckState(Qt.CheckState.Checked)
        self.list.blockSignals(False)
        self._show()
        if self._awaited:
            self.choose(*self._awaited)
        self.changed.emit()

    def _show(self) -> None:
        item = self.list.currentItem()
        path = None if item is None else item.data(Qt.ItemDataRole.UserRole)
        self._shown = next((c for c in self._bench.cards if str(c.path) == path), None)
        card = self._shown
        self.card.setHtml("" if card is None else card.html)
        self.card.setVisible(card is not None)
        fields = () if card is None else card.options
        given = {} if card is None else self._given.get(card.path, {})
        self.form.show_fields(fields, given)
        self.options.setVisible(bool(fields))
        name = "" if card is None else f" of {card.name}"
        self.options.setText(f"Options{name}{' (changed)' if given else ''}")

    def _keep(self) -> None:
        """Remember what was changed."""
        if self._shown is not None:
            given = self.form.changed()
            self._given[self._shown.path] = given
            mark = " (changed)" if given else ""
            self.options.setText(f"Options of {self._shown.name}{mark}")
            self.changed.emit()
