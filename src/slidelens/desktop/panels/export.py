"""Export a review: the report, decisions and corrected labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QUrl
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QFileDialog, QMenu, QToolButton

from slidelens.desktop.panels.parts import caption, menu_button
from slidelens.desktop.qt import alive
from slidelens.errors import ResultError, SlideLensError, amount, listed
from slidelens.files import write_atomic
from slidelens.review.exchange import correct_labels, decisions_csv

if TYPE_CHECKING:
    from slidelens.desktop.panels.notice import Notice
    from slidelens.desktop.state.review import Review
    from slidelens.desktop.workbench import Workbench
    from slidelens.desktop.worker.messages import Message
    from slidelens.review.exchange import CorrectedLabels

__all__ = ["ExportMenu"]

_NAMED = 10  # slides in one sentence


class ExportMenu(QToolButton):
    """A button with a menu; the report is written by the worker."""

    def __init__(self, bench: Workbench, notice: Notice) -> None:
        super().__init__()
        self._bench, self._notice = bench, notice
        self._review: Review | None = None
        self._points = ""
        self.slides: Path | None = None
        """The slides' folder now, if they have moved."""
        self.busy = False
        """Whether a report is being written."""
        self.status = caption()
        self.status.hide()
        menu_button(self, "Export", "Write a report, the decisions, or corrected labels")
        menu = QMenu(self)
        self.identify: Any = menu.addAction("Show slide ids and names in reports")
        self.identify.setCheckable(True)
        menu.addSeparator()
        for text, then in (
            ("Report as HTML…", lambda: self._ask_report("html")),
            ("Report as HTML and PDF…", lambda: self._ask_report("pdf")),
            ("Decisions as CSV…", self._ask_decisions),
            ("Corrected labels as CSV…", self._ask_labels),
        ):
            action: Any = menu.addAction(text)
            action.triggered.connect(lambda _=False, t=then: t())
        self.setMenu(menu)

    def show_review(self, review: Review | None, points: str) -> None:
        """Export this review, at these operating points."""
        self._review, self._points = review, points

    def write_report(self, out: Path, pdf: Path | None = None) -> None:
        """Write the report, as ``slidelens report`` does, while the user goes on working."""
        if self._review is None or self.busy:
            return
        self.busy = True
        self._say("Waiting for the worker…")
        facts = {
            "evaluation": str(self._review.saved.folder),
            "out": str(out),
            "pdf": None if pdf is None else str(pdf),
            "points": self._points,
            "identify": self.identify.isChecked(),
            "slides": None if self.slides is None else str(self.slides),
        }
        job = self._bench.runner.submit("report", facts)
        job.said.connect(self._hear)
        warnings = job.warnings  # not the job: it would be kept by its own signal
        job.ended.connect(lambda status, error: self._ended(out, status, error, warnings))

    def write_decisions(self, out: Path) -> None:
        """Write all decisions that are in force, of every reviewer."""
        if self._review is not None:
            found = self._review.store.decisions()
            said = f"{amount(len(found), 'decision')} written to {out}."
            self._write(out, decisions_csv(found), said)

    def write_labels(self, out: Path) -> None:
        """Write the labels, replacing those that reviewers find wrong."""
        if self._review is None:
            return
        try:
            made = correct_labels(self._review.saved, self._review.store.decisions())
        except SlideLensError as error:
            self._notice.say(str(error), "error")
            return
        kind = "good" if made.original and not made.disputed else "info"
        self._write(out, made.text, _corrected_text(made, out), kind)

    def _hear(self, message: Message) -> None:
        facts = message.facts
        if message.name == "progress":
            of = f", slide {facts['done'] + 1} of {facts['total']}" if facts["total"] > 1 else ""
            self._say(f"Report: {facts['what']}{of}…")

    def _ended(self, out: Path, status: str, error: str, warnings: list[str]) -> None:
        if not alive(self) or self._bench.closed:
            return
        self.busy = False
        self._say("")
        if status == "done":
            where = QUrl.fromLocalFile(str(out.absolute()))
            self._notice.say(
                f"The report was written to {out}.",
                "good",
                action="Open",
                then=lambda: QDesktopServices.openUrl(where),
                warnings=warnings,
            )
        else:
            text = error or "The report was not written."
            self._notice.say(text, "error", warnings=warnings)

    def _write(self, out: Path, text: str, done: str, kind: str = "good") -> None:
        assert self._review is not None
        try:
            self._review.saved.refuse_own(out)
            write_atomic(out, text)
        except ResultError as error:
            self._notice.say(str(error), "error")
            return
        except OSError as error:
            self._notice.say(f"{out}: cannot be written ({error.strerror or error}).", "error")
            return
        self._notice.say(done, kind)

    def _ask_report(self, form: str) -> None:
        path = self._ask("report.html", "Web pages (*.html)")
        if path is not None:
            self.write_report(path, path.with_suffix(".pdf") if form == "pdf" else None)

    def _ask_decisions(self) -> None:
        path = self._ask("decisions.csv", "Tables (*.csv)")
        if path is not None:
            try:
                self.write_decisions(path)
            except ResultError as error:
                self._notice.say(str(error), "error")

    def _ask_labels(self) -> None:
        path = self._ask("labels-corrected.csv", "Tables (*.csv)")
        if path is not None:
            self.write_labels(path)

    def _ask(self, name: str, kinds: str) -> Path | None:
        if self._review is None:
            return None
        start = str(self._review.saved.folder / name)
        chosen, _ = QFileDialog.getSaveFileName(self, "Export", start, kinds)
        return Path(chosen) if chosen else None

    def _say(self, text: str) -> None:
        self.status.setText(text)
        self.status.setVisible(bool(text))


def _corrected_text(made: CorrectedLabels, out: Path) -> str:
    """Report how many labels were corrected, which were not, and if the table is a new one."""
    lines = [f"{amount(len(made.changed), 'label')} corrected in {out}."]
    if made.disputed:
        keep = "it keeps its label" if len(made.disputed) == 1 else "they keep their labels"
        lines.append(f"Reviewers do not agree on {listed(made.disputed, _NAMED)}: {keep}.")
    if not made.original:
        lines.append(
            "The evaluated labels table is gone or has changed; the new one holds only "
            "the evaluated slides."
        )
    return "\n".join(lines)
