"""The state of a training run: for the user, and for its checkpoint."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from slidelens.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.engine.training.history import Score

__all__ = [
    "REQUEST",
    "STATE",
    "VERSION",
    "Doing",
    "Position",
    "TrainProgress",
    "changed_rates",
    "changed_settings",
    "rates_apart",
    "read_state",
]

STATE = "training"
"""Folder inside the model's, for checkpoints, history and configuration."""
REQUEST = "config.yaml"
"""File in that folder with the configuration of the run."""

VERSION = 1
"""Of the JSON files in that folder."""

Doing = Literal["open", "scan", "train", "tune", "epoch", "score", "done"]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """Progress of a training run: ``done`` of ``total`` steps of what it is ``doing``.

    ``open`` goes once over all slides; ``scan``, ``train`` and ``tune`` are steps of epoch
    ``epoch`` (from 1) of at most ``epochs``; ``epoch`` marks the end of one, with its losses;
    ``score`` runs the final weights on the tuning slides; ``done`` comes once, last. ``slide_id``
    is the current slide, if there is one. ``train_loss``, ``tune_loss`` and ``tune_auc`` are those
    of the last finished epoch; at ``done``, those of the model. ``seconds`` is the elapsed time.
    ``fold`` of ``folds`` is the fold of a cross-validation.
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
    """From 1; 0 without cross-validation."""
    folds: int = 0
    note: str = ""
    """Something the user should know, reported once."""


@dataclass(slots=True)
class Position:
    """The position in a run, all of which goes into the checkpoint."""

    stage: int = 0
    """Stage of the schedule, from 0."""
    first: int = 0
    """Epoch in which the stage began."""
    epoch: int = 0
    """Finished epochs."""
    done: int = 0
    """Finished works of the epoch."""
    updates: int = 0
    """Optimiser steps since the training began."""
    train_losses: list[float] = field(default_factory=list)
    """Losses of the epoch's steps."""
    tune: dict[str, Score] = field(default_factory=dict)
    """Scores of the tuning slides in this epoch."""
    history: list[dict[str, Any]] = field(default_factory=list)
    """One row per epoch."""
    changes: list[str] = field(default_factory=list)
    """Rates that were changed when the run was resumed."""


def read_state(path: str | Path, what: str, remedy: str) -> dict[str, Any]:
    """Read a JSON file of a run's state.

    Parameters
    ----------
    path
        The file, whose ``schema_version`` is :data:`VERSION`.
    what, remedy
        For the message of one that cannot be read: what it is, and what to do then.

    Raises
    ------
    ModelError
        It is missing or damaged, or of another version.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read {path}, {what}: {error}. {remedy}.") from error
    if not isinstance(content, dict) or content.get("schema_version") != VERSION:
        raise ModelError(
            f"{path} is not of this version (schema_version {VERSION} is expected); finish the "
            "training with the version that began it."
        )
    return content


_MAY_CHANGE = ("weight_decay", "clip_norm", "lr", "head_lr")
"""Fields of a training and of its stages that may change when it is resumed."""


def rates_apart(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rates of a run's settings, and the settings without them.

    Rates are what a run may be resumed with other values of: the learning rates of its stages,
    weight decay, and the largest gradient norm.
    """
    training = dict(settings.get("training", {}))
    stages = [dict(stage) for stage in training.get("stages", ())]
    rates = {name: training.pop(name) for name in _MAY_CHANGE if name in training}
    for number, stage in enumerate(stages, start=1):
        names = [name for name in _MAY_CHANGE if name in stage]
        rates |= {f"{name} of stage {number}": stage.pop(name) for name in names}
    return rates, {**settings, "training": {**training, "stages": stages}}


def changed_rates(had: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name the rates that differ between a run's settings, with old and new values."""
    return changed_settings(*(rates_apart(settings)[0] for settings in (had, asked)))


def changed_settings(had: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Name the settings that differ, with old and new values; of configurations, their fields."""
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
