"""The record of a training run: its slides, its card, its curves."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from slidelens.engine.contract import plugins_of
from slidelens.engine.device import software, uses_bf16
from slidelens.engine.learnt import LEARNT_FROM, learnt_slides
from slidelens.engine.package import family_of
from slidelens.engine.tissue_asked import TISSUE
from slidelens.engine.training.history import THRESHOLD_RULE
from slidelens.errors import amount
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

    from slidelens.engine.labels import LabelTable, Split
    from slidelens.engine.training.loop import TrainLoop
    from slidelens.engine.training.plan import TrainPlan

__all__ = ["SLIDES_TABLE", "slides_note", "training_card", "write_curves", "write_slides"]

SLIDES_TABLE = "slides.csv"
"""Name of the table that :func:`write_slides` makes."""
CURVES = "curves.png"
_LEARNT: tuple[Split, ...] = ("train", "tune")


def write_slides(path: Path, plan: TrainPlan) -> None:
    """Write which slide was in which split: a table of labels that gives the same split again.

    Slides that ``fraction`` left out are not in it; those of split ``test`` are. A table of labels
    has no place for the order of classes, which is in ``config.yaml`` and in the model.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["slide_id", "label", "split", "patient"])
    for row in (*plan.labels.rows, *plan.tested):
        label = plan.labels.classes[row.label]
        table.writerow([row.slide_id, label, row.split, row.patient or ""])
    write_atomic(path, text.getvalue())


def slides_note(plan: TrainPlan) -> str:
    """Return a note on the classes and splits."""
    table = plan.labels
    counts = ", ".join(
        f"{name} {sum(row.label == label for row in table.rows)}"
        for label, name in enumerate(table.classes)
    )
    positive = f" (positive: {table.classes[1]})" if len(table.classes) == 2 else ""
    train, tune = (_counted(table, split) for split in _LEARNT)
    tested = f"; {len(plan.tested)} in split test are not used" if plan.tested else ""
    without = {*range(len(table.classes))} - {row.label for row in table.of("tune")}
    lacking = ", ".join(table.classes[label] for label in sorted(without))
    warned = f" (none of class {lacking}: no AUC, and no threshold is chosen)" if lacking else ""
    return (
        f"{len(table.classes)} classes: {counts}{positive}; {train} for training, {tune} for tuning"
        f"{warned}{tested}"
    )


def _counted(table: LabelTable, split: Split) -> str:
    rows = table.of(split)
    patients = amount(len({row.patient_key for row in rows}), "patient")
    return amount(len(rows), "slide") + (f" of {patients}" if _named(table) else "")


def _named(table: LabelTable) -> bool:
    return any(row.patient for row in table.rows)


def training_card(
    plan: TrainPlan,
    loop: TrainLoop,
    origin: Mapping[str, Any],
    device: torch.device,
    learnt: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the model card's entries on training data, settings, software and metrics.

    ``learnt`` are the slides of the model that was fine-tuned, as its card keeps them.
    """
    labels = plan.labels
    auto = family_of(plan.family).auto_bf16
    bf16 = uses_bf16(device, plan.training.precision, auto=auto)
    counts = {
        split: {
            name: sum(r.label == i for r in labels.of(split))
            for i, name in enumerate(labels.classes)
        }
        for split in _LEARNT
    }
    data: dict[str, Any] = {"labels": labels.path.name, "slides": counts}
    if _named(labels):
        data["patients"] = {
            split: len({row.patient_key for row in labels.of(split)}) for split in _LEARNT
        }
    return {
        "training_data": {**data, **origin},
        "training": {
            "seed": plan.seed,
            "epochs": len(loop.history),
            "updates": loop.updates,
            **({"changed_on_resume": loop.changes} if loop.changes else {}),
            **plan.training.model_dump(mode="json"),
            "software": software(device, bf16) | plugins_of(plan.family, plan.config),
        },
        "metrics": loop.metrics,
        "threshold": loop.threshold,
        "threshold_rule": None if loop.threshold is None else THRESHOLD_RULE,
        LEARNT_FROM: learnt_slides(labels, learnt),
        TISSUE: None if plan.given_bags else plan.tissue.model_dump(mode="json"),
    }


def write_curves(folder: Path, loop: TrainLoop) -> None:
    """Draw losses and AUC of all epochs, and mark those whose weights the model has."""
    from slidelens.engine.training.curves import curves_picture

    write_atomic(folder / CURVES, curves_picture(loop.history, loop.metrics["epochs"]))
