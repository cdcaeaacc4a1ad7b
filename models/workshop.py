"""What the recipes of the bundled models share: phantoms to learn from, a backbone, a last check.

Everything is made when a recipe first asks for it, and once: slides, tiles and backbones lie in
the work folder, and a later run with the same folder finds them there.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save

from slidelens.engine.package import load_model, save_model, verify
from slidelens.engine.train import train
from slidelens.files import write_atomic
from slidelens.geometry import Box
from slidelens.nn.backbones import Features, build_features
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import write_cohort
from slidelens.tiling.annotations import fraction, read_annotations
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.tissue import tissue_mask

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

__all__ = ["LIMIT_MB", "Workshop", "say"]

SEED = 11
"""Of everything random. The demonstration's slides have another: no model has seen them."""

LIMIT_MB = 3.0
"""A bundled package is at most this large, golden tensors included."""

_SIZE = (1792, 1792)  # px of a training phantom, at 0.5 µm/px
_CARD = {
    "licence": "Apache-2.0",
    "intended_use": "Demonstration on SlideLens's own phantom slides. Not for tissue of any kind.",
    "about": "Trained on synthetic slides (slidelens.testing.phantom) by models/make.py.",
}


class Workshop:
    """Where models are made.

    Parameters
    ----------
    work
        Folder for slides, tiles, backbones and trainings.
    out
        Folder that gets the finished packages.
    slides
        Number of phantoms to learn from.
    quick
        Train next to nothing: to see whether a recipe runs.
    """

    def __init__(self, work: Path, out: Path, *, slides: int = 48, quick: bool = False) -> None:
        self.work, self.out = work, out
        self.seed = SEED
        self.quick = quick
        self._slides = slides

    @cached_property
    def cohort(self) -> Path:
        """Folder with ``slides/``, ``labels.csv`` (splits train and tune) and ``annotations/``."""
        folder = self.work / f"cohort-{self._slides}"
        if not (folder / "labels.csv").exists():  # which is written last
            say(f"drawing {self._slides} phantoms")
            write_cohort(folder, self._slides, self.seed, size=_SIZE)
        return folder

    def tiles(self, size: int = 112, mpp: float = 1.0) -> tuple[NDArray[np.uint8], NDArray[Any]]:
        """Read every tissue tile of the training slides, and how much of it is tumour.

        Returns
        -------
        ``(n, size, size, 3)`` uint8, and ``(n,)`` float32: the share of each tile, 0 to 1.
        """
        path = self.work / f"tiles-{self._slides}-{size}-{mpp:g}.safetensors"
        if not path.exists():
            tiles, shares = _tiles_and_shares(self.cohort, GridSpec(size, mpp))
            both = {"tiles": torch.from_numpy(tiles), "shares": torch.from_numpy(shares)}
            write_atomic(path, save(both))
        kept = load_file(path)
        return kept["tiles"].numpy(), kept["shares"].numpy()

    def tumor_tile(self, size: int = 112, mpp: float = 1.0) -> NDArray[np.uint8]:
        """Return the tile with the most tumour: a golden input."""
        tiles, shares = self.tiles(size, mpp)
        return np.asarray(tiles[int(np.argmax(shares))])

    def backbone(self, name: str = "squeezenet1_1", *, epochs: int = 14) -> Path:
        """Return weights of a backbone, in torchvision's layout, that knows phantom tissue.

        A network with random weights cannot find top tiles, nor learn from slide labels of so few
        slides, so it first learns to tell from a tile of a phantom how much of it is tumour, as
        ImageNet's weights would bring it features.
        """
        epochs = 1 if self.quick else epochs
        path = self.work / f"{name}-{self._slides}-{epochs}.safetensors"
        if not path.exists():
            _pretrain(name, *self.tiles(), path, epochs, self.seed)
        return path

    def learnt(self, package: str) -> Path:
        """Return the backbone of a bundled package, in torchvision's layout.

        Raises
        ------
        SystemExit
            There is no such package yet.
        """
        folders = [self.out / package, Path(__file__).resolve().parent / package]
        found = [folder for folder in folders if (folder / "model.json").exists()]
        if not found:
            raise SystemExit(f"{package} is not made yet, and its network is needed: make it first")
        model = load_model(found[0], "cpu")
        kept = [part for part in model.module.modules() if isinstance(part, Features)]
        path = self.work / f"{package}-backbone.safetensors"
        write_atomic(path, save(_torchvision_layout(kept[0])))
        return path

    def train(self, family: str, name: str, **options: Any) -> Path:
        """Train a family on the cohort as anybody would, by ``slidelens.engine.train``.

        Returns the folder of the package; ``options`` are those of that function.
        """
        folder = self.work / "trained" / name
        if (folder / "model.json").exists():
            raise SystemExit(f"{folder} is there already: remove it to train {name} anew")
        if self.quick:
            options |= {"epochs": 2}
        slides, labels = self.cohort / "slides", self.cohort / "labels.csv"
        for step in train(family, slides, labels, folder, seed=self.seed, resume=True, **options):
            if step.doing == "epoch":
                say(f"{name} epoch {step.epoch}: tune loss {step.tune_loss}, AUC {step.tune_auc}")
        return folder

    def publish(
        self,
        name: str,
        trained: Path,
        *,
        golden: NDArray[np.uint8],
        config: Mapping[str, Any] | None = None,
        **card: Any,
    ) -> Path:
        """Write a trained package into ``out`` in fp16, with card and golden tensors; replay them.

        ``config`` changes what of the configuration may differ from training, such as overlap.

        Raises
        ------
        ModelError
            The golden output does not come again.
        """
        model = load_model(trained, "cpu")
        model.name = name
        fields = {**model.config.model_dump(), **(config or {})}
        model.config = type(model.config).model_validate(fields)
        model.card |= {**_CARD, **card}
        folder = save_model(model, self.out / name, golden=golden, half=True)
        size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
        if size > LIMIT_MB:
            raise SystemExit(f"{folder} takes {size:.2f} MB; at most {LIMIT_MB} may be bundled")
        say(f"{name}: {size:.2f} MB, golden output replayed to {verify(folder):.1g}")
        return folder


