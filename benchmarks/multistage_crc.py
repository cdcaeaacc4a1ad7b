"""Multi-stage segmentation and the paper's methods for comparison on the cohort ``crc_mosaic``.

Table 1 of multi-stage-segmentation-2019 on semi-synthetic slides: each method is trained by
``slidelens train multistage`` (SqueezeNet, 224 px tiles at 0.5 µm/px, CPU), run over the tuning
slides by ``slidelens predict``, and its tiles are scored against the annotated ones, all slides
pooled: accuracy at 0.5, area under the precision-recall curve (6.7 % of the tiles are tumour), and
"tumour points", false tiles without a neighbour that is tumour or is called so. The tuning split
also decided when to stop, so expect less on unseen slides.

Separate Learning starts from the classifier and End-to-End from Separate Learning, as in the paper.
Trainings and results are kept in ``$SLIDELENS_BENCH_WORK`` (default: the system's temporary
folder); the same command goes on from there. ``--quick`` is one seed and short schedules;
``$SLIDELENS_BENCH_SEEDS`` names the seeds of the whole (default: ``0,1,2``).
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, Claim, at_least, main, slidelens

from slidelens.engine.evaluation.tiles import isolated
from slidelens.engine.metrics import at_threshold, pr_auc
from slidelens.maps.tiles import Tiles
from slidelens.tiling.annotations import fraction, read_annotations

COHORT = DATA / "crc_mosaic"
WEIGHTS = DATA / "weights" / "squeezenet1_1_imagenet.safetensors"
WORK = Path(os.environ.get("SLIDELENS_BENCH_WORK", tempfile.gettempdir())) / "multistage_crc"

METHODS: dict[str, list[object]] = {
    "classifier only": ["--method", "classifier", "--weights", WEIGHTS],
    "segmentation only": ["--method", "segmentation"],
    "ImageNet features": ["--method", "imagenet", "--weights", WEIGHTS],
    "Separate": ["--method", "multistage", "--preset", "map", "--from", "classifier only"],
    "End-to-End": ["--preset", "end-to-end", "--from", "Separate"],
}
QUICK = {
    "classifier only": ["--epochs", 3],
    "segmentation only": ["--epochs", 6],
    "ImageNet features": ["--epochs", 30, "--variants", 1],
    "Separate": ["--epochs", 30, "--variants", 1],
    "End-to-End": ["--epochs", 1],
}


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Train and score every method with each seed."""
    whole = os.environ.get("SLIDELENS_BENCH_SEEDS", "0,1,2").split(",")
    seeds = [0] if quick else [int(seed) for seed in whole]
    runs = [
        one_seed(WORK / ("quick" if quick else "full") / str(seed), seed, quick) for seed in seeds
    ]
    mean = {
        method: {
            key: statistics.mean(run[method][key] for run in runs)
            for key in ("accuracy", "pr_auc", "tumour_points")
        }
        for method in METHODS
    }
    of = f"mean of {len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    of += ", short schedules" if quick else ""
    gain = {
        key: mean["Separate"][key] - mean["classifier only"][key] for key in ("accuracy", "pr_auc")
    }
    claims = [
        at_least(f"tile PR-AUC of Separate Learning, {of}", mean["Separate"]["pr_auc"], 0.80),
        at_least("its tile PR-AUC above that of the classifier", gain["pr_auc"], -0.01),
        at_least("its tile accuracy above that of the classifier", gain["accuracy"], -0.01),
    ]
    return claims, {"mean": mean, "runs": runs}


def one_seed(folder: Path, seed: int, quick: bool) -> dict[str, Any]:
    """Train, run and score all methods; what lies in ``folder`` is not done again."""
    figures = {}
    for method in METHODS:
        model = one_method(folder, method, seed, quick=quick)
        spent = json.loads((model / "training" / "spent.json").read_text())
        figures[method] = {**score(folder, model), **spent}
        print(seed, method, figures[method], file=sys.stderr)
    return figures


def one_method(folder: Path, method: str, seed: int, *, quick: bool) -> Path:
    """Train one method, unless it lies in ``folder`` already, and return where the model is."""
    model = folder / slug(method)
    if not (model / "model.json").exists():
        options = [folder / slug(o) if o in METHODS else o for o in METHODS[method]]
        train(model, options, seed, quick)
    return model


def slug(method: object) -> str:
    """Return a folder's name."""
    return str(method).replace(" ", "-").lower()


def train(model: Path, options: list[object], seed: int, quick: bool) -> None:
    """Train one method with the plain command, or go on with it."""
    words: list[object] = ["train", "multistage", "--slides", COHORT / "slides"]
    words += ["--labels", COHORT / "labels.csv", "--annotations", COHORT / "annotations"]
    words += ["--out", model, "--seed", seed, "--device", "cpu", "--resume", *options]
    if "--from" not in options:
        words += ["--backbone", "squeezenet1_1", "--tile", 224, "--width", 16]
    if quick:
        words += {slug(method): short for method, short in QUICK.items()}[model.name]
    seconds, cpu = slidelens(*words)
    spent = {"train_seconds": seconds, "train_cpu_seconds": cpu, "load": os.getloadavg()[1]}
    (model / "training" / "spent.json").write_text(json.dumps(spent))


def score(folder: Path, model: Path) -> dict[str, Any]:
    """Predict the tuning slides and score their tiles."""
    rows = csv.DictReader((COHORT / "labels.csv").open())
    slides = [r["slide_id"] for r in rows if r["split"] == "tune"]
    paths = [COHORT / "slides" / f"{slide_id}.tif" for slide_id in slides]
    slidelens("predict", *paths, "--model", model, "--out", folder / "results", "--device", "cpu")
    truth, scores, points, false = [], [], 0, 0
    for slide_id in slides:
        tiles = Tiles.read(folder / "results" / model.name / slide_id / "tiles.csv")
        drawn = read_annotations(COHORT / "annotations" / f"{slide_id}.geojson")
        positive = fraction(drawn, tiles.boxes) > 0.2
        called = tiles.probabilities[:, -1] >= 0.5
        points += int(isolated(tiles.boxes, called & ~positive, called | positive).sum())
        false += int((called & ~positive).sum())
        truth.append(positive)
        scores.append(tiles.probabilities[:, -1])
    labels, values = np.concatenate(truth), np.concatenate(scores)
    return {
        "accuracy": at_threshold(labels, values, 0.5).accuracy,
        "pr_auc": pr_auc(labels, values),
        "tumour_points": points,
        "false_tiles": false,
        "tiles": len(labels),
        "tumour_tiles": int(labels.sum()),
    }


if __name__ == "__main__":
    main(__doc__, measure, [COHORT, WEIGHTS])
