"""A form made from the fields of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qtpy.QtWidgets import (
    QCheckBox,
    QComboBox,
    QDoubleSpinBox,
    QFormLayout,
    QLabel,
    QLineEdit,
    QSpinBox,
    QWidget,
)

from slidelens.desktop.panels.parts import calm
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.form import changed, given_text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.desktop.state.form import FormField

__all__ = ["Form"]

_MOST = 10**9


class Form(QWidget):
    """One line per field.

    Signals
    -------
    edited
        The user changed something.
    """

    edited = Signal()

    def __init__(self, fields: Sequence[FormField] = ()) -> None:
        super().__init__()
        self._layout = QFormLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._fields: tuple[FormField, ...] = ()
        self._controls: dict[str, Any] = {}
        self.show_fields(fields)

    def show_fields(
        self, fields: Sequence[FormField], values: Mapping[str, Any] | None = None
    ) -> None:
        """Replace all lines; ``values`` are what the user had changed before."""
        while self._layout.rowCount():
            self._layout.removeRow(0)
        self._fields = tuple(fields)
        self._controls = {}
        for field in self._fields:
            control = _control(field, (values or {}).get(field.name, field.value))
            calm(control).setToolTip(field.help)
            control.setAccessibleName(field.label)
            _change_signal(control).connect(lambda *_: self.edited.emit())
            label = QLabel(field.label)
            label.setToolTip(field.help)
            self._layout.addRow(label, control)
            self._controls[field.name] = control

    def values(self) -> dict[str, Any]:
        """Return all present values."""
        return {field.name: _value(field, self._controls[field.name]) for field in self._fields}

    def changed(self) -> dict[str, Any]:
        """Return the values that differ from those of the configuration."""
        return changed(self._fields, self.values())

    def control(self, name: str) -> Any:
        """Return the control of a field."""
        return self._controls[name]


def _control(field: FormField, value: Any) -> Any:
    if field.control == "switch":
        box = QCheckBox()
        box.setChecked(bool(value))
        return box
    if field.control == "choice":
        choices = QComboBox()
        for choice in field.choices:
            choices.addItem("none" if choice is None else str(choice), choice)
        choices.setCurrentIndex(max(0, field.choices.index(value) if value in field.choices else 0))
        return choices
    if field.control in ("whole", "number"):
        return _number(field, value)
    line = QLineEdit("" if value is None else str(value))
    if field.optional:
        line.setPlaceholderText("not set")
    return line


def _number(field: FormField, value: Any) -> QSpinBox | QDoubleSpinBox:
    low = -_MOST if field.low is None else field.low
    high = _MOST if field.high is None else field.high
    if field.control == "whole":
        spin = QSpinBox()
        spin.setRange(round(low), round(min(high, _MOST)))
        spin.setValue(int(value or 0))
        return spin
    real = QDoubleSpinBox()
    small = 0 < abs(value or 0) < 0.01
    real.setDecimals(6 if small else 3)
    real.setSingleStep(10 ** -(5 if small else 2))
    real.setRange(low, high)
    real.setValue(float(value or 0))
    return real


def _value(field: FormField, control: Any) -> Any:
    if isinstance(control, QCheckBox):
        return control.isChecked()
    if isinstance(control, QComboBox):
        return control.currentData()
    if isinstance(control, QLineEdit):
        return given_text(field, control.text())
    value = control.value()
    if isinstance(control, QDoubleSpinBox):
        shown = round(float(field.value or 0), control.decimals())
        return field.value if value == shown else value  # what rounding hides was not changed
    return value


def _change_signal(control: Any) -> Any:
    if isinstance(control, QCheckBox):
        return control.toggled
    if isinstance(control, QComboBox):
        return control.currentIndexChanged
    if isinstance(control, QLineEdit):
        return control.editingFinished
    return control.valueChanged
