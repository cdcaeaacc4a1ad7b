"""Training of magnifying networks from slide labels alone.

Source: magnifying-networks-2023, sections 3.3 and 4. What the paper has: the verdict's cross
entropy, auxiliary classifiers, the paradoxical loss, mirroring and quarter turns. What is ours
(docs/magnet.md says what it is good for): a loss on single windows, probes, and foresight.
"""

from __future__ import annotations

from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch

from slidelens.errors import ModelError
from slidelens.families.magnet import MagNetConfig
from slidelens.families.magnet_eye import orient_windows, restore_windows
from slidelens.families.magnet_schedule import MagNetTraining
from slidelens.families.magnet_sight import Sight, Slides, draw_probes
from slidelens.families.slide_image import check_tissue
from slidelens.families.training import (
    Outcome,
    Stage,
    TrainConfig,
    TrainTask,
    Work,
    balanced_order,
    processes,
    slide_key,
)
from slidelens.nn.backbones import Features, freeze_norm_statistics, load_weights
from slidelens.nn.judge import WindowClassifier, most_suspicious
from slidelens.nn.magnet import MagNet
from slidelens.nn.mil import class_probabilities, slide_loss
from slidelens.nn.zoom import foresight_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from slidelens.families.base import Model
    from slidelens.families.magnet_eye import Recollection
    from slidelens.nn.magnet import Seen, Until

__all__ = ["MagNetTask"]

_SURE = 1e-6
"""Of a class: no probability is taken for more or less certain."""
_AT_ONCE = 64
"""Windows of a survey that go through the network together."""
_SOME = 32
"""Slides whose probes say how features are standardized, about."""


