"""State of the Train panel: the request, progress and outcome of a training run."""

from __future__ import annotations

import csv
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from filelock import Timeout

from slidelens.engine.locks import locked
from slidelens.engine.progress import time_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from slidelens.desktop.worker.messages import Message

__all__ = [
    "Epoch",
    "Split",
    "TrainRequest",
    "TrainState",
    "at_work",
    "free_name",
    "held",
    "read_history",
    "resumable",
]

_STATE, _CONFIG, _HISTORY = "training", "config.yaml", "history.csv"
_WINDOW = ".window"
_LOCKS = (".lock", _WINDOW)
"""Files that are locked: by a training at work, and by the window that has it begin."""
_DOING = {
    "open": "Checking the slides",
    "scan": "choosing tiles",
    "train": "learning",
    "tune": "tuning slides",
    "epoch": "",
    "score": "Scoring the tuning slides",
    "done": "Done",
}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class TrainRequest:
    """What the user asked for; ``None`` and empty texts are left to the family.

    Attributes
    ----------
    family
        Its name.
    slides, labels, annotations
        Folder of slides, table of labels, folder of annotations.
    out
        Folder of the new model.
    base
        Model to fine-tune; ``weights`` is then ignored.
    config
        Fields of model and training that were changed.
    classes
        Names in order, if the labels, or the model to fine-tune, shall not say them.
    """

    family: str
    slides: Path | None
    labels: Path | None
    out: Path
    annotations: Path | None = None
    base: Path | None = None
    weights: str = ""
    preset: str = ""
    epochs: int = 0
    seed: int = 0
    device: str = "auto"
    config: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def missing(self, *, annotated: bool = False) -> str:
        """Return what is missing before training can start, most important first; or nothing."""
        if self.slides is None:
            return "Choose the folder with your slides."
        if self.labels is None:
            return "Choose a table of labels, or start one and label slides by clicking."
        if annotated and self.annotations is None:
            return "This method learns from outlines: choose the folder with the annotations."
        if not _NAME.fullmatch(self.out.name):
            return "Give the model a name of letters, digits, '-', '_' and '.'."
        if (self.out / "model.json").exists():
            return f"There is already a model called {self.out.name}; give another name."
        return ""

    def facts(self) -> dict[str, Any]:
        """Return the request as the worker takes it."""
        return {
            "family_name": self.family,
            "slides_dir": None if self.slides is None else str(self.slides),
            "labels_csv": None if self.labels is None else str(self.labels),
            "out": str(self.out),
            "annotations": None if self.annotations is None else str(self.annotations),
            "from_model": None if self.base is None else str(self.base),
            "weights": None if self.base is not None else self.weights or None,
            "preset": self.preset or None,
            "epochs": self.epochs or None,
            "seed": self.seed,
            "device": self.device,
            "config": dict(self.config),
            "classes": list(self.classes) or None,
        }


@dataclass(frozen=True)
class Split:
    """Which slides a training run learns from, and which decide when to stop.

    Attributes
    ----------
    classes
        In label order; of two classes, the last is the positive one.
    train, tune
        Number of slides by class.
    slides
        Id, class and split of each slide.
    epochs
        At most this many.
    """

    classes: tuple[str, ...]
    train: tuple[int, ...]
    tune: tuple[int, ...]
    slides: tuple[tuple[str, str, str], ...]
    epochs: int

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Split:
        """Read the worker's message ``plan``."""
        classes = tuple(facts["classes"])
        return cls(
            classes,
            tuple(facts["split"]["train"]),
            tuple(facts["split"]["tune"]),
            tuple((name, classes[label], split) for name, label, split in facts["slides"]),
            facts["epochs"],
        )

    @property
    def text(self) -> str:
        """One line for the user."""
        positive = f"; positive: {self.classes[-1]}" if len(self.classes) == 2 else ""
        return (
            f"{sum(self.train)} slides for training, {sum(self.tune)} for tuning, at most "
            f"{self.epochs} epochs{positive}."
        )

    @property
    def warning(self) -> str:
        """What the user should know before it begins; empty: nothing."""
        empty = [name for name, n in zip(self.classes, self.tune, strict=True) if not n]
        if empty:
            return f"No slide of {', '.join(empty)} to tune on: the AUC cannot be computed."
        fewest, most = min(self.train), max(self.train)
        if fewest * 5 < most:
            rare = self.classes[self.train.index(fewest)]
            return f"Only {fewest} slides of {rare} against {most}: expect it to be missed often."
        return ""


@dataclass(frozen=True, slots=True)
class Epoch:
    """The figures of an epoch."""

    train_loss: float | None
    tune_loss: float | None
    tune_auc: float | None


