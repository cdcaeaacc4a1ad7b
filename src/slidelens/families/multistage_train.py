"""Training of multi-stage segmentation: Separate Learning, then End-to-End Learning.

Source: multi-stage-segmentation-2019, sections 3.2 and 4.1.
"""

from __future__ import annotations

from itertools import dropwhile, groupby
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F

from slidelens.errors import ModelError
from slidelens.families.multistage import MultistageConfig, map_logits, picture_logits
from slidelens.families.multistage_patches import LabelledPatches
from slidelens.families.multistage_schedule import MapStage, MultistageTraining
from slidelens.families.training import Outcome, TrainTask, Work, renewed, slide_key
from slidelens.nn.augment import TileAugment
from slidelens.nn.backbones import load_weights
from slidelens.nn.map_batches import map_batches
from slidelens.nn.multistage import MultiStage, backward_by_parts
from slidelens.nn.orientation import orient, orient_points, restore
from slidelens.nn.patch_augment import PatchAugment
from slidelens.nn.pixels import normalize
from slidelens.nn.precision import stored
from slidelens.tiling.patch_labels import NOLABEL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from slidelens.families.base import Model
    from slidelens.families.schedule import Stage, TrainConfig
    from slidelens.tiling.grid import Grid

__all__ = ["MultistageTask"]


