"""An evaluation of two phantoms under four kinds of methods, all with pictures to be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.testing.phantom import PhantomSpec, write_phantom
from slidelens.testing.results import Method, make_result

SLIDES = {"doe_jane_1": 0, "doe_jane_2": 1}
SCORES: dict[str, dict[Method, float]] = {
    "doe_jane_1": {"mil": 0.9, "streaming": 0.8, "segmentation": 0.2, "magnet": 0.7},
    "doe_jane_2": {"mil": 0.6, "streaming": 0.3, "segmentation": 0.4, "magnet": 0.9},
}
"""False positives of three methods, false negatives of two."""

MORE = {"ok_1": (0, 0.1), "ok_2": (0, 0.2), "ok_3": (1, 0.7), "ok_4": (1, 0.8)}
"""Slides that every method gets right; their results hold no map."""


def write_evaluation(folder: Path) -> Path:
    """Write slides, annotations, results and the evaluation."""
    (folder / "slides").mkdir(parents=True)
    (folder / "annotations").mkdir()
    for number, (slide_id, label) in enumerate(SLIDES.items()):
        path = folder / "slides" / f"{slide_id}.tif"
        spec = PhantomSpec(size=(1280, 1024), seed=number + 1, lesions=label, tumor_fraction=0.1)
        truth = write_phantom(path, spec)
        for method, score in SCORES[slide_id].items():
            made = make_result(truth, slide_id, method, score, path=path, seed=number)
            made.save(folder / "results" / method / slide_id)
        if label:
            rings = [[list(a.polygon.exterior.coords)] for a in truth.tumor]
            features = [
                {
                    "type": "Feature",
                    "properties": {"classification": {"name": "tumor"}},
                    "geometry": {"type": "Polygon", "coordinates": ring},
                }
                for ring in rings
            ]
            content = {"type": "FeatureCollection", "features": features}
            (folder / "annotations" / f"{slide_id}.geojson").write_text(json.dumps(content))
    for slide_id, (_, score) in MORE.items():
        for method in get_args(Method):
            place = folder / "results" / method / slide_id
            place.mkdir(parents=True)
            content = {
                "slide": {"id": slide_id, "path": str(folder / "slides" / slide_id)},
                "model": {"name": method, "family": method, "threshold": 0.5},
                "probabilities": {"normal": 1 - score, "tumor": score},
            }
            (place / "result.json").write_text(json.dumps(content))
    labels = SLIDES | {name: label for name, (label, _) in MORE.items()}
    rows = "".join(f"{name},{label},patient_{name[-1]}\n" for name, label in labels.items())
    (folder / "labels.csv").write_text(f"slide_id,label,patient\n{rows}")
    options = EvaluationOptions(
        resampling=Resampling(200), annotations=folder / "annotations", allow_missing=True
    )
    evaluate(folder / "results", folder / "labels.csv", folder / "eval", options)
    return folder / "eval"
