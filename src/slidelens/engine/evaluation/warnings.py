"""Warnings that belong to an evaluation's figures."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from slidelens.engine.last_run import counted_failed
from slidelens.errors import amount
from slidelens.maps.run_settings import settings_warnings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from slidelens.engine.evaluation.scores import Cases

__all__ = [
    "counted_ignored",
    "evaluation_warnings",
    "named_ignored",
    "near_misses",
    "threshold_warnings",
]

_FEW = 10
"""Patients or slides of a class, with fewer of which a 95 % interval covers 90 % at most: 46 % with
one, 74 % with two, 87 % with five (bootstrap of the AUC, 20 cases of the other class)."""

_SUM = 1e-3
_ALIKE = 0.8
"""Similarity of names from which on they may be one, such as tumor and tumour (0.91)."""
_ON_EVALUATED = "the threshold was chosen on the evaluated slides."
_THRESHOLDS = {
    "model": "its threshold was chosen on the split tune, which is evaluated.",
    "default": "no threshold is stored with the model; 0.5 is used.",
    "max-accuracy": _ON_EVALUATED,
    "sensitivity": _ON_EVALUATED,
}
"""What to know about a threshold, by its source."""


def threshold_warnings(model: str) -> set[str]:
    """Return all warnings about a model's threshold."""
    return {f"{model}: {text}" for text in _THRESHOLDS.values()}


def counted_ignored(model: str, count: int) -> str:
    """Warn that annotations do not count, without their labels, which may be people's names."""
    return (
        f"{model}: annotations of {count} label{'' if count == 1 else 's'} are of no class of the "
        "model and do not count in the figures of tiles (ignored_labels); rename them if they "
        "should."
    )


def named_ignored(model: str, labels: Sequence[str]) -> str:
    """Name the labels of annotations that do not count."""
    return (
        f"{model}: annotations labelled {', '.join(labels)} are of no class of the model and do "
        "not count in the figures of tiles; rename them if they should."
    )


def near_misses(names: Iterable[str], classes: Sequence[str]) -> str:
    """Return which names are almost those of classes; empty if there are none."""
    given = list(names)
    known = {name.casefold(): name for name in classes if name not in given}
    near = {
        name: known[found[0]]
        for name in given
        if name not in classes
        if (found := get_close_matches(name.casefold(), known, 1, _ALIKE))
    }
    pairs = ", ".join(f"{name!r} and {found!r}" for name, found in near.items())
    return f" Do these mean the same: {pairs}?" if near else ""


def evaluation_warnings(
    cases: Mapping[str, Cases], models: Mapping[str, dict[str, Any]]
) -> list[str]:
    """Return warnings about each model's figures, without names of slides or people.

    Parameters
    ----------
    cases
        Of each model, by name.
    models
        Figures of each model, as ``metrics.json`` holds them.
    """
    found = []
    whole = [one for one in cases.values() if not one.scored.folds]  # else it is not learnt from
    splits = {row.slide_id: row.split for one in whole for row in one.rows}
    trained = sum(split == "train" for split in splits.values())
    if trained:
        found.append(
            f"{trained} of {len(splits)} evaluated slides are in split train: figures on slides "
            "that a model was trained on say nothing of new ones. Choose --split tune or test."
        )
    for name, one in models.items():
        source, learnt = one["threshold_source"], cases[name].scored.learnt_from
        seen = sum(learnt.get(row.slide_id) == "train" != row.split for row in cases[name].rows)
        if seen:
            found.append(
                f"{name}: {seen} of {one['n']} evaluated slides were in split train when it was "
                "trained, and figures on them say nothing of new ones. Leave them out: "
                "training/slides.csv in the model's folder lists them."
            )
        if one_of := cases[name].scored.folds:
            found.append(
                f"{name}: scores of the models of {one_of} folds, each of the slides that it held "
                "out, which also chose its epochs and its threshold: expect less on new slides; "
                "scores of different models need not be on one scale."
            )
        tuned = {*splits.values(), *(learnt.get(i) for i in cases[name].ids)}
        if source in _THRESHOLDS and (source != "model" or "tune" in tuned):
            found.append(f"{name}: {_THRESHOLDS[source]}")
        if one["auc"] is None:
            found.append(f"{name}: AUC is undefined, because {one['undefined']['auc']}.")
        if one["auc"] in (0, 1) and one["auc_ci"]:
            found.append(
                f"{name}: the scores separate the classes perfectly, so every resample gives an "
                f"AUC of {one['auc']:g}; the interval of AUC and PR-AUC says nothing about new "
                "slides."
            )
        same = (cases[name].probabilities == cases[name].probabilities[0]).all()
        if same and one["auc_ci"]:
            found.append(
                f"{name}: all {one['n']} slides have the same score, so every resample gives an "
                "AUC of 0.5; the interval of AUC says nothing about new slides."
            )
        found += _of_resamples(name, one, cases[name])
        odd = int((abs(cases[name].probabilities.sum(1) - 1) > _SUM).sum())
        if odd:
            found.append(
                f"{name}: probabilities of {odd} slides do not sum to 1: figures of calibration, "
                "and of the most probable class, mean little."
            )
        found += [
            f"{name}: {amount(len(ids), 'slide')} without a {reason.removeprefix('no_')} left out "
            "of all figures; metrics.json names them."
            for reason, ids in one.get("left_out", {}).items()
            if ids
        ]
        found += _of_tiles(name, one.get("tiles", {}))
        if failed := one.get("last_run_failed"):
            found.append(counted_failed(name, len(failed)))
        settings = cases[name].scored.settings
        found += settings_warnings(name, [settings[i] for i in cases[name].ids if i in settings])
    return found


def _of_tiles(name: str, tiles: Mapping[str, Any]) -> list[str]:
    """Warn of slides and annotations that do not count in the figures of tiles."""
    found = [
        f"{name}: {amount(len(ids), 'slide')} left out of the figures of tiles, for {reason}; "
        "what is missed on them is not counted."
        for reason, ids in tiles.get("left_out", {}).items()
    ]
    if ignored := tiles.get("ignored_labels"):
        found.append(counted_ignored(name, len(ignored)))
    return found


def _of_resamples(name: str, one: Mapping[str, Any], cases: Cases) -> list[str]:
    """Warn of intervals that rest on few cases or resamples, or on none."""
    units, unit = cases.units, cases.unit
    least = cases.scored.classes[int(units.argmin())]
    if one["auc"] is None:
        return []
    if units.min() < 2:
        return [f"{name}: class {least} has only one {unit}: there are no bootstrap intervals."]
    found = []
    if units.min() < _FEW:
        found.append(
            f"{name}: intervals and p values rest on {units.min()} {unit}s of class {least}; with "
            f"fewer than {_FEW} the former are too narrow and the latter too small."
        )
    degenerate, drawn = one["bootstrap"]["degenerate"], one["bootstrap"]["resamples"]
    if degenerate:
        found.append(
            f"{name}: {degenerate} of {drawn} resamples lack a class and are left out of the "
            "intervals of AUC and PR-AUC."
        )
    return found