class MultistageTask(TrainTask[MultistageConfig]):
    """The four kinds of stage (see :class:`~.multistage_schedule.MapStage`).

    A slide's loss is the mean over its labelled patches, so that a large slide does not outweigh a
    small one; the tuning loss is that of the network the stage trains. In End-to-End Learning
    vectors are computed in eval mode, since both passes over a patch must be the same function.
    """

    training: ClassVar[type[TrainConfig]] = MultistageTraining
    annotated: ClassVar[bool] = True
    per_class: ClassVar[tuple[str, ...]] = ("final.*", "unet.head.*")
    config: MultistageTraining
    stage: MapStage

    def setup(self) -> None:
        """Prepare augmentation; read the annotations."""
        config = self.config
        self.colours = TileAugment(False, config.stain, config.colour)
        self.augment = PatchAugment(
            TileAugment(config.flips, config.stain, config.colour),
            config.crop,
            config.contrast,
            config.sharpness,
        )
        self.patches = LabelledPatches(self.model, self.data, config)
        self._vectors: dict[tuple[str, int], torch.Tensor] = {}
        """Slide and variant (0: not augmented) to the vectors of its patches, while what makes them
        does not learn. They follow from the weights, so a resumed run makes them anew."""

    @classmethod
    def initialize(cls, model: Model[MultistageConfig], weights: str) -> Mapping[str, Any]:
        """Load the backbone's weights."""
        method = model.config.method
        if method == "segmentation":
            if weights not in ("imagenet", "none"):
                raise ModelError("method segmentation has no backbone: leave --weights out.")
            return {"backbone_weights": "no backbone"}
        if weights == "none":
            if method == "imagenet":
                raise ModelError("method imagenet needs ImageNet weights, not --weights none.")
            return {"backbone_weights": "random"}
        return load_weights(_module(model).features, weights).card

    @classmethod
    def inherit(cls, model: Model[MultistageConfig], base: Model[MultistageConfig]) -> None:
        """Take all weights; a multi-stage model may start from a classifier, with a new U-Net."""
        kept, fresh = base.module.state_dict(), model.module.state_dict()
        if (base.config.method, model.config.method) == ("classifier", "multistage"):
            kept = renewed(kept, fresh, ("unet.*", "gain"))
        if model.classes != base.classes:
            kept = renewed(kept, fresh, cls.per_class)
        model.module.load_state_dict(kept)

    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the parameters of a stage, see :class:`~.multistage_schedule.MapStage`."""
        assert isinstance(stage, MapStage)
        module = _module(self.model)
        if stage.on == "map":
            head = [(stage.head_lr, list(module.unet.parameters()))]
            return [*head, (stage.lr, module.extractor())] if stage.trains == "all" else head
        layers = [*module.vector.parameters(), *module.final.parameters()]
        head = [(stage.head_lr, layers)]
        if stage.trains == "head":
            return head
        return [*head, (stage.lr, list(module.features.parameters()))]

    def check(self, slide_id: str) -> None:
        """Refuse a slide without labelled patches, or whose annotations do not fit it."""
        _ = self.patches[slide_id]

    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield batches of labelled patches, or scans for vectors and batches of slides."""
        assert isinstance(stage, MapStage)
        if stage.learns_vectors:
            self._vectors = {}
        if stage.on == "patches":
            # The gain of a model to start from is that of other vectors: it is set anew after this.
            rest = dropwhile(lambda one: one is not stage, self.config.stages)
            if any(self._keeps_vectors(one) for one in rest):
                _module(self.model).gain.fill_(1)
            yield from self._patch_works(epoch)
            return
        if self._keeps_vectors(stage):
            for sample in self.data.train:
                yield Work.of("scan", [sample])
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data.train))
        for start in range(0, len(order), self.config.map_batch):
            batch = [self.data.train[i] for i in order[start : start + self.config.map_batch]]
            yield Work.of("train", batch)

    def length(self, stage: Stage) -> int:
        """Return the number of scans and batches in an epoch."""
        assert isinstance(stage, MapStage)
        if stage.on == "patches":
            return ceil(len(self.patches.draw(self.seed, 0)) / self.config.train_batch)
        scans = len(self.data.train) if self._keeps_vectors(stage) else 0
        return scans + ceil(len(self.data.train) / self.config.map_batch)

    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Train on patches or slides, compute a slide's vectors, or score a tuning slide."""
        if work.phase == "scan":
            return Outcome(seen=self._kept_vectors(work.slides[0], epoch % self.config.variants))
        if work.phase == "tune":
            return self._score(work.slides[0])
        if self.stage.on == "patches":
            losses = self._patch_losses(work, epoch)
            backward(losses.sum())
            return Outcome(tuple(losses.detach().tolist()))
        learn = self._learn_both if self.stage.learns_vectors else self._learn_map
        return Outcome(tuple(float(learn(slide, epoch, backward)) for slide in work.slides))

    def keep(self, work: Work, epoch: int, seen: torch.Tensor) -> None:
        """Keep the vectors of a slide's patches; those of all training slides set the gain.

        The gain is set here, since every process keeps all vectors, but may train on no slide.
        """
        self._vectors[work.slides[0], epoch % self.config.variants] = seen
        if work.slides[0] == self.data.train[-1].slide_id:
            self._set_gain(epoch)

    def _keeps_vectors(self, stage: MapStage) -> bool:
        return not stage.learns_vectors and self.model.config.method != "segmentation"

    # --- patches ----------------------------------------------------------------------------------

    def _patch_works(self, epoch: int) -> Iterator[Work]:
        """Yield batches of patches; ``detail`` holds each one's row in its grid, and its number."""
        drawn = self.patches.draw(self.seed, epoch)
        for start in range(0, len(drawn), self.config.train_batch):
            batch = drawn[start : start + self.config.train_batch]
            order = np.argsort(batch[:, 0], kind="stable")  # a slide's patches in one go
            batch, numbers = batch[order], (start + order).tolist()
            slides = tuple(self.data.train[i].slide_id for i in batch[:, 0])
            rows = batch[:, 1].tolist()
            labels = (int(self.patches[s].labels[r]) for s, r in zip(slides, rows, strict=True))
            yield Work("train", slides, tuple(labels), list(zip(rows, numbers, strict=True)))

    def _patch_losses(self, work: Work, epoch: int) -> torch.Tensor:
        """Return the loss ``(B,)`` of each patch of a batch."""
        images = []
        picked = zip(work.slides, work.detail, strict=True)
        for slide_id, group in groupby(picked, key=lambda pick: pick[0]):
            rows, numbers = zip(*(detail for _, detail in group), strict=True)
            grid = self.patches[slide_id].grid.take(list(rows))
            images += list(self._images(slide_id, grid, epoch, len(grid), numbers))
        logits = self.network(torch.cat(images), "classify")[:, 0].float()
        labels = torch.tensor(work.labels, dtype=torch.float32, device=logits.device)
        return F.binary_cross_entropy_with_logits(logits, labels, reduction="none")

    def _images(
        self, slide_id: str, grid: Grid, epoch: int | None, size: int, numbers: Sequence[int] = ()
    ) -> Iterator[torch.Tensor]:
        """Yield a grid's normalised patches; augmented by number unless ``epoch`` is None."""
        seen, name = 0, slide_key(slide_id)
        numbers = numbers or [0] * len(grid)
        for batch in self.data.view(slide_id).batches(grid, size):
            images = batch.images
            if epoch is not None:
                part = slice(seen, seen + len(images))
                places = zip(grid.index[part].tolist(), numbers[part], strict=True)
                keys = [(self.seed, epoch, name, *place, number) for place, number in places]
                images = self.augment(images, keys)
            seen += len(batch.boxes)
            yield normalize(images, self.model.mean, self.model.std)

    # --- maps -------------------------------------------------------------------------------------

    def _vectors_of(self, slide_id: str, epoch: int | None) -> Iterator[torch.Tensor]:
        """Yield the vectors of a slide's patches in mini-batches, computed in eval mode."""
        _module(self.model).features.eval()
        grid = self.patches[slide_id].grid
        batches = self._images(slide_id, grid, epoch, self.model.config.batch_size)

        def vectors(images: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.network(images, "vectors").float()
            return found

        yield from map_batches(vectors, batches, self.model.device, self.model.config.tile)

    def _kept_vectors(self, slide_id: str, variant: int) -> torch.Tensor:
        key = (slide_id, variant)
        if key not in self._vectors:
            with torch.no_grad():
                parts = list(self._vectors_of(slide_id, variant or None))
            # On the host: those of all slides may be more than a GPU holds.
            self._vectors[key] = stored(torch.cat(parts))
        return self._vectors[key]

    def _network_input(self, slide_id: str, variant: int) -> torch.Tensor:
        """Return them as the U-Net takes them."""
        vectors = self._kept_vectors(slide_id, variant)
        return vectors.to(_module(self.model).gain.device).float()

    def _set_gain(self, epoch: int) -> None:
        """Bring the vectors of the training slides to a root mean square of 1, if not done yet."""
        gain = _module(self.model).gain
        if gain == 1:
            variant = epoch % self.config.variants
            square, count = 0.0, 0
            for sample in self.data.train:
                vectors = self._network_input(sample.slide_id, variant)
                square += float(vectors.double().square().sum())
                count += vectors.numel()
            gain.fill_((count / max(square, 1e-12)) ** 0.5)

    def _learn_map(
        self, slide_id: str, epoch: int, backward: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        """Train the U-Net on one slide (section 3.2.1)."""
        way = self._way(slide_id, epoch)
        if self.model.config.method == "segmentation":
            loss = self._loss(slide_id, self._picture_logits(slide_id, way, epoch))
        else:
            vectors = self._network_input(slide_id, epoch % self.config.variants)
            loss = self._map_loss(slide_id, vectors, way)
        backward(loss)
        return loss.detach()

    def _learn_both(
        self, slide_id: str, epoch: int, backward: Callable[[torch.Tensor], None]
    ) -> torch.Tensor:
        """Train U-Net and extractor end to end on one slide (section 3.2.2)."""
        way, config = self._way(slide_id, epoch), self.model.config
        grid = self.patches[slide_id].grid
        _module(self.model).features.eval()

        def batches() -> Iterable[torch.Tensor]:
            return self._images(slide_id, grid, epoch, config.batch_size)

        return backward_by_parts(
            lambda images: self.network(images, "vectors").float(),
            batches,
            lambda vectors: self._map_loss(slide_id, vectors, way),
            backward,
        )

    def _way(self, slide_id: str, epoch: int) -> int:
        """Draw one of the eight orientations of a slide's map."""
        if not self.config.flips:
            return 0
        key = [self.seed, epoch, slide_key(slide_id)]
        return int(np.random.default_rng(key).integers(8))

    def _map_loss(self, slide_id: str, vectors: torch.Tensor, way: int) -> torch.Tensor:
        index = orient_points(self.patches[slide_id].grid.index, way)
        return self._loss(slide_id, map_logits(self.network, self.model.config, vectors, index))

    def _picture_logits(self, slide_id: str, way: int, epoch: int | None) -> torch.Tensor:
        """Segment the reduced picture, with another orientation and other colours in each epoch."""

        def network(picture: torch.Tensor, part: str) -> torch.Tensor:
            logits = self.network(orient(picture, way), part)
            return restore(logits, way)

        def prepare(picture: torch.Tensor) -> torch.Tensor:
            if epoch is not None:
                picture = self.colours(picture, [(self.seed, epoch, slide_key(slide_id))])
            return normalize(picture.to(self.model.device), self.model.mean, self.model.std)

        view, grid = self.data.view(slide_id), self.patches[slide_id].grid
        return picture_logits(network, self.model.config, view, grid, prepare)

    def _loss(self, slide_id: str, logits: torch.Tensor) -> torch.Tensor:
        """Return the mean loss of a slide's labelled patches, of which every slide has some."""
        labels = torch.from_numpy(self.patches[slide_id].labels).to(logits.device)
        target = labels.clamp(min=0).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        known = labels != NOLABEL
        return (losses * known).sum() / known.sum()

    def _score(self, slide_id: str) -> Outcome:
        """Score a slide with the network that the stage trains: by patches, or by the map."""
        if self.model.config.method == "segmentation":
            logits = self._picture_logits(slide_id, 0, None)
        elif self.stage.on == "patches":
            grid, size = self.patches[slide_id].grid, self.model.config.batch_size
            images = self._images(slide_id, grid, None, size)
            logits = torch.cat([self.network(x, "classify")[:, 0].float() for x in images])
        else:
            vectors = (
                self._network_input(slide_id, 0)
                if self._keeps_vectors(self.stage)
                else torch.cat(list(self._vectors_of(slide_id, None)))
            )
            index = self.patches[slide_id].grid.index
            logits = map_logits(self.network, self.model.config, vectors, index)
        highest = float(torch.sigmoid(logits.max()))
        return Outcome((float(self._loss(slide_id, logits)),), ((1 - highest, highest),))


def _module(model: Model[MultistageConfig]) -> MultiStage:
    assert isinstance(model.module, MultiStage)
    return model.module
