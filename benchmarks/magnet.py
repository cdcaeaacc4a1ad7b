"""Whether a MagNet learns to zoom from slide labels alone, and what it reads of a slide.

The slides (``magnet_slides.py``): 20,480 x 20,480 px, a small section of tissue somewhere on it,
in it two or three dark areas that look alike from afar; on positive slides one of them is tumour, a
thousandth of the slide. ``slidelens train magnet`` gets slide labels and nothing else, and
SqueezeNet begins with ImageNet's weights, as the paper's networks do. The targets' outlines are
for judging. A target counts as found if a window of the last layer, no wider than a tenth of the
slide, holds at least half of it; beside it, how often windows of the same sizes at random places on
the tissue do. Also the cost of multi-sampling's gradient beside bilinear sampling's.

Slides and model are kept in ``slidelens-magnet`` in the temporary folder for the next run.
``--quick`` makes a few slides and trains for two epochs: whether all parts run, and what is read.
What such a network knows is told and not judged.
"""

from __future__ import annotations

import csv
import json
import os
import resource
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
import torch
from common import DATA, Claim, at_least, at_most, interleaved, main, ratio
from magnet_slides import write_slides

import slidelens as sl
from slidelens.engine.metrics import auc
from slidelens.engine.train import train
from slidelens.nn.sampling import multi_sample, sample
from slidelens.testing.reads import Reads

if TYPE_CHECKING:
    from slidelens.maps.trajectory import Trajectory

WEIGHTS = DATA / "weights" / "squeezenet1_1_imagenet.safetensors"
WORK = Path(tempfile.gettempdir()) / "slidelens-magnet"
WIDEST = 0.1  # of the slide's side: a window that is wider does not count as having found anything
DRAWS = 200  # of random windows per slide

