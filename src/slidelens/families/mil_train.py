"""Training of multiple-instance learning, in one of two ways.

Top-1 and top-k find each slide's top tiles and learn from these
(:mod:`slidelens.families.mil_top`); all poolings can learn from whole bags
(:mod:`slidelens.families.mil_bags`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from slidelens.families.mil import MilConfig, network_of, vector_facts
from slidelens.families.mil_bags import BagSteps
from slidelens.families.mil_given import BAG_FACTS, learnt_facts, stated
from slidelens.families.mil_schedule import MilTraining, finds_top_tiles
from slidelens.families.mil_tiles import MilTiles
from slidelens.families.mil_top import TopSteps
from slidelens.families.training import Outcome, Stage, TrainConfig, TrainTask, Work
from slidelens.nn.augment import TileAugment
from slidelens.nn.encoders import encoder_facts, load_encoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slidelens.families.base import Model

__all__ = ["MilTask"]


class MilTask(TrainTask[MilConfig]):
    """Trains on top tiles, or on whole bags."""

    training: ClassVar[type[TrainConfig]] = MilTraining
    config: MilTraining

    def setup(self) -> None:
        """Choose between training on top tiles and on whole bags."""
        config, model = self.config, self.model
        augment = TileAugment(config.flips, config.stain, config.colour)
        tiles = MilTiles(model, self.network, self.data, augment)
        way = TopSteps if finds_top_tiles(model.config, config.features) else BagSteps
        self._way: TopSteps | BagSteps = way(tiles, config, self.seed)

    @classmethod
    def initialize(cls, model: Model[MilConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights; a linear head starts at zero and favours no tile."""
        network = network_of(model)
        _start_at_zero(network.head)
        if network.features is None:
            return {"backbone_weights": "none: feature vectors were made elsewhere"}
        facts = encoder_facts(model.config.backbone)
        if facts is not None:
            model.mean, model.std = facts.mean, facts.std
        if weights == "none":
            return {"backbone_weights": "random"}
        return load_encoder(network.features, model.config.backbone, weights).card

    @classmethod
    def inherit(cls, model: Model[MilConfig], base: Model[MilConfig]) -> None:
        """Load backbone and head; for other classes only the backbone.

        So too for another pooling, unless both heads are linear. A linear head that is not loaded
        starts at zero, as in any new model. One that is loaded goes on with such vectors as it
        learnt from.
        """
        mine, theirs = network_of(model), network_of(base)
        if mine.features is not None:
            if theirs.features is None:
                raise RuntimeError("it has no backbone, since it learnt from feature vectors")
            mine.features.load_state_dict(theirs.features.state_dict())
        linear = isinstance(mine.head, torch.nn.Linear) and isinstance(theirs.head, torch.nn.Linear)
        alike = linear or model.config.pooling == base.config.pooling
        if alike and model.classes == base.classes:
            mine.head.load_state_dict(theirs.head.state_dict())
            if mine.features is None and (made := _learnt_from(base)):
                model.card[BAG_FACTS] = made
        else:
            _start_at_zero(mine.head)

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the head's parameters, and the backbone's unless it is frozen."""
        network = network_of(self.model)
        head = [(stage.head_lr, list(network.head.parameters()))]
        if stage.trains == "head" or self.config.features == "cached" or network.features is None:
            return head
        return [*head, (stage.lr, list(network.features.parameters()))]

    def check(self, slide_id: str) -> None:
        """Refuse a slide that cannot be trained on; encode it if vectors are cached."""
        self._way.check(slide_id)

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield the works of an epoch."""
        return self._way.epoch(epoch, stage)

    def length(self, stage: Stage) -> int:
        """Return the number of works in an epoch."""
        return self._way.length(stage)

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Do one work."""
        return self._way.step(work, epoch, backward, self.stage)

    def state(self) -> dict[str, Any]:
        """Return what later steps of the epoch need."""
        return self._way.state()

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self._way.load_state(state)


def _learnt_from(model: Model[MilConfig]) -> dict[str, float | str]:
    """Return how the vectors that a model's head learnt from were made, as far as it is known."""
    if network_of(model).features is None:
        return learnt_facts(model.card)
    return stated(vector_facts(model))


def _start_at_zero(head: torch.nn.Module) -> None:
    """Set a linear head to zero, so that it favours no tile; others keep their random weights."""
    if isinstance(head, torch.nn.Linear):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
