"""Metrics of labels and scores: pure numpy, no files, no models.

A figure that the data do not define (an AUC of one class) is NaN; it is never a made-up number. How
sure a figure is lies in :mod:`slidelens.engine.intervals` and
:mod:`slidelens.engine.bootstrap`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "BINS",
    "Calibration",
    "OperatingPoint",
    "RocCurve",
    "at_threshold",
    "auc",
    "brier",
    "calibration",
    "check_binary",
    "confusion",
    "kappa",
    "midranks",
    "pr_auc",
    "roc_curve",
    "threshold_at_sensitivity",
    "threshold_of_max_accuracy",
    "threshold_of_max_balanced_accuracy",
]

BINS = 10
"""Of a reliability curve."""


class RocCurve(NamedTuple):
    """Corners of a ROC curve, from (0, 0) to (1, 1), one per distinct score.

    Attributes
    ----------
    fpr, tpr
        ``(K + 1,)`` false and true positive rates of calling ``score >= threshold`` positive.
    thresholds
        ``(K + 1,)`` descending; the first is ``inf`` (nothing is positive).
    """

    fpr: NDArray[np.float64]
    tpr: NDArray[np.float64]
    thresholds: NDArray[np.float64]


class OperatingPoint(NamedTuple):
    """What calling ``score >= threshold`` positive gives; a rate without cases is NaN."""

    threshold: float
    tp: int
    fp: int
    tn: int
    fn: int

    @property
    def accuracy(self) -> float:
        """Share of all that are right."""
        return _ratio(self.tp + self.tn, self.tp + self.fp + self.tn + self.fn)

    @property
    def sensitivity(self) -> float:
        """Share of the positive that are found (recall)."""
        return _ratio(self.tp, self.tp + self.fn)

    @property
    def specificity(self) -> float:
        """Share of the negative that are called negative."""
        return _ratio(self.tn, self.tn + self.fp)

    @property
    def ppv(self) -> float:
        """Share of the called positive that are (precision)."""
        return _ratio(self.tp, self.tp + self.fp)

    @property
    def npv(self) -> float:
        """Share of the called negative that are."""
        return _ratio(self.tn, self.tn + self.fn)

    @property
    def f1(self) -> float:
        """Harmonic mean of sensitivity and positive predictive value."""
        return _ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)


class Calibration(NamedTuple):
    """Reliability curve in :data:`BINS` bins of equal width over 0..1; empty ones are left out.

    Attributes
    ----------
    cases, predicted, observed
        ``(B,)`` number of cases, their mean score, and the share of them that are positive.
    ece
        Expected calibration error: the mean of ``|predicted - observed|``, weighted by cases
        (Naeini et al., AAAI 2015).
    """

    cases: NDArray[np.int64]
    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    ece: float


def check_binary(
    labels: ArrayLike, scores: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Return labels as bool and scores as float64, both ``(n,)``.

    Raises
    ------
    ValueError
        Unequal lengths, labels other than 0 and 1, or scores that are not finite.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != values.shape:
        raise ValueError(f"labels {truth.shape} and scores {values.shape} must be of one length")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError(f"labels must be 0 or 1, not {np.unique(truth)[:5].tolist()}")
    if not np.isfinite(values).all():
        raise ValueError(f"{int((~np.isfinite(values)).sum())} scores are not finite")
    return truth.astype(bool), values


def midranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ranks from 1, ``(n,)``; values that tie share the mean of their ranks."""
    _, inverse, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[inverse]


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the ROC curve; NaN where a class has no case.

    It is the chance that a positive case scores above a negative one, ties counting one half
    (Mann-Whitney; Hanley and McNeil, Radiology 1982).
    """
    positive, values = check_binary(labels, scores)
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return float("nan")
    return float((midranks(values)[positive].sum() - m * (m + 1) / 2) / (m * n))


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> RocCurve:
    """Return the ROC curve; a rate whose class has no case is NaN."""
    thresholds, tp, fp = _steps(*check_binary(labels, scores))
    with np.errstate(invalid="ignore"):
        return RocCurve(fp / fp[-1], tp / tp[-1], thresholds)


def pr_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the area under the precision-recall curve; NaN without a positive case.

    It is average precision, the sum of precision over the steps of recall: straight lines between
    points of this curve would be too optimistic (Davis and Goadrich, ICML 2006).
    """
    _, tp, fp = _steps(*check_binary(labels, scores))
    if not tp[-1]:
        return float("nan")
    return float((np.diff(tp) * tp[1:] / (tp + fp)[1:]).sum() / tp[-1])


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> OperatingPoint:
    """Count what calling ``score >= threshold`` positive gives."""
    positive, values = check_binary(labels, scores)
    called = values >= threshold
    tp, fp = int((called & positive).sum()), int((called & ~positive).sum())
    return OperatingPoint(
        float(threshold), tp, fp, int((~positive).sum()) - fp, int(positive.sum()) - tp
    )


