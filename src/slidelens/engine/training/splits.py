"""Other ways to split a labels table: cross-validation, and a fraction of the training slides."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from slidelens.engine.patients import patients_by_class
from slidelens.errors import LabelError, ModelError

if TYPE_CHECKING:
    from slidelens.engine.labels import LabelTable

__all__ = ["fold_table", "take_fraction"]


def fold_table(table: LabelTable, fold: int, folds: int, seed: int) -> LabelTable:
    """Return the table with one fold for tuning and the others for training.

    Folds are stratified by class, and each patient is in one fold only. Slides in split ``test``
    are left out; other splits in the table are ignored.

    Parameters
    ----------
    fold, folds
        The fold, from 1, and the number of folds, at least 2.
    seed
        The same seed gives the same folds.

    Raises
    ------
    ModelError
        No such fold.
    LabelError
        A class has fewer patients than there are folds, or a fold holds all of a class.
    """
    if folds < 2 or not 1 <= fold <= folds:
        raise ModelError(
            f"fold {fold} of {folds}: expected the number of a fold, from 1, and how many there "
            "are, at least 2; give [2, 5] for the second of five."
        )
    rows = [row for row in table.rows if row.split != "test"]
    patients = {r.label: {o.patient_key for o in rows if o.label == r.label} for r in rows}
    few = [name for label, name in enumerate(table.classes) if len(patients.get(label, ())) < folds]
    if few:
        raise LabelError(
            f"{table.path}: class {', '.join(few)} has fewer patients than {folds} folds; label "
            "more slides, or take fewer folds."
        )
    by_class = patients_by_class(rows)
    random = np.random.default_rng(seed)
    order = [name for names in by_class.values() for name in random.permutation(names)]
    held = set(order[fold - 1 :: folds])
    bare = [table.classes[label] for label, names in sorted(patients.items()) if names <= held]
    if bare:
        raise LabelError(
            f"{table.path}: fold {fold} of {folds} holds every patient of class "
            f"{', '.join(bare)}, so none is left to learn from; take another --seed or number of "
            "folds."
        )
    return replace(
        table,
        rows=tuple(replace(r, split="tune" if r.patient_key in held else "train") for r in rows),
    )


def take_fraction(table: LabelTable, fraction: float, seed: int) -> LabelTable:
    """Return the table with a fraction of its training slides, for learning curves.

    Whole patients are taken, stratified by class, at least one per class; a smaller fraction is a
    subset of a larger one. The tuning split does not change. Source:
    streaming-prostate-2020, Table II.
    """
    if fraction == 1:
        return table
    rows = table.of("train")
    random = np.random.default_rng(seed)
    kept: set[str] = set()
    for names in patients_by_class(rows).values():
        count = max(1, round(fraction * len(names)))
        kept.update(random.permutation(names)[:count].tolist())
    return replace(
        table,
        rows=tuple(r for r in table.rows if r.split != "train" or r.patient_key in kept),
    )
