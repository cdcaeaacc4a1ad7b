"""The bootstrap: figures of cases drawn again, and intervals from them.

With ``groups`` whole groups of cases are drawn; see :mod:`slidelens.engine.intervals`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slidelens.engine.intervals import Interval, group_numbers
from slidelens.engine.metrics import check_binary

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import ArrayLike, NDArray

__all__ = ["Resamples", "bootstrap", "bootstrap_share", "draws", "enough", "percentile_interval"]

_CHUNK = 1_000_000
"""Weights held at once (8 MB): the working set stays in the cache, and any number of cases fits."""


class Resamples(NamedTuple):
    """Figures of every bootstrap resample; NaN where the resample lacks a class.

    Attributes
    ----------
    auc, pr_auc
        ``(R, C)`` per resample and class (one column in a binary task).
    tpr
        ``(R, G)`` sensitivity at the false positive rates asked for, mean over classes.
    degenerate
        How many resamples lack the positive or the negative cases of some class.
    """

    auc: NDArray[np.float64]
    pr_auc: NDArray[np.float64]
    tpr: NDArray[np.float64]
    degenerate: int


def bootstrap(
    labels: ArrayLike,
    scores: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    fpr: ArrayLike = (),
    resamples: int = 10_000,
    seed: int = 0,
) -> Resamples:
    """Draw cases with replacement and measure each resample (Efron; streaming paper, section IV).

    A resample is a vector of weights (how often each case was drawn). Cases are sorted once, and
    all resamples are measured by running sums of weights, without a loop over them.

    Parameters
    ----------
    labels, scores
        ``(n,)``, or ``(n, C)`` one-vs-rest columns that share their draws.
    groups
        ``(n,)`` integers from 0: draw whole groups (patients) instead of cases.
    fpr
        ``(G,)`` false positive rates to follow the ROC curve at.

    Returns
    -------
    Resamples
        Resamples that lack a class have no AUC: they are NaN, and counted, never replaced. So are
        all of a class whose positive or negative cases are of one group: that group, drawn again
        and again, says nothing of others.
    """
    truth, values = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim == 1:
        truth, values = truth[:, None], values[:, None]
    columns = [_Ranked(*check_binary(t, v)) for t, v in zip(truth.T, values.T, strict=True)]
    members = group_numbers(groups, len(truth))
    spread = [_spreads(members[t == 1]) and _spreads(members[t == 0]) for t in truth.T]
    grid = np.asarray(fpr, np.float64)
    auc = np.full((resamples, len(columns)), np.nan)
    precision = auc.copy()
    tpr = np.zeros((resamples, len(grid)))
    start = 0
    for weights in draws(members, resamples, np.random.default_rng(seed)):
        rows = slice(start, start + len(weights))
        for k, column in enumerate(columns):
            if spread[k]:
                auc[rows, k], precision[rows, k], curve = column.measure(weights, grid)
                tpr[rows] += curve / len(columns)
        start = rows.stop
    if not all(spread):
        tpr[:] = np.nan
    return Resamples(auc, precision, tpr, int(np.isnan(auc).any(axis=1).sum()))


def bootstrap_share(
    counted: ArrayLike,
    of: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Measure a share of cases, such as sensitivity, in bootstrap resamples of whole groups.

    Parameters
    ----------
    counted, of
        ``(n,)`` bool: which cases count, and of which they are a share.
    groups, resamples, seed
        As for :func:`bootstrap`, with the same draws.

    Returns
    -------
    ``(R,)``; NaN where a resample has none of them, and everywhere if they are of one group.
    """
    chosen = np.asarray(of, bool)
    hit = np.asarray(counted, bool) & chosen
    members = group_numbers(groups, len(chosen))
    if not _spreads(members[chosen]):
        return np.full(resamples, np.nan)
    parts = []
    for weights in draws(members, resamples, np.random.default_rng(seed)):
        total = weights @ chosen
        parts.append(np.divide(weights @ hit, total, np.full(len(total), np.nan), where=total > 0))
    return np.concatenate(parts)


def percentile_interval(samples: NDArray[np.float64], level: float = 0.95) -> Interval:
    """Return the percentile interval of ``(R,)`` samples; those that are NaN are left out.

    Where fewer than half are left it is not defined: those few are of a chosen kind of resample.
    """
    kept = samples[~np.isnan(samples)]
    if not enough(samples):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def enough(samples: NDArray[np.float64]) -> bool:
    """Return whether half of the resamples ``(R,)``, at least one, are defined (not NaN)."""
    defined = int((~np.isnan(samples)).sum())
    return defined > 0 and 2 * defined >= len(samples)


def draws(
    members: NDArray[np.int64], resamples: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float64]]:
    """Yield chunks of ``(r, n)`` weights: how often each case's group was drawn.

    ``members`` ``(n,)`` is the group of each case, from 0 without gaps; ``resamples`` the number of
    all draws.
    """
    n_groups = int(members.max()) + 1
    alone = len(members) == n_groups and bool((members == np.arange(n_groups)).all())
    rows = max(1, _CHUNK // len(members))
    for start in range(0, resamples, rows):
        r = min(rows, resamples - start)
        drawn = rng.integers(0, n_groups, (r, n_groups))
        drawn += np.arange(r)[:, None] * n_groups
        counts = np.bincount(drawn.ravel(), minlength=r * n_groups).reshape(r, n_groups)
        yield (counts if alone else counts[:, members]).astype(np.float64)


class _Ranked:
    """Cases of one class, sorted once by falling score, to be measured under many weights."""

    def __init__(self, positive: NDArray[np.bool_], values: NDArray[np.float64]) -> None:
        self._order = np.argsort(-values, kind="stable")
        self._positive = positive[self._order].astype(np.float64)
        ordered = values[self._order]
        self._starts = np.flatnonzero(np.append(True, np.diff(ordered) != 0)[: len(ordered)])

    def measure(
        self, weights: NDArray[np.float64], fpr: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Return AUC ``(R,)``, average precision ``(R,)``, tpr ``(R, G)`` of ``(R, n)`` weights."""
        ordered = weights[:, self._order]
        positive = ordered * self._positive
        negative = ordered - positive
        if len(self._starts) < len(self._order):  # ties move together
            positive = np.add.reduceat(positive, self._starts, axis=1)
            negative = np.add.reduceat(negative, self._starts, axis=1)
        tp, fp = np.cumsum(positive, axis=1), np.cumsum(negative, axis=1)
        m, n = tp[:, -1], fp[:, -1]
        with np.errstate(invalid="ignore", divide="ignore"):
            area = np.einsum("rk,rk->r", negative, tp - positive / 2) / (m * n)
            precision = np.einsum("rk,rk->r", positive, tp / np.maximum(tp + fp, 1)) / m
        precision[n == 0] = np.nan
        tpr = np.full((len(weights), len(fpr)), np.nan)
        if len(fpr):
            for row in np.flatnonzero((m > 0) & (n > 0)):
                # np.interp takes the last of equal x, which is the top of a vertical step.
                x, y = np.append(0, fp[row] / n[row]), np.append(0, tp[row] / m[row])
                tpr[row] = np.interp(fpr, x, y)
        return area, precision, tpr


def _spreads(members: NDArray[np.int64]) -> bool:
    """Return whether cases are of at least two groups."""
    return len(np.unique(members)) > 1
