"""The Train panel: from labelled slides to a model, without leaving the window."""

from __future__ import annotations

from contextlib import ExitStack, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from filelock import Timeout
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QVBoxLayout, QWidget

from slidelens.desktop.panels.drawing import Curve, Curves, SplitView
from slidelens.desktop.panels.parts import (
    Panel,
    button,
    caption,
    empty,
    heading,
    progress_bar,
    row,
    show_progress,
)
from slidelens.desktop.panels.train_data import DataChooser
from slidelens.desktop.panels.train_model import TrainOptions
from slidelens.desktop.qt import alive
from slidelens.desktop.state.train import (
    Split,
    TrainState,
    at_work,
    held,
    read_history,
    resumable,
)
from slidelens.errors import ResultError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from qtpy.QtGui import QHideEvent

    from slidelens.desktop.state.train import TrainRequest
    from slidelens.desktop.worker.client import Job
    from slidelens.desktop.worker.messages import Message

__all__ = ["TrainPanel"]

_PLAN_MS = 500
_AGAIN_MS = 5000  # how often to look whether a run in another window has ended
_BLUE, _ORANGE = "#56b4e9", "#e69f00"


class TrainPanel(Panel):
    """Choose slides, labels and a method; see the split; train, pause, resume."""

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__(napari_viewer)
        self.state: TrainState | None = None
        self.split: Split | None = None
        self._job: Job | None = None
        self._planning: Job | None = None
        self._discard = False
        self._held = ExitStack()
        """What keeps other windows from the run under way."""
        self._build()
        self._plan_soon = QTimer(self)
        self._plan_soon.setSingleShot(True)
        self._plan_soon.setInterval(_PLAN_MS)
        self._plan_soon.timeout.connect(self.plan)
        self._list_again = QTimer(self)
        self._list_again.setSingleShot(True)
        self._list_again.setInterval(_AGAIN_MS)
        self._list_again.timeout.connect(self._list_unfinished)
        self.data.changed.connect(self._changed)
        self.options.changed.connect(self._changed)
        self._changed()
        self._show_progress()
        models, trash = self.bench.preferences.models, self.bench.trash
        self.bench.background.run(lambda: trash.sweep(models), lambda _: None, owner=self)
        self._list_unfinished()

    @property
    def running(self) -> bool:
        """Whether a training run is under way."""
        return self._job is not None

    @property
    def request(self) -> TrainRequest | None:
        """The request, as the panel stands."""
        data = self.data
        return self.options.request(data.slides, data.labels, data.annotations)

    def plan(self) -> None:
        """Have the worker report what the training run would learn from."""
        request = self.request
        if request is None or self._missing() or self.running or self.bench.closed:
            return
        self.why.setText("Checking labels and slides…")
        self._planning = job = self.bench.trainer.submit("plan", request.facts())
        job.said.connect(self._planned)
        job.ended.connect(lambda status, error: self._plan_ended(job, status, error))

    def start(self) -> None:
        """Train."""
        request = self.request
        if request is None or self.running or self._missing():
            return
        if not self.data.outlining.save():
            return  # it has said why; training would use the annotations drawn before
        self._run("train", request.facts(), TrainState(request.out))

    def resume(self, folder: Path) -> None:
        """Resume a training run that was paused, or whose window or worker was gone."""
        if not self.running and self._is_free(folder):
            with suppress(OSError, Timeout):  # the worker says why
                self._held.enter_context(held(folder))
            rows = read_history(folder)
            self._run("resume", {"out": str(folder)}, TrainState(folder, rows))

    def pause(self) -> None:
        """Stop after the step under way; what has been learnt is kept."""
        if self._job is not None:
            self.status.setText("Saving what has been learnt…")
            self._enable()
            self._job.cancel()

    def cancel(self) -> None:
        """Stop and discard the run; it can be restored while the window is open."""
        self._discard = True
        self.pause()

    def discard(self, folder: Path) -> None:
        """Discard an unfinished training run, unless it is under way; it can be restored."""
        if not self._is_free(folder):
            return
        try:
            hidden = self.bench.trash.delete(folder)
        except ResultError as error:
            self.notice.say(str(error), "error")
            return
        self.bench.memory.training_ended(folder)
        self.notice.say(
            f"The training run {folder.name} was discarded.",
            action="Undo",
            then=partial(self._bring_back, folder, hidden),
        )
        self._list_unfinished()

    def _build(self) -> None:
        self.data = DataChooser(self.bench, self.notice)
        self.options = TrainOptions(self.bench)
        self.split_view = SplitView()
        self.split_text, self.warning, self.why, self.status = (caption() for _ in range(4))
        self.start_button = button("Train", "Train in a separate process", self.start)
        self.pause_button = button("Pause", "Stop and keep what has been learnt", self.pause)
        self.cancel_button = button("Cancel", "Stop and discard the run", self.cancel)
        self.bar = progress_bar("Training progress")
        self.losses = Curves("Loss", low=0.0)
        self.areas = Curves("AUC, tuning", 0.0, 1.0)
        self.unfinished = QWidget()
        self._unfinished = QVBoxLayout(self.unfinished)
        self.watch = QWidget()
        watch = QVBoxLayout(self.watch)
        for inner in (self._unfinished, watch):
            inner.setContentsMargins(0, 0, 0, 0)
        watch.addWidget(self.losses)
        watch.addWidget(self.areas)
        body = self.body
        body.addWidget(self.watch)
        body.addWidget(self.unfinished)
        body.addWidget(heading("Slides and labels"))
        body.addWidget(self.data)
        body.addWidget(heading("Model"))
        body.addWidget(self.options)
        body.addWidget(heading("Split"))
        for widget in (self.split_view, self.split_text, self.warning):
            body.addWidget(widget)
        body.addStretch()
        buttons = (self.start_button, self.pause_button, self.cancel_button)
        self.foot.addLayout(row(*buttons, stretch=0))
        for below in (self.why, self.bar, self.status):
            self.foot.addWidget(below)

    def hideEvent(self, event: QHideEvent) -> None:  # noqa: N802  # reason: Qt's name
        """Save what was drawn."""
        super().hideEvent(event)
        self.data.outlining.save()

    def _missing(self) -> str:
        request, family = self.request, self.options.chosen
        if request is None or family is None:
            return "Reading the methods…"
        return request.missing(annotated=family.annotated)

    def _changed(self) -> None:
        """Plan again, a moment after the last change."""
        family = self.options.chosen
        self.data.show_annotated(family is not None and family.annotated)
        self.split = None
        self.split_view.show_split(None)
        for line in (self.split_text, self.warning):
            line.hide()
        self._say_why(self._missing())
        self._enable()
        self._plan_soon.start()

    def _planned(self, message: Message) -> None:
        now = self._planning  # an earlier plan may still be under way
        if now is not None and now.number == message.job and message.name == "plan":
            self._show_split(Split.of(message.facts), now.warnings)

    def _plan_ended(self, job: Job, status: str, error: str) -> None:
        if not alive(self) or job is not self._planning or self.bench.closed:
            return
        self._planning = None
        self._say_why("" if status == "done" else error)
        self._enable()

    def _show_split(self, split: Split, warnings: Sequence[str] = ()) -> None:
        self.split = split
        self.split_view.show_split(split)
        self.split_text.setText(split.text)
        self.split_text.setToolTip("\n".join(f"{s}: {name}, {c}" for name, c, s in split.slides))
        self.split_text.show()
        warning = "\n".join(filter(None, [split.warning, *warnings]))
        self.warning.setText(warning)
        self.warning.setVisible(bool(warning))

    def _run(self, kind: str, facts: dict[str, Any], state: TrainState) -> None:
        try:
            state.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = f"{state.out}: cannot be written ({error.strerror or error})"
            self.notice.say(f"{why}; choose another folder in napari's preferences.", "error")
            return
        self.notice.say("")
        self.state, self._discard, self._planning = state, False, None
        self.bench.memory.training_began(state.out)
        self._job = job = self.bench.trainer.submit(kind, facts)
        job.said.connect(self._hear)
        job.ended.connect(self._ended)
        self._say_why("")
        self._show_progress()
        self._show_curves()
        self._list_unfinished()
        self._enable()
        bar = self.scrolled.verticalScrollBar()
        if bar is not None:
            bar.setValue(0)  # where it is watched

    def _hear(self, message: Message) -> None:
        if self.state is None or self.bench.closed:
            return
        if message.name == "warning" and self._job is not None:
            self.notice.say("", warnings=self._job.warnings)
        if self.state.feed(message):
            self._show_curves()
        if message.name == "plan" and self.state.split is not None:
            self._show_split(self.state.split)
        self._show_progress()

    def _ended(self, status: str, error: str) -> None:
        job, self._job = self._job, None
        self._held.close()
        state = self.state
        if state is None or job is None or self.bench.closed:
            return
        if status == "done" or not resumable(state.out):
            self.bench.memory.training_ended(state.out)
        kinds = {"done": "good", "cancelled": "info"}
        text = state.summary(status, error)
        self.notice.say(text, kinds.get(status, "error"), warnings=job.warnings)
        if status == "done":
            self._finished(state, text, job.warnings)
        elif self._discard:
            self.discard(state.out)
        elif not resumable(state.out) and not any(state.out.iterdir()):
            state.out.rmdir()  # nothing had begun
        self._show_progress()
        self._list_unfinished()
        self._enable()

    def _finished(self, state: TrainState, text: str, warnings: list[str]) -> None:
        self.bench.memory.add_model(state.out)
        self.bench.load_models()
        run_it = partial(self._to_run, state.out.name)
        self.notice.say(text, "good", action="Run it", then=run_it, warnings=warnings)
        self.options.suggest_name()

    def _to_run(self, name: str) -> None:
        panel = self.bench.open_panel("run")
        panel.models.choose(name)

    def _show_progress(self) -> None:
        show_progress(self.bar, self.status, self.state if self.running else None)

    def _show_curves(self) -> None:
        rows = [] if self.state is None else self.state.rows
        self.losses.show_curves(
            [
                Curve("training", _BLUE, [r.train_loss for r in rows]),
                Curve("tuning", _ORANGE, [r.tune_loss for r in rows]),
            ]
        )
        self.areas.show_curves([Curve("tuning", _ORANGE, [r.tune_auc for r in rows])])

    def _say_why(self, text: str) -> None:
        self.why.setText(text)
        self.why.setVisible(bool(text) and not self.running)

    def _enable(self) -> None:
        self.start_button.setVisible(not self.running)
        self.start_button.setEnabled(not self.running and self.split is not None)
        stopping = self.status.text().startswith("Saving") and self.running
        for stop in (self.pause_button, self.cancel_button):
            stop.setVisible(self.running)
            stop.setEnabled(self.running and not stopping)
        self.data.setEnabled(not self.running)
        self.options.setEnabled(not self.running)
        self.unfinished.setEnabled(not self.running)
        self.watch.setVisible(self.state is not None)

    def _list_unfinished(self) -> None:
        """Offer to resume runs that have begun and not ended, also in another session.

        One that is under way in another window is only named, until it ends there.
        """
        if self.bench.closed:
            return
        empty(self._unfinished)
        now = self.state.out if self.running and self.state is not None else None
        folders = [f for f in self.bench.memory.trainings() if resumable(f) and f != now]
        elsewhere = [f for f in folders if at_work(f)]
        for folder in folders:
            self._unfinished.addWidget(_Unfinished(folder, self, free=folder not in elsewhere))
        self.unfinished.setVisible(bool(folders))
        if elsewhere:
            self._list_again.start()

    def _is_free(self, folder: Path) -> bool:
        """Return whether nobody trains in a folder now; otherwise say so."""
        if not at_work(folder):
            return True
        self.notice.say(
            f"The training run {folder.name} is under way in another window; pause or cancel it "
            "there.",
            "error",
        )
        self._list_unfinished()
        return False

    def _bring_back(self, folder: Path, hidden: Path) -> None:
        try:
            self.bench.trash.restore(hidden)
        except ResultError as error:
            self.notice.say(str(error), "error")
            return
        self.bench.memory.training_began(folder)
        self._list_unfinished()


class _Unfinished(QWidget):
    """A training run that can be resumed, if it is not under way in another window."""

    def __init__(self, folder: Path, panel: TrainPanel, *, free: bool) -> None:
        super().__init__()
        epochs = len(read_history(folder))
        done = f"{epochs} epoch{'s' if epochs != 1 else ''} done" if epochs else "just begun"
        how = "is not finished" if free else "is running in another window"
        text = caption(f"<b>{folder.name}</b> {how}: {done}.")
        self.resume = button("Resume", "Continue where it stopped", partial(panel.resume, folder))
        self.discard = button(
            "Discard", "Discard the unfinished run", partial(panel.discard, folder)
        )
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.addLayout(row(text, self.resume, self.discard, stretch=0))
        for act in (self.resume, self.discard):
            act.setVisible(free)
