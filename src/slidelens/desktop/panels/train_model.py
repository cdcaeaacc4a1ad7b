"""What to train: family, initial weights, schedule, options."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QSignalBlocker
from qtpy.QtWidgets import QComboBox, QFormLayout, QLineEdit, QSpinBox, QVBoxLayout, QWidget
from superqt import QCollapsible

from slidelens.desktop.panels.form import Form
from slidelens.desktop.panels.parts import calm, caption
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.train import TrainRequest, free_name

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.desktop.state.cards import Card, FamilyCard
    from slidelens.desktop.workbench import Workbench

__all__ = ["TrainOptions"]

_SCRATCH = {"imagenet": "ImageNet weights", "none": "random weights"}
_MOST_EPOCHS = 1000


class TrainOptions(QWidget):
    """Choose family, start and options.

    Signals
    -------
    changed
        Something was chosen.
    """

    changed = Signal()

    def __init__(self, bench: Workbench) -> None:
        super().__init__()
        self._bench = bench
        self.family, self.base, self.preset, self.device = (QComboBox() for _ in range(4))
        for combo, tip in (
            (self.family, "The method"),
            (self.base, "Initial weights; a model of the same method is fine-tuned"),
            (self.preset, "Named schedule: the paper's, or one for small cohorts"),
            (self.device, "Where the model is trained"),
        ):
            calm(combo).setToolTip(tip)
        self.about = caption()
        self.name = QLineEdit()
        calm(self.name).setToolTip("Name of the new model, which will appear in the Run panel")
        self.classes = QLineEdit()
        self.classes.setPlaceholderText("as the labels say")
        calm(self.classes).setToolTip(
            "Names of the classes, with commas between; the last of two is the positive one. Other "
            "classes than those of the model to start from: its last layers begin anew"
        )
        self.epochs, self.seed = QSpinBox(), QSpinBox()
        self.epochs.setRange(0, _MOST_EPOCHS)
        self.epochs.setSpecialValueText("as the schedule says")
        calm(self.epochs).setToolTip("Largest number of passes over the slides")
        self.seed.setRange(0, 2**31 - 1)
        calm(self.seed).setToolTip("Seed of the split and of all random choices")
        form = QFormLayout()
        for label, control in (
            ("Method", self.family),
            ("", self.about),
            ("Start from", self.base),
            ("Name", self.name),
            ("Classes", self.classes),
            ("Schedule", self.preset),
            ("Epochs", self.epochs),
            ("Seed", self.seed),
            ("Device", self.device),
        ):
            form.addRow(label, control)
        self.config, self.training = Form(), Form()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(form)
        self._folds = {}
        for title, part in (
            ("Model options", self.config),
            ("Training options", self.training),
        ):
            fold = QCollapsible(title)
            fold.addWidget(part)
            layout.addWidget(fold)
            part.edited.connect(self.changed.emit)
            self._folds[title] = fold
        self.family.currentIndexChanged.connect(lambda _: self._family_chosen())
        self.base.currentIndexChanged.connect(lambda _: self._base_chosen())
        for combo in (self.preset, self.device):
            combo.currentIndexChanged.connect(lambda _: self.changed.emit())
        for spin in (self.epochs, self.seed):
            spin.valueChanged.connect(lambda _: self.changed.emit())
        for line in (self.name, self.classes):
            line.textChanged.connect(lambda _: self.changed.emit())
        bench.models_changed.connect(self._fill)
        if bench.families:
            self._fill()
        else:
            bench.load_models()
        self.suggest_name()

    @property
    def chosen(self) -> FamilyCard | None:
        """The family that is chosen."""
        name = self.family.currentData()
        return next((f for f in self._bench.families if f.name == name), None)

    @property
    def model(self) -> Card | None:
        """The model to fine-tune; ``None``: from scratch."""
        path = self.base.currentData()
        return next((c for c in self._bench.cards if str(c.path) == path), None)

    def request(
        self, slides: Path | None, labels: Path | None, annotations: Path | None
    ) -> TrainRequest | None:
        """Return the request; ``None`` before the families are known."""
        family, model = self.chosen, self.model
        if family is None:
            return None
        return TrainRequest(
            family.name,
            slides,
            labels,
            self._bench.preferences.models / (self.name.text().strip() or "?"),
            annotations if family.annotated else None,
            None if model is None else model.path,
            "" if model is not None else self.base.currentData() or "",
            self.preset.currentData() or "",
            self.epochs.value(),
            self.seed.value(),
            self.device.currentData() or "auto",
            self.config.changed() | self.training.changed(),
            tuple(name.strip() for name in self.classes.text().split(",") if name.strip()),
        )

    def suggest_name(self) -> None:
        """Fill in a name that is not taken."""
        self.name.setText(free_name(self._bench.preferences.models, "my-model"))

    def choose(self, family: str, base: str = "") -> None:
        """Choose a family by name, and a model to fine-tune by its name."""
        self.family.setCurrentIndex(self.family.findData(family))
        if base:
            self.base.setCurrentIndex(self.base.findText(f"fine-tune {base}"))

    def _fill(self) -> None:
        """Offer families and devices; the choice stays."""
        before = self.family.currentData()
        with QSignalBlocker(self.family):
            self.family.clear()
            for family in self._bench.families:
                self.family.addItem(family.title, family.name)
            self.family.setCurrentIndex(max(0, self.family.findData(before)))
        wanted = self.device.currentData() or self._bench.preferences.device
        with QSignalBlocker(self.device):
            self.device.clear()
            for device in self._bench.devices:
                self.device.addItem(device.title, device.name)
            self.device.setCurrentIndex(max(0, self.device.findData(wanted)))
        if before is None or before != self.family.currentData():
            self._family_chosen()
        else:
            self._fill_bases()

    def _family_chosen(self) -> None:
        family = self.chosen
        if family is None:
            return
        self.about.setText(family.about)
        with QSignalBlocker(self.preset):
            self.preset.clear()
            for name in family.presets:
                self.preset.addItem(name, name)
            self.preset.setCurrentIndex(max(0, self.preset.findData("default")))
        self.training.show_fields(family.training)
        self._fill_bases()
        self._base_chosen()

    def _fill_bases(self) -> None:
        family = self.chosen
        before = self.base.currentData()
        with QSignalBlocker(self.base):
            self.base.clear()
            for name, title in _SCRATCH.items():
                self.base.addItem(title, name)
            for card in self._bench.cards:
                if family is not None and card.family == family.name and not card.error:
                    self.base.addItem(f"fine-tune {card.name}", str(card.path))
            self.base.setCurrentIndex(max(0, self.base.findData(before)))

    def _base_chosen(self) -> None:
        """Show the options of the initial model, otherwise the family's own."""
        family, model = self.chosen, self.model
        if family is None:
            return
        base: dict[str, Any] = {} if model is None else dict(model.config)
        self.classes.setPlaceholderText(", ".join(model.classes) if model else "as the labels say")
        self.config.show_fields(
            [replace(field, value=base.get(field.name, field.value)) for field in family.config]
        )
        self.changed.emit()
