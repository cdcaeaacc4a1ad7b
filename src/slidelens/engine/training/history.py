"""The results of each epoch: loss and AUC on the tuning slides, one row per epoch on disk."""

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

    from torch.utils.tensorboard import SummaryWriter

    from slidelens.families.training import Outcome, Work

__all__ = ["TUNE_TABLE", "History", "Score", "judge", "scores_of", "write_scores"]

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
