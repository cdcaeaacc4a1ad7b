"""Progress on the terminal: bars with the time left, or plain lines without a terminal."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from time import monotonic
from typing import TYPE_CHECKING, Self

import typer

from slidelens.cli.stopping import stopping

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID

    from slidelens.engine.training.loop import TrainProgress

__all__ = ["Bar", "TrainBars"]

_PLAIN_SECONDS = 30.0
"""Without a terminal a long piece of work says at most so often where it stands."""


class Bar:
    """One bar on stderr that is given new work again and again; Ctrl-C ends the work between two.

    With ``quiet``, or without a terminal, no bar is drawn; without a terminal :meth:`update` prints
    a plain line every 30 seconds instead.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._drawn = not quiet and sys.stderr.isatty()
        self._bars: Bars | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._said = monotonic()
        self._held = ExitStack()

    def __enter__(self) -> Self:
        self._check = self._held.enter_context(stopping())
        if self._drawn:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            self._bars = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._held.enter_context(self._bars)
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def update(self, title: str, done: int, total: int, note: str = "") -> None:
        """Show how far the work of this title is; a new title is a new bar.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C was pressed.
        """
        self._check()
        if self._bars is not None:
            if title != self._title or self._task is None:
                if self._task is not None:
                    self._bars.remove_task(self._task)
                self._task = self._bars.add_task(title, total=total or None, note=note)
            self._bars.update(self._task, completed=done, total=total or None, note=note)
        elif not self.quiet and monotonic() - self._said > _PLAIN_SECONDS:
            self._said = monotonic()
            count = f"{done} of {total} " if total else ""
            typer.echo(f"{title}: {count}{note}".rstrip(" :"), err=True)
        self._title = title

    def line(self, text: str) -> None:
        """Print a line that stays, above the bar; also without a terminal.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C was pressed.
        """
        if self._bars is not None:
            self._bars.console.print(text, markup=False, highlight=False)
        elif not self.quiet:
            typer.echo(text, err=True)
        self._check()  # slides that cannot be opened have lines only


_VERBS = {
    "open": "checking slides",
    "scan": "looking at slides",
    "train": "learning",
    "tune": "tuning split",
    "score": "scoring the tuning split with the final weights",
}


class TrainBars(Bar):
    """What a training run shows: one line per epoch that stays, one bar for the work at hand."""

    def show(self, step: TrainProgress) -> None:
        """Show one step."""
        fold = f"fold {step.fold}/{step.folds}, " if step.folds else ""
        if step.note:
            self.line(fold + step.note)
        if step.doing == "epoch":
            parts = [f"{fold}epoch {step.epoch}/{step.epochs}"]
            parts += [
                f"{name} {value:.3f}"
                for name, value in (
                    ("train loss", step.train_loss),
                    ("tune loss", step.tune_loss),
                    ("tune AUC", step.tune_auc),
                )
                if value is not None
            ]
            self.line("  ".join([*parts, f"{step.seconds:.0f} s"]))
        elif step.doing in _VERBS:
            within = step.epoch and step.doing != "score"
            where = f"epoch {step.epoch}/{step.epochs}: " if within else ""
            self.update(fold + where + _VERBS[step.doing], step.done, step.total, step.slide_id)
