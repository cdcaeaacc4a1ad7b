"""Training of streaming models from slide labels.

Source: streaming-prostate-2020, section IV.A. One slide is one image; gradients of several are
accumulated to a step of the optimiser.
"""

from __future__ import annotations

from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field

from slidelens.errors import StreamingError
from slidelens.families.slide_training import SlideImages, SlideTraining
from slidelens.families.streaming import StreamingConfig, frame_of, network_of, streaming_of
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
    divided,
    slide_key,
    works_per_update,
)
from slidelens.geometry import Box
from slidelens.nn.mil import class_probabilities, slide_loss
from slidelens.nn.precision import stored
from slidelens.nn.slide_classifier import split
from slidelens.tiling.grid import GridSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from slidelens.families.base import Model
    from slidelens.families.slide_image import Frame
    from slidelens.nn.source import LazyImage

__all__ = ["StreamingStage", "StreamingTask", "StreamingTraining"]

_WARM_CELLS = 1024
"""Cells of a slide, evenly spaced, from which the head learns alone: about a megabyte."""
_SAMPLE_PX, _SAMPLES = 64, 64
"""Statistics of a slide's colours are those of at most so many squares of tissue."""


class StreamingStage(Stage):
    """A stage that may freeze the first layers of the network."""

    freeze: str = Field("", description="last layer that stays frozen, such as layer3")


class StreamingTraining(SlideTraining):
    """Training options of a streaming model. The default is for tens to hundreds of slides."""

    stages: tuple[StreamingStage, ...] = Field(min_length=1, description="the training schedule")
    normalization: Literal["weights", "training"] = Field(
        "weights",
        description="normalise pixels as the initial weights were, or by the training set",
    )
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    warm_steps: int = Field(
        50, ge=1, description="updates per epoch of a stage that trains only the head"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (
                StreamingStage(epochs=2, lr=5e-5, head_lr=1e-4, trains="head"),
                StreamingStage(epochs=18, lr=5e-5, head_lr=1e-4, schedule="cosine", start="last"),
            ),
            "accumulate": 8,
            "patience": 0,
        },
        "paper": {
            "stages": (
                StreamingStage(epochs=25, lr=2e-4, head_lr=2e-4, freeze="layer3"),
                StreamingStage(epochs=50, lr=6e-5, head_lr=6e-5, start="centre"),
            ),
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 0.0,
            "accumulate": 16,
            "window": 5,
            "average": True,
            "patience": 0,
            "normalization": "training",
            "rotation": "free",
            "elastic": 1.0,
            "stain": 0.0,
        },
    }
    """``paper`` is the paper's schedule for a ResNet. The paper states no weight decay (we take
    none); its elastic deformation (alpha 1000, sigma 150) moves a pixel by about one."""


