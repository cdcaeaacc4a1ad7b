"""The training loop: one for all families.

Each epoch works through what the family's task yields: scans, training steps, tuning slides. After
any of them the run can be killed and resumed to the same weights, bit for bit on a CPU. Progress is
iteration; closing the iterator saves and stops.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from itertools import chain
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import torch

from slidelens.engine.checkpoint import (
    Checkpoint,
    CheckpointStore,
    average_weights,
    random_state,
    restore_random,
)
from slidelens.engine.history import Score, judge, scores_of, write_history
from slidelens.engine.metrics import threshold_of_max_accuracy
from slidelens.engine.optimiser import make_optimizer, optimizer_state, restore_optimizer
from slidelens.engine.selection import Window, best_window, wanted_epochs
from slidelens.errors import ModelError
from slidelens.nn.backbones import freeze_norm_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from lightning.fabric import Fabric

    from slidelens.families.base import Model
    from slidelens.families.training import Outcome, Stage, TrainConfig, TrainTask, Work

__all__ = ["TrainLoop", "TrainProgress"]

SAVE_SECONDS = 60.0
"""Within an epoch, a checkpoint is written whenever this time has passed,"""
SAVE_SHARE = 20.0
"""but so much longer than writing one takes that it costs a twentieth of the time at most."""

Doing = Literal["open", "scan", "train", "tune", "epoch", "score", "done"]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training run stands: ``done`` of ``total`` steps of what it is ``doing``.

    ``open`` goes once over all slides; ``scan``, ``train`` and ``tune`` are steps of epoch
    ``epoch`` (from 1) of at most ``epochs``; ``epoch`` says that one ended, with its losses;
    ``score`` runs the final weights over the tuning slides; ``done`` comes once, last.
    """

    doing: Doing
    done: int = 0
    total: int = 0
    slide_id: str = ""
    epoch: int = 0
    epochs: int = 0
    train_loss: float | None = None
    tune_loss: float | None = None
    tune_auc: float | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class _Position:
    """How far the run is: all of it goes into the checkpoint."""

    stage: int = 0
    first: int = 0
    """Epoch in which the stage began."""
    epoch: int = 0
    done: int = 0
    """Works of the epoch that are done."""
    updates: int = 0
    train_losses: list[float] = field(default_factory=list)
    tune: dict[str, Score] = field(default_factory=dict)
    """Tuning slides that are scored in this epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per epoch."""


