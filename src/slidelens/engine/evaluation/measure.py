"""All figures of one model on labelled slides (or patients), with confidence intervals.

An undefined figure is ``None``, and ``undefined`` says why.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slidelens.engine import metrics
from slidelens.engine.bootstrap import bootstrap, bootstrap_share, enough, percentile_interval
from slidelens.engine.evaluation.operating_point import call
from slidelens.engine.intervals import Interval, wilson

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.engine.evaluation.operating_point import Calls, Rule
    from slidelens.engine.evaluation.scores import Cases
    from slidelens.engine.metrics import Calibration, OperatingPoint

__all__ = [
    "FPR",
    "RESAMPLING",
    "Measured",
    "Resampling",
    "by_patient",
    "measure",
]

FPR = np.linspace(0.0, 1.0, 201)
"""False positive rates at which ROC curves are averaged and their band is drawn."""

_NO_CASE = "a class has no case"
_FEW = (
    "a class has only one patient or slide, or fewer than half of the resamples contain every class"
)
_WHY = {
    "auc": _NO_CASE,
    "auc_ci": _FEW,
    "pr_auc": _NO_CASE,
    "pr_auc_ci": _FEW,
    "sensitivity": _NO_CASE,
    "specificity": _NO_CASE,
    "ppv": "no case is called positive",
    "npv": "no case is called negative",
    "f1": "no case is positive or called positive",
    "kappa": "labels and predictions are all of one class",
    "quadratic_weighted_kappa": "labels and predictions are all of one class",
}
_CLUSTERED = "resamples of patients have no spread: the share is 0 or 1, or all are one patient's"


class Resampling(NamedTuple):
    """How intervals are made: number of bootstrap resamples, seed, confidence level."""

    resamples: int = 10_000
    seed: int = 0
    level: float = 0.95


RESAMPLING = Resampling()


@dataclass(frozen=True)
class Measured:
    """Figures for ``metrics.json`` and curves for pictures.

    Attributes
    ----------
    figures
        The model's entry in ``metrics.json``.
    predictions
        ``(n,)`` class index that each case is called.
    limits
        ``(n,)`` threshold of each case; ``None`` for more than two classes.
    roc
        ``(2, K)`` fpr and tpr (macro average of one-vs-rest curves for more than two classes);
        ``None`` where the curve is not defined.
    band
        ``(2, G)`` pointwise lower and upper bound of tpr at :data:`FPR`; ``None`` where too few
        resamples hold every class.
    calibration
        Of the positive class; of the predicted class for more than two classes.
    """

    figures: dict[str, Any]
    predictions: NDArray[np.int64]
    limits: NDArray[np.float64] | None
    roc: NDArray[np.float64] | None
    band: NDArray[np.float64] | None
    calibration: Calibration


def measure(cases: Cases, rule: Rule, resampling: Resampling) -> Measured:
    """Measure one model on its cases.

    Raises
    ------
    LabelError
        A rule for the operating point that these cases cannot satisfy.
    """
    n_classes = len(cases.scored.classes)
    onehot = cases.labels[:, None] == np.arange(n_classes)
    scores = cases.probabilities
    if n_classes == 2:
        figures, calls = _binary(cases, rule, resampling)
        quality = metrics.calibration(onehot[:, 1], scores[:, 1])
        figures["brier"] = metrics.brier(onehot[:, 1], scores[:, 1])
        columns = slice(1, 2)
    else:
        figures, calls = _multiclass(cases, rule)
        right = calls.predictions == cases.labels
        quality = metrics.calibration(right, scores[np.arange(len(scores)), calls.predictions])
        figures["brier"] = metrics.brier(onehot, scores)
        columns = slice(0, n_classes)
    predictions = calls.predictions
    figures["ece"] = quality.ece
    figures["calibration"] = quality._asdict()
    curves = _ranking(cases, onehot[:, columns], scores[:, columns], resampling)
    figures = {"n": len(cases.rows), **curves.pop("figures"), **figures}
    confusion = metrics.confusion(cases.labels, predictions, n_classes)
    figures["kappa"] = metrics.kappa(confusion)
    figures["quadratic_weighted_kappa"] = metrics.kappa(confusion, quadratic=True)
    figures["confusion"] = confusion
    right, every = predictions == cases.labels, np.ones(len(predictions), bool)
    figures["accuracy_ci"] = _share_interval(cases, right, every, resampling)
    figures["rates_interval"] = "bootstrap" if cases.clustered else "Wilson"
    made = _with_reasons(figures)
    return Measured(made, predictions, calls.limits, calibration=quality, **curves)


def by_patient(cases: Cases, rule: Rule, resampling: Resampling) -> dict[str, Any] | None:
    """Measure patients instead of slides; ``None`` if no slide names its patient.

    In a binary task a patient is as suspicious as the most suspicious slide, and positive if any
    slide is. With more classes probabilities are averaged, and all slides of a patient must have
    one label.
    """
    of_slide = cases.patients
    if of_slide is None:
        return None
    n_patients = int(of_slide.max()) + 1
    slides = [np.flatnonzero(of_slide == p) for p in range(n_patients)]
    first = [int(mine[0]) for mine in slides]
    worst, total = np.zeros((2, n_patients, cases.probabilities.shape[1]))
    np.maximum.at(worst, of_slide, cases.probabilities)
    np.add.at(total, of_slide, cases.probabilities)
    labels = np.zeros(n_patients, np.int64)
    np.maximum.at(labels, of_slide, cases.labels)
    binary = cases.probabilities.shape[1] == 2
    if binary:
        probabilities = np.stack([1 - worst[:, 1], worst[:, 1]], axis=1)
        # The slide that decides, as folds have thresholds of their own.
        called, scores = call(cases, rule).predictions, cases.probabilities[:, 1]
        first = [max(mine.tolist(), key=lambda i: (called[i], scores[i])) for mine in slides]
    else:
        if (labels[of_slide] != cases.labels).any():
            return {
                "n": n_patients,
                "undefined": {"auc": "slides of one patient have different labels"},
            }
        probabilities = total / np.bincount(of_slide)[:, None]
    rows = tuple(cases.rows[i] for i in first)
    patients = type(cases)(cases.scored, rows, labels, probabilities)
    figures = measure(patients, rule, resampling).figures
    figures["score"] = "highest of the patient's slides" if binary else "mean of the slides"
    return figures


def _binary(cases: Cases, rule: Rule, resampling: Resampling) -> tuple[dict[str, Any], Calls]:
    positive, calls = cases.labels == 1, call(cases, rule)
    called = calls.predictions == 1
    point = metrics.at_threshold(positive, called, 0.5)
    figures: dict[str, Any] = {
        "n_positive": int(positive.sum()),
        "threshold": calls.threshold,
        "threshold_source": calls.source,
        "threshold_rule": calls.rule,
        **_rates(point),
        "sensitivity_ci": _share_interval(cases, called, positive, resampling),
        "specificity_ci": _share_interval(cases, ~called, ~positive, resampling),
        "operating_points": _points(cases),
    }
    return figures, calls


def _multiclass(cases: Cases, rule: Rule) -> tuple[dict[str, Any], Calls]:
    calls = call(cases, rule)
    predictions = calls.predictions
    per_class = {}
    for k, name in enumerate(cases.scored.classes):
        point = metrics.at_threshold(cases.labels == k, predictions == k, 0.5)
        rates = {"n": point.tp + point.fn, **_rates(point)}
        del rates["accuracy"]  # one-vs-rest accuracy misleads: most cases are "rest"
        per_class[name] = rates
    # The mean sensitivity is undefined if some class has no case, and so are the values beside it.
    whole = all(rates["n"] for rates in per_class.values())
    specificity = np.mean([rates["specificity"] for rates in per_class.values()])
    figures: dict[str, Any] = {
        "threshold": calls.threshold,
        "threshold_source": calls.source,
        "threshold_rule": calls.rule,
        "accuracy": float((predictions == cases.labels).mean()),
        "sensitivity": float(np.mean([rates["sensitivity"] for rates in per_class.values()])),
        "specificity": float(specificity) if whole else float("nan"),
        "per_class": per_class,
    }
    return figures, calls


def _ranking(
    cases: Cases,
    onehot: NDArray[np.bool_],
    scores: NDArray[np.float64],
    resampling: Resampling,
) -> dict[str, Any]:
    """Measure what needs no threshold: AUC, PR-AUC, ROC and its band; macro over columns."""
    groups = cases.patients
    size, seed, level = resampling
    drawn = bootstrap(onehot, scores, groups=groups, fpr=FPR, resamples=size, seed=seed)
    areas = [metrics.auc(t, s) for t, s in zip(onehot.T, scores.T, strict=True)]
    defined = not any(isnan(a) for a in areas)
    precision = [metrics.pr_auc(t, s) for t, s in zip(onehot.T, scores.T, strict=True)]
    figures: dict[str, Any] = {
        "auc": float(np.mean(areas)),
        "auc_ci": percentile_interval(drawn.auc.mean(1), level),
        "pr_auc": float(np.mean(precision)) if defined else float("nan"),
        "pr_auc_ci": percentile_interval(drawn.pr_auc.mean(1), level),
        "bootstrap": {
            "resamples": size,
            "degenerate": drawn.degenerate,
            "drawn": "slides" if groups is None else "patients",
        },
    }
    if len(areas) > 1:
        figures["one_vs_rest"] = {
            name: {
                "auc": areas[k],
                "auc_ci": percentile_interval(drawn.auc[:, k], level),
                "pr_auc": precision[k],
            }
            for k, name in enumerate(cases.scored.classes)
        }
    if not defined:
        return {"figures": figures, "roc": None, "band": None}
    curves = [metrics.roc_curve(t, s) for t, s in zip(onehot.T, scores.T, strict=True)]
    if len(curves) == 1:
        roc = np.stack([curves[0].fpr, curves[0].tpr])
    else:
        roc = np.stack([FPR, np.mean([np.interp(FPR, c.fpr, c.tpr) for c in curves], axis=0)])
    bounds = ((1 - level) / 2, (1 + level) / 2)
    band = None
    if enough(drawn.tpr.sum(1)):
        band = np.quantile(drawn.tpr[~np.isnan(drawn.tpr).any(1)], bounds, axis=0)
    return {"figures": figures, "roc": roc, "band": band}


def _points(cases: Cases) -> dict[str, Any]:
    """Measure the usual operating points beside the one in use, each with what it was chosen on."""
    positive, scores = cases.labels == 1, cases.probabilities[:, 1]
    points: dict[str, tuple[float, str]] = {}
    if cases.scored.threshold is not None:
        points["stored"] = (cases.scored.threshold, "tuning split of the model")
    best = metrics.threshold_of_max_accuracy(positive, scores)
    points["max_accuracy_on_evaluated"] = (best, "evaluated slides")
    if positive.any():
        for share in (0.9, 0.95):
            threshold = metrics.threshold_at_sensitivity(positive, scores, share)
            points[f"sensitivity_{share:g}_on_evaluated"] = (threshold, "evaluated slides")
    return {
        name: {
            "threshold": threshold,
            "chosen_on": chosen_on,
            **_rates(metrics.at_threshold(positive, scores, threshold)),
        }
        for name, (threshold, chosen_on) in points.items()
    }


def _rates(point: OperatingPoint) -> dict[str, Any]:
    names = ("accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "tp", "fp", "tn", "fn")
    return {name: getattr(point, name) for name in names}


def _share_interval(
    cases: Cases, counted: NDArray[np.bool_], of: NDArray[np.bool_], resampling: Resampling
) -> Interval | None:
    """Return the interval of a share of cases, ``(n,)`` each; None if patients give none.

    A share of 0 or 1 is the same in every resample.
    """
    successes, n = int((counted & of).sum()), int(of.sum())
    if not cases.clustered:
        return wilson(successes, n, resampling.level)
    if successes in (0, n):
        return None
    size, seed, level = resampling
    drawn = bootstrap_share(counted, of, groups=cases.patients, resamples=size, seed=seed)
    found = percentile_interval(drawn, level)
    return None if isnan(found.low) else found


def _with_reasons(figures: dict[str, Any]) -> dict[str, Any]:
    """Turn NaN to ``None`` and arrays to lists, and say why a figure is undefined."""
    plain = {name: _plain(value) for name, value in figures.items()}
    reasons = {}
    for name, value in plain.items():
        missing = value is None or (name.endswith("_ci") and value[0] is None)
        if missing and name in _WHY:
            reasons[name] = _WHY[name]
        elif missing and name.endswith("_ci"):
            reasons[name] = _CLUSTERED if value is None else _WHY[name.removesuffix("_ci")]
    plain |= dict.fromkeys(reasons)
    return {**plain, "undefined": reasons} if reasons else plain


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and isnan(value) else value
