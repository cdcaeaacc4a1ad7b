"""Training of magnifying networks from slide labels alone.

Source: magnifying-networks-2023, sections 3.3 and 4. What the paper has: the verdict's cross
entropy, auxiliary classifiers, the paradoxical loss, mirroring and quarter turns. What is ours
(docs/magnet.md says what it is good for): a loss on single windows, probes, and foresight.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, log
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from zlib import crc32

import numpy as np
import torch
from pydantic import Field, model_validator

from slidelens.errors import ModelError
from slidelens.families.magnet import MagNetConfig, prepare
from slidelens.families.magnet_eye import Eye, Overview, oriented, placed
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
)
from slidelens.nn.augment import TileAugment
from slidelens.nn.backbones import Features, load_weights
from slidelens.nn.magnet import MagNet, WindowClassifier
from slidelens.nn.mil import class_probabilities, slide_loss
from slidelens.nn.pixels import normalize
from slidelens.nn.zoom import foresight_loss, remove_grey
from slidelens.settings import get_settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from slidelens.families.base import Model, View
    from slidelens.families.training import TrainData
    from slidelens.nn.magnet import Seen

__all__ = ["MagNetTask", "MagNetTraining"]

_SHARPNESS = 4.0
"""Of the soft maximum over a slide's windows."""
_AHEAD = 8
"""Slides copied ahead: a run keeps few slides open at a time."""


class MagNetTraining(TrainConfig):
    """How a MagNet learns. The default preset is ours, for tens to hundreds of slides."""

    train_batch: int = Field(8, ge=1, le=256, description="slides per training step")
    flips: bool = Field(True, description="random mirroring and quarter turns of slides")
    stain: float = Field(0.0, ge=0, lt=1, description="stain jitter in optical density")
    auxiliary_weight: float = Field(1.0, ge=0, description="weight of the auxiliary classifiers")
    paradox_weight: float = Field(
        1.0, ge=0, description="weight of what a deeper auxiliary classifier does worse"
    )
    window_weight: float = Field(
        0.0, ge=0, description="weight of the most suspicious window judged alone"
    )
    foresight_weight: float = Field(
        0.0, ge=0, description="weight of attention foreseeing what a look at a place finds"
    )
    probes: int = Field(0, ge=0, le=64, description="random windows judged beside, per slide")
    probe_scales: tuple[float, float] = Field(
        (0.05, 0.2), description="smallest and largest scale of a probe in the slide"
    )
    stray: float = Field(
        0.2, ge=0, le=1, description="share of the probes that may lie on bare glass too"
    )
    warmup: int = Field(
        0, ge=0, description="epochs in which the classifier learns from probes alone"
    )
    overview_px: int = Field(
        1024, ge=64, le=8192, description="side in px of the copy of each slide kept in memory"
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (Stage(epochs=60, lr=3e-4, head_lr=1e-3, schedule="cosine"),),
            "clip_norm": 1.0,
            "patience": 0,
            "average": False,
            "window_weight": 1.0,
            "foresight_weight": 1.0,
            "probes": 4,
            "stain": 0.1,
        },
        "paper": {
            "stages": (Stage(epochs=200, lr=3e-5, head_lr=3e-5, schedule="cosine"),),
            "weight_decay": 0.0,
            "train_batch": 16,
            "patience": 0,
        },
    }
    """``paper`` is the paper's schedule for 3 layers (for 4, its batch is 8) with its three losses,
    each of weight 1: the weights are not published. Its optimiser is Adam, which AdamW without
    weight decay is."""

    @model_validator(mode="after")
    def _scales(self) -> MagNetTraining:
        if self.warmup and not (self.probes and self.window_weight):
            raise ValueError(f"warmup {self.warmup}: needs probes and window_weight above 0")
        low, high = self.probe_scales
        if not 0 < low <= high <= 1:
            raise ValueError(f"probe_scales {self.probe_scales}: need 0 < smallest <= largest <= 1")
        return self


