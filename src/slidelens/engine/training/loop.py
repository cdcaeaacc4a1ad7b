"""The training loop: one for all families.

Each epoch does the works that the family's task yields: scans, training steps, tuning slides. After
any of them the run can be killed and resumed to the same weights, bit for bit on a CPU. Iterating
runs the loop and yields progress; closing the iterator saves and stops.
"""

from __future__ import annotations

import math
from contextlib import closing, nullcontext
from dataclasses import asdict
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from slidelens.engine.contract import check_outcome, known_phase, nothing_learnt
from slidelens.engine.training.checkpoint import Checkpoint, CheckpointStore, average_weights
from slidelens.engine.training.history import (
    TUNE_TABLE,
    History,
    chosen_threshold,
    judge,
    scores_of,
    write_scores,
)
from slidelens.engine.training.optimiser import make_optimizer, optimizer_state, restore_optimizer
from slidelens.engine.training.replicas import Replicas
from slidelens.engine.training.selection import Window, best_window, wanted_epochs
from slidelens.engine.training.state import Position, TrainProgress, changed_rates
from slidelens.nn.backbones import freeze_norm_statistics

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from lightning.fabric import Fabric

    from slidelens.engine.training.replicas import Round
    from slidelens.engine.training.state import Doing
    from slidelens.families.base import Model
    from slidelens.families.training import Outcome, Stage, TrainConfig, TrainTask, Work

__all__ = ["TrainLoop", "TrainProgress"]