def say(text: str) -> None:
    """Tell where the making stands."""
    print(text, file=sys.stderr, flush=True)


def _tiles_and_shares(cohort: Path, spec: GridSpec) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    names = [row.split(",") for row in (cohort / "labels.csv").read_text().splitlines()[1:]]
    tiles, shares = [], []
    for slide_id in (row[0] for row in names if row[2] == "train"):
        truth = read_annotations(cohort / "annotations" / f"{slide_id}.geojson")
        tumor = [a for a in truth if a.label == "tumor"]
        with open_slide(cohort / "slides" / f"{slide_id}.tif") as slide:
            grid = make_grid(slide.size, slide.require_mpp(), spec, tissue=tissue_mask(slide))
            shares.append(fraction(tumor, grid.boxes) if tumor else np.zeros(len(grid)))
            tiles += [slide.read(Box(*box), spec.mpp) for box in grid.boxes]
    return np.stack(tiles), np.concatenate(shares).astype(np.float32)


def _pretrain(
    name: str, tiles: NDArray[np.uint8], shares: NDArray[Any], path: Path, epochs: int, seed: int
) -> None:
    """Teach a backbone phantom tiles; write it in torchvision's layout."""
    torch.manual_seed(seed)
    features = build_features(name)
    head = torch.nn.Linear(features.dim, 1)
    network = torch.nn.Sequential(features, head).to(memory_format=torch.channels_last)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    targets = torch.from_numpy(shares)
    batch, weight = 32, (1 - targets).sum() / targets.sum()
    steps = epochs * (len(images) // batch)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 6e-4, total_steps=steps)
    start = perf_counter()
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(images))
        for rows in order[: len(order) // batch * batch].view(-1, batch):
            turned = torch.rot90(images[rows], int(torch.randint(4, ())), (2, 3))
            if torch.rand(()) < 0.5:
                turned = turned.flip(3)
            logits = network(normalize(turned, IMAGENET_MEAN, IMAGENET_STD))[:, 0]
            loss = F.binary_cross_entropy_with_logits(logits, targets[rows], pos_weight=weight)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(float(loss.detach()))
        spent = perf_counter() - start
        say(f"{name} epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, {spent:.0f} s")
    write_atomic(path, save(_torchvision_layout(features)))


def _torchvision_layout(features: Features) -> dict[str, torch.Tensor]:
    return {
        key.removeprefix("trunk."): value.contiguous()
        for key, value in features.state_dict().items()
    }
