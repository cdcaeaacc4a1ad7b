"""MagNet on the semi-synthetic cohort ``crc_mosaic``, from slide labels alone.

``slidelens train magnet`` (SqueezeNet with ImageNet's weights, which stay as they are; CPU) learns
from 48 slides, and ``predict`` looks at the 20 of the tuning split, which also decided which epoch
to keep, and the operating point: expect less on unseen slides. Judged are the AUC, and how many of
the true positives (at the model's operating point) have a window of the last layer that holds
tumour (at least half of a tumour tile of 112 µm), beside windows of the same sizes at random places
on the tissue.

Model and figures of the training are kept in ``slidelens-magnet-crc`` in the temporary folder.
``--quick`` trains for an epoch of each kind only; its claims say so.
"""

from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from common import DATA, Claim, at_least, main
from magnet import learn, on_tissue

import slidelens as sl
from slidelens.engine.metrics import auc
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from collections.abc import Sequence

COHORT = DATA / "crc_mosaic"
WORK = Path(tempfile.gettempdir()) / "slidelens-magnet-crc"
DRAWS = 200  # of random windows per slide

CONFIG: dict[str, Any] = {
    # the network: small enough for a CPU
    "patches": (8,),  # the slides are of 1 mm: one step from all of it to windows of 112 µm
    "glance": 448,
    "look": 224,
    "mpp": 0.5,
    "width": 8,
    "state": 32,
    "auxiliary": "small",
    "auxiliary_layers": (),
    "dropout": 0.5,
    "evidence": True,
    # where to look
    "frozen": False,
    "sees": "features",
    "shared": True,
    "tissue": True,
    "inhibition": 20.0,
    "gain": (8.0,),
    "least": 0.05,
    "reach": (0.01,),
    # training
    "train_batch": 4,
    "survey": 64,
    "probes": 0,
    "probe_scales": (0.05, 0.05),  # that is, as fine as there is
    "stray": 0.1,
    "warmup": 40,
    "scouting": 30,
    "window": 3,
    "stages": [
        {"epochs": 40, "lr": 1e-4, "head_lr": 3e-3, "trains": "head", "schedule": "cosine"},
        {
            "epochs": 30,
            "lr": 1e-4,
            "head_lr": 1e-2,
            "trains": "head",
            "schedule": "cosine",
            "start": "last",
        },
    ],
}


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Train, look at the tuning slides, judge."""
    model = WORK / ("quick" if quick else "whole")
    training = learn(COHORT / "slides", COHORT / "labels.csv", model, CONFIG, quick)
    with (COHORT / "labels.csv").open(newline="") as file:
        tune = [r for r in csv.DictReader(file) if r["split"] == "tune"]
    rows = [look(model, row["slide_id"], int(row["label"])) for row in tune]
    labels, scores = [r["label"] for r in rows], [r["score"] for r in rows]
    threshold = json.loads((model / "model.json").read_text())["threshold"]
    positive = [r for r in rows if r["label"]]
    caught = [r for r in positive if r["score"] >= threshold]
    figures = {
        "training": training,
        "threshold": threshold,
        "true_positives": len(caught),
        "hold_tumour": share([r["holds"] for r in caught]),
        "random_hold_tumour": share([r["random"] for r in caught]),
        "positives_hold_tumour": share([r["holds"] for r in positive]),
        "positives_random_hold_tumour": share([r["random"] for r in positive]),
        "load": round(os.getloadavg()[1], 2),
        "slides": rows,
    }
    of = ", hardly trained" if quick else ""
    gain = figures["hold_tumour"] - figures["random_hold_tumour"]
    return [
        at_least(
            f"slide AUC on the tuning slides, from slide labels alone{of}",
            auc(labels, scores),
            0.9,
        ),
        at_least(f"true positives whose windows hold tumour, above random windows{of}", gain, 0.1),
    ], figures


def share(values: Sequence[float]) -> float:
    """Return the mean; NaN of nothing."""
    return round(float(np.mean(values)), 4) if values else float("nan")


def look(model: Path, name: str, label: int) -> dict[str, Any]:
    """Predict one slide; say what it was taken for and whether its windows hold tumour."""
    with sl.open_slide(COHORT / "slides" / f"{name}.tif") as slide:
        result = sl.predict(slide, model)
        thumbnail, width = slide.thumbnail(512), slide.size.width
    assert result.trajectory is not None
    boxes = [w.box for w in result.trajectory.last]
    row: dict[str, Any] = {
        "slide": name,
        "label": label,
        "score": round(list(result.probabilities.values())[-1], 4),
        "median_um": round(float(np.median([b.w for b in boxes])) * result.trajectory.mpp.x),
    }
    if label:
        areas = read_annotations(COHORT / "annotations" / f"{name}.geojson")
        tiles = [area.polygon for area in areas]
        row["holds"] = holds(tiles, [(b.x, b.y, b.w) for b in boxes])
        sides = np.array([b.w for b in boxes])
        drawn = on_tissue(thumbnail, width, sides, DRAWS)
        row["random"] = share([holds(tiles, squares) for squares in drawn])
    return row


def holds(tiles: Sequence[Any], squares: Sequence[tuple[float, float, float]]) -> bool:
    """Say whether a square ``(x, y, side)`` holds at least half of a tumour tile."""
    drawn = shapely.box(*np.array([(x, y, x + side, y + side) for x, y, side in squares]).T)
    shared = shapely.area(shapely.intersection(np.array(tiles)[:, None], drawn[None]))
    return bool((shared >= 0.5 * shapely.area(np.array(tiles))[:, None]).any())


if __name__ == "__main__":
    main(__doc__, measure, [COHORT])
