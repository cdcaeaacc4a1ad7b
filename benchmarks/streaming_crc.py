"""Whole slides end to end on the cohort ``crc_mosaic``: slide AUC, and what SmoothGrad finds.

Trains with ``slidelens train streaming`` at 1 µm/px, predicts the tuning slides, and draws the
SmoothGrad map of those positive slides that are called positive. Slides are scored by
``predictions.csv``; tiles of 112 µm by the mean of the SmoothGrad map over them, tumour tiles
against healthy ones within each slide; and, for comparison, by the evidence map (``tiles.csv``).
The tuning split also chose the epochs, so expect less on unseen slides. ``--quick`` trains the head
alone, for an epoch, and draws three slides with five samples; its claims say so.

With SLIDELENS_BENCH_WORK set to a folder, model and results are kept there, and a run that was
stopped goes on; its processor time is then not judged. SLIDELENS_BENCH_SAMPLES is the number of
SmoothGrad's samples, by default the family's 25.
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
from common import Claim, at_least, at_most, main, slidelens
from mil_crc import COHORT, WEIGHTS

from slidelens.engine.metrics import auc
from slidelens.maps.result import Result
from slidelens.tiling.annotations import fraction, read_annotations

STAGES = [
    {"epochs": 1, "lr": 1e-4, "head_lr": 5e-4, "trains": "head"},
    {
        "epochs": 9,
        "lr": 1e-4,
        "head_lr": 3e-4,
        "freeze": "features.5",
        "schedule": "cosine",
        "start": "last",
    },
]
OPTIONS = (
    *("--fine", "--context", "13", "--pooling", "lse", "--accumulate", "4"),
    *("--set", "sharpness=8", "--set", "stain=0.3", "--set", "warm_steps=30", "--set", "window=3"),
    *("--set", f"stages={json.dumps(STAGES)}"),
)
"""A first layer that sees as at 0.5 µm/px; cells of 8 µm, each seen in 104 µm of tissue; a soft
maximum of what they say; a schedule for 48 slides."""
CORES = 2
"""The time that training may take is that of a machine of two cores; what else runs there does not
count."""


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Train, predict, draw; judge the claims of issue B."""
    kept = os.environ.get("SLIDELENS_BENCH_WORK")
    with tempfile.TemporaryDirectory() as folder:
        figures = run(Path(kept) / "streaming_crc" if kept else Path(folder), quick)
    of = ", head alone" if quick else ""
    claims = [
        at_least(f"slide AUC on the tuning split, seed 0{of}", figures["slide_auc"], 0.93),
        at_least(
            f"tile AUC of SmoothGrad, mean of {len(figures['true_positives'])} true positives{of}",
            figures["smoothgrad_tile_auc"],
            0.85,
        ),
    ]
    if figures["train_cpu_seconds"] is not None:
        minutes = figures["train_cpu_seconds"] / 60 / CORES
        claims.append(
            at_most(f"processor time of training, on each of two cores{of}", minutes, 20, "minutes")
        )
    return claims, figures


def run(folder: Path, quick: bool) -> dict[str, Any]:
    """Train and predict; return the figures."""
    model, results, drawn = folder / "streaming", folder / "results", folder / "smoothgrad"
    labels = COHORT / "labels.csv"
    train = ["train", "streaming", "--slides", COHORT / "slides", "--labels", labels]
    train += ["--backbone", "squeezenet1_1", "--weights", WEIGHTS, "--out", model, *OPTIONS]
    train += ["--seed", "0", *(["--epochs", "1"] if quick else [])]
    seconds = cpu = None
    if (model / "training").exists():
        if not (model / "model.json").exists():
            slidelens(*train, "--resume")
    else:
        seconds, cpu = slidelens(*train)
    rows = list(csv.DictReader(labels.open()))
    tune = {r["slide_id"]: int(r["label"]) for r in rows if r["split"] == "tune"}
    slidelens("predict", *map(path_of, tune), "--model", model, "--out", results)
    with (results / "streaming" / "predictions.csv").open() as file:
        scores = {r["slide_id"]: float(r["prob_1"]) for r in csv.DictReader(file)}
    threshold = json.loads((model / "model.json").read_text())["threshold"]
    found = [s for s, label in tune.items() if label and scores[s] >= threshold]
    chosen = found[:3] if quick else found
    samples = 5 if quick else int(os.environ.get("SLIDELENS_BENCH_SAMPLES", "25"))
    options = ["--set", "saliency=smoothgrad", "--set", f"saliency_samples={samples}"]
    spent, _ = slidelens(
        "predict", *map(path_of, chosen), "--model", model, "--out", drawn, *options
    )
    return {
        "slide_auc": auc(list(tune.values()), [scores[s] for s in tune]),
        "threshold": threshold,
        "true_positives": chosen,
        **tile_figures(drawn / "streaming", chosen),
        "epochs": len(list(csv.DictReader((model / "training" / "history.csv").open()))),
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "smoothgrad_samples": samples,
        "smoothgrad_seconds": spent,
    }


def tile_figures(results: Path, slides: list[str]) -> dict[str, Any]:
    """Rank the tiles of each slide by both maps; return means over slides, and pooled."""
    truth, saliency, evidence = [], [], []
    for slide_id in slides:
        result = Result.load(results / slide_id)
        assert result.tiles is not None
        boxes = result.tiles.boxes
        marked = read_annotations(COHORT / "annotations" / f"{slide_id}.geojson")
        truth.append(fraction(marked, boxes) > 0.5)
        saliency.append(result.maps["saliency"].mean(boxes)[:, 0])
        evidence.append(result.tiles.probabilities[:, -1])
    figures: dict[str, Any] = {"tiles": int(sum(map(len, truth)))}
    for name, values in (("smoothgrad", saliency), ("evidence", evidence)):
        each = [float(auc(t, v)) for t, v in zip(truth, values, strict=True)]
        figures[f"{name}_tile_auc"] = statistics.mean(each)
        figures[f"{name}_tile_auc_per_slide"] = [round(a, 4) for a in each]
        figures[f"{name}_tile_auc_pooled"] = float(
            auc(np.concatenate(truth), np.concatenate(values))
        )
    return figures


def path_of(slide_id: str) -> Path:
    """Return the file of a slide."""
    return COHORT / "slides" / f"{slide_id}.tif"


if __name__ == "__main__":
    print("training takes about 25 minutes on a free core, two on a GPU", file=sys.stderr)
    main(__doc__, measure, [COHORT, WEIGHTS])