SAVE_SECONDS = 60.0
"""Shortest time between checkpoints within an epoch."""
SAVE_SHARE = 20.0
"""That time is at least so many times what writing a checkpoint took: a twentieth of the run."""


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
        The folder for checkpoints.
    settings
        JSON values stored in checkpoints, which must be the same when the run is resumed.
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
        self.replicas = Replicas(fabric)
        self.task = task
        self.model: Model[Any] = task.model
        self.config = config
        self.store = store
        self.settings = settings
        self.metrics: dict[str, Any] = {}
        """Metrics of the final weights on the tuning split; set at the end, as is the threshold."""
        self.threshold: float | None = None
        """Operating point that the tuning split chose; for two classes."""
        self._at = Position()
        self._logs = History(store.folder)
        self._optimizer: Any  # Fabric wraps it, and then it is no Optimizer by type
        self._accumulated: list[str] = []
        """Slides whose gradients the next optimiser step uses."""
        self._works_accumulated = 0
        self._scanned: set[str] = set()
        """Slides scanned by this process since the replicas' states were last merged."""
        self._unmerged = False
        """Whether any process has scanned since then; the same in all processes."""
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

    @property
    def changes(self) -> list[str]:
        """Rates that were changed when the run was resumed."""
        return self._at.changes

    def run(self, *, resume: bool) -> Iterator[TrainProgress]:
        """Train to the end; the module then holds the selected weights.

        Raises
        ------
        ModelError
            A loss or gradient that is not finite, naming the slide; a damaged checkpoint.
        ResultError
            A checkpoint cannot be written.
        SlideError
            A slide cannot be read.
        """
        if resume:
            self._restore()
            self.replicas.wait()  # the first would save anew what another has not read yet
        else:
            self.replicas.equalise(self.model.module)
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
            if self._may_save:
                self._save()
            raise
        finally:
            self._logs.close()
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
        """Make the optimiser of a stage; parameters that are not trained get no gradient."""
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
        before = (
            self._at.updates if self._at.done == 0 else -1
        )  # a resumed epoch may have made them
        # Closed however the epoch ends: a task may be reading slides ahead.
        with closing(self._works(epoch)) as works, closing(self.replicas.rounds(works)) as rounds:
            for ready in rounds:
                number, work = ready[-1]
                if number < self._at.done:
                    continue
                self._do(ready, epoch)
                self._at.done = number + 1
                if self._may_save and perf_counter() - self._saved > self._pause:
                    self._save()
                yield self._progress(work.phase, self._at.done, total, work.slides[0])
        if self._at.updates == before:
            raise nothing_learnt(self.model)

    def _works(self, epoch: int) -> Generator[Work]:
        """Yield an epoch's works; closing this closes the task's generators too."""
        yield from self.task.epoch(epoch, self._stage)
        yield from self.task.evaluation()

    @property
    def _may_save(self) -> bool:
        """Whether a checkpoint would be complete now.

        It holds neither accumulated gradients nor other processes' scans that are not merged yet.
        """
        return not self._accumulated and not self._unmerged

    @property
    def _pause(self) -> float:
        """Seconds between checkpoints within an epoch."""
        return max(SAVE_SECONDS, SAVE_SHARE * self._save_took)

    def _do(self, ready: Round, epoch: int) -> None:
        """Do this process's work of a round (all of one phase); share the outcomes with all."""
        phase = known_phase(self.model, ready[0][1])
        training = phase == "train"
        if not training and self._accumulated:
            self._update()  # the rest of an accumulation
        if phase != "scan" and self._unmerged:
            self.task.load_state(self.replicas.merge(self.task.state(), self._scanned))
            self._scanned, self._unmerged = set(), False
        self._unmerged = phase == "scan" and self.replicas.count > 1
        self._set_mode(training)
        work = self.replicas.mine(ready)
        outcome = None
        if work is not None:
            with nullcontext() if training else torch.inference_mode():
                outcome = self.task.step(work, epoch, self._backward if training else _no_backward)
            if self._unmerged:
                self._scanned.update(work.slides)
        for (_, done), found in zip(ready, self.replicas.share(outcome, ready), strict=True):
            self._check(done, found)
            if phase == "tune":
                self._at.tune |= scores_of(done, found)
            elif phase == "scan" and found.seen is not None:
                self.task.keep(done, epoch, found.seen)
            elif training:
                self._at.train_losses += found.losses
                self._accumulated += done.slides
        if training:
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
        check_outcome(self.model, work, outcome)
        bad = [s for s, x in zip(work.slides, outcome.losses, strict=False) if not math.isfinite(x)]
        if bad:
            self._stop(f"the loss of slide {', '.join(dict.fromkeys(bad))} is not a finite number")

    def _update(self) -> None:
        """Average the gradients over their slides and make an optimiser step."""
        parameters = [p for g in self._optimizer.param_groups for p in g["params"]]
        if not self.replicas.mean_gradients(parameters, len(self._accumulated)):
            raise nothing_learnt(self.model)
        limit = self.config.clip_norm or math.inf
        norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
        if not torch.isfinite(norm):
            slides = ", ".join(dict.fromkeys(self._accumulated))
            self._stop(f"the gradients of slides {slides} are not finite numbers")
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.replicas.average_statistics(self.model.module)
        self._accumulated, self._works_accumulated = [], 0
        self._at.updates += 1

    def _stop(self, reason: str) -> None:
        raise self.store.stopped(self._at.epoch, reason)

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
        if self.replicas.is_first:
            self.store.save_weights(at.epoch, self.model.module.state_dict())
        at.epoch += 1
        at.done, at.train_losses, at.tune = 0, [], {}
        self._save()
        first = at.first
        if self.replicas.is_first:
            self.store.keep_weights(
                {first + e for e in wanted_epochs(self._losses, self.config.window)}
            )
            self._logs.add(at.history)
        self.replicas.wait()  # the weights of the epoch are there to be read
        return self._progress("epoch", at.epoch - first, self._stage.epochs)

    def _finish(self) -> Iterator[TrainProgress]:
        """Take the best window's weights and score the tuning split with them."""
        window = self._window
        chosen = list(window.epochs) if self.config.average else [window.centre]
        weights = [self.store.load_weights(self._at.first + epoch) for epoch in chosen]
        self.model.module.load_state_dict(average_weights(weights))
        total = len(self.task.data.tune)
        self._at.tune = {}
        for ready in self.replicas.rounds(self.task.evaluation()):
            self._do(ready, self._at.epoch)
            number, work = ready[-1]
            yield self._progress("score", number + 1, total, work.slides[0])
        scores = self._at.tune
        if self.replicas.is_first:
            write_scores(self.store.folder / TUNE_TABLE, scores, self.model.classes)
        loss, area = judge(scores)
        self.threshold = chosen_threshold(scores, self.model.classes)
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
            epoch=self._at.epoch + (doing in ("scan", "train", "tune")),
            epochs=self._at.first + sum(s.epochs for s in self.config.stages[self._at.stage :]),
            train_loss=last.get("train_loss"),
            tune_loss=last.get("tune_loss"),
            tune_auc=last.get("tune_auc"),
            seconds=perf_counter() - self._start,
        )

    def _save(self) -> None:
        if not self.replicas.is_first:
            return
        start = perf_counter()
        optimizer, groups = optimizer_state(self._optimizer)
        generators, generator_records = self.replicas.random_states()
        tensors = {
            **{f"model.{k}": v for k, v in self.model.module.state_dict().items()},
            **{f"optimizer.{k}": v for k, v in optimizer.items()},
            **generators,
        }
        record = {
            "settings": self.settings,
            "position": asdict(self._at),
            "task": self.task.state(),
            "optimizer": groups,
            **generator_records,
        }
        self.store.save(Checkpoint(tensors, record))
        self._saved = perf_counter()
        self._save_took = self._saved - start

    def _restore(self) -> None:
        checkpoint = self.store.load()
        record = checkpoint.record
        self._at = Position(**record["position"])
        self.model.module.load_state_dict(checkpoint.part("model."))
        self._use(self._stage)
        restore_optimizer(self._optimizer, checkpoint.part("optimizer."), record["optimizer"])
        changed = changed_rates(record["settings"], self.settings)
        self._at.changes += [f"epoch {self._at.epoch + 1}: {text}" for text in changed]
        self.task.load_state(record["task"])
        self.replicas.restore_random(checkpoint)


def _no_backward(loss: torch.Tensor) -> None:  # noqa: ARG001  # reason: stands in for backward
    raise AssertionError("a scan or tune step asked for gradients")