CONFIG: dict[str, Any] = {
    # the network: small enough for a CPU
    "patches": (1, 6),
    "glance": 224,
    "look": 224,
    "mpp": 2.0,
    "width": 8,
    "state": 32,
    "auxiliary": "small",
    "auxiliary_layers": (),
    "dropout": 0.5,
    "evidence": True,
    # where to look
    "frozen": False,  # one section, and much glass
    "sees": "features",
    "shared": True,
    "tissue": True,
    "inhibition": 20.0,
    "gain": (1e-5, 8.0),  # the first window is the middle of all tissue
    "least": 0.175,
    "reach": (1.2, 0.01),  # the last ones are as fine as there is
    # training
    "survey": 32,
    "probes": 0,
    "probe_scales": (0.04, 0.04),  # that is, as fine as there is
    "stray": 0.1,
    "warmup": 30,
    "scouting": 18,
    "window": 3,
    "stages": [
        {"epochs": 30, "lr": 1e-4, "head_lr": 3e-3, "trains": "head", "schedule": "cosine"},
        {
            "epochs": 18,
            "lr": 1e-4,
            "head_lr": 1e-2,
            "trains": "head",
            "schedule": "cosine",
            "start": "last",
        },
    ],
}


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Make slides, train, judge."""
    counts = dict(zip(("train", "tune", "test"), (4, 2, 4) if quick else (128, 8, 32), strict=True))
    folder = WORK / ("quick" if quick else "whole")
    start = time.perf_counter()
    write_slides(folder, **counts)
    drawn = time.perf_counter() - start
    training = learn(folder / "slides", folder / "labels.csv", folder / "magnet", CONFIG, quick)
    rows = [look(folder, name, label) for name, label in test_slides(folder)]
    labels, scores = [r["label"] for r in rows], [r["score"] for r in rows]
    positive = [r for r in rows if r["label"]]
    found = float(np.mean([r["found"] for r in positive]))
    most = max(r["all_share"] for r in rows)
    network = "hardly trained" if quick else "trained"
    of = ", hardly trained" if quick else ""
    figures = {
        "slides": counts,
        "drawing_seconds": round(drawn, 1),
        "training": training,
        "random_windows_find": round(float(np.mean([r["random"] for r in positive])), 4),
        "level0_share": round(max(r["level0_share"] for r in rows), 5),
        "megabytes_decoded": round(max(r["megabytes"] for r in rows), 2),
        "last_window_um": [
            round(min(r["least_um"] for r in rows)),
            round(max(r["most_um"] for r in rows)),
        ],
        "load": round(os.getloadavg()[1], 2),
        "test": rows,
    }
    cost, seconds = sampler()
    figures["sampler_seconds"] = seconds
    learnt = [
        at_least(
            f"slide AUC on test slides, from slide labels alone{of}", auc(labels, scores), 0.95
        ),
        at_least(f"targets inside a window of the last layer{of}", found, 0.9),
    ]
    return [
        *([replace(claim, holds=None) for claim in learnt] if quick else learnt),
        at_most(f"pixels of all levels decoded per level-0 pixel, {network}", most, 0.01),
        at_most("multi-sampling, forward and backward, beside bilinear", cost, 12, "x"),
    ], figures


def learn(
    slides: Path, labels: Path, out: Path, config: dict[str, Any], quick: bool
) -> dict[str, Any]:
    """Train where no model is yet; return what it cost and how it went."""
    if quick:
        stages = [{**one, "epochs": 1} for one in config["stages"]]
        config = {**config, "survey": 8, "warmup": 1, "scouting": 1, "stages": stages}
    kept = out / "cost.json"
    if not kept.exists():
        start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF)
        epochs = []
        for step in train(
            "magnet",
            slides,
            labels,
            out,
            backbone="squeezenet1_1",
            weights=WEIGHTS,
            config=config,
            resume=True,
        ):
            if step.doing == "epoch":
                epochs.append([step.train_loss, step.tune_loss, step.tune_auc])
                print(step, file=sys.stderr, flush=True)
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        spent = {"seconds": time.perf_counter() - start, "cpu_seconds": cpu, "epochs": epochs}
        kept.write_text(json.dumps(spent))
    return {**json.loads(kept.read_text()), "config": config}


def test_slides(folder: Path) -> list[tuple[str, int]]:
    """Return the test slides and whether each has a target."""
    with (folder / "test.csv").open(newline="") as file:
        return [(r["slide_id"], int(r["label"] == "tumor")) for r in csv.DictReader(file)]


def look(folder: Path, name: str, label: int) -> dict[str, Any]:
    """Predict one slide; say what it was taken for, whether the target was found, what was read."""
    with sl.open_slide(folder / "slides" / f"{name}.tif") as slide:
        with Reads(slide) as reads:
            result = sl.predict(slide, folder / "magnet")
        thumbnail = slide.thumbnail(512)
        width, whole = slide.size.width, slide.size.width * slide.size.height
    trajectory = result.trajectory
    assert trajectory is not None
    sides = np.array([w.box.w for w in trajectory.last])
    row: dict[str, Any] = {
        "slide": name,
        "label": label,
        "score": round(result.probabilities["tumor"], 4),
        "level0_share": reads.decoded(0) / whole,
        "all_share": reads.decoded() / whole,
        "megabytes": reads.decoded() * 3 / 1e6,
        "least_um": float(sides.min() * trajectory.mpp.x),
        "most_um": float(sides.max() * trajectory.mpp.x),
    }
    if label:
        (wkt,) = json.loads((folder / "targets.json").read_text())[name]
        target = shapely.from_wkt(wkt)
        row["found"] = finds(target, trajectory, width)
        row["random"] = by_chance(target, sides[sides <= WIDEST * width], thumbnail, width)
    return row


def finds(target: shapely.Polygon, trajectory: Trajectory, width: int) -> bool:
    """Say whether a narrow window of the last layer holds half of the target."""
    boxes = [w.box for w in trajectory.last if w.box.w <= WIDEST * width]
    return any(holds(target, b.x, b.y, b.w) for b in boxes)


def holds(target: shapely.Polygon, x: float, y: float, side: float) -> bool:
    """Say whether a square holds at least half of the target."""
    square = shapely.box(x, y, x + side, y + side)
    return bool(target.intersection(square).area >= 0.5 * target.area)


def by_chance(
    target: shapely.Polygon, sides: np.ndarray, thumbnail: np.ndarray, width: int
) -> float:
    """Return how often windows of these sides, centred anywhere on the tissue, find the target."""
    drawn = on_tissue(thumbnail, width, sides, DRAWS)
    return float(np.mean([any(holds(target, *square) for square in squares) for squares in drawn]))


def on_tissue(
    thumbnail: np.ndarray, width: int, sides: np.ndarray, draws: int
) -> list[list[tuple[float, float, float]]]:
    """Draw windows of these sides, centred anywhere on the tissue: ``(x, y, side)`` in px."""
    random = np.random.default_rng(0)
    step = width / thumbnail.shape[1]
    spread = thumbnail.max(2).astype(int) - thumbnail.min(2)
    rows, columns = np.nonzero(spread > 15)
    found = []
    for _ in range(draws):
        at = random.integers(0, len(rows), len(sides))
        x, y = (columns[at] + 0.5) * step - sides / 2, (rows[at] + 0.5) * step - sides / 2
        found.append(list(zip(x.tolist(), y.tolist(), sides.tolist(), strict=True)))
    return found


def sampler() -> tuple[float, dict[str, list[float]]]:
    """Time a training step's sampling of 16 windows, and the bilinear one in turns with it."""
    torch.manual_seed(0)
    pictures = torch.rand(16, 3, 86, 86)
    windows = torch.tensor([0.8, 0.05, -0.05]).repeat(16, 1)

    def run(way: Any) -> None:
        moved = windows.clone().requires_grad_()
        way(pictures, moved, 80).sum().backward()

    ways = {"multi": lambda: run(multi_sample), "bilinear": lambda: run(sample)}
    seconds = interleaved(ways, 9)
    return ratio(seconds["multi"], seconds["bilinear"]), seconds


if __name__ == "__main__":
    main(__doc__, measure, [WEIGHTS])
