"""How the family learns: what an epoch goes through, and what one step computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F

from slidelens.families.base import Model
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
)
from slidelens_example import Config, grid_spec


class Training(TrainConfig):
    """The schedule; ``--set field=value`` and presets change it."""

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"stages": (Stage(epochs=10, lr=0.05, head_lr=0.05),)}
    }


class Task(TrainTask[Config]):
    """Learns from slide labels: the mean of a slide's tiles against the slide's class."""

    training = Training

    @classmethod
    def initialize(cls, model: Model[Config], weights: str) -> Mapping[str, Any]:
        """Keep the random weights; say so in the card."""
        return {"weights": "random"}

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Let everything learn, at one rate."""
        return [(stage.lr, list(self.model.module.parameters()))]

    def length(self, stage: Stage) -> int:
        """Return the number of steps in an epoch."""
        return len(balanced_order(self.data.train, self.seed, 0))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Go through the training slides in random order, rare classes repeated."""
        for row in balanced_order(self.data.train, self.seed, epoch):
            sample = self.data.train[row]
            yield Work("train", (sample.slide_id,), (sample.label,))

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Compute one slide's loss; learn from it in training."""
        view = self.data.view(work.slides[0])
        grid = view.grid(grid_spec(self.model.config))
        batches = view.batches(grid, self.model.config.batch_size)
        logits = torch.cat([self.network(batch.images) for batch in batches]).mean(0, keepdim=True)
        loss = F.cross_entropy(logits, torch.tensor(work.labels, device=logits.device))
        if work.phase == "train":
            backward(loss)
        return Outcome((loss.item(),), (tuple(logits.softmax(1)[0].tolist()),))