class StreamingTask(TrainTask[StreamingConfig]):
    """Trains on one slide per step, with new augmentation in each epoch.

    A stage that trains only the head (not in the paper) runs the network once per slide and epoch
    and learns from the pooled vectors, which costs little. Without it, a network trained on tens of
    slides forgets its features before the head is any good: on 48 slides it collapsed to a constant
    answer within four epochs.
    """

    training: ClassVar[type[TrainConfig]] = StreamingTraining
    config: StreamingTraining

    def setup(self) -> None:
        """Prepare the streamed network, the images of slides and their augmentation."""
        # Made here, so that what cannot be streamed is refused before slides are read.
        self._trunk, _ = network_of(self.model).streamed(streaming_of(self.model))
        self.augment = self.config.augment()
        self._images = SlideImages(
            self.data, lambda view: frame_of(self.model, view), self.config.cache_mb << 20
        )
        self._colours: dict[str, NDArray[np.float64]] = {}
        """Training slide to count, sum and sum of squares of its colours, 0 to 1."""
        self._vectors: dict[tuple[str, int], torch.Tensor] = {}
        """Slide and epoch to what is pooled of it, in a stage that trains the head. It follows from
        the backbone alone, so a resumed run makes it anew."""
        self._learns = {sample.slide_id for sample in self.data.train}

    @classmethod
    def initialize(cls, model: Model[StreamingConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights; the head starts at zero and favours no class."""
        network = network_of(model)
        torch.nn.init.zeros_(network.head.weight)
        torch.nn.init.zeros_(network.head.bias)
        if weights == "none":
            return {"backbone_weights": "random"}
        return network.load_backbone(weights).card

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the head's parameters, and those of the backbone that are not frozen."""
        assert isinstance(stage, StreamingStage)
        network = network_of(self.model)
        head = [(stage.head_lr, list(network.head.parameters()))]
        if stage.trains == "head":
            return head
        learning: torch.nn.Module = network.features.trunk
        if stage.freeze:
            _, learning = split(network.features.trunk, stage.freeze)
        trunk = [*learning.parameters(), *network.features.norm.parameters()]
        return [*head, (stage.lr, trunk)]

    def check(self, slide_id: str) -> None:
        """Refuse a slide without tissue or that cannot be streamed; measure its colours."""
        frame = frame_of(self.model, self.data.view(slide_id))
        try:
            self._trunk.plan(frame.height, frame.width)
        except StreamingError as error:
            raise StreamingError(f"{slide_id}: {error}") from error
        if self.config.normalization == "training" and slide_id in self._learns:
            self._colours[slide_id] = self._sampled(slide_id, frame)

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield a step for each slide, in random order, rare classes repeated."""
        self._vectors = {}
        if stage.trains == "head":
            yield from self._warm_works(epoch)
            return
        for number, i in enumerate(balanced_order(self.data.train, self.seed, epoch)):
            sample = self.data.train[i]
            yield Work.of("train", [sample], number)

    def length(self, stage: Stage) -> int:
        """Return the number of steps in an epoch."""
        if stage.trains == "head":
            return len(self.data.train) + self.config.warm_steps * works_per_update(self.config)
        return len(balanced_order(self.data.train, self.seed, 0))

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Train on a slide, score a tuning slide, or compute a slide's vector."""
        self._normalize()
        if work.phase == "scan":
            return Outcome(seen=self._vector(work.slides[0], epoch))
        learns = work.phase == "train"
        if not learns:
            logits = self._forward(work.slides[0], None)
        elif self.stage.trains == "head":
            network = network_of(self.model)
            seen = (self._vector(slide_id, epoch) for slide_id in work.slides)
            device = network.head.weight.device
            logits = torch.cat([network.score(one.to(device).float()) for one in seen])
        else:
            logits = self._forward(work.slides[0], (epoch, work.detail))
        labels = torch.tensor(work.labels, device=self.model.device)
        losses = slide_loss(logits, labels, self.config.smoothing if learns else 0.0)
        if learns:
            backward(losses.sum())
            return Outcome(tuple(losses.detach().tolist()))
        probabilities = tuple(class_probabilities(logits)[0].tolist())
        return Outcome(tuple(losses.tolist()), (probabilities,))

    def keep(self, work: Work, epoch: int, seen: torch.Tensor) -> None:
        """Keep the head's input for a slide."""
        self._vectors[work.slides[0], epoch] = seen

    def _warm_works(self, epoch: int) -> Iterator[Work]:
        """Yield a scan of each slide, then works that share all slides of an update."""
        for sample in self.data.train:
            yield Work.of("scan", [sample])
        for number in range(self.config.warm_steps):
            order = balanced_order(self.data.train, self.seed, epoch, number)
            for share in divided(order, self.config):
                yield Work.of("train", [self.data.train[i] for i in share])

    def _forward(
        self, slide_id: str, augmented: tuple[int, int] | None, *, vectors: bool = False
    ) -> torch.Tensor:
        """Run the network on a slide, unchanged or augmented by epoch and number."""
        whole = self._images[slide_id]
        image: LazyImage = whole
        blocks = whole.frame.blocks
        if augmented is not None:
            key = (self.seed, augmented[0], slide_key(slide_id), augmented[1])
            image, blocks = self.augment(image, blocks, key, self.model.config.size)
        painted = self.model.config.background == "white"
        mask = torch.from_numpy(blocks.copy()) if painted else None
        return self.network(image, mask, streaming_of(self.model), vectors=vectors)

    def _vector(self, slide_id: str, epoch: int) -> torch.Tensor:
        """Return the head's input for a slide with this epoch's augmentation, ``(1, C, h, w)``."""
        if (slide_id, epoch) not in self._vectors:
            with torch.no_grad():
                cells = self._forward(slide_id, (epoch, 0), vectors=True)
            step = ceil(sqrt(cells[0, 0].numel() / _WARM_CELLS))
            self._vectors[slide_id, epoch] = stored(cells[:, :, ::step, ::step])
        return self._vectors[slide_id, epoch]

    def _sampled(self, slide_id: str, frame: Frame) -> NDArray[np.float64]:
        """Return count, sums and sums of squares of the colours in a sample of tissue squares."""
        view = self.data.view(slide_id)
        grid = view.grid(GridSpec(_SAMPLE_PX, frame.mpp, min_tissue=0.0))
        rows = np.flatnonzero(grid.tissue >= 0.99 * grid.tissue.max())
        some = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLES)).round().astype(int)]
        found = np.zeros(7)
        for row in some:
            pixels = view.read(Box(*grid.boxes[row]), frame.mpp).reshape(-1, 3) / 255
            found += (len(pixels), *pixels.sum(0), *np.square(pixels).sum(0))
        return found

    def _normalize(self) -> None:
        """Normalise by the training slides' colours, if configured."""
        if not self._colours:
            return
        count, *sums = np.sum([self._colours[k] for k in sorted(self._colours)], 0)
        means = [s / count for s in sums[:3]]
        self.model.mean = (means[0], means[1], means[2])
        spread = [sqrt(max(s / count - m * m, 1e-6)) for s, m in zip(sums[3:], means, strict=True)]
        self.model.std = (spread[0], spread[1], spread[2])
        self._colours = {}
