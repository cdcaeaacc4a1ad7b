"""The results of each epoch: loss and AUC on the tuning slides, one row per epoch on disk."""

from __future__ import annotations

import csv
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.metrics import at_threshold, auc, threshold_of_max_balanced_accuracy
from slidelens.errors import amount
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch.utils.tensorboard import SummaryWriter

    from slidelens.families.training import Outcome, Work

__all__ = [
    "THRESHOLD_RULE",
    "TUNE_TABLE",
    "History",
    "Score",
    "chosen_threshold",
    "judge",
    "scores_of",
    "write_scores",
]

log = logging.getLogger(__name__)

THRESHOLD_RULE = "maximum balanced accuracy on the tuning split"
"""How :func:`chosen_threshold` chooses."""
_FEW = 10
"""Slides of a class, with fewer of which a threshold depends on which slides they happen to be."""

TUNE_TABLE = "tune.csv"
"""File name of the table that :func:`write_scores` writes, beside the history."""

Score = tuple[int, float, list[float]]
"""Label, loss and class probabilities of a tuning slide."""


def scores_of(work: Work, outcome: Outcome) -> dict[str, Score]:
    """Return the scores of a tuning work by slide."""
    parts = zip(work.slides, work.labels, outcome.losses, outcome.probabilities, strict=True)
    return {slide: (label, loss, list(probs)) for slide, label, loss, probs in parts}


def judge(scores: Mapping[str, Score]) -> tuple[float, float | None]:
    """Return the mean loss and the AUC; of more than two classes, the mean of one-versus-rest."""
    labels = np.array([label for label, _, _ in scores.values()])
    probabilities = np.array([probs for _, _, probs in scores.values()])
    loss = float(np.mean([loss for _, loss, _ in scores.values()]))
    classes = range(1, 2) if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = [auc(labels == c, probabilities[:, c]) for c in classes]
    return loss, float(np.mean(areas)) if np.isfinite(areas).all() else None


def chosen_threshold(scores: Mapping[str, Score], classes: Sequence[str]) -> float | None:
    """Return the operating point of a model of two classes, chosen on its tuning slides.

    There is none where a class has no tuning slide: any would be as good as any other. What makes
    it useless is warned of.
    """
    labels = [label for label, _, _ in scores.values()]
    if len(classes) != 2 or len(set(labels)) < 2:
        return None
    positive = [probabilities[1] for _, _, probabilities in scores.values()]
    threshold = threshold_of_max_balanced_accuracy(labels, positive)
    point = at_threshold(labels, positive, threshold)
    few = [f"{amount(n, 'slide')} of {classes[c]}" for c in (1, 0) if (n := labels.count(c)) < _FEW]
    if point.sensitivity + point.specificity <= 1:
        log.warning(
            "no threshold tells %s from %s on the tuning split: at the stored one, %.3g, every "
            "slide is called %s; choose another when you evaluate (--operating-point)",
            *(classes[1], classes[0], threshold, classes[1]),
        )
    elif few:
        log.warning(
            "the threshold %.3g was chosen on only %s for tuning: it may be far off; label more "
            "slides, or choose another when you evaluate (--operating-point)",
            *(threshold, " and ".join(few)),
        )
    return threshold


class History:
    """The rows of a run's epochs: ``history.csv`` and TensorBoard's logs, in one folder.

    The logs are opened with the first epoch added; an epoch that a resumed run repeats replaces
    its earlier entry.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write all rows so far; the last one is new."""
        text = io.StringIO()
        table = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_atomic(self._folder / "history.csv", text.getvalue())
        self._log(rows[-1])

    def close(self) -> None:
        """Close the logs."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _log(self, row: Mapping[str, Any]) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            folder = str(self._folder / "tensorboard")
            self._writer = SummaryWriter(folder, purge_step=row["epoch"])
        for name, value in row.items():
            if name not in ("epoch", "stage") and value is not None:
                self._writer.add_scalar(name, value, row["epoch"])
        self._writer.flush()


def write_scores(path: Path, scores: Mapping[str, Score], classes: Sequence[str]) -> None:
    """Write one CSV row per tuning slide: slide_id, label, loss, prob_<class>..."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide_id", "label", "loss", *(f"prob_{name}" for name in classes)])
    for slide, (label, loss, probabilities) in sorted(scores.items()):
        table.writerow([slide, classes[label], loss, *probabilities])
    write_atomic(path, text.getvalue())
