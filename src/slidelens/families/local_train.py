"""Training of locally supervised networks, from slide labels.

Source: locally-supervised-2022, sections 2.2 and 3.2. One slide is one step, in which all modules
learn, one after the other; gradients of several slides are accumulated.
"""

from __future__ import annotations

from itertools import accumulate, groupby, pairwise
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
import torch.nn.functional as F
from pydantic import Field

from slidelens.errors import ModelError
from slidelens.families.local import LocalConfig, frame_of, network_of, relay_of, set_tile
from slidelens.families.slide_training import SlideImages, SlideTraining
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
    slide_key,
    stages_of_length,
)
from slidelens.nn.backbones import load_weights
from slidelens.nn.local_heads import AttentionHead
from slidelens.nn.precision import stored

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from slidelens.families.base import FamilyConfig, Model
    from slidelens.nn.relay import Relay

__all__ = ["LocalStage", "LocalTask", "LocalTraining"]

_WARM_WINDOWS = 1024
"""Windows of a slide, evenly spaced, from which a head learns alone: about a megabyte."""


class LocalStage(Stage):
    """A stage in which all modules learn, or one of them."""

    module: int | None = Field(
        None,
        ge=1,
        description="number of the only module that is trained, from 1; none: all together",
    )


class LocalTraining(SlideTraining):
    """How a locally supervised model learns. The default preset is ours, for tens of slides."""

    stages: tuple[LocalStage, ...] = Field(min_length=1, description="the training schedule")
    greedy: bool = Field(
        False,
        description="train one module after another, each through all stages (the paper's text)",
    )
    alpha: float = Field(1.0, gt=0, description="weight of the feature reconstruction loss")
    smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="label smoothing (heads that are certain give their modules no gradient)",
    )
    warm_passes: int = Field(
        10,
        ge=1,
        description="passes over the slides per epoch of a stage that trains only the heads",
    )
    train_tile: int = Field(
        0, ge=0, description="stream each training step in tiles of this side in px; 0: whole maps"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (
                LocalStage(epochs=3, lr=3e-5, head_lr=1e-3, trains="head", schedule="cosine"),
                LocalStage(epochs=18, lr=3e-5, head_lr=1.5e-4, schedule="cosine", start="last"),
            ),
            "smoothing": 0.1,
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

        Stages that name a module are taken as they are: a training's file has one for each.

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
        named = any(stage.module is not None for stage in self.stages)
        if named or not self.greedy or config.modules == 1:
            return self
        numbers = range(1, config.modules + 1)
        each = [s.model_copy(update={"module": n}) for n in numbers for s in self.stages]
        return self.model_copy(update={"stages": tuple(each)})

    def of_length(self, epochs: int) -> Mapping[str, Any]:
        """Return the stages of at most ``epochs`` epochs in all, shortened alike.

        Where modules learn one after the other, each keeps its part of the epochs.

        Raises
        ------
        ModelError
            Fewer epochs than such parts.
        """
        parts = [tuple(part) for _, part in groupby(self.stages, lambda stage: stage.module)]
        if epochs < len(parts):
            raise ModelError(
                f"epochs: modules learn one after the other, in {len(parts)} parts of at least one "
                f"epoch, so give {len(parts)} epochs or more, not {epochs}."
            )
        shares = _shares(epochs, [sum(stage.epochs for stage in part) for part in parts])
        shortened = zip(parts, shares, strict=True)
        return {"stages": tuple(s for part, n in shortened for s in stages_of_length(part, n))}


def _shares(epochs: int, lengths: Sequence[int]) -> list[int]:
    """Share ``epochs``, not fewer than ``lengths``, in proportion to these, each at least one."""
    spare, full = epochs - len(lengths), sum(lengths)
    ends = (spare * end // full for end in accumulate(lengths, initial=0))
    return [1 + stop - start for start, stop in pairwise(ends)]


class LocalTask(TrainTask[LocalConfig]):
    """One slide is one step: through all modules, each learning on its way.

    A stage that trains the heads alone (ours, not the paper's) takes each slide through the modules
    once, as it is, and learns from the means of the windows that it keeps: nearly free. Without it
    the heads' gradients mean nothing for the first hundred updates, and the modules follow them.
    (Augmented, a slide that is seen once is known by the stain that it was given.)
    """

    training: ClassVar[type[TrainConfig]] = LocalTraining
    per_class: ClassVar[tuple[str, ...]] = ("heads.*",)
    config: LocalTraining
    stage: LocalStage

    def setup(self) -> None:
        """Prepare the images of slides and their augmentation."""
        self.augment = self.config.augment()
        self._images = SlideImages(
            self.data, lambda view: frame_of(self.model, view), self.config.cache_mb << 20
        )
        self._means: dict[str, list[torch.Tensor]] = {}
        """What each head sees of a slide, in a stage that trains the heads. It follows from the
        modules alone, so a resumed run makes it anew."""
        self._seen_in: Stage | None = None

    @classmethod
    def initialize(cls, model: Model[LocalConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights; heads begin undecided."""
        for head in network_of(model).heads:
            assert isinstance(head, AttentionHead)
            head.start_undecided()
        if weights == "none":
            return {"backbone_weights": "random"}
        return load_weights(network_of(model).features, weights).card

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the parameters of the modules that learn, their heads and decoders at head_lr."""
        assert isinstance(stage, LocalStage)
        network = network_of(self.model)
        if self._warms(stage):
            parts = [network.heads[index].parameters() for index in self._learning(stage)]
            return [(stage.head_lr, [p for part in parts for p in part])]
        pairs = [network.own_parameters(index) for index in self._learning(stage)]
        heads = [(stage.head_lr, [p for _, auxiliary in pairs for p in auxiliary])]
        if stage.trains == "head":
            return heads
        return [*heads, (stage.lr, [p for own, _ in pairs for p in own])]

    def check(self, slide_id: str) -> None:
        """Refuse a slide without tissue."""
        frame_of(self.model, self.data.view(slide_id))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield a step for each slide, in random order, rare classes repeated."""
        assert isinstance(stage, LocalStage)
        if stage is not self._seen_in:
            self._means, self._seen_in = {}, stage  # the modules have changed
        warms = self._warms(stage)
        if warms:
            for sample in self.data.train:
                yield Work.of("scan", [sample])
        for turn in range(self.config.warm_passes if warms else 1):
            order = balanced_order(self.data.train, self.seed, epoch, turn if warms else None)
            for number, i in enumerate(order):
                sample = self.data.train[i]
                yield Work.of("train", [sample], number)

    def length(self, stage: Stage) -> int:
        """Return the number of steps in an epoch."""
        assert isinstance(stage, LocalStage)
        once = len(balanced_order(self.data.train, self.seed, 0))
        if self._warms(stage):
            return len(self.data.train) + self.config.warm_passes * once
        return once

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Learn from a slide, score a tuning slide, or keep what the heads see of a slide.

        Its loss is the classification's of the last module that learns.
        """
        slide_id, label = work.slides[0], work.labels[0]
        if work.phase == "scan":
            return Outcome(seen=self._seen(slide_id))
        target = torch.tensor([label], device=self.model.device)
        if work.phase == "tune":
            image = self._images[slide_id]
            relay = relay_of(self.model, image, image.frame.blocks, label)
            set_tile(self.model, relay)
            readings: Any = self.network(relay)  # the network of a relay reads with all heads
            logits = readings[self._learning(self.stage)[-1]].logits
        elif self._warms(self.stage):
            logits = self._warm(slide_id, target, backward)
        else:
            logits = self._learn(self._augmented(slide_id, label, epoch, work.detail), backward)
        loss = float(F.cross_entropy(logits.float(), target))
        return Outcome((loss,), (tuple(logits.float().softmax(1)[0].tolist()),))

    def keep(self, work: Work, epoch: int, seen: list[torch.Tensor]) -> None:  # noqa: ARG002
        """Keep what the heads see of a slide."""
        self._means[work.slides[0]] = seen

    def _warms(self, stage: LocalStage) -> bool:
        """Return whether a stage trains heads on what is kept of a slide.

        A head that convolves its windows would need the whole map.
        """
        means = self.model.config.windows == "mean"
        return means and stage.trains == "head"

    def _augmented(self, slide_id: str, label: int, epoch: int, number: int) -> Relay:
        """Return a training slide at the start of its way, as this epoch augments it."""
        image = self._images[slide_id]
        key = (self.seed, epoch, slide_key(slide_id), number)
        turned, blocks = self.augment(image, image.frame.blocks, key, self.model.config.size)
        return relay_of(self.model, turned, blocks, label)

    def _seen(self, slide_id: str) -> list[torch.Tensor]:
        """Return the windows' means that each head sees of a slide as it is."""
        if slide_id not in self._means:
            image = self._images[slide_id]
            relay = relay_of(self.model, image, image.frame.blocks)
            relay.tile = self.config.train_tile
            with torch.no_grad():
                means: Any = self.network(relay, means=True)
            self._means[slide_id] = [stored(_spaced(m)) for m in means]
        return self._means[slide_id]

    def _warm(
        self,
        slide_id: str,
        target: torch.Tensor,
        backward: Callable[[torch.Tensor], None],
    ) -> torch.Tensor:
        """Train the heads on a slide's features; return the last head's logits."""
        network, seen = network_of(self.model), self._seen(slide_id)
        logits = []
        for index in self._learning(self.stage):
            head = network.heads[index]
            assert isinstance(head, AttentionHead)
            logits.append(head.score(seen[index].to(target.device).float()))
        smoothing = self.config.smoothing
        losses = [F.cross_entropy(one, target, label_smoothing=smoothing) for one in logits]
        backward(torch.stack(losses).sum())
        return logits[-1].detach()

    def _learning(self, stage: LocalStage) -> range:
        """Return the indices of the modules that learn in a stage."""
        modules = self.model.config.modules
        return range(modules) if stage.module is None else range(stage.module - 1, stage.module)

    def _learn(self, relay: Relay, backward: Callable[[torch.Tensor], None]) -> torch.Tensor:
        """Send a slide through the modules up to the last that learns; return its logits."""
        relay.alpha, relay.tile = self.config.alpha, self.config.train_tile
        relay.smoothing = self.config.smoothing
        learning = self._learning(self.stage)
        for index in range(learning.stop):
            # Up to the last that learns; in one after the other, those before only hand on.
            if index in learning:
                backward(self.network(relay, index))
            else:
                self.network(relay, index, learns=False)
        assert relay.logits is not None
        return relay.logits


def _spaced(means: torch.Tensor) -> torch.Tensor:
    """Return windows ``(N, C, n)``, of very many some that are evenly spaced."""
    return means[:, :, :: ceil(means.shape[2] / _WARM_WINDOWS)]
