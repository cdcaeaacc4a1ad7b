"""Training of locally supervised networks, from slide labels.

Source: locally-supervised-2022, sections 2.2 and 3.2. One slide is one step, in which all modules
learn, one after the other; gradients of several slides are accumulated.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self
from zlib import crc32

import torch
import torch.nn.functional as F
from pydantic import Field

from slidelens.errors import ModelError
from slidelens.families.local import LocalConfig, frame_of, network_of, relay_of
from slidelens.families.slide_image import SlideImages
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
)
from slidelens.nn.backbones import load_weights
from slidelens.nn.local_heads import AttentionHead
from slidelens.nn.slide_augment import SlideAugment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slidelens.families.base import FamilyConfig, Model
    from slidelens.families.training import TrainData
    from slidelens.nn.relay import Relay

__all__ = ["LocalStage", "LocalTask", "LocalTraining"]


class LocalStage(Stage):
    """A stage in which all modules learn, or one of them."""

    module: int | None = Field(
        None, ge=1, description="the only module that learns, from 1; none: all at once"
    )


class LocalTraining(TrainConfig):
    """How a locally supervised model learns. The default preset is ours, for tens of slides."""

    stages: tuple[LocalStage, ...] = Field(min_length=1, description="the schedule")
    greedy: bool = Field(
        False, description="module after module, each through all stages (the paper's text)"
    )
    alpha: float = Field(1.0, gt=0, description="weight of the reconstruction of features")
    train_tile: int = Field(
        0, ge=0, description="stream each module's step by tiles of so many px; 0: maps are whole"
    )
    rotation: Literal["none", "quarter", "free"] = Field(
        "quarter", description="random rotation of slides: quarter turns, or any angle"
    )
    flips: bool = Field(True, description="random mirroring of slides")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (LocalStage(epochs=24, lr=1e-4, head_lr=2e-4, schedule="cosine"),),
            "accumulate": 4,
            "patience": 0,
        },
        "paper": {
            "stages": (
                LocalStage(epochs=100, lr=1e-5, head_lr=2e-5),
                LocalStage(epochs=100, lr=1e-6, head_lr=2e-6),
            ),
            "weight_decay": 1e-6,
            "accumulate": 8,
            "patience": 10,
            "window": 1,
            "average": False,
            "stain": 0.0,
            "colour": 0.0,
        },
    }
    """``paper``: rates fall to a tenth where the tuning loss has not become lower for 10 epochs.
    Neither the number of epochs nor the augmentation is stated; we take turns and flips."""

    def suited(self, config: FamilyConfig) -> Self:
        """Return the training of a model of this configuration; greedy: a stage for each module.

        Raises
        ------
        ModelError
            A stage for a module that the model does not have.
        """
        assert isinstance(config, LocalConfig)
        wrong = [s.module for s in self.stages if (s.module or 0) > config.modules]
        if wrong:
            raise ModelError(
                f"stages: module {wrong[0]} is to learn, but the model has {config.modules}."
            )
        if not self.greedy:
            return self
        numbers = range(1, config.modules + 1)
        each = [s.model_copy(update={"module": n}) for n in numbers for s in self.stages]
        return self.model_copy(update={"stages": tuple(each)})


class LocalTask(TrainTask[LocalConfig]):
    """One slide is one step: through all modules, each learning on its way."""

    training: ClassVar[type[TrainConfig]] = LocalTraining
    config: LocalTraining
    stage: LocalStage

    def __init__(
        self,
        model: Model[LocalConfig],
        network: Callable[..., Any],
        data: TrainData,
        config: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(model, network, data, config, seed)
        assert isinstance(config, LocalTraining)
        self.augment = SlideAugment(config.rotation, config.flips, config.stain, config.colour)
        self._images = SlideImages(data, lambda view: frame_of(model, view), config.cache_mb << 20)

    @classmethod
    def initialize(cls, model: Model[LocalConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights; heads begin undecided."""
        for head in network_of(model).heads:
            assert isinstance(head, AttentionHead)
            head.start_undecided()
        if weights == "none":
            return {"backbone_weights": "random"}
        report = load_weights(network_of(model).features, weights)
        return {
            "backbone_weights": Path(report.source).name,
            "ignored_tensors": list(report.ignored),
        }

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the parameters of the modules that learn, their heads and decoders at head_lr."""
        assert isinstance(stage, LocalStage)
        network = network_of(self.model)
        pairs = [network.own_parameters(index) for index in self._learning(stage)]
        heads = [(stage.head_lr, [p for _, auxiliary in pairs for p in auxiliary])]
        if stage.trains == "head":
            return heads
        return [*heads, (stage.lr, [p for own, _ in pairs for p in own])]

    def check(self, slide_id: str) -> None:
        """Refuse a slide without tissue."""
        frame_of(self.model, self.data.view(slide_id))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:  # noqa: ARG002  # reason: all alike
        """Yield a step for each slide, in random order, rare classes repeated."""
        for number, i in enumerate(balanced_order(self.data.train, self.seed, epoch)):
            sample = self.data.train[i]
            yield Work("train", (sample.slide_id,), (sample.label,), number)

    def length(self, stage: Stage) -> int:  # noqa: ARG002  # reason: all stages alike
        """Return the number of steps in an epoch."""
        return len(balanced_order(self.data.train, self.seed, 0))

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Learn from a slide, or score a tuning slide.

        Its loss is the classification's of the last module that learns.
        """
        slide_id, label = work.slides[0], work.labels[0]
        image = self._images[slide_id]
        blocks = image.frame.blocks
        if work.phase == "train":
            key = (self.seed, epoch, crc32(slide_id.encode()), work.detail)
            turned, blocks = self.augment(image, blocks, key, self.model.config.size)
            relay = relay_of(self.model, turned, blocks, label)
            logits: torch.Tensor | None = self._learn(relay, backward)
        else:
            relay = relay_of(self.model, image, blocks, label)
            relay.tile = self.model.config.tile
            readings: Any = self.network(relay)  # the network of a relay reads with all heads
            logits = readings[self._learning(self.stage)[-1]].logits
        assert logits is not None
        assert relay.label is not None
        loss = float(F.cross_entropy(logits.float(), relay.label))
        return Outcome((loss,), (tuple(logits.float().softmax(1)[0].tolist()),))

    def _learning(self, stage: LocalStage) -> range:
        """Return the indices of the modules that learn in a stage."""
        modules = self.model.config.modules
        return range(modules) if stage.module is None else range(stage.module - 1, stage.module)

    def _learn(self, relay: Relay, backward: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """Send a slide through the modules up to the last that learns; return its logits."""
        relay.alpha, relay.tile = self.config.alpha, self.config.train_tile
        learning = self._learning(self.stage)
        for index in range(learning.stop):
            # Up to the last that learns; in one after the other, those before only hand on.
            if index in learning:
                backward(self.network(relay, index))
            else:
                self.network(relay, index, learns=False)
        assert relay.logits is not None
        return relay.logits
