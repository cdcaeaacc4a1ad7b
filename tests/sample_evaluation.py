"""Small evaluations, made by the real ``evaluate`` of hand-written results."""

from __future__ import annotations

import json
from pathlib import Path

from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.engine.evaluation.operating_point import Rule

TRUTH = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}
SCORES = {
    "good": {"a": 0.1, "b": 0.7, "c": 0.35, "d": 0.4, "e": 0.8, "f": 0.9},
    "weak": {"a": 0.3, "b": 0.9, "c": 0.6, "d": 0.45, "e": 0.2, "f": 0.55},
}
"""Two methods whose errors at 0.5 are few enough to be counted by hand: good errs on b and d, weak
on b, c, d and e."""


def write_result(
    root: Path, model: str, slide_id: str, probabilities: dict[str, float], **keys: object
) -> Path:
    """The least that a reader may count on."""
    folder = root / model / slide_id
    folder.mkdir(parents=True)
    content = {
        "slide": {"id": slide_id},
        "model": {"name": model, **keys},
        "probabilities": probabilities,
    }
    (folder / "result.json").write_text(json.dumps(content))
    return folder


def evaluated(
    folder: Path,
    truth: dict[str, int],
    scores: dict[str, dict[str, float]],
    *,
    rule: Rule | None = None,
    header: str = "slide_id,label",
    **keys: object,
) -> Path:
    """Evaluate models whose score of the positive class is given by slide."""
    for model, of_slide in scores.items():
        for slide_id, p in of_slide.items():
            probabilities = {"normal": 1 - p, "tumor": p}
            write_result(folder / "results", model, slide_id, probabilities, **keys)
    rows = "\n".join(f"{slide_id},{label}" for slide_id, label in truth.items())
    (folder / "labels.csv").write_text(f"{header}\n{rows}\n")
    options = EvaluationOptions(
        rule=rule or Rule(), allow_missing=True, resampling=Resampling(resamples=100)
    )
    evaluate(folder / "results", folder / "labels.csv", folder / "eval", options)
    return folder / "eval"
