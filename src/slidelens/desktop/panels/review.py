"""The Review panel: step through the errors of a cohort, look, decide, report."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import (
    QApplication,
    QFileDialog,
    QLabel,
    QLineEdit,
    QPlainTextEdit,
    QTextEdit,
    QWidget,
)

from slidelens.desktop.keys import toggle
from slidelens.desktop.panels.case import CaseView
from slidelens.desktop.panels.case_picture import CasePicture
from slidelens.desktop.panels.categories import edit_categories
from slidelens.desktop.panels.elided import Elided
from slidelens.desktop.panels.errors import ErrorList
from slidelens.desktop.panels.export import ExportMenu
from slidelens.desktop.panels.parts import Panel, button, calm, caption, row
from slidelens.desktop.panels.review_keys import PictureKeys, bind_keys
from slidelens.desktop.qt import alive
from slidelens.desktop.state.review import evaluation_folder, login_name, open_review
from slidelens.desktop.warned import warned
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError, ResultError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qtpy.QtGui import QHideEvent, QShowEvent

    from slidelens.desktop.state.review import Review

__all__ = ["ReviewPanel"]

_SETTLE_MS = 150  # holding an arrow key down passes slides without opening them
_NO_EVALUATION = (
    "<b>Open an evaluation to review its errors.</b><br>Or evaluate the results that the Run panel "
    "lists: choose a table with the slides' labels (columns slide_id and label)."
)
_TYPED = (QLineEdit, QPlainTextEdit, QTextEdit)
_NO_NAME = "Enter your name: decisions are saved under it."
_FOLDER, _SLIDES, _REVIEWER = "evaluation", "review_slides", "reviewer"


class ReviewPanel(Panel):
    """Review the errors of an evaluation."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.review: Review | None = None
        self._picture_keys = PictureKeys(self)
        self._unfound: list[str] = []
        """Why slides may not be found that have moved."""
        self._build()
        self._settle = QTimer(self)
        self._settle.setSingleShot(True)
        self._settle.setInterval(_SETTLE_MS)
        self._settle.timeout.connect(self.picture.show)
        bind_keys(self)
        self._show_review()

    def open(self, folder: Path, warnings: Sequence[str] = ()) -> None:
        """Open an evaluation folder, and show what its evaluation warned of."""
        reviewer, points = self.reviewer.text().strip(), self.points.text()
        if not self._take_reviewer() or not self.case.flush():
            return
        self.notice.say("", warnings=warnings)
        self.bench.background.run(
            lambda: open_review(folder, reviewer, points),
            self._opened,
            owner=self,
            failed=lambda text: self.notice.say(text, "error"),
        )

    def step(self, by: int) -> None:
        """Go to the next or an earlier error."""
        if self.review is not None:
            self.go(self.review.index + by)

    def go(self, index: int) -> None:
        """Go to an error in the list."""
        if self.review is None or not self.case.flush():
            return
        before = self.review.case
        if self.review.go(index) is not before:
            if self.notice.text == self.review.undone:
                self.notice.hide()
            self._safely(self._show_case)

    def undo(self) -> None:
        """Take back the last decision."""
        review = self.review
        if review and self._take_reviewer() and self.case.flush() and review.can_undo:
            self._safely(self._undo)

    def evaluate(self, labels: Path) -> None:
        """Evaluate the results against a table of labels, then open the evaluation."""
        home, results = self.bench.preferences.home / "evaluations", self.bench.results
        out = evaluation_folder(home, labels, results)
        facts = {"results": str(results), "labels": str(labels), "out": str(out)}
        job = self.bench.runner.submit("evaluate", facts)
        self.notice.say("Evaluating…")
        warnings = job.warnings  # not the job: it would be kept by its own signal
        job.ended.connect(lambda status, error: self._evaluated(out, status, error, warnings))

    def _build(self) -> None:
        self.about, self.name = caption(_NO_EVALUATION), Elided()
        self.open_button = button("Open…", "Open the folder of an evaluation", self._ask_folder)
        self.evaluate_button = button(
            "Evaluate results…", "Compare your results with a table of labels", self._ask_labels
        )
        self.reviewer = QLineEdit(self.bench.memory.text(_REVIEWER) or login_name())
        self.reviewer.setPlaceholderText("your name")
        self.reviewer.setToolTip("Your name; several people can review the same errors")
        self.reviewer.editingFinished.connect(self._take_reviewer)
        self.points = QLineEdit()
        self.points.setPlaceholderText("as evaluated")
        calm(self.points).setToolTip(
            "Operating point: stored, max-accuracy, sensitivity=0.95 or a threshold such as 0.4; "
            "MODEL:RULE for one method"
        )
        self.points.editingFinished.connect(self._take_points)
        self.errors = ErrorList()
        self.case = CaseView()
        self.picture = CasePicture(self.bench, self.case, self)
        self.picture.lost.connect(self._say_lost)
        self.undo_button = button("Undo", "Take back the last decision (Ctrl+Z)", self.undo)
        self.edit_button = button("Categories…", "Edit the list of causes", self._edit_categories)
        self.export = ExportMenu(self.bench, self.notice)
        see = "Hide the maps to see the tissue, and show them again (Ctrl+Alt+H without this panel)"
        self.maps_button = button("Maps (H)", see, partial(toggle, self.bench))
        body = self.body
        body.addWidget(self.about)
        body.addLayout(row(self.open_button, self.evaluate_button, self.name, stretch=2))
        body.addLayout(row(QLabel("Reviewer"), self.reviewer, stretch=1))
        body.addLayout(row(QLabel("Operating point"), self.points, stretch=1))
        body.addWidget(self.errors, 1)
        body.addWidget(self.case)
        body.addStretch()
        buttons = (self.undo_button, self.edit_button, self.maps_button, self.export, QWidget())
        self.foot.addWidget(self.case.form)
        self.foot.addLayout(row(*buttons, stretch=4))
        self.foot.addWidget(self.export.status)
        self.errors.filtered.connect(self._filter)
        self.errors.chosen.connect(self.go)
        self.case.decided.connect(self._decide)
        self.case.method_asked.connect(self._show_method)
        self.case.place_asked.connect(self.picture.fly)

    def showEvent(self, event: QShowEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Take the keys on the picture too."""
        super().showEvent(event)
        if not self.bench.closed:
            self._picture_keys.take()

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Save what was typed, and give the keys back."""
        super().hideEvent(event)
        self.case.flush()
        if not self.bench.closed:
            self._picture_keys.give_back()

    def _ask_folder(self) -> None:
        start = self.bench.memory.text(_FOLDER) or str(self.bench.preferences.home)
        chosen = QFileDialog.getExistingDirectory(self, "Folder with evaluation.json", start)
        if chosen:
            self.open(Path(chosen))

    def _ask_labels(self) -> None:
        start = str(self.bench.preferences.home)
        title = "Table with columns slide_id and label"
        chosen, _ = QFileDialog.getOpenFileName(self, title, start, "Tables (*.csv *.tsv *.txt)")
        if chosen:
            self.evaluate(Path(chosen))

    def _evaluated(self, out: Path, status: str, error: str, warnings: list[str]) -> None:
        if not alive(self) or self.bench.closed:
            return
        if status != "done":
            self.notice.say(error or "Stopped.", "error", warnings=warnings)
            return
        self.open(out, warnings)

    def _take_points(self) -> None:
        """Read again with another operating point, if it has changed."""
        now = self.review
        if now is not None and self.points.text() != now.points:
            self.open(now.saved.folder)

    def _take_reviewer(self) -> bool:
        """Go on as the reviewer whom the field names; return whether decisions are theirs now."""
        name, now = self.reviewer.text().strip(), self.review
        self.case.form.setEnabled(bool(name))
        if not name:
            self.notice.say(_NO_NAME, "error")
            return False
        if self.notice.text == _NO_NAME:
            self.notice.hide()
        if now is not None and now.reviewer == name:
            return True
        self.bench.memory.set_text(_REVIEWER, name)
        return now is None or (
            self.case.flush() and self._safely(lambda: self._switch(now.by(name)))
        )

    def _switch(self, review: Review) -> None:
        self.review = review
        self._show_review()

    def _safely(self, work: Callable[[], object]) -> bool:
        """Do what reads or writes the store; report failure. Return whether it worked."""
        try:
            work()
        except ResultError as error:
            self.notice.say(str(error), "error")
            return False
        return True

    def _undo(self) -> None:
        review = self.review
        if review is None:
            return
        before = review.case
        if review.undo() is not before:
            self._show_case()
        self.errors.show_errors(review)
        self._show_decision()
        self.notice.say(review.left or review.undone)

    def _opened(self, review: Review) -> None:
        before = self.review
        if before is not None:
            review.follow(before)
        self.review = review
        self.bench.memory.set_text(_FOLDER, str(review.saved.folder.absolute()))
        self.errors.show_methods(review.saved.models)
        self._safely(self._show_review)
        new = before is None or before.saved.folder != review.saved.folder
        if new and self.isVisible() and not isinstance(QApplication.focusWidget(), _TYPED):
            (self.errors.tree if review.reviewer else self.reviewer).setFocus()  # keys work at once
        if before is not None and before.reviewer != review.reviewer:  # changed meanwhile
            self._safely(lambda: self._switch(review.by(before.reviewer)))
        self._find_slides(self.bench.memory.text(_SLIDES))

    def _show_review(self) -> None:
        review = self.review
        for widget in (self.errors, self.undo_button, self.edit_button, self.export):
            widget.setVisible(review is not None)
        self.about.setVisible(review is None)
        self.export.show_review(review, self.points.text())
        if review is None:
            self._show_case()
            return
        slides, folder = len(review.saved.labels), review.saved.folder
        tip = f"{folder}\n{', '.join(review.saved.models)}"
        self.name.show_text(f"{folder.name}, {slides} slides", tip)
        review.choose(self.errors.filter())
        self.errors.show_errors(review)
        self._show_case()

    def _filter(self) -> None:
        if self.case.flush():
            self._safely(self._choose)

    def _choose(self) -> None:
        review = self.review
        if review is None:
            return
        before = review.case
        review.choose(self.errors.filter())
        self.errors.show_errors(review)
        if review.case is not before:
            self._show_case()

    def _show_case(self) -> None:
        """Show the current error at once, and its slide when the user stays at it."""
        review = self.review
        case = None if review is None else review.case
        for widget in (self.case, self.case.form, self.maps_button):
            widget.setVisible(case is not None)
        if review is not None:
            self.picture.expect(review.saved, case, "" if case is None else case.model)
        if review is None or case is None:
            return
        self._settle.start()
        self.case.show_case(review, case)
        self.errors.show_current(review)
        self.undo_button.setEnabled(review.can_undo)

    def _show_decision(self, *, keep_note: bool = False) -> None:
        review = self.review
        if review is None or review.case is None:
            return
        self.case.show_decision(review, review.case, keep_note=keep_note)
        self.errors.show_current(review)
        self.undo_button.setEnabled(review.can_undo)

    def _decide(self, what: str, text: str) -> None:
        review = self.review
        case = None if review is None else review.case
        kept = what == "note" or self._take_reviewer()  # a note is whose name stood there
        review = self.review
        if review is not None and case is not None:
            kept = kept and self._safely(lambda: review.decide(case, **{what: text}))
            self._safely(partial(self._show_decision, keep_note=not kept))

    def _show_method(self, model: str) -> None:
        if self.review is not None:
            self.picture.expect(self.review.saved, self.review.case, model)
            self.picture.show()

    def _say_lost(self, text: str) -> None:
        find, warnings = self._ask_slides, self._unfound
        self.notice.say(text, action="Find slides…", then=find, warnings=warnings)

    def _ask_slides(self) -> None:
        chosen = QFileDialog.getExistingDirectory(self, "Where the slides are now")
        if chosen:
            self.bench.memory.set_text(_SLIDES, chosen)
            self._find_slides(chosen, then=self.picture.show)

    def _find_slides(self, folder: str, then: Callable[[], object] = lambda: None) -> None:
        """Look where slides are that have moved since they were run."""
        if not folder:
            return

        def work() -> tuple[dict[str, Path], list[str]]:
            with warned() as warnings:
                try:
                    return find_slides(Path(folder)), warnings
                except LabelError as error:  # maybe the folder of another day
                    return {}, [*warnings, str(error)]

        def take(answer: tuple[dict[str, Path], list[str]]) -> None:
            self.picture.slides, self._unfound = answer
            self.export.slides = Path(folder) if self.picture.slides else None
            then()

        self.bench.background.run(work, take, owner=self)

    def _edit_categories(self) -> None:
        self._safely(self._change_categories)

    def _change_categories(self) -> None:
        if self.review is not None and edit_categories(self.review.saved.folder, self):
            self._show_decision()