class MagNetTask(TrainTask[MagNetConfig]):
    """One phase: batches of slides in balanced order, each in a random orientation.

    A coarse copy of every slide is kept in memory, read ahead by threads, within the budget of
    ``cache_mb``; windows with more detail are read from the slide, in parallel, once chosen.
    """

    training: ClassVar[type[TrainConfig]] = MagNetTraining
    config: MagNetTraining

    def __init__(
        self,
        model: Model[MagNetConfig],
        network: Callable[..., Any],
        data: TrainData,
        config: TrainConfig,
        seed: int,
    ) -> None:
        super().__init__(model, network, data, config, seed)
        assert isinstance(config, MagNetTraining)
        self._readers = ThreadPoolExecutor(get_settings().reader_threads, "slidelens-magnet")
        self._overviews: dict[str, Overview] = {}
        self._coming: dict[str, Future[Overview]] = {}
        self._left = config.cache_mb << 20

    @classmethod
    def initialize(cls, model: Model[MagNetConfig], weights: str) -> Mapping[str, Any]:
        """Load the networks that see windows; attention and verdict begin at random.

        A file is of one network: the auxiliary classifiers take it too where they are the same.

        Raises
        ------
        ModelError
            Weights for a network that has none, or that do not fit.
        """
        if weights == "none":
            return {"backbone_weights": "random"}
        config = model.config
        if config.backbone == "small":
            raise ModelError(
                "backbone small has no ImageNet weights: use --weights none, or another backbone."
            )
        said: dict[str, str] = {}
        for features in _backbones(_network(model)):
            if not isinstance(features, Features):
                continue
            if weights == "imagenet" or features.name == config.backbone:
                said[features.name] = Path(load_weights(features, weights).source).name
        return {"backbone_weights": said}

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return attention, memory and verdict; and the networks unless the head alone learns."""
        network = _network(self.model)
        trunk = [p for part in _backbones(network) for p in part.parameters()]
        own = {id(p) for p in trunk}
        head = (stage.head_lr, [p for p in network.parameters() if id(p) not in own])
        return [head] if stage.trains == "head" else [head, (stage.lr, trunk)]

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:  # noqa: ARG002  # all are alike
        """Yield batches of training slides; the next one's overviews are read meanwhile."""
        order = balanced_order(self.data.train, self.seed, epoch)
        size = self.config.train_batch
        batches = [order[start : start + size] for start in range(0, len(order), size)]
        for batch, coming in pairwise([*batches, np.empty(0, np.int64)]):
            self._read_ahead([self.data.train[i].slide_id for i in coming])
            samples = [self.data.train[i] for i in batch]
            slides, labels = (tuple(s.slide_id for s in samples), tuple(s.label for s in samples))
            yield Work("train", slides, labels)

    def length(self, stage: Stage) -> int:  # noqa: ARG002
        """Return the number of batches in an epoch."""
        return ceil(len(balanced_order(self.data.train, self.seed, 0)) / self.config.train_batch)

    def step(self, work: Work, epoch: int, backward: Callable[[Tensor], None]) -> Outcome:
        """Learn from a batch of slides, or score a tuning slide."""
        labels = torch.tensor(work.labels, device=self.model.device)
        if work.phase == "tune":
            seen, _ = self._see(_Sight(work.slides, [0]))
            verdict = seen.logits[:, -1].float()
            probabilities = tuple(class_probabilities(verdict)[0].tolist())
            return Outcome(tuple(slide_loss(verdict, labels).tolist()), (probabilities,))
        numbers = [crc32(slide_id.encode()) for slide_id in work.slides]
        random = np.random.default_rng([self.seed, epoch, *numbers])
        ways = random.integers(0, 8 if self.config.flips else 1, len(work.slides)).tolist()
        keys = [(self.seed, epoch, number) for number in numbers]
        sight = _Sight(work.slides, ways, keys, random, blind=epoch < self.config.warmup)
        seen, probes = self._see(sight)
        if sight.blind:
            losses = self._most_suspicious(seen, labels)
            backward(losses.sum())
        else:
            losses = slide_loss(seen.logits[:, -1].float(), labels)
            backward(losses.sum() + len(losses) * self._guidance(seen, probes, labels, losses))
        return Outcome(tuple(losses.detach().tolist()))

    def _most_suspicious(self, seen: Seen, labels: Tensor) -> Tensor:
        """Return each slide's loss of a soft maximum over its windows and probes, each alone."""
        alone = torch.cat((seen.alone, seen.probed), 1).float()
        most = (_SHARPNESS * alone).logsumexp(1) - log(alone.shape[1])
        return slide_loss(most / _SHARPNESS, labels)

    def _guidance(self, seen: Seen, probes: Tensor, labels: Tensor, verdict: Tensor) -> Tensor:
        """Return the mean of all losses but the verdict's."""
        config = self.config
        auxiliary = [slide_loss(z.float(), labels) for _, z in sorted(seen.auxiliary.items())]
        total = verdict.new_zeros(())
        for loss in auxiliary:
            total = total + config.auxiliary_weight * loss.mean()
        # With a single auxiliary classifier, the verdict is what is deeper.
        deeper = auxiliary if len(auxiliary) > 1 else [*auxiliary, verdict]
        for shallow, deep in pairwise(deeper):
            total = total + config.paradox_weight * (deep - shallow.detach()).relu().mean()
        if config.window_weight:
            windows = self._most_suspicious(seen, labels)
            total = total + config.window_weight * windows.mean()
        if config.foresight_weight:
            total = total + config.foresight_weight * self._foresight(seen, probes, labels)
        return total

    def _foresight(self, seen: Seen, probes: Tensor, labels: Tensor) -> Tensor:
        """Return the foresight loss, the mean over the layers.

        In a slide of the first class there is nothing to be found, whatever a look suggests.
        """
        network = _network(self.model)
        alone = torch.cat((seen.alone, seen.probed), 1).float()
        evidence = (1 - class_probabilities(alone.detach())[..., 0]) * (labels > 0)[:, None]
        looked = torch.cat((seen.windows[-1].detach(), probes), 1)
        parents = looked.new_tensor((1.0, 0.0, 0.0)).expand(len(looked), 1, 3)
        losses = []
        for layer, (scores, windows) in enumerate(zip(seen.scores, seen.windows, strict=True)):
            count = network.patches[layer]
            free = [n for n in range(scores.shape[1]) if not network.is_frozen(layer, n % count)]
            of = parents.repeat_interleave(count, 1)
            losses.append(foresight_loss(scores[:, free].float(), of[:, free], looked, evidence))
            parents = windows.detach()
        return torch.stack(losses).mean()

    def _see(self, sight: _Sight) -> tuple[Seen, Tensor]:
        """Run the network on slides; return what it saw and the probes that it was given."""
        model, device = self.model, self.model.device
        eyes = [Eye(self._overview(slide_id)) for slide_id in sight.slides]

        def look(windows: Tensor, size: int, margin: int) -> Tensor:
            pictures = self._read(sight, eyes, windows, size, margin).to(device)
            return self._prepared(pictures.flatten(0, 1), sight).view(pictures.shape)

        whole = torch.tensor((1.0, 0.0, 0.0)).expand(len(eyes), 1, 3)
        first = self._read(sight, eyes, whole, model.config.glance, 0)[:, 0]
        finest = [eye.finest(model.config.look, model.config.mpp) for eye in eyes]
        probes = self._probes(first, sight.random).to(device)
        network: Callable[..., Any] = self.network  # it returns more than one tensor
        seen: Seen = network(
            self._prepared(first.to(device), sight),
            look,
            finest=torch.tensor(finest, device=device),
            probes=probes if probes.shape[1] else None,
            blind=sight.blind,
        )
        return seen, probes

    def _read(
        self, sight: _Sight, eyes: Sequence[Eye], windows: Tensor, size: int, margin: int
    ) -> Tensor:
        """Read windows ``(B, N, 3)`` as ``(B, N, 3, side, side)`` uint8, on the CPU.

        Each from the copy of its slide in memory if that has the detail, else from the slide.
        """
        side = size + 2 * margin
        grown = windows.double().cpu()
        grown[..., 0] *= side / size
        found = []
        for slide_id, eye, way, places in zip(
            sight.slides, eyes, sight.ways, grown.tolist(), strict=True
        ):
            there = [placed(window, way) for window in places]
            fine = [n for n, window in enumerate(there) if eye.mpp(window, side) < eye.detail]
            near = Eye(self.data.view(slide_id)) if fine else eye
            tasks = [
                self._readers.submit((near if n in fine else eye).read, window, side)
                for n, window in enumerate(there)
            ]
            pictures = torch.from_numpy(np.stack([task.result() for task in tasks]))
            found.append(oriented(pictures.permute(0, 3, 1, 2), way))
        return torch.stack(found)

    def _prepared(self, pictures: Tensor, sight: _Sight) -> Tensor:
        """Make ``(B * N, 3, h, w)`` uint8 what the network takes, each slide with its stain."""
        if not (sight.keys and self.config.stain):
            return prepare(pictures, self.model)
        augment = TileAugment(flips=False, stain=self.config.stain, colour=0.0)
        repeats = len(pictures) // len(sight.keys)
        keys = [key for key in sight.keys for _ in range(repeats)]
        stained = augment(remove_grey(pictures), keys)
        return normalize(stained, self.model.mean, self.model.std)

    def _probes(self, pictures: Tensor, random: np.random.Generator | None) -> Tensor:
        """Draw windows ``(B, M, 3)`` centred where ``(B, 3, h, w)`` pictures are not grey.

        A few may lie anywhere: attention has to learn what bare glass is worth, too.
        """
        count = self.config.probes if random is not None else 0
        drawn = np.empty((len(pictures), count, 3), np.float32)
        if random is None or not count:
            return torch.from_numpy(drawn)
        low, high = np.log(self.config.probe_scales)
        drawn[..., 0] = np.exp(random.uniform(low, high, drawn.shape[:2]))
        side = pictures.shape[-1]
        for row, tissue in zip(drawn, remove_grey(pictures).any(1).numpy(), strict=True):
            cells = np.flatnonzero(tissue) if tissue.any() else np.arange(side * side)
            chosen = random.choice(cells, count)
            anywhere = random.uniform(size=count) < self.config.stray
            chosen[anywhere] = random.integers(0, side * side, int(anywhere.sum()))
            y, x = np.divmod(chosen, side)
            inside = random.uniform(size=(2, count))
            row[:, 1:] = np.stack([x + inside[0], y + inside[1]], 1) * 2 / side - 1
        return torch.from_numpy(drawn)

    def _read_ahead(self, slides: Sequence[str]) -> None:
        """Begin to copy slides that are not in memory; few enough that all stay open."""
        wanted = [s for s in slides if s not in self._overviews and s not in self._coming]
        for slide_id in wanted[:_AHEAD]:
            view = self.data.view(slide_id)
            self._coming[slide_id] = self._readers.submit(_copy, view, self.config.overview_px)

    def _overview(self, slide_id: str) -> Overview:
        if slide_id in self._overviews:
            return self._overviews[slide_id]
        coming = self._coming.pop(slide_id, None)
        if coming is None:
            made = _copy(self.data.view(slide_id), self.config.overview_px)
        else:
            made = coming.result()
        if made.nbytes <= self._left:
            self._left -= made.nbytes
            self._overviews[slide_id] = made
        return made


@dataclass(frozen=True, slots=True)
class _Sight:
    """Which slides are looked at, in which orientations, and what is random about it."""

    slides: Sequence[str]
    ways: Sequence[int]
    keys: Sequence[tuple[int, ...]] = ()
    random: np.random.Generator | None = None
    blind: bool = False
    """Only probes are judged."""


def _copy(view: View, side: int) -> Overview:
    """Read a whole slide, its longer side ``side`` px (or what it has, if that is less)."""
    region = view.region.scaled(*view.mpp)
    mpp = max(region.w / side, region.h / side, *view.mpp)
    return Overview(view.read(view.region, mpp), (region.w, region.h))


def _backbones(network: MagNet) -> list[torch.nn.Module]:
    """Return what sees windows: the classification layer's network, then the auxiliary ones."""
    found = [network.judge.features]
    for part in network.auxiliary.values():
        assert isinstance(part, WindowClassifier)
        found.append(part.features)
    return found


def _network(model: Model[MagNetConfig]) -> MagNet:
    assert isinstance(model.module, MagNet)
    return model.module