@dataclass
class TrainState:
    """How far a training run is; :meth:`feed` it with the worker's messages.

    Attributes
    ----------
    out
        Folder of the model.
    rows
        One per finished epoch; if the run was resumed, also those before.
    """

    out: Path
    rows: list[Epoch] = field(default_factory=list)
    split: Split | None = None
    doing: str = ""
    done: int = 0
    total: int = 0
    slide: str = ""
    epoch: int = 0
    epochs: int = 0
    seconds: float = 0.0
    _begun: tuple[float, float] | None = None
    """Fraction and seconds at the first reported step: what came before was not slow."""

    @property
    def fraction(self) -> float | None:
        """How much is done, 0..1; ``None`` while that is not known."""
        if self.doing == "done":
            return 1.0
        if self.doing not in ("scan", "train", "tune", "epoch") or not self.epochs:
            return None
        whole = self.epoch if self.doing == "epoch" else self.epoch - 1
        part = self.done / self.total if self.total and self.doing != "epoch" else 0.0
        return min(1.0, (whole + part) / self.epochs)

    @property
    def left(self) -> float | None:
        """Seconds that are left if all epochs are needed."""
        now = self.fraction
        if now is None or self._begun is None or now <= self._begun[0]:
            return None
        speed = (self.seconds - self._begun[1]) / (now - self._begun[0])
        return speed * (1 - now)

    @property
    def text(self) -> str:
        """One line for the user."""
        if not self.doing:
            return "Starting the worker…"
        line = _DOING[self.doing]
        if self.doing in ("scan", "train", "tune", "epoch"):
            line = f"Epoch {self.epoch} of {self.epochs}" + (f": {line}" if line else "")
        if self.total and self.doing not in ("epoch", "done"):
            line += f", {self.done} of {self.total}"
        if self.left is not None and self.doing != "done":
            line += f"; at most {time_text(self.left)} left"
        return line

    def feed(self, message: Message) -> bool:
        """Take a message; return whether an epoch is finished."""
        facts = message.facts
        if message.name == "plan":
            self.split = Split.of(facts)
        if message.name != "progress":
            return False
        for name in ("doing", "done", "total", "slide", "epoch", "epochs", "seconds"):
            setattr(self, name, facts[name])
        if self._begun is None and self.fraction is not None:
            self._begun = (self.fraction, self.seconds)
        if self.doing != "epoch":
            return False
        del self.rows[self.epoch - 1 :]
        self.rows.append(Epoch(facts["train_loss"], facts["tune_loss"], facts["tune_auc"]))
        return True

    def summary(self, status: str, error: str) -> str:
        """Describe how the training run ended."""
        if status == "done":
            aucs = [row.tune_auc for row in self.rows if row.tune_auc is not None]
            best = f" Best AUC on the tuning slides: {max(aucs):.3f}." if aucs else ""
            return f"{self.out.name} is trained.{best}"
        if status == "cancelled":
            kept = "progress is kept" if resumable(self.out) else "nothing has been learnt yet"
            return f"Paused; {kept}."
        later = " It can continue from the last checkpoint." if resumable(self.out) else ""
        return f"{error}{later}"


def resumable(folder: Path) -> bool:
    """Return whether a folder holds a training run that can be resumed."""
    begun = (folder / _STATE / _CONFIG).is_file()
    return begun and not (folder / "model.json").exists()


def at_work(folder: Path) -> bool:
    """Return whether a training is at work in a folder now, in this or another process.

    Parameters
    ----------
    folder
        Of the model. One that is gone, or cannot be written to, has nobody at work.
    """
    try:
        with ExitStack() as taken:
            for name in _LOCKS:
                taken.enter_context(locked(folder / _STATE / name, timeout=0))
            return False
    except Timeout:
        return True
    except OSError:
        return False


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Have :func:`at_work` tell of a training before its worker has read slides and labels.

    Parameters
    ----------
    folder
        Of the model: a training run that can be resumed.

    Raises
    ------
    filelock.Timeout
        Another window holds it.
    OSError
        The folder cannot be written to.
    """
    with locked(folder / _STATE / _WINDOW, timeout=0):
        yield


def read_history(folder: Path) -> list[Epoch]:
    """Return the epochs of a training run so far; none if it has not written any."""
    try:
        text = (folder / _STATE / _HISTORY).read_text(encoding="utf-8")
    except OSError:
        return []
    rows: Sequence[Mapping[str, str]] = list(csv.DictReader(text.splitlines()))
    return [
        Epoch(*(_number(row.get(name)) for name in ("train_loss", "tune_loss", "tune_auc")))
        for row in rows
    ]


def free_name(folder: Path, stem: str) -> str:
    """Return a name that is not taken in a folder: ``stem``, ``stem-2``, ..."""
    number, name = 1, stem
    while (folder / name).exists():
        number += 1
        name = f"{stem}-{number}"
    return name


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