class TrainLoop:
    """Trains one model.

    Parameters
    ----------
    fabric
        Device, precision and processes.
    task
        The family's steps.
    config
        Schedule, optimiser, selection.
    store
        Where checkpoints go.
    settings
        JSON values that must be the same when the run is resumed.
    """

    def __init__(
        self,
        fabric: Fabric,
        task: TrainTask[Any],
        config: TrainConfig,
        store: CheckpointStore,
        settings: Mapping[str, Any],
    ) -> None:
        self.fabric = fabric
        self.task = task
        self.model: Model[Any] = task.model
        self.config = config
        self.store = store
        self.settings = settings
        self.metrics: dict[str, Any] = {}
        """Of the final weights, on the tuning split; filled at the end, as is the threshold."""
        self.threshold: float | None = None
        """Of highest accuracy on the tuning split; for two classes."""
        self._at = _Position()
        self._optimizer: Any  # Fabric wraps it, and then it is no Optimizer by type
        self._accumulated: list[str] = []
        """Slides whose gradients wait for the optimiser."""
        self._works_accumulated = 0
        self._training: bool | None = None
        self._start = self._saved = perf_counter()
        self._save_took = 0.0

    @property
    def history(self) -> list[dict[str, Any]]:
        """One row per finished epoch."""
        return self._at.history

    @property
    def updates(self) -> int:
        """Steps that the optimiser has made."""
        return self._at.updates

    def run(self, *, resume: bool) -> Iterator[TrainProgress]:
        """Train to the end; the module then holds the selected weights.

        Raises
        ------
        ModelError
            A loss or gradient that is not finite, naming the slide; a checkpoint of other settings.
        ResultError
            A checkpoint cannot be written.
        SlideError
            A slide cannot be read.
        """
        if resume:
            self._restore()
        else:
            self._use(self._stage)
        try:
            while True:
                while not self._stage_over():
                    yield from self._run_epoch()
                    yield self._end_epoch()
                if self._at.stage + 1 == len(self.config.stages):
                    break
                self._next_stage()
        except GeneratorExit:
            if not self._accumulated:
                self._save()
            raise
        yield from self._finish()

    @property
    def _stage(self) -> Stage:
        return self.config.stages[self._at.stage]

    @property
    def _losses(self) -> list[float]:
        """Tuning losses of the stage's finished epochs."""
        return [row["tune_loss"] for row in self._at.history[self._at.first :]]

    @property
    def _window(self) -> Window:
        return best_window(self._losses, self.config.window)

    def _stage_over(self) -> bool:
        count = self._at.epoch - self._at.first
        if count >= self._stage.epochs:
            return True
        patience = self.config.patience
        return bool(patience and count and count - self._window.stop >= patience)

    def _use(self, stage: Stage) -> None:
        """Make the optimiser of a stage; what does not learn needs no gradient."""
        self.task.stage = stage
        groups = self.task.groups(stage)
        learning = {id(p) for _, parameters in groups for p in parameters}
        for parameter in self.model.module.parameters():
            parameter.requires_grad_(id(parameter) in learning)
        optimizer = make_optimizer(groups, self.config)
        self._optimizer = self.fabric.setup_optimizers(optimizer)

    def _next_stage(self) -> None:
        centre = self._at.first + self._window.centre
        self._at.stage += 1
        self._at.first = self._at.epoch
        if self._stage.start == "centre":
            self.model.module.load_state_dict(self.store.load_weights(centre))
        self._use(self._stage)

    def _run_epoch(self) -> Iterator[TrainProgress]:
        epoch = self._at.epoch
        share = (epoch - self._at.first) / self._stage.epochs
        slower = (1 + math.cos(math.pi * share)) / 2 if self._stage.schedule == "cosine" else 1.0
        for group in self._optimizer.param_groups:
            group["lr"] = group["full_lr"] * slower
        total = self.task.length(self._stage) + len(self.task.data.tune)
        works = chain(self.task.epoch(epoch, self._stage), self.task.evaluation())
        for number, work in enumerate(works):
            if number < self._at.done:
                continue
            self._do(work, epoch)
            self._at.done = number + 1
            if not self._accumulated and perf_counter() - self._saved > self._pause:
                self._save()
            yield self._progress(work.phase, self._at.done, total, work.slides[0])

    @property
    def _pause(self) -> float:
        """Seconds to the next checkpoint within an epoch."""
        return max(SAVE_SECONDS, SAVE_SHARE * self._save_took)

    def _do(self, work: Work, epoch: int) -> None:
        training = work.phase == "train"
        if not training and self._accumulated:
            self._update()  # what is left of an accumulation
        self._set_mode(training)
        if not training:
            with torch.inference_mode():
                outcome = self.task.step(work, epoch, _no_backward)
            self._check(work, outcome)
            if work.phase == "tune":
                self._at.tune |= scores_of(work, outcome)
            return
        outcome = self.task.step(work, epoch, self._backward)
        self._check(work, outcome)
        self._at.train_losses += outcome.losses
        self._accumulated += work.slides
        self._works_accumulated += 1
        if self._works_accumulated == self.config.accumulate:
            self._update()

    def _set_mode(self, training: bool) -> None:
        if training != self._training:
            self.model.module.train(training)
            freeze_norm_statistics(self.model.module)
            self._training = training

    def _backward(self, loss: torch.Tensor) -> None:
        self.fabric.backward(loss)

    def _check(self, work: Work, outcome: Outcome) -> None:
        bad = [s for s, x in zip(work.slides, outcome.losses, strict=False) if not math.isfinite(x)]
        if bad:
            self._stop(f"the loss of slide {', '.join(dict.fromkeys(bad))} is not a finite number")

    def _update(self) -> None:
        """Average the gradients over the slides they came from and let the optimiser step."""
        parameters = [p for g in self._optimizer.param_groups for p in g["params"]]
        gradients = [p.grad for p in parameters if p.grad is not None]
        torch._foreach_div_(gradients, float(len(self._accumulated)))
        limit = self.config.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(norm):
            slides = ", ".join(dict.fromkeys(self._accumulated))
            self._stop(f"the gradients of slides {slides} are not finite numbers")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self._accumulated, self._works_accumulated = [], 0
        self._at.updates += 1

    def _stop(self, reason: str) -> None:
        kept = f" The last good checkpoint is in {self.store.folder}." if self.store.exists else ""
        raise ModelError(
            f"training stopped in epoch {self._at.epoch + 1}: {reason}. Lower the learning rate, "
            f"set clip_norm, or look at that slide.{kept}"
        )

    def _end_epoch(self) -> TrainProgress:
        at = self._at
        loss, area = judge(at.tune)
        row = {
            "epoch": at.epoch + 1,
            "stage": at.stage + 1,
            "lr": max(group["lr"] for group in self._optimizer.param_groups),
            "train_loss": sum(at.train_losses) / max(len(at.train_losses), 1),
            "tune_loss": loss,
            "tune_auc": area,
        }
        at.history.append(row)
        self.store.save_weights(at.epoch, self.model.module.state_dict())
        at.epoch += 1
        at.done, at.train_losses, at.tune = 0, [], {}
        self._save()
        first = at.first
        self.store.keep_weights(
            {first + e for e in wanted_epochs(self._losses, self.config.window)}
        )
        write_history(self.store.folder / "history.csv", at.history)
        return self._progress("epoch", at.epoch - first, self._stage.epochs)

    def _finish(self) -> Iterator[TrainProgress]:
        """Take the best window's weights and score the tuning split with them."""
        window = self._window
        chosen = list(window.epochs) if self.config.average else [window.centre]
        weights = [self.store.load_weights(self._at.first + epoch) for epoch in chosen]
        self.model.module.load_state_dict(average_weights(weights))
        self._set_mode(False)
        scores: dict[str, Score] = {}
        total = len(self.task.data.tune)
        for number, work in enumerate(self.task.evaluation(), start=1):
            with torch.inference_mode():
                outcome = self.task.step(work, self._at.epoch, _no_backward)
            self._check(work, outcome)
            scores |= scores_of(work, outcome)
            yield self._progress("score", number, total, work.slides[0])
        loss, area = judge(scores)
        if len(self.model.classes) == 2:
            labels = [label for label, _, _ in scores.values()]
            positive = [probs[1] for _, _, probs in scores.values()]
            self.threshold = threshold_of_max_accuracy(labels, positive)
        self.metrics = {
            "split": "tune",
            "slides": total,
            "loss": loss,
            "auc": area,
            "epochs": [self._at.first + epoch + 1 for epoch in chosen],
            "note": "the tuning split also chose the epochs: expect less on unseen slides",
        }

    def _progress(self, doing: Doing, done: int, total: int, slide: str = "") -> TrainProgress:
        last = self._at.history[-1] if self._at.history else {}
        return TrainProgress(
            doing,
            done,
            total,
            slide,
            epoch=self._at.epoch + (doing != "epoch"),
            epochs=self._at.first + sum(s.epochs for s in self.config.stages[self._at.stage :]),
            train_loss=last.get("train_loss"),
            tune_loss=last.get("tune_loss"),
            tune_auc=last.get("tune_auc"),
            seconds=perf_counter() - self._start,
        )

    def _save(self) -> None:
        start = perf_counter()
        optimizer, groups = optimizer_state(self._optimizer)
        generators, generator_record = random_state()
        tensors = {
            **{f"model.{k}": v for k, v in self.model.module.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in optimizer.items()},
            **{f"random.{k}": v for k, v in generators.items()},
        }
        record = {
            "settings": self.settings,
            "position": asdict(self._at),
            "task": self.task.state(),
            "optimizer": groups,
            "random": generator_record,
        }
        self.store.save(Checkpoint(tensors, record))
        self._saved = perf_counter()
        self._save_took = self._saved - start

    def _restore(self) -> None:
        checkpoint = self.store.load()
        record = checkpoint.record
        changed = [
            key
            for key in {**self.settings, **record["settings"]}
            if record["settings"].get(key) != self.settings.get(key)
        ]
        if changed:
            raise ModelError(
                f"the checkpoint in {self.store.folder} was made with other settings "
                f"({', '.join(changed)}); resume with the same ones, or train into another folder."
            )
        self._at = _Position(**record["position"])
        self.model.module.load_state_dict(checkpoint.part("model."))
        self._use(self._stage)
        restore_optimizer(self._optimizer, checkpoint.part("optimizer."), record["optimizer"])
        self.task.load_state(record["task"])
        restore_random(checkpoint.part("random."), record["random"])


def _no_backward(loss: torch.Tensor) -> None:  # noqa: ARG001  # reason: stands in for backward
    raise AssertionError("a scan or tune step asked for gradients")
