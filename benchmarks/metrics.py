"""Time of the intervals and tests of an evaluation, and their agreement with the plain ways.

The plain bootstrap is a loop of scikit-learn's ``roc_auc_score`` over resamples, the plain DeLong
test compares all pairs of cases. 535 cases are the test set of the streaming paper.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from common import Claim, at_least, at_most, interleaved, main, ratio
from sklearn.metrics import roc_auc_score

from slidelens.engine.bootstrap import bootstrap, percentile_interval
from slidelens.engine.evaluation.measure import FPR
from slidelens.engine.intervals import delong, delong_test

CASES = 535
RESAMPLES = 10_000


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Time, and compare, on 535 slides; then on larger cohorts."""
    rounds = 5 if quick else 11
    labels, scores = cases(CASES)
    few = 200  # the loop is timed on part of the resamples and scaled
    seconds = interleaved(
        {
            "bootstrap": lambda: bootstrap(labels, scores, resamples=RESAMPLES),
            "bootstrap with ROC band": lambda: bootstrap(
                labels, scores, resamples=RESAMPLES, fpr=FPR
            ),
            "loop of scikit-learn, 200 resamples": lambda: loop(labels, scores, few),
        },
        rounds,
    )
    scaled = [s * RESAMPLES / few for s in seconds["loop of scikit-learn, 200 resamples"]]
    middle = {name: statistics.median(s) for name, s in seconds.items()}
    many, first, second = 20_000, *pair(20_000)
    big = interleaved({"delong": lambda: delong_test(first[0], first[1], second)}, rounds)
    claims = [
        at_most(
            "10,000 resamples of AUC and PR-AUC, 535 slides",
            middle["bootstrap"],
            2.0,
            "s",
        ),
        at_most("the same with the ROC band", middle["bootstrap with ROC band"], 2.0, "s"),
        at_least(
            "faster than a loop of scikit-learn", ratio(scaled, seconds["bootstrap"]), 10, "x"
        ),
        at_most(
            "largest difference of a resample's AUC from scikit-learn's",
            apart(labels, scores),
            1e-12,
        ),
        at_most("largest difference of DeLong's covariance from all pairs", delong_apart(), 1e-12),
        at_most("DeLong's test, 20,000 cases", statistics.median(big["delong"]), 0.5, "s"),
    ]
    interval = percentile_interval(bootstrap(labels, scores, resamples=RESAMPLES).auc[:, 0])
    return claims, {
        "cases": CASES,
        "resamples": RESAMPLES,
        "seconds": seconds,
        "delong_cases": many,
        "delong_seconds": big["delong"],
        "interval": {
            "bootstrap": list(interval),
            "delong": list(delong(labels, scores).interval()),
        },
    }


def cases(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels and scores of a model whose AUC is about 0.98."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, 1 / (1 + np.exp(-rng.normal(3 * labels - 1.5, 1.0)))


def pair(n: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Draw two models on the same cases."""
    labels, first = cases(n)
    return (labels, first), first + np.random.default_rng(1).normal(0, 0.1, n)


def loop(labels: np.ndarray, scores: np.ndarray, resamples: int, seed: int = 0) -> np.ndarray:
    """Resample the plain way."""
    drawn = np.random.default_rng(seed).integers(0, len(labels), (resamples, len(labels)))
    return np.array([roc_auc_score(labels[rows], scores[rows]) for rows in drawn])


def apart(labels: np.ndarray, scores: np.ndarray) -> float:
    """Compare resample by resample, from the same draws."""
    ours = bootstrap(labels, scores, resamples=200).auc[:, 0]
    return float(np.abs(ours - loop(labels, scores, 200)).max())


def delong_apart() -> float:
    """Compare with the structural components as the paper defines them, over all pairs."""
    labels, first = cases(CASES)
    scores = np.stack([first, np.round(first, 1)])  # the second has many ties
    x, y = scores[:, labels == 1], scores[:, labels == 0]
    psi = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    expected = np.cov(psi.mean(2)) / x.shape[1] + np.cov(psi.mean(1)) / y.shape[1]
    return float(np.abs(delong(labels, scores).covariance - expected).max())


if __name__ == "__main__":
    main(__doc__, measure)
