"""Where a training run stands: for the user, and for its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.engine.training.history import Score

__all__ = ["REQUEST", "STATE", "Doing", "Position", "TrainProgress", "changed_settings"]

STATE = "training"
"""Folder inside the model's for checkpoints, history and request."""
REQUEST = "config.yaml"
"""What was asked for, in that folder."""

Doing = Literal["open", "scan", "train", "tune", "epoch", "score", "done"]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Where a training run stands: ``done`` of ``total`` steps of what it is ``doing``.

    ``open`` goes once over all slides; ``scan``, ``train`` and ``tune`` are steps of epoch
    ``epoch`` (from 1) of at most ``epochs``; ``epoch`` says that one ended, with its losses;
    ``score`` runs the final weights over the tuning slides; ``done`` comes once, last. ``slide_id``
    is the slide at hand, if it is one. ``train_loss``, ``tune_loss`` and ``tune_auc`` are those of
    the last epoch that ended, at ``done`` those of the model. ``seconds`` have passed. ``fold`` of
    ``folds`` is that of a cross-validation.
    """

    doing: Doing
    done: int = 0
    total: int = 0
    slide_id: str = ""
    epoch: int = 0
    epochs: int = 0
    train_loss: float | None = None
    tune_loss: float | None = None
    tune_auc: float | None = None
    seconds: float = 0.0
    fold: int = 0
    """From 1; 0 is none."""
    folds: int = 0
    note: str = ""
    """Something to know, said once."""


@dataclass(slots=True)
class Position:
    """How far the run is: all of it goes into the checkpoint."""

    stage: int = 0
    """Of the schedule, from 0."""
    first: int = 0
    """Epoch in which the stage began."""
    epoch: int = 0
    """Epochs that have ended."""
    done: int = 0
    """Works of the epoch that are done."""
    updates: int = 0
    """Steps of the optimiser since the training began."""
    train_losses: list[float] = field(default_factory=list)
    """Of the epoch's steps."""
    tune: dict[str, Score] = field(default_factory=dict)
    """Tuning slides that are scored in this epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per epoch."""


def changed_settings(had: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ; of configurations their fields, with what they were."""
    found = []
    for key in {**asked, **had}:
        one, other = had.get(key), asked.get(key)
        if one == other:
            continue
        if isinstance(one, dict) and isinstance(other, dict):
            fields = [name for name in {**other, **one} if one.get(name) != other.get(name)]
            found += [_change_text(name, one.get(name), other.get(name)) for name in fields]
        else:
            found.append(_change_text(key, one, other))
    return found


def _change_text(name: str, had: Any, asked: Any) -> str:
    plain = (str, int, float, bool, type(None))
    if isinstance(had, plain) and isinstance(asked, plain):
        return f"{name}: {had}, now {asked}"
    return name
