"""Top-1 MIL on the labelled cohort ``crc_mosaic``: the plain command, three seeds, two AUCs.

Trains with ``slidelens train mil`` and no option but backbone, weights and seed, predicts the
tuning slides with ``slidelens predict`` and scores slides (``predictions.csv``) and tiles
(``tiles.csv`` against the annotated tumour tiles, all tuning slides pooled). The tuning split also
decided when to stop, so expect less on unseen slides. ``--quick`` is one seed and a schedule
shortened to six epochs; its claims say so, and estimate the time of the whole from its pace.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from common import DATA, Claim, at_least, at_most, main, slidelens

from slidelens.engine.metrics import auc
from slidelens.families.mil_schedule import MilTraining
from slidelens.families.training import Stage
from slidelens.tiling.annotations import fraction, read_annotations

COHORT = DATA / "crc_mosaic"
SHORT = 6  # epochs; --quick
WEIGHTS = DATA / "weights" / "squeezenet1_1_imagenet.safetensors"


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Run the seeds and judge the three claims."""
    runs = []
    for seed in [0] if quick else [0, 1, 2]:
        with tempfile.TemporaryDirectory() as folder:
            runs.append(one_seed(Path(folder), seed, ["--epochs", SHORT] if quick else []))
            print(runs[-1], file=sys.stderr)
    whole = sum(Stage.model_validate(s).epochs for s in MilTraining.presets["default"]["stages"])
    minutes = max(r["train_seconds"] / (SHORT / whole if quick else 1) for r in runs) / 60
    of = f"seed 0, {SHORT} epochs instead of {whole}" if quick else "mean of 3 seeds"
    long = f"training, estimated for {whole} epochs from {SHORT}" if quick else "longest training"
    claims = [
        at_least(f"slide AUC on the tuning split, {of}", mean(runs, "slide_auc"), 0.95),
        at_least(f"tile AUC on the tuning split, {of}", mean(runs, "tile_auc"), 0.85),
        at_most(long, minutes, 15, "minutes"),
    ]
    return claims, {"runs": runs}


def mean(runs: list[dict[str, Any]], key: str) -> float:
    """Return the mean of a figure over the runs."""
    return statistics.mean(r[key] for r in runs)


def one_seed(folder: Path, seed: int, options: list[str]) -> dict[str, Any]:
    """Train and predict; return the figures."""
    model, results = folder / "mil", folder / "results"
    labels = COHORT / "labels.csv"
    train = ["train", "mil", "--slides", COHORT / "slides", "--labels", labels]
    train += ["--backbone", "squeezenet1_1", "--weights", WEIGHTS, "--out", model]
    seconds, cpu = slidelens(*train, "--seed", seed, *options)
    rows = list(csv.DictReader(labels.open()))
    tune = {r["slide_id"]: int(r["label"]) for r in rows if r["split"] == "tune"}
    slides = [COHORT / "slides" / f"{slide_id}.tif" for slide_id in tune]
    slidelens("predict", *slides, "--model", model, "--out", results)
    with (results / "mil" / "predictions.csv").open() as file:
        scores = {r["slide_id"]: float(r["prob_1"]) for r in csv.DictReader(file)}
    tumour, probability = tiles(results / "mil", list(tune))
    history = list(csv.DictReader((model / "training" / "history.csv").open()))
    return {
        "seed": seed,
        "slide_auc": auc(list(tune.values()), [scores[s] for s in tune]),
        "tile_auc": auc(tumour, probability),
        "tiles": len(tumour),
        "epochs": len(history),
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "load": os.getloadavg()[1],
    }


def tiles(results: Path, slides: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return for every predicted tile whether it is annotated tumour, and its probability."""
    truth, probability = [], []
    for slide_id in slides:
        with (results / slide_id / "tiles.csv").open() as file:
            rows = list(csv.DictReader(file))
        boxes = np.array([[float(r[k]) for k in ("minx", "miny", "width", "height")] for r in rows])
        marked = read_annotations(COHORT / "annotations" / f"{slide_id}.geojson")
        truth.append(fraction(marked, boxes) > 0.5)
        probability.append(np.array([float(r["prob_1"]) for r in rows]))
    return np.concatenate(truth), np.concatenate(probability)


if __name__ == "__main__":
    main(__doc__, measure, [COHORT, WEIGHTS])
