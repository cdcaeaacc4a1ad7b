"""What an epoch came to: loss and AUC of the tuning slides, one row per epoch on disk."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.metrics import auc
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from slidelens.families.training import Outcome, Work

__all__ = ["Score", "judge", "scores_of", "write_history"]

Score = tuple[int, float, list[float]]
"""Label, loss and class probabilities of a tuning slide."""


def scores_of(work: Work, outcome: Outcome) -> dict[str, Score]:
    """Return what a tuning work found, by slide."""
    parts = zip(work.slides, work.labels, outcome.losses, outcome.probabilities, strict=True)
    return {slide: (label, loss, list(probs)) for slide, label, loss, probs in parts}


def judge(scores: Mapping[str, Score]) -> tuple[float, float | None]:
    """Return the mean loss and the AUC: with more than two classes, each against the rest."""
    labels = np.array([label for label, _, _ in scores.values()])
    probabilities = np.array([probs for _, _, probs in scores.values()])
    loss = float(np.mean([loss for _, loss, _ in scores.values()]))
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [auc(labels == c, probabilities[:, c]) for c in classes]
    return loss, float(np.mean(areas)) if np.isfinite(areas).all() else None


def write_history(path: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write one CSV row per epoch."""
    text = io.StringIO()
    table = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_atomic(path, text.getvalue())
