"""Training on whole bags: from cached feature vectors, or end to end through every tile.

On cached vectors the backbone is frozen and each tile is encoded once, for all runs. End to end,
the gradient is exact and memory is that of one batch of tiles: a bag is encoded without a graph,
the pooling gives the gradient of each vector, then tiles are encoded again, batch by batch, and
their gradients sent on. Tiles that the pooling did not look at (most of them, for a maximum) are
not encoded again.
"""

from __future__ import annotations

import logging
from math import ceil
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from slidelens.errors import SlideError, amount, listed
from slidelens.families.base import BAG_FIELDS, no_tissue
from slidelens.families.mil import backbone_sha256, grid_spec, network_of
from slidelens.families.mil_given import (
    BAG_FACTS,
    learnt_facts,
    region_of,
    stated,
    unlike,
    wrong_length,
)
from slidelens.families.training import Encoding, Outcome, Work, balanced_order, slide_key
from slidelens.nn.mil import class_probabilities, slide_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slidelens.families.base import Bag
    from slidelens.families.mil_schedule import MilTraining
    from slidelens.families.mil_tiles import MilTiles
    from slidelens.families.training import Stage

__all__ = ["BagSteps"]

log = logging.getLogger(__name__)


class BagSteps:
    """One phase per epoch: bags in balanced random order.

    A training bag is one of the slide's cached copies, plain or augmented, drawn each time; end to
    end it is augmented each time. So slides of a rare class, which occur several times per epoch,
    occur in several forms. A slide's tiles have the same augmentation, since stain differs between
    slides, not between the tiles of one.
    """

    def __init__(self, tiles: MilTiles, config: MilTraining, seed: int) -> None:
        self.tiles, self.config, self.seed = tiles, config, seed
        self.train = tiles.data.train
        self._learning = {sample.slide_id for sample in self.train}
        self._sha = ""
        """Of the backbone's weights, as long as they do not change."""
        self._seen_in: Stage | None = None
        self._alike = learnt_facts(tiles.model.card)
        """What the given bags say of their tiles, where the model cannot say it."""
        self._whose = "the model learnt from" if self._alike else "the bags before have"
        self._partial: list[str] = []
        """Slides whose given bags are of a region alone, until that was told."""

    def check(self, slide_id: str) -> None:
        """Encode a slide's tiles, unless they are cached; ``SlideError`` if it has none."""
        if self.config.bags:
            self._check_given(slide_id)
        elif self.config.features != "cached" and all(
            stage.trains == "all" for stage in self.config.stages
        ):
            if len(self.tiles.grid(slide_id)) == 0:
                raise no_tissue(grid_spec(self.tiles.model.config))
        else:
            copies = self.config.copies if slide_id in self._learning else 0
            for copy in range(copies + 1):
                if len(self._cached(slide_id, copy).vectors) == 0:
                    raise no_tissue(grid_spec(self.tiles.model.config))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield batches of slides in balanced order; ``detail`` is the number of the first."""
        if stage is not self._seen_in:
            self._sha, self._seen_in = "", stage  # the stage before may have changed the backbone
        self._warn_of_partial()
        order = balanced_order(self.train, self.seed, epoch)
        for start in range(0, len(order), self.config.train_batch):
            batch = [self.train[i] for i in order[start : start + self.config.train_batch]]
            yield Work.of("train", batch, start)

    def length(self, stage: Stage) -> int:  # noqa: ARG002  # reason: the same in all stages
        """Return the number of batches in an epoch."""
        return ceil(len(balanced_order(self.train, self.seed, 0)) / self.config.train_batch)

    def step(
        self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None], stage: Stage
    ) -> Outcome:
        """Train on bags one by one, or score a tuning slide."""
        labels = torch.tensor(work.labels, device=self.tiles.model.device)
        if work.phase == "tune":
            output = self.tiles.pooled(self._scored(work.slides[0], stage))
            loss = slide_loss(output.logits[None], labels)
            probabilities = class_probabilities(output.logits[None])[0]
            return Outcome(tuple(loss.tolist()), (tuple(probabilities.tolist()),))
        frozen = self._frozen(stage.trains)
        learn = self._learn_head if frozen else self._learn_all
        found = []
        for number, (slide_id, label) in enumerate(zip(work.slides, labels, strict=True)):
            key = (self.seed, epoch, slide_key(slide_id), work.detail + number)
            found.append(learn(slide_id, label, key, backward))
        return Outcome(tuple(found))

    def state(self) -> dict[str, Any]:
        """Return nothing: steps do not depend on each other."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: ARG002  # reason: it is empty
        """Restore nothing, but note the backbone: slides were checked with the initial one."""
        if not self.config.bags:
            self._sha = backbone_sha256(network_of(self.tiles.model))

    def _frozen(self, trains: str) -> bool:
        return self.config.features == "cached" or trains == "head"

    def _learn_head(
        self,
        slide_id: str,
        label: torch.Tensor,
        key: tuple[int, ...],
        backward: Callable[..., None],
    ) -> float:
        """Backpropagate a cached bag's loss into the head; return it. ``key`` draws the copy."""
        copy = int(np.random.default_rng(key).integers(self.config.copies + 1))
        loss = self._loss(self._vectors(slide_id, copy), label)
        backward(loss)
        return float(loss.detach())

    def _learn_all(
        self,
        slide_id: str,
        label: torch.Tensor,
        key: tuple[int, ...],
        backward: Callable[..., None],
    ) -> float:
        """Backpropagate a slide's loss, augmented by ``key``, into head and backbone; return it."""
        backbone = network_of(self.tiles.model).features
        assert backbone is not None
        backbone.eval()  # both passes must see the same network
        with torch.no_grad():
            vectors = self._encode(slide_id, key=key)
        vectors = vectors.float().requires_grad_()
        loss = self._loss(vectors, label)
        backward(loss)
        gradient = vectors.grad
        assert gradient is not None
        rows = gradient.abs().sum(1).nonzero()[:, 0]
        if len(rows) == 0:
            return float(loss.detach())
        start = 0
        for images in self.tiles.batches(slide_id, rows.tolist(), lambda _: key):
            part = gradient[rows[start : start + len(images)]]  # batches are as long as suits
            backward((self.tiles.vectors(images) * part).sum())
            start += len(images)
        return float(loss.detach())

    def _loss(self, vectors: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        loss = self.tiles.pooled(vectors, label, self.config.smoothing).loss
        assert loss is not None
        return loss

    def _encode(self, slide_id: str, key: tuple[int, ...] | None) -> torch.Tensor:
        batches = self.tiles.batches(slide_id, key=None if key is None else lambda _: key)
        return torch.cat(self.tiles.of_each(self.tiles.vectors, batches))

    def _scored(self, slide_id: str, stage: Stage) -> torch.Tensor:
        """Return the vectors ``(N, D)`` of a tuning slide, from the current backbone."""
        if self._frozen(stage.trains):
            return self._vectors(slide_id, 0)
        return self._encode(slide_id, None)

    def _vectors(self, slide_id: str, copy: int) -> torch.Tensor:
        given = self.config.bags
        bag = self.tiles.data.given_bag(slide_id) if given else self._cached(slide_id, copy)
        vectors = np.asarray(bag.vectors, np.float32)
        return torch.from_numpy(vectors).to(self.tiles.model.device)

    def _cached(self, slide_id: str, copy: int) -> Bag:
        """Return a slide's bag, encoded on first use; copy 0 is not augmented."""
        model, augment = self.tiles.model, self.tiles.augment
        self._sha = self._sha or backbone_sha256(network_of(model))
        key = (copy, slide_key(slide_id))
        backbone = network_of(model).features
        assert backbone is not None

        def encode(images: torch.Tensor) -> torch.Tensor:
            backbone.eval()  # a resumed run may make bags in a training step
            seen = augment(images, [key] * len(images)) if copy else images
            with torch.no_grad():
                return self.tiles.vectors(self.tiles.normalized(seen))

        facts = {
            "backbone": model.config.backbone,
            "weights": self._sha,
            "orientations": model.config.orientations,
            "normalisation": [model.mean, model.std],
            "augmented": [copy, augment.flips, augment.stain, augment.colour] if copy else [],
        }
        encoding = Encoding(
            encode,
            model.config.batch_size,
            facts,
            self.config.precision,
            self.config.bag_dtype,
            self.config.bag_cache,
        )
        return self.tiles.data.bag(slide_id, grid_spec(model.config), encoding)

    def _check_given(self, slide_id: str) -> None:
        """Refuse vectors of another length, backbone or kind of tiles than the model's."""
        bag, config = self.tiles.data.given_bag(slide_id), self.tiles.model.config
        network = network_of(self.tiles.model)
        dim = config.bag_dim if network.features is None else network.features.dim
        if bag.vectors.shape[1] != dim:
            raise SlideError(wrong_length(bag, dim))
        self._sha = self._sha or ("" if network.features is None else backbone_sha256(network))
        made_by = bag.facts.get("backbone_sha256")
        if network.features is not None and made_by != self._sha:
            raise SlideError(
                "its bag was made by another backbone than the model's; give that one's --weights "
                f"or --from MODEL, or train on the vectors alone with --set bag_dim={dim}."
            )
        self._check_alike(bag)
        if region_of(bag) is not None:
            self._partial.append(slide_id)

    def _check_alike(self, bag: Bag) -> None:
        """Refuse a bag of SlideLens whose tiles were read differently than the model reads them.

        A model on vectors reads no tiles; its bags must then be like the previous ones, and those
        of the model that it is fine-tuned from. What they say is kept with it.
        """
        model, told = self.tiles.model, stated(bag.facts)
        reads = network_of(model).features is not None
        if reads:
            fault = unlike(told, {k: getattr(model.config, k) for k in BAG_FIELDS}, "the model has")
        else:
            fault = unlike(told, self._alike, self._whose)
        if fault:
            raise SlideError(fault)
        if told and not reads:
            self._alike = model.card[BAG_FACTS] = told | self._alike

    def _warn_of_partial(self) -> None:
        """Tell, once, of bags that were made of less than the slide that the label is of."""
        if self._partial:
            log.warning(
                "%s: the bags of %s are of a region alone (--region), and are learnt from with the "
                "label of the whole slide: %s. Where what the label tells of may lie elsewhere, "
                "export results of whole slides",
                *(self.config.bags, amount(len(self._partial), "slide"), listed(self._partial)),
            )
            self._partial = []
