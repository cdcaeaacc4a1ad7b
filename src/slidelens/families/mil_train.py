"""Training of top-1 multiple-instance learning: find each slide's top tile, then learn from it.

Source: streaming-prostate-2020, section IV.B, after Campanella et al. 2019.
"""

from __future__ import annotations

from contextlib import contextmanager
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
from slidelens.nn.backbones import freeze_norm_statistics, load_weights
from slidelens.nn.mil import TileClassifier, class_probabilities, slide_loss, soft_maximum
from slidelens.nn.pixels import normalize

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.families.base import Model
    from slidelens.families.training import TrainData
    from slidelens.tiling.grid import Grid

__all__ = ["MilTask", "MilTraining"]

_WARM_SLIDES = 256
"""Slides per step on feature vectors."""
_WARM_TILES = 256
"""Tiles per slide whose feature vectors are kept, evenly spaced over its grid."""
_SHARPEST = 10.0
"""The soft maximum's sharpness goes from 1 to this."""
_MANY = 1 << 20
"""More than the steps of any epoch, so that each step draws its own order."""


class MilTraining(TrainConfig):
    """How a MIL model learns. The default preset is ours, for tens to hundreds of slides."""

    train_batch: int = Field(16, ge=1, le=4096, description="slides per training step")
    warm_steps: int = Field(
        100, ge=1, description="steps per epoch of a stage that trains the head alone"
    )
    flips: bool = Field(True, description="random flips and quarter turns of tiles")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (
                Stage(epochs=1, lr=1e-4, head_lr=1e-3, trains="head"),
                Stage(epochs=14, lr=1e-4, head_lr=1e-4, schedule="cosine", start="last"),
            ),
            "patience": 6,
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

    A stage that trains the head alone (ours, not the paper's) scans each slide once for its tiles'
    feature vectors and learns from these, pooled by a soft maximum that sharpens from nearly the
    mean to nearly the maximum. Without it, top-1 learning from a random head depends on which tiles
    that head happens to prefer: on 48 slides one seed of three settled on a constant answer.
    """

    training: ClassVar[type[TrainConfig]] = MilTraining
    config: MilTraining

    def __init__(
        self,
        model: Model[MilConfig],
        network: Callable[..., torch.Tensor],
        data: TrainData,
        config: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(model, network, data, config, seed)
        assert isinstance(config, MilTraining)
        self.augment = TileAugment(config.flips, config.stain, config.colour)
        self._top: dict[str, list[int]] = {}
        """Slide to the position in its grid of the top tile of each output."""
        self._vectors: dict[str, torch.Tensor] = {}
        """Slide to the feature vectors of its tiles, while the backbone is frozen. They follow from
        the backbone alone, so a resumed run makes them anew."""

    @classmethod
    def initialize(cls, model: Model[MilConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights; the head starts at zero, where no tile is favoured."""
        classifier = _classifier(model)
        torch.nn.init.zeros_(classifier.head.weight)
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

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield a scan of every training slide, then batches of them in balanced order."""
        warm = stage.trains == "head"
        if not warm:
            self._vectors = {}
        for sample in self.data.train:
            yield Work("scan", (sample.slide_id,), (sample.label,), 0.0 if warm else None)
        if warm:
            yield from self._warm_works(epoch)
            return
        order = balanced_order(self.data.train, self.seed, epoch)
        for start in range(0, len(order), self.config.train_batch):
            yield self._batch(order[start : start + self.config.train_batch], None)

    def length(self, stage: Stage) -> int:
        """Return the number of scans and training batches in an epoch."""
        drawn = len(balanced_order(self.data.train, self.seed, 0))
        warm = stage.trains == "head"
        batches = self.config.warm_steps if warm else ceil(drawn / self.config.train_batch)
        return len(self.data.train) + batches

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Scan a slide, learn from a batch of slides, or score a tuning slide."""
        slide_id = work.slides[0]
        if work.phase == "scan":
            if work.detail is None:
                _, self._top[slide_id] = self._scan(slide_id, epoch)
            else:
                self._vectors_of(slide_id)
            return Outcome()
        labels = torch.tensor(work.labels, device=self.model.device)
        if work.phase == "tune":
            best, _ = self._scan(slide_id, None)
            losses = slide_loss(best[None], labels)
            probabilities = tuple(class_probabilities(best[None])[0].tolist())
            return Outcome(tuple(losses.tolist()), (probabilities,))
        if work.detail is None:
            logits = self._top_logits(work.slides, epoch)
        else:
            logits = self._pooled_logits(work.slides, work.detail)
        losses = slide_loss(logits, labels, self.config.smoothing)
        backward(losses.sum())
        return Outcome(tuple(losses.detach().tolist()))

    def state(self) -> dict[str, Any]:
        """Return the top tiles that this epoch's scans found so far."""
        return {"top": self._top}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back the top tiles of the epoch that was interrupted."""
        self._top = dict(state["top"])

    def _warm_works(self, epoch: int) -> Iterator[Work]:
        """Yield the steps on feature vectors; ``detail`` is the sharpness of their pooling."""
        for number in range(self.config.warm_steps):
            order = balanced_order(self.data.train, self.seed, epoch * _MANY + number)
            part = number / max(self.config.warm_steps - 1, 1)
            yield self._batch(order[:_WARM_SLIDES], _SHARPEST**part)

    def _batch(self, order: NDArray[np.int64], detail: float | None) -> Work:
        batch = [self.data.train[i] for i in order]
        slides, labels = (tuple(s.slide_id for s in batch), tuple(s.label for s in batch))
        return Work("train", slides, labels, detail)

    def _vectors_of(self, slide_id: str) -> torch.Tensor:
        """Return ``(tiles, dim)`` feature vectors of a slide's tiles, at most 256 of them."""
        if slide_id not in self._vectors:
            grid = self._grid(slide_id)
            count = min(len(grid), _WARM_TILES)
            some = take(grid, np.linspace(0, len(grid) - 1, count).round().astype(np.int64))
            with torch.no_grad(), _evaluating(self.model.module):
                batches = self.data.view(slide_id).batches(some, self.model.config.batch_size)
                vectors = [
                    self.network(self._normalized(batch.images), vectors=True) for batch in batches
                ]
            self._vectors[slide_id] = torch.cat(vectors).half()
        return self._vectors[slide_id]

    def _pooled_logits(self, slides: Sequence[str], sharpness: float) -> torch.Tensor:
        """Return ``(B, K)``: the soft maximum of each output over each slide's feature vectors."""
        bags = [self._vectors_of(slide_id) for slide_id in slides]
        logits = _classifier(self.model).head(torch.cat(bags).float())
        parts = logits.split([len(bag) for bag in bags])
        return torch.stack([soft_maximum(part, sharpness) for part in parts])

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


@contextmanager
def _evaluating(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in eval mode for a while: a resumed run makes vectors within a training step."""
    training = module.training
    module.eval()
    try:
        yield
    finally:
        module.train(training)
        freeze_norm_statistics(module)


def _classifier(model: Model[MilConfig]) -> TileClassifier:
    assert isinstance(model.module, TileClassifier)
    return model.module
