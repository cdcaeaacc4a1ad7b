"""Confidence intervals and tests without resampling: Wilson, DeLong, Holm.

Slides of one patient, or tiles of one slide, are not independent. ``groups`` says which cases
belong together: variances are summed over groups, and :mod:`slidelens.engine.bootstrap` draws whole
groups.
"""

from __future__ import annotations

from math import erfc, inf, sqrt
from statistics import NormalDist
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slidelens.engine.metrics import check_binary, midranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Delong",
    "DelongTest",
    "Interval",
    "delong",
    "delong_test",
    "group_numbers",
    "holm",
    "wilson",
]


class Interval(NamedTuple):
    """Two-sided interval; NaN where it is not defined."""

    low: float
    high: float


class Delong(NamedTuple):
    """AUCs ``(M,)`` of M scores on the same cases, and their covariance ``(M, M)``.

    ``freedom`` are the degrees of freedom of Student's t for intervals and tests: infinite for
    independent cases (the normal distribution, as published), else one less than the groups. With a
    handful of patients the normal one rejects a true hypothesis several times too often.
    """

    auc: NDArray[np.float64]
    covariance: NDArray[np.float64]
    freedom: float = inf

    def interval(self, model: int = 0, level: float = 0.95) -> Interval:
        """Return the interval of one AUC, cut to 0..1; NaN where there is no variance."""
        variance = np.maximum(self.covariance[model, model], 0.0)  # 0 may be rounded to less
        half = _quantile(level, self.freedom) * np.sqrt(variance)
        low, high = np.clip([self.auc[model] - half, self.auc[model] + half], 0.0, 1.0)
        return Interval(float(low), float(high))


class DelongTest(NamedTuple):
    """Difference of two AUCs on the same cases, interval, z, two-sided p (NaN: undefined).

    The interval is symmetric, then cut to -1..1, where differences lie; with few cases it may reach
    beyond. With groups z is Student's t; see :class:`Delong`.
    """

    difference: float
    interval: Interval
    z: float
    p: float


def delong(labels: ArrayLike, scores: ArrayLike, *, groups: ArrayLike | None = None) -> Delong:
    """Return AUCs and their covariance without resampling.

    DeLong et al. (Biometrics 1988) by the midranks of Sun and Xu (IEEE Signal Processing Letters
    2014): n log n. With ``groups`` the sums run over groups and count the covariance between the
    positive and negative cases of one group (Obuchowski, Biometrics 1997); with one case per group
    that is DeLong's estimate, exactly.

    Parameters
    ----------
    labels
        ``(n,)`` of 0 and 1.
    scores
        ``(M, n)``: M models on the same cases.
    groups
        ``(n,)`` integers from 0.

    Returns
    -------
    Delong
        NaN where a class has no case; covariance NaN where a class has fewer than two groups.
    """
    values = np.atleast_2d(np.asarray(scores, np.float64))
    positive = check_binary(labels, values[0])[0]
    values = np.stack([check_binary(labels, row)[1] for row in values])
    members = group_numbers(groups, len(positive))
    m, n = int(positive.sum()), int((~positive).sum())
    if not m or not n:
        return Delong(np.full(len(values), np.nan), np.full((len(values),) * 2, np.nan))
    rank = np.stack([midranks(row) for row in values])
    above = (rank[:, positive] - np.stack([midranks(v) for v in values[:, positive]])) / n
    below = 1 - (rank[:, ~positive] - np.stack([midranks(v) for v in values[:, ~positive]])) / m
    area = above.mean(1)
    by_positive = _sum_by_group(above - area[:, None], members[positive], members)
    by_negative = _sum_by_group(below - area[:, None], members[~positive], members)
    cross = _unbiased(members) * by_positive @ by_negative.T
    covariance = (
        _unbiased(members[positive]) * by_positive @ by_positive.T / m**2
        + _unbiased(members[~positive]) * by_negative @ by_negative.T / n**2
        + (cross + cross.T) / (m * n)
    )
    alone = len(np.unique(members)) == len(members)
    return Delong(area, covariance, inf if alone else float(members.max()))


def delong_test(
    labels: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> DelongTest:
    """Test whether two models on the same cases have the same AUC (first minus second).

    Scores that rank all cases alike differ by 0 with p = 1. A difference other than 0 whose
    variance is 0 (one model right on all, the other wrong on all) has neither interval nor p.
    """
    area, covariance, freedom = delong(labels, np.array([first, second], np.float64), groups=groups)
    difference = float(area[0] - area[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    nan = float("nan")
    if np.isnan(difference) or np.isnan(variance):
        return DelongTest(difference, Interval(nan, nan), nan, nan)
    if variance <= 1e-15:  # rounding of what is exactly 0
        same = abs(difference) < 1e-12
        zero = Interval(0.0, 0.0) if same else Interval(nan, nan)
        return DelongTest(difference, zero, 0.0 if same else nan, 1.0 if same else nan)
    error = sqrt(variance)
    half = _quantile(level, freedom) * error
    z = difference / error
    low, high = np.clip([difference - half, difference + half], -1.0, 1.0)
    return DelongTest(difference, Interval(float(low), float(high)), z, _two_sided(z, freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for their number (Holm 1979), in their order; NaN is left out."""
    adjusted = [float("nan")] * len(p_values)
    order = sorted((i for i, p in enumerate(p_values) if p == p), key=lambda i: p_values[i])
    highest = 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, p_values[i] * (len(order) - rank)))
        adjusted[i] = highest
    return adjusted


def wilson(successes: int, n: int, level: float = 0.95) -> Interval:
    """Return Wilson's score interval of a proportion (JASA 1927); NaN without cases."""
    if not n:
        return Interval(float("nan"), float("nan"))
    z = _quantile(level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At 0 and n the bound is the share itself; rounding must not leave it just outside.
    low = 0.0 if successes == 0 else centre - half
    return Interval(low, 1.0 if successes == n else centre + half)


def group_numbers(groups: ArrayLike | None, n: int) -> NDArray[np.int64]:
    """Return group numbers from 0 without gaps; every case is its own group by default."""
    if not n:
        raise ValueError("no cases to resample")
    if groups is None:
        return np.arange(n)
    given = np.asarray(groups)
    if given.shape != (n,):
        raise ValueError(f"expected a group for each of {n} cases, not {given.shape}")
    return np.unique(given, return_inverse=True)[1]


def _sum_by_group(
    values: NDArray[np.float64], of_value: NDArray[np.int64], members: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Sum ``(M, k)`` over groups: ``(M, number of all groups)``."""
    n_groups = int(members.max()) + 1
    return np.stack([np.bincount(of_value, row, n_groups) for row in values])


def _unbiased(members: NDArray[np.int64]) -> float:
    """Return I / (I - 1) for I groups; NaN for one, whose spread says nothing."""
    groups = len(np.unique(members))
    return groups / (groups - 1) if groups > 1 else float("nan")


def _quantile(level: float, freedom: float = inf) -> float:
    """Return how many standard errors an interval reaches to either side."""
    from scipy.special import stdtrit

    tail = (1 + level) / 2
    return NormalDist().inv_cdf(tail) if freedom == inf else float(stdtrit(freedom, tail))


def _two_sided(z: float, freedom: float) -> float:
    from scipy.special import stdtr

    return erfc(abs(z) / sqrt(2)) if freedom == inf else float(2 * stdtr(freedom, -abs(z)))
