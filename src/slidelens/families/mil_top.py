"""Training of top-1 and top-k MIL: find each slide's top tiles, then learn from them.

Source: streaming-prostate-2020, section IV.B, after Campanella et al. 2019.
"""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidelens.families.base import no_tissue
from slidelens.families.mil import grid_spec, network_of
from slidelens.families.mil_tiles import MilTiles, evaluating
from slidelens.families.training import (
    Outcome,
    Work,
    balanced_order,
    divided,
    slide_key,
    works_per_update,
)
from slidelens.nn.mil import class_probabilities, slide_loss, soft_maximum
from slidelens.nn.precision import halved

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.families.mil_schedule import MilTraining
    from slidelens.families.training import Stage

__all__ = ["TopSteps"]

_WARM_SLIDES = 256
"""Slides per update on feature vectors."""
_WARM_TILES = 256
"""Tiles per slide whose feature vectors are kept, evenly spaced over its grid."""
_SHARPEST = 10.0
"""The soft maximum's sharpness goes from 1 to this."""


class TopSteps:
    """Two phases per epoch, on tiles augmented alike in both.

    Each training slide is scanned for its top tiles (for each output: with more than two classes,
    for each class); then the slides' top tiles are learnt from in balanced random batches.

    A stage that trains only the head (not in the paper) scans each slide once for its tiles'
    feature vectors and is trained on these, pooled by a soft maximum that sharpens from nearly the
    mean to nearly the maximum. Without it, top-1 learning from a random head depends on which tiles
    that head happens to prefer: on 48 slides one seed of three settled on a constant answer.
    """

    def __init__(self, tiles: MilTiles, config: MilTraining, seed: int) -> None:
        self.tiles, self.config, self.seed = tiles, config, seed
        self.train = tiles.data.train
        self._top: dict[str, list[list[int]]] = {}
        """Slide to the positions in its grid of the top tiles: one row per rank, each with one
        position per output."""
        self._vectors: dict[str, torch.Tensor] = {}
        """Slide to the feature vectors of its tiles, while the backbone is frozen. They follow from
        the backbone alone, so a resumed run makes them anew."""

    def check(self, slide_id: str) -> None:
        """Raise ``SlideError`` for a slide that cannot be opened or has no tile with tissue."""
        if len(self.tiles.grid(slide_id)) == 0:
            raise no_tissue(grid_spec(self.tiles.model.config))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield a scan of every training slide, then batches of them in balanced order."""
        warm = stage.trains == "head"
        if not warm:
            self._vectors = {}
        for sample in self.train:
            yield Work.of("scan", [sample], 0.0 if warm else None)
        if warm:
            yield from self._warm_works(epoch)
            return
        order = balanced_order(self.train, self.seed, epoch)
        for start in range(0, len(order), self.config.train_batch):
            yield self._batch(order[start : start + self.config.train_batch], None)

    def length(self, stage: Stage) -> int:
        """Return the number of scans and training batches in an epoch."""
        if stage.trains == "head":
            batches = self.config.warm_steps * works_per_update(self.config)
        else:
            drawn = len(balanced_order(self.train, self.seed, 0))
            batches = ceil(drawn / self.config.train_batch)
        return len(self.train) + batches

    def step(
        self,
        work: Work,
        epoch: int,
        backward: Callable[[torch.Tensor], None],
        stage: Stage,  # noqa: ARG002  # reason: BagSteps needs it; here the work's detail tells
    ) -> Outcome:
        """Scan a slide, train on a batch of slides, or score a tuning slide."""
        slide_id = work.slides[0]
        if work.phase == "scan":
            if work.detail is None:
                _, self._top[slide_id] = self._scan(slide_id, epoch)
            else:
                self._vectors_of(slide_id)
            return Outcome()
        labels = torch.tensor(work.labels, device=self.tiles.model.device)
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
        """Return the top tiles found so far by this epoch's scans."""
        return {"top": self._top}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the top tiles of the interrupted epoch."""
        self._top = dict(state["top"])

    def _warm_works(self, epoch: int) -> Iterator[Work]:
        """Yield the steps on feature vectors; ``detail`` is the sharpness of their pooling."""
        for number in range(self.config.warm_steps):
            order = balanced_order(self.train, self.seed, epoch, number)
            part = number / max(self.config.warm_steps - 1, 1)
            for some in divided(order[:_WARM_SLIDES], self.config):
                yield self._batch(some, _SHARPEST**part)

    def _batch(self, order: NDArray[np.int64], detail: float | None) -> Work:
        return Work.of("train", [self.train[i] for i in order], detail)

    def _vectors_of(self, slide_id: str) -> torch.Tensor:
        """Return ``(tiles, dim)`` feature vectors of a slide's tiles, at most 256 of them."""
        if slide_id not in self._vectors:
            count = len(self.tiles.grid(slide_id))
            some = np.linspace(0, count - 1, min(count, _WARM_TILES)).round().astype(int).tolist()
            with torch.no_grad(), evaluating(self.tiles.model.module):
                batches = self.tiles.batches(slide_id, some)
                vectors = self.tiles.of_each(self.tiles.vectors, batches)
            self._vectors[slide_id] = halved(torch.cat(vectors))
        return self._vectors[slide_id]

    def _pooled_logits(self, slides: Sequence[str], sharpness: float) -> torch.Tensor:
        """Return ``(B, K)``: the soft maximum of each output over each slide's feature vectors."""
        bags = [self._vectors_of(slide_id) for slide_id in slides]
        logits = network_of(self.tiles.model).instances(torch.cat(bags))
        parts = torch.split(logits, [len(bag) for bag in bags])
        return torch.stack([soft_maximum(part, sharpness) for part in parts])

    def _scan(self, slide_id: str, epoch: int | None) -> tuple[torch.Tensor, list[list[int]]]:
        """Return the mean of each output's highest logits over a slide's tiles, and their tiles.

        Tiles are augmented as in ``epoch``, or not at all if that is None.
        """
        key = None if epoch is None else self._key(slide_id, epoch)
        batches = self.tiles.batches(slide_id, key=key)
        logits = torch.cat(self.tiles.of_each(self.tiles.logits, batches))
        highest = logits.topk(min(self.tiles.model.config.top or 1, len(logits)), 0)
        return highest.values.mean(0), highest.indices.tolist()

    def _top_logits(self, slides: Sequence[str], epoch: int) -> torch.Tensor:
        """Return ``(B, K)``: the mean of output k over the tiles that the scan found for it."""
        images: list[torch.Tensor] = []
        counts = []
        for slide_id in slides:
            rows = np.array(self._top[slide_id]).flatten().tolist()
            images += self.tiles.batches(slide_id, rows, self._key(slide_id, epoch))
            counts.append(len(rows))
        logits = self.tiles.logits(torch.cat(images))
        outputs = logits.shape[-1]
        own = [part.view(-1, outputs, outputs) for part in torch.split(logits, counts)]
        return torch.stack([part.diagonal(dim1=1, dim2=2).mean(0) for part in own])

    def _key(self, slide_id: str, epoch: int) -> Callable[[int], tuple[int, ...]]:
        """Return a tile's key of seed, epoch, slide and position, equal in both phases."""
        index = self.tiles.grid(slide_id).index
        return lambda row: (self.seed, epoch, slide_key(slide_id), *index[row].tolist())
