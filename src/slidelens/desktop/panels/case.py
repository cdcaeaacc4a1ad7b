"""One error under review: what the methods predict, where to look, what caused it."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from qtpy.QtCore import QSignalBlocker, Qt, QTimer
from qtpy.QtGui import QPalette
from qtpy.QtWidgets import (
    QButtonGroup,
    QComboBox,
    QFormLayout,
    QLabel,
    QPlainTextEdit,
    QRadioButton,
    QVBoxLayout,
    QWidget,
)
from superqt import QCollapsible

from slidelens.desktop.panels.parts import Low, boxed, breakable, button, calm, caption, row
from slidelens.desktop.qt import Signal
from slidelens.desktop.state.review import KINDS, case_text, decision_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qtpy.QtGui import QFocusEvent

    from slidelens.desktop.state.review import Review
    from slidelens.review.errors import ErrorCase
    from slidelens.review.foci import Focus
    from slidelens.review.store import Decision

__all__ = ["CaseView"]

_TYPING_MS = 800
_NONE = "not decided"
_MOST_HIGH = 215  # px: 0 to 9, which have keys; more are scrolled, so that the list keeps its space


class CaseView(QWidget):
    """Shows an error and takes the reviewer's decision; saves nothing itself.

    Attributes
    ----------
    form
        Takes the decision: a separate widget, to be put where it stays in sight.

    Signals
    -------
    decided
        ``category``, ``note`` or ``true_label``, and its new text.
    method_asked
        The method whose maps are to be shown.
    place_asked
        Number of the place, from 0, to fly to.
    """

    decided = Signal(str, str)
    method_asked = Signal(str)
    place_asked = Signal(int)

    def __init__(self) -> None:
        super().__init__()
        self._foci: Sequence[Focus] = ()
        self._place = 0
        self._noted = ""
        self.title, self.text = caption(), caption()  # long names wrap: nothing is cut
        self.verdicts = QLabel()
        self.verdicts.setWordWrap(True)
        self.verdicts.setToolTip("Click a method to see its maps of this slide")
        self.verdicts.linkActivated.connect(self.method_asked.emit)
        self.place = caption()
        self.next_place = button("Next place (E)", "Fly to the next strongest place", self.go_on)
        self._build_form()
        self.others = caption()
        self.history = caption()
        self._past = QCollapsible("History of this error")
        self._past.addWidget(self.history)
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        for widget in (self.title, self.text, self.verdicts):
            layout.addWidget(widget)
        layout.addLayout(row(self.place, self.next_place, stretch=0))
        layout.addWidget(self.others)
        layout.addWidget(self._past)
        self._typing = QTimer(self)
        self._typing.setSingleShot(True)
        self._typing.setInterval(_TYPING_MS)
        self._typing.timeout.connect(self.flush)

    def _build_form(self) -> None:
        self.categories = QButtonGroup(self)
        self.categories.idClicked.connect(self._category_clicked)
        self._radios = QVBoxLayout()
        self._radios.setSpacing(2)
        self._reasons = Low(self._radios, _MOST_HIGH)
        bar = self._reasons.verticalScrollBar()
        bar.rangeChanged.connect(lambda *_: self._see_chosen())  # now each is in place
        self.label = QComboBox()
        calm(self.label).setToolTip("Whether the slide's label is right (L chooses the next)")
        self.label.activated.connect(
            lambda _: self.decided.emit("true_label", self.label.currentData())
        )
        self.note = _Note()
        self.note.setPlaceholderText("What do you see? Esc when done")
        self.note.setAccessibleName("Note")
        self.note.setFixedHeight(44)
        self.note.textChanged.connect(self._typed)
        self.note.left.connect(self.flush)
        form = QFormLayout()
        form.setVerticalSpacing(4)
        form.addRow("Why", self._reasons)
        form.addRow("Label (L)", self.label)
        form.addRow("Note (N)", self.note)
        self.form = boxed(form)

    def show_case(self, review: Review, case: ErrorCase) -> None:
        """Show another error and the decision on it."""
        slide, model = (escape(breakable(name)) for name in (case.slide_id, case.model))
        self.title.setText(f"<b>{slide}</b>, {KINDS[case.kind]} of {model}")
        self.text.setText(breakable(case_text(case)))
        marks = {True: "right", False: "wrong"}
        ink = self.palette().color(QPalette.ColorRole.WindowText).name()  # Qt's blue is for white
        said = (
            f"<a href='{escape(v.model)}' style='color:{ink}'>{escape(breakable(v.model))}</a> "
            f"{escape(v.predicted)} {v.score:.2f}, {marks[v.right]}"
            for v in case.verdicts
        )
        self.verdicts.setText("<br>".join(said))
        self.verdicts.setVisible(len(case.verdicts) > 1)
        with QSignalBlocker(self.label):
            self.label.clear()
            for name, text in review.labels():
                self.label.addItem(text, name)
        self.show_places((), "Opening the slide…")
        self.show_decision(review, case)

    def show_decision(self, review: Review, case: ErrorCase, *, keep_note: bool = False) -> None:
        """Show the present decision; ``keep_note`` leaves typed text that is not saved yet."""
        own = review.decision(case)
        self._show_categories(review.categories(), own)
        with QSignalBlocker(self.label):
            found = self.label.findData("" if own is None else own.true_label)
            self.label.setCurrentIndex(max(0, found))
        note = "" if own is None else own.note
        if not keep_note:
            if note != self.note.toPlainText().strip():
                with QSignalBlocker(self.note):
                    self.note.setPlainText(note)
            self._noted = note
        since = review.saved.since
        others = [f"{d.reviewer}: {decision_text(d, since)}" for d in review.others(case)]
        self.others.setText("\n".join(others))
        self.others.setVisible(bool(others))
        past = review.history(case)
        lines = [
            f"{d.time[:16].replace('T', ' ')}  {d.reviewer}: {decision_text(d, since)}"
            for d in past
        ]
        self.history.setText("\n".join(lines) or "Nothing decided yet.")

    def show_places(self, foci: Sequence[Focus], text: str = "") -> None:
        """Show the places with the strongest evidence for the error; if there are none, why."""
        self._foci, self._place = foci, 0
        self.next_place.setEnabled(len(foci) > 1)
        self.place.setText(text)
        if foci:
            self._say_place()

    def go_on(self) -> None:
        """Ask for the next place; after the last comes the first."""
        if self._foci:
            self._place = (self._place + 1) % len(self._foci)
            self._say_place()
            self.place_asked.emit(self._place)

    def choose_category(self, number: int) -> None:
        """Choose the category of a number as shown, from 1; 0 clears the choice."""
        chosen = self.categories.button(number)
        if chosen is not None:
            chosen.click()

    def turn_label(self) -> None:
        """Choose the next verdict on the label; after the last comes the first."""
        if self.form.isEnabled() and self.label.count():
            self.label.setCurrentIndex((self.label.currentIndex() + 1) % self.label.count())
            self.decided.emit("true_label", self.label.currentData())

    def take_note(self) -> None:
        """Have the user type a note, if there is an error to note it of."""
        if self.note.isVisible():
            self.note.setFocus()

    def flush(self) -> bool:
        """Hand over the note if it was changed; return whether it is saved now."""
        self._typing.stop()
        note = self.note.toPlainText().strip()
        if note != self._noted:
            self.decided.emit("note", note)
        return note == self._noted

    def _show_categories(self, names: Sequence[str], own: Decision | None) -> None:
        wanted = (_NONE, *names)
        if [b.property("category") for b in self.categories.buttons()] != list(wanted):
            for old in self.categories.buttons():
                self.categories.removeButton(old)
                self._radios.removeWidget(old)
                old.hide()  # it is deleted later, and would be drawn over the new ones
                old.deleteLater()
            for number, name in enumerate(wanted):
                made = QRadioButton(f"{number}  {name}")
                made.setProperty("category", name)
                made.setToolTip(f"{name} (key {number})" if number < 10 else name)  # may be cut
                made.setFocusPolicy(Qt.FocusPolicy.ClickFocus)
                self.categories.addButton(made, number)
                self._radios.addWidget(made)
        category = own.category if own is not None else ""
        number = names.index(category) + 1 if category in names else 0
        self.categories.button(number).setChecked(True)
        self._radios.activate()
        self._see_chosen()

    def _see_chosen(self) -> None:
        """Scroll to the category that is chosen."""
        chosen = self.categories.checkedButton()
        if chosen is not None:
            self._reasons.ensureWidgetVisible(chosen)

    def _category_clicked(self, number: int) -> None:
        name = self.categories.button(number).property("category")
        self.decided.emit("category", name if number else "")

    def _say_place(self) -> None:
        focus = self._foci[self._place]
        value = "" if focus.value is None else f", {focus.value:.3g}"
        self.place.setText(f"Place {self._place + 1} of {len(self._foci)}: {focus.what}{value}")

    def _typed(self) -> None:
        self._typing.start()


class _Note(QPlainTextEdit):
    """A text field that reports when it loses focus.

    Signals
    -------
    left
        The focus went elsewhere.
    """

    left = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.setTabChangesFocus(True)

    def focusOutEvent(self, event: QFocusEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Emit ``left``."""
        super().focusOutEvent(event)
        self.left.emit()