class MagNetTask(TrainTask[MagNetConfig]):
    """One phase: batches of slides in balanced order, each in a random orientation.

    A coarse copy of every slide is kept in memory, read ahead by threads, within the budget of
    ``cache_mb``; windows with more detail are read from the slide, in parallel, once chosen.
    """

    training: ClassVar[type[TrainConfig]] = MagNetTraining
    per_class: ClassVar[tuple[str, ...]] = (
        "judge.single.*",
        "judge.memory.*",
        "judge.verdict.*",
        "auxiliary.*.head.*",
    )
    config: MagNetTraining

    def setup(self) -> None:
        """Prepare the copies of slides."""
        config = self.config
        self.slides = Slides(
            self.model,
            self.data.view,
            side=config.overview_px,
            budget=config.cache_mb << 20,
            stain=config.stain,
        )
        self._known: dict[str, _Known] = {}

    @classmethod
    def initialize(cls, model: Model[MagNetConfig], weights: str) -> Mapping[str, Any]:
        """Load the networks for windows; attention and verdict start with random weights.

        A file is for one network; auxiliary classifiers of the same network are loaded from it too.

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
        """Return attention, memory and verdict; and the networks, unless only the head is trained.

        If attention has another rate after scouting, it is a group of its own, or left out.
        """
        network = _network(self.model)
        trunk = [p for part in _backbones(network) for p in part.parameters()]
        # By identity: stages that say the same are still one after the other.
        scouted = any(stage is one for one in self.config.scouted)
        rate = self.config.zoom_rate if scouted else 1.0
        zoom = list(network.attention.parameters()) if rate != 1 else []
        own = {id(p) for p in (*trunk, *zoom)}
        groups = [(stage.head_lr, [p for p in network.parameters() if id(p) not in own])]
        if zoom and rate:
            groups.append((rate * stage.head_lr, zoom))
        return groups if stage.trains == "head" else [*groups, (stage.lr, trunk)]

    def check(self, slide_id: str) -> None:
        """Refuse a slide without tissue."""
        check_tissue(self.data.view(slide_id))

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:  # noqa: ARG002  # all are alike
        """Yield batches of training slides; ``detail`` holds the slides of this process's next one.

        Their coarse copies are read during the step. Closing the iterator stops this.
        """
        try:
            yield from self._batches(epoch)
        finally:
            self.slides.drop()

    def _batches(self, epoch: int) -> Iterator[Work]:
        if self.config.survey and not self._known:
            self._look_around()
        elif self.config.probes and not _network(self.model).judge.standardized:
            self._standardize()
        order = balanced_order(self.data.train, self.seed, epoch)
        size = self.config.train_batch
        samples = [self.data.train[i] for i in order]
        for start in range(0, len(samples), size):
            batch, next_start = samples[start : start + size], start + size * processes()
            coming = tuple(s.slide_id for s in samples[next_start : next_start + size])
            yield Work.of("train", batch, coming)

    def length(self, stage: Stage) -> int:  # noqa: ARG002
        """Return the number of batches in an epoch."""
        return ceil(len(balanced_order(self.data.train, self.seed, 0)) / self.config.train_batch)

    def step(self, work: Work, epoch: int, backward: Callable[[Tensor], None]) -> Outcome:
        """Train on a batch of slides, or score a tuning slide."""
        labels = torch.tensor(work.labels, device=self.model.device)
        if work.phase == "tune":
            seen, _ = self._see(Sight(work.slides, [0]))
            verdict = seen.logits[:, -1].float()
            probabilities = tuple(class_probabilities(verdict)[0].tolist())
            return Outcome(tuple(slide_loss(verdict, labels).tolist()), (probabilities,))
        numbers = [slide_key(slide_id) for slide_id in work.slides]
        random = np.random.default_rng([self.seed, epoch, *numbers])
        ways = random.integers(0, 8 if self.config.flips else 1, len(work.slides)).tolist()
        keys = [(self.seed, epoch, number) for number in numbers]
        until = self._until(epoch)
        network = _network(self.model)
        network.judge.train(until != "windows")  # which only asks what it thinks
        freeze_norm_statistics(network.judge)
        # Once it has scouted, attention chooses as it will in inference: with what it leaves out
        # by chance in scouting, the classifier would learn from other windows than it will judge.
        network.attention.train(until == "windows" or not self.config.scouting)
        seen, probes = self._see(Sight(work.slides, ways, keys, random, until, work.detail or ()))
        if until == "probes":
            losses = self._most_suspicious(seen, labels)
            backward(losses.sum())
        elif until == "windows":
            losses = self._foresight(seen, probes, labels).expand(len(labels))
            backward(losses.sum())
        else:
            losses = slide_loss(seen.logits[:, -1].float(), labels)
            backward(losses.sum() + len(losses) * self._guidance(seen, probes, labels, losses))
        return Outcome(tuple(losses.detach().tolist()))

    def _until(self, epoch: int) -> Until:
        """Return which parts an epoch trains: first the classifier, then attention, then all."""
        if epoch < self.config.warmup:
            return "probes"
        return "windows" if epoch < self.config.warmup + self.config.scouting else "verdict"

    def _most_suspicious(self, seen: Seen, labels: Tensor) -> Tensor:
        """Return each slide's loss of a soft maximum over its windows and probes, each alone.

        In a slide of the first class every window is of that class: the mean of their losses is
        added, or windows that are never the most suspicious would stay undecided.
        """
        alone = torch.cat((seen.alone, seen.probed), 1).float()
        losses = slide_loss(most_suspicious(alone)[:, -1], labels)
        each = slide_loss(alone.flatten(0, 1), labels.repeat_interleave(alone.shape[1]))
        return losses + (labels == 0) * each.view(alone.shape[:2]).mean(1)

    def _guidance(self, seen: Seen, probes: Tensor, labels: Tensor, verdict: Tensor) -> Tensor:
        """Return the mean of all losses except the verdict's."""
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

        In a slide of the first class there is nothing to find, whatever a window suggests; in any
        other there is, so the target is a window's suspicion relative to the most suspicious one.
        """
        network = _network(self.model)
        alone = torch.cat((seen.alone, seen.probed), 1).detach().float()
        suspicion = -class_probabilities(alone)[..., 0].clamp(_SURE, 1 - _SURE).logit()
        evidence = (suspicion - suspicion.amax(1, keepdim=True)).exp() * (labels > 0)[:, None]
        through = seen.windows[-1].detach()[:, : seen.alone.shape[1]]  # none in scouting
        looked = torch.cat((through, probes), 1)
        parents = looked.new_tensor((1.0, 0.0, 0.0)).expand(len(looked), 1, 3)
        losses = []
        for layer, (scores, windows) in enumerate(zip(seen.scores, seen.windows, strict=True)):
            count = network.patches[layer]
            free = [n for n in range(scores.shape[1]) if not network.is_frozen(layer, n % count)]
            of = parents.repeat_interleave(count, 1)
            losses.append(foresight_loss(scores[:, free].float(), of[:, free], looked, evidence))
            parents = windows.detach()
        return torch.stack(losses).mean()

    def _see(self, sight: Sight) -> tuple[Seen, Tensor]:
        """Run the network on slides; return its output and the windows it classified alone."""
        model, device, slides = self.model, self.model.device, self.slides
        eyes = slides.eyes(sight)

        def look(windows: Tensor, size: int, margin: int) -> Tensor:
            pictures = slides.read(sight, eyes, windows, size, margin).to(device)
            return slides.prepared(pictures.flatten(0, 1), sight).view(pictures.shape)

        first = self.slides.glances(sight, eyes)
        finest = [eye.finest(model.config.look, model.config.mpp) for eye in eyes]
        count = self.config.probes if sight.random is not None else 0
        probes, known = self._probes(first, count, sight.random, eyes).to(device), None
        looked = probes
        if self._known and sight.random is not None:
            windows, known = self._recalled(sight)
            looked = torch.cat((probes, windows.to(device)), 1)
        network: Callable[..., Any] = self.network  # it returns more than one tensor
        seen: Seen = network(
            slides.prepared(first.to(device), sight),
            look,
            finest=torch.tensor(finest, device=device),
            probes=probes if count else None,
            known=known,
            until=sight.until,
        )
        return seen, looked

    def _probes(
        self,
        first: Tensor,
        count: int,
        random: np.random.Generator | None,
        eyes: Sequence[Recollection],
    ) -> Tensor:
        """Draw windows ``(B, count, 3)`` in pictures of whole slides; none without random choices.

        None is finer than the finest window that attention may choose.
        """
        if random is None:
            return torch.empty(len(first), 0, 3)
        probes = draw_probes(first, count, self.config.probe_scales, self.config.stray, random)
        finest = [eye.finest(self.model.config.look, self.model.config.mpp) for eye in eyes]
        probes[..., 0] = torch.maximum(probes[..., 0], torch.tensor(finest)[:, None])
        return probes

    def _look_around(self) -> None:
        """Compute and keep the features of random windows of every training slide, once.

        Features are standardised by all of these, unless they already are, as in a model that is
        fine-tuned.
        """
        slides = sorted({sample.slide_id for sample in self.data.train})
        self._known = {
            slide_id: self._looked_at(slide_id, self.config.survey) for slide_id in slides
        }
        if not _network(self.model).judge.standardized:
            self._standardize_by(self._known.values())

    def _standardize(self) -> None:
        """Standardise features by those of probes of some training slides."""
        slides = sorted({sample.slide_id for sample in self.data.train})
        some = slides[:: ceil(len(slides) / _SOME)]
        self._standardize_by(self._looked_at(slide_id, self.config.probes) for slide_id in some)

    def _standardize_by(self, known: Iterable[_Known]) -> None:
        judge = _network(self.model).judge
        judge.standardize(torch.cat([one.vectors for one in known]))

    def _looked_at(self, slide_id: str, count: int) -> _Known:
        """Compute features of random windows of a slide, in a random orientation and stain."""
        features = _network(self.model).judge.features
        training = features.training
        features.eval()
        number = slide_key(slide_id)
        random = np.random.default_rng([self.seed, number])
        way = int(random.integers(0, 8 if self.config.flips else 1))
        sight = Sight([slide_id], [way], [(self.seed, number)], random)
        eyes = self.slides.eyes(sight)
        probes = self._probes(self.slides.glances(sight, eyes), count, random, eyes)
        vectors = []
        for some in torch.split(probes, _AT_ONCE, 1):
            seen = self.slides.read(sight, eyes, some, self.model.config.look, 0)[0]
            with torch.no_grad():
                shown = self.slides.prepared(seen.to(self.model.device), sight)
                vectors.append(features(shown).float())
        features.train(training)
        freeze_norm_statistics(features)
        return _Known(restore_windows(probes[0].numpy(), way), torch.cat(vectors))

    def _recalled(self, sight: Sight) -> tuple[Tensor, Tensor]:
        """Return half of each slide's known windows ``(B, N, 3)`` and their features.

        For training attention return all, as only the most suspicious window says much.
        """
        windows, vectors = [], []
        for slide_id, way in zip(sight.slides, sight.ways, strict=True):
            known = self._known[slide_id]
            assert sight.random is not None
            some = len(known.windows) if sight.until == "windows" else (len(known.windows) + 1) // 2
            chosen = sight.random.permutation(len(known.windows))[:some]
            windows.append(torch.from_numpy(orient_windows(known.windows[chosen], way)))
            vectors.append(known.vectors[chosen])
        return torch.stack(windows), torch.stack(vectors)


class _Known(NamedTuple):
    """Windows ``(N, 3)`` of a slide in its own orientation, and their features ``(N, dim)``."""

    windows: NDArray[np.float32]
    vectors: Tensor


def _backbones(network: MagNet) -> list[torch.nn.Module]:
    """Return the networks for windows: the classification layer's, then the auxiliary ones."""
    found = [network.judge.features]
    for part in network.auxiliary.values():
        assert isinstance(part, WindowClassifier)
        found.append(part.features)
    return found


def _network(model: Model[MagNetConfig]) -> MagNet:
    assert isinstance(model.module, MagNet)
    return model.module
