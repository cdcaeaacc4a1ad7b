"""Train the bundled model packages anew: ``make models``.

They learn from phantom slides that ``slidelens.testing.phantom`` draws, from random weights, so
that anyone can make them from this repository alone; the demonstration's slides have another seed.

A network with random weights cannot find top tiles, so its backbone first learns to tell phantom
tiles apart by their exact truth, as ImageNet weights would bring it features; the family then
trains as it does for anybody, by ``slidelens.engine.train``, from slide labels alone.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from slidelens.engine.package import load_model, save_model, verify
from slidelens.engine.train import train
from slidelens.geometry import Box
from slidelens.nn.backbones import build_features
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import write_cohort
from slidelens.tiling.annotations import fraction, read_annotations
from slidelens.tiling.grid import GridSpec, make_grid
from slidelens.tiling.tissue import tissue_mask

HERE = Path(__file__).resolve().parent
SEED = 11
TILE, MPP, BACKBONE = 112, 1.0, "squeezenet1_1"

CARD = {
    "licence": "Apache-2.0",
    "intended_use": "Demonstration on SlideLens's own phantom slides. Not for tissue of any kind.",
    "about": "Trained on synthetic slides (slidelens.testing.phantom) by models/make.py.",
}
PACKAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "demo-mil": ("mil", {"tile": TILE, "mpp": MPP, "batch_size": 64}),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="packages to make; all when none is named")
    parser.add_argument("--slides", type=int, default=48, help="phantoms to learn from")
    parser.add_argument("--epochs", type=int, default=10, help="of the family's training")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(PACKAGES))
    if unknown:
        parser.error(f"no package {', '.join(unknown)}; there are {', '.join(PACKAGES)}")
    with tempfile.TemporaryDirectory() as folder:
        cohort = Path(folder) / "cohort"
        say(f"drawing {options.slides} phantoms")
        write_cohort(cohort, options.slides, SEED, size=(1792, 1792))
        tiles, labels = labelled_tiles(cohort)
        weights = Path(folder) / "backbone.safetensors"
        pretrain(tiles, labels, weights)
        golden = tiles[int(np.argmax(labels))]
        for name in options.names or PACKAGES:
            make(name, cohort, weights, golden, options.epochs, Path(folder) / name)
    return 0


def labelled_tiles(cohort: Path) -> tuple[np.ndarray, np.ndarray]:
    """Read every tissue tile of the training slides; 1 is a tile with a fifth of tumour or more."""
    spec = GridSpec(TILE, MPP)
    names = [row.split(",") for row in (cohort / "labels.csv").read_text().splitlines()[1:]]
    tiles, labels = [], []
    for slide_id in (row[0] for row in names if row[2] == "train"):
        truth = read_annotations(cohort / "annotations" / f"{slide_id}.geojson")
        tumor = [a for a in truth if a.label == "tumor"]
        with open_slide(cohort / "slides" / f"{slide_id}.tif") as slide:
            grid = make_grid(slide.size, slide.require_mpp(), spec, tissue=tissue_mask(slide))
            share = fraction(tumor, grid.boxes) if tumor else np.zeros(len(grid))
            # Tiles with a sliver of tumour teach neither class.
            for box, part in zip(grid.boxes, share, strict=True):
                if part == 0 or part >= 0.2:
                    tiles.append(slide.read(Box(*box), MPP))
                    labels.append(int(part > 0))
    return np.stack(tiles), np.array(labels)


def pretrain(tiles: np.ndarray, labels: np.ndarray, path: Path, epochs: int = 14) -> None:
    """Teach a backbone phantom tiles; write it in torchvision's layout."""
    torch.manual_seed(SEED)
    features = build_features(BACKBONE)
    head = torch.nn.Linear(features.dim, 1)
    network = torch.nn.Sequential(features, head).to(memory_format=torch.channels_last)
    images = torch.from_numpy(tiles).permute(0, 3, 1, 2)
    targets = torch.from_numpy(labels).float()
    batch, weight = 32, (targets == 0).sum() / targets.sum()
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
        say(
            f"backbone epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, "
            f"{perf_counter() - start:.0f} s"
        )
    tensors = {
        key.removeprefix("trunk."): value.contiguous()
        for key, value in features.state_dict().items()
    }
    save_file(tensors, path)


def make(
    name: str, cohort: Path, weights: Path, golden: np.ndarray, epochs: int, folder: Path
) -> None:
    """Train one package, write it here with its card and golden tensors, and replay them."""
    family, fields = PACKAGES[name]
    steps = train(
        family,
        cohort / "slides",
        cohort / "labels.csv",
        folder,
        backbone=BACKBONE,
        weights=weights,
        seed=SEED,
        epochs=epochs,
        config=fields,
    )
    for step in steps:
        if step.doing == "epoch":
            say(f"{name} epoch {step.epoch}: tune loss {step.tune_loss:.3f}, AUC {step.tune_auc}")
    model = load_model(folder, "cpu")
    model.name = name
    model.card |= CARD
    save_model(model, HERE / name, golden=golden, half=True)
    size = sum(file.stat().st_size for file in (HERE / name).iterdir()) / 1e6
    say(f"{name}: {size:.1f} MB, golden output replayed to {verify(HERE / name):.1g}")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
