"""Training of top-1 multiple-instance learning: find each slide's top tile, then learn from it.

Source: streaming-prostate-2020, section IV.B, after Campanella et al. 2019.
"""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from pydantic import Field

from slidelens.errors import SlideError
from slidelens.families.mil import MilConfig, grid_spec, no_tiles
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
    take,
)
from slidelens.nn.augment import TileAugment
from slidelens.nn.backbones import load_weights
from slidelens.nn.mil import TileClassifier, class_probabilities, slide_loss
from slidelens.nn.pixels import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from slidelens.families.base import Model
    from slidelens.families.training import TrainData
    from slidelens.tiling.grid import Grid

__all__ = ["MilTask", "MilTraining"]


class MilTraining(TrainConfig):
    """How a MIL model learns. The default preset is ours, for tens to hundreds of slides."""

    train_batch: int = Field(16, ge=1, le=4096, description="slides per training step")
    flips: bool = Field(True, description="random flips and quarter turns of tiles")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (
                Stage(epochs=2, lr=1e-4, head_lr=1e-3, trains="head"),
                Stage(epochs=18, lr=1e-4, head_lr=1e-3, schedule="cosine", start="last"),
            ),
        },
        "paper": {
            "stages": (
                Stage(epochs=100, lr=1e-5, head_lr=1e-5),
                Stage(epochs=100, lr=3e-6, head_lr=3e-6, start="centre"),
            ),
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 0.0,
            "train_batch": 16,
            "window": 5,
            "average": True,
            "patience": 0,
        },
    }
    """``paper`` is the paper's schedule; its elastic deformation and turns by any angle are not
    applied to tiles, and its optimiser's weight decay is not stated (we take none)."""


class MilTask(TrainTask[MilConfig]):
    """Two phases per epoch, on tiles augmented alike in both.

    Each training slide is scanned for its top-1 tile (one per output: with more than two classes,
    one for each class); then the slides' top tiles are learnt from in balanced random batches.
    """

    training: ClassVar[type[TrainConfig]] = MilTraining
    config: MilTraining

    def __init__(
        self,
        model: Model[MilConfig],
        network: Callable[[torch.Tensor], torch.Tensor],
        data: TrainData,
        config: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(model, network, data, config, seed)
        assert isinstance(config, MilTraining)
        self.augment = TileAugment(config.flips, config.stain, config.colour)
        self._top: dict[str, list[int]] = {}
        """Slide to the position in its grid of the top tile of each output."""

    @classmethod
    def initialize(cls, model: Model[MilConfig], weights: str, seed: int) -> Mapping[str, Any]:
        """Load the backbone's weights; draw the head's small, so that no tile is favoured yet."""
        classifier = _classifier(model)
        torch.nn.init.normal_(
            classifier.head.weight, std=0.01, generator=torch.Generator().manual_seed(seed)
        )
        torch.nn.init.zeros_(classifier.head.bias)
        if weights == "none":
            return {"backbone_weights": "random"}
        report = load_weights(classifier.features, weights)
        return {
            "backbone_weights": Path(report.source).name,
            "ignored_tensors": list(report.ignored),
        }

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the head's parameters, and the backbone's unless the stage trains the head."""
        classifier = _classifier(self.model)
        head = [(stage.head_lr, list(classifier.head.parameters()))]
        if stage.trains == "head":
            return head
        return [*head, (stage.lr, list(classifier.features.parameters()))]

    def check(self, slide_id: str) -> None:
        """Refuse a slide that cannot be opened or has no tile with tissue."""
        if len(self._grid(slide_id)) == 0:
            raise SlideError(no_tiles(self.model.config))

    def epoch(self, epoch: int) -> Iterator[Work]:
        """Yield a scan of every training slide, then batches of them in balanced order."""
        for sample in self.data.train:
            yield Work("scan", (sample.slide_id,), (sample.label,))
        order = balanced_order(self.data.train, self.seed, epoch)
        for start in range(0, len(order), self.config.train_batch):
            batch = [self.data.train[i] for i in order[start : start + self.config.train_batch]]
            yield Work("train", tuple(s.slide_id for s in batch), tuple(s.label for s in batch))

    def length(self) -> int:
        """Return the number of scans and training batches in an epoch."""
        drawn = len(balanced_order(self.data.train, self.seed, 0))
        return len(self.data.train) + ceil(drawn / self.config.train_batch)

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Scan a slide, learn from a batch of slides, or score a tuning slide."""
        if work.phase == "scan":
            _, self._top[work.slides[0]] = self._scan(work.slides[0], epoch)
            return Outcome()
        labels = torch.tensor(work.labels, device=self.model.device)
        if work.phase == "tune":
            best, _ = self._scan(work.slides[0], None)
            losses = slide_loss(best[None], labels)
            probabilities = tuple(class_probabilities(best[None])[0].tolist())
            return Outcome(tuple(losses.tolist()), (probabilities,))
        losses = slide_loss(self._top_logits(work.slides, epoch), labels, self.config.smoothing)
        backward(losses.sum())
        return Outcome(tuple(losses.detach().tolist()))

    def state(self) -> dict[str, Any]:
        """Return the top tiles that this epoch's scans found so far."""
        return {"top": self._top}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the top tiles of the epoch that was interrupted."""
        self._top = dict(state["top"])

    def _scan(self, slide_id: str, epoch: int | None) -> tuple[torch.Tensor, list[int]]:
        """Return the highest logit of each output over a slide's tiles, and the tiles' positions.

        ``epoch`` None scans the tiles as they are, else as this epoch augments them.
        """
        grid, view = self._grid(slide_id), self.data.view(slide_id)
        logits, seen = [], 0
        for batch in view.batches(grid, self.model.config.batch_size):
            rows = range(seen, seen + len(batch.boxes))
            images = (
                batch.images
                if epoch is None
                else self._augmented(batch.images, [(epoch, slide_id, grid, row) for row in rows])
            )
            logits.append(self.network(self._normalized(images)).float())
            seen += len(batch.boxes)
        best, top = torch.cat(logits).max(0)
        return best, top.tolist()

    def _top_logits(self, slides: Sequence[str], epoch: int) -> torch.Tensor:
        """Return ``(B, K)``: output k of the tile that the scan found for it in each slide."""
        images, keys = [], []
        for slide_id in slides:
            grid, rows = self._grid(slide_id), self._top[slide_id]
            batches = self.data.view(slide_id).batches(take(grid, rows), len(rows))
            images += [batch.images for batch in batches]
            keys += [(epoch, slide_id, grid, row) for row in rows]
        logits = self.network(self._normalized(self._augmented(torch.cat(images), keys)))
        outputs = logits.shape[-1]
        return logits.float().view(-1, outputs, outputs).diagonal(dim1=1, dim2=2)

    def _grid(self, slide_id: str) -> Grid:
        return self.data.view(slide_id).grid(grid_spec(self.model.config))

    def _augmented(
        self, images: torch.Tensor, tiles: Sequence[tuple[int, str, Grid, int]]
    ) -> torch.Tensor:
        """Augment tiles by seed, epoch, slide and place: alike in both phases."""
        return self.augment(
            images,
            [
                (self.seed, epoch, crc32(slide_id.encode()), *np.asarray(grid.index[row]).tolist())
                for epoch, slide_id, grid, row in tiles
            ],
        )

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        return normalize(images, self.model.mean, self.model.std)


def _classifier(model: Model[MilConfig]) -> TileClassifier:
    assert isinstance(model.module, TileClassifier)
    return model.module
