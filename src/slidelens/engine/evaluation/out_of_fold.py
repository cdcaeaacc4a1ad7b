"""Scores of a cross-validation: of each slide by the model that did not learn from it."""

from __future__ import annotations

import io
import json
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from slidelens.engine.evaluation.scores import Scored
from slidelens.errors import ResultError, listed
from slidelens.slide.base import slide_id
from slidelens.tables import read_rows, read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["OUT_OF_FOLD", "read_out_of_fold"]

OUT_OF_FOLD = "out_of_fold.csv"
_COLUMN = "prob_"


def read_out_of_fold(path: Path) -> Scored:
    """Read the table that a cross-validation wrote, with the threshold of each fold's model.

    Parameters
    ----------
    path
        The table. The models lie beside it, in ``fold-1`` and so on; where one does not, no
        threshold of it is known.

    Raises
    ------
    ResultError
        Another table, or one with a slide twice or a probability that is none.
    """
    lines = io.StringIO(read_text(path, ResultError)).readlines()
    reader, columns, _ = read_rows(lines, path, ResultError)
    classes = tuple(c.removeprefix(_COLUMN) for c in columns if c.startswith(_COLUMN))
    rows = list(reader)
    if not {"fold", "slide_id"} <= {*columns} or len(classes) < 2 or not rows:
        raise ResultError(
            f"{path}: expected a folder of results, as `slidelens predict --out` writes it, or "
            f"{OUT_OF_FOLD} of a cross-validation, with columns fold, slide_id and prob_<class>."
        )
    scores: dict[str, list[float]] = {}
    faults = []
    for row in rows:
        values = [_number(row[_COLUMN + name]) for name in classes]
        if row["slide_id"] in scores or not all(map(isfinite, values)):
            faults.append(row["slide_id"])
        scores[row["slide_id"]] = values
    if faults:
        raise ResultError(
            f"{path}: slides that are there twice or lack a probability: {listed(faults)}; "
            "cross-validate again."
        )
    known = {fold: _threshold(path, fold) for fold in dict.fromkeys(row["fold"] for row in rows)}
    return Scored(
        name=slide_id(path.absolute().parent),
        classes=classes,
        probabilities={name: np.array(values, np.float64) for name, values in scores.items()},
        folders={},
        threshold=None,
        folds=len(known),
        thresholds={r["slide_id"]: t for r in rows if (t := known[r["fold"]]) is not None},
    )


def _threshold(path: Path, fold: str) -> float | None:
    """Return what the model of a fold states; its package is not read, as no model is run."""
    try:
        about = json.loads((path.parent / f"fold-{fold}" / "model.json").read_bytes())
        return float(about["threshold"])
    except (OSError, ValueError, KeyError, TypeError):  # none is stored, or it is elsewhere
        return None


def _number(text: str | None) -> float:
    try:
        return float(text or "nan")
    except ValueError:
        return float("nan")