def threshold_of_max_accuracy(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the threshold of highest accuracy on these cases, as in the streaming paper.

    Of several, the most sensitive is taken. It lies halfway between two scores, or between the last
    one and 0 or 1, so that rounding a score does not move it over. Calling nothing positive is left
    out where a score is 1: there is no threshold of a probability above. On the cases it was chosen
    on, accuracy is optimistic.

    Raises
    ------
    ValueError
        No cases.
    """
    thresholds, tp, fp = _steps(*check_binary(labels, scores))
    if len(thresholds) == 1:
        raise ValueError("no cases to choose a threshold on")
    least = int(thresholds[1] >= 1)  # distinct scores that are called positive
    correct = (tp - fp)[least:]  # plus the number of negatives, which is the same for all
    return _halfway(thresholds, least + int(np.flatnonzero(correct == correct.max())[-1]))


def threshold_of_max_balanced_accuracy(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the threshold of highest balanced accuracy on these cases (Youden's index).

    It is the mean of sensitivity and specificity: unlike accuracy, it is not highest where nothing
    is called positive because few cases are. Of several thresholds, the most sensitive is taken; it
    lies as that of :func:`threshold_of_max_accuracy`. Source: Youden, Cancer 1950.

    Raises
    ------
    ValueError
        No case of a class.
    """
    thresholds, tp, fp = _steps(*check_binary(labels, scores))
    if not tp[-1] or not fp[-1]:
        raise ValueError("no case of a class: there is no balanced accuracy to choose by")
    index = tp * fp[-1] - fp * tp[-1]  # times the cases of both classes: whole numbers tie exactly
    return _halfway(thresholds, int(np.flatnonzero(index == index.max())[-1]))


def threshold_at_sensitivity(labels: ArrayLike, scores: ArrayLike, sensitivity: float) -> float:
    """Return the highest threshold whose sensitivity on these cases is at least ``sensitivity``.

    Raises
    ------
    ValueError
        A sensitivity outside 0..1, or no positive case.
    """
    thresholds, tp, _ = _steps(*check_binary(labels, scores))
    if not 0 < sensitivity <= 1:
        raise ValueError(f"sensitivity must be above 0 and at most 1, not {sensitivity:g}")
    if not tp[-1]:
        raise ValueError("no positive case, so no sensitivity to choose a threshold by")
    # A count against a count: 0.95 of 20 is 19 also where 19 / 20 < 0.95 in floating point.
    needed = np.ceil(sensitivity * tp[-1] - 1e-9)
    return _halfway(thresholds, int(np.flatnonzero(tp >= needed)[0]))


def confusion(labels: ArrayLike, predictions: ArrayLike, n_classes: int) -> NDArray[np.int64]:
    """Count cases, ``(n_classes, n_classes)``: true class in rows, predicted in columns.

    Raises
    ------
    ValueError
        Unequal lengths, or a class outside ``0..n_classes - 1``.
    """
    truth, called = np.asarray(labels, np.int64), np.asarray(predictions, np.int64)
    if truth.shape != called.shape:
        raise ValueError(f"{truth.shape} labels, but {called.shape} predictions")
    both = np.concatenate([truth, called])
    if both.size and (both.min() < 0 or both.max() >= n_classes):
        raise ValueError(f"classes must be 0..{n_classes - 1}, not {both.min()}..{both.max()}")
    flat = np.bincount(truth * n_classes + called, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes)


def kappa(matrix: ArrayLike, *, quadratic: bool = False) -> float:
    """Return Cohen's kappa of a confusion matrix; NaN where chance alone would agree fully.

    Parameters
    ----------
    matrix
        ``(C, C)`` counts.
    quadratic
        Weigh a disagreement by the squared distance of the classes: for classes that have an order
        (Cohen, Psychological Bulletin 1968).
    """
    counts = np.asarray(matrix, np.float64)
    index = np.arange(len(counts))
    distance = np.abs(index[:, None] - index[None, :])
    weight = distance**2 if quadratic else distance > 0
    by_chance = np.outer(counts.sum(1), counts.sum(0)) / max(counts.sum(), 1.0)
    expected = float((weight * by_chance).sum())
    return 1.0 - float((weight * counts).sum()) / expected if expected else float("nan")


def calibration(labels: ArrayLike, scores: ArrayLike) -> Calibration:
    """Compare scores with how often they are right.

    Raises
    ------
    ValueError
        Scores outside 0..1.
    """
    positive, values = check_binary(labels, scores)
    if values.size and (values.min() < 0 or values.max() > 1):
        raise ValueError(f"scores must be in 0..1, not {values.min():g}..{values.max():g}")
    of_bin = np.minimum((values * BINS).astype(np.int64), BINS - 1)
    count = np.bincount(of_bin, minlength=BINS)
    kept = count > 0
    predicted = np.bincount(of_bin, values, BINS)[kept] / count[kept]
    observed = np.bincount(of_bin, positive, BINS)[kept] / count[kept]
    gap = (count[kept] * np.abs(predicted - observed)).sum()
    return Calibration(count[kept], predicted, observed, _ratio(float(gap), len(values)))


def brier(labels: ArrayLike, scores: ArrayLike) -> float:
    """Return the Brier score (lower is better): the mean squared error of probabilities.

    ``(n,)`` labels and scores of the positive class give 0..1; ``(n, C)`` one-hot labels and
    probabilities are summed over the classes (Brier 1950), which gives 0..2.
    """
    error = (np.asarray(labels, np.float64) - np.asarray(scores, np.float64)) ** 2
    per_case = error if error.ndim == 1 else error.sum(1)
    return float(per_case.mean()) if per_case.size else float("nan")


def _steps(
    positive: NDArray[np.bool_], values: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return thresholds (infinity, then every distinct score, descending) with TP and FP counts."""
    order = np.argsort(-values, kind="stable")
    ordered = values[order]
    last_of_tie = np.flatnonzero(np.append(np.diff(ordered) != 0, True)[: len(ordered)])
    tp = np.cumsum(positive[order])[last_of_tie]
    return (
        np.append(np.inf, ordered[last_of_tie]),
        np.append(0, tp),
        np.append(0, last_of_tie + 1 - tp),
    )


def _halfway(thresholds: NDArray[np.float64], k: int) -> float:
    """Return a threshold that calls exactly the first ``k`` distinct scores positive.

    It lies halfway between two of them, or between the last and what probabilities end at.
    """
    last = k == len(thresholds) - 1
    upper = float(thresholds[k]) if k else max(1.0, float(thresholds[1]))
    lower = min(0.0, upper) if last else float(thresholds[k + 1])
    middle = lower + (upper - lower) / 2
    if middle > lower:
        return middle
    return upper if k else float(np.nextafter(lower, np.inf))  # neighbours: nothing is in between


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
