"""Statistical tests between models on the same slides."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from math import inf, isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.bootstrap import bootstrap, enough, percentile_interval
from slidelens.engine.intervals import delong, delong_test, holm
from slidelens.engine.metrics import auc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from slidelens.engine.evaluation.measure import Resampling
    from slidelens.engine.evaluation.scores import Cases

__all__ = ["compare"]

_BOOTSTRAP = "paired bootstrap"


def compare(cases: Mapping[str, Cases], resampling: Resampling) -> list[dict[str, Any]]:
    """Test all pairs of models on the slides that both have.

    Two classes: DeLong's test (Obuchowski's if slides share patients). More: the macro average of
    one-vs-rest AUCs on the same bootstrap resamples. ``p_holm`` is adjusted for the number of
    pairs. An undefined value is ``None``, and ``undefined`` says why.
    """
    found = []
    for first, second in combinations(cases.values(), 2):
        both = set(second.ids)
        common = [slide_id for slide_id in first.ids if slide_id in both]
        test: dict[str, Any] = {"a": first.scored.name, "b": second.scored.name, "n": len(common)}
        if common:
            one, other = first.subset(common), second.subset(common)
            binary = len(first.scored.classes) == 2
            test |= (_by_delong if binary else _by_bootstrap)(one, other, resampling)
        if not common or test["p"] is None:
            why = "no slide in common"
            if common and test["auc_a"] is None:
                why = "a class has no case"
            elif common and one.units.min() < 2:
                why = f"a class has only one {one.unit}"
            elif common and test["test"] == _BOOTSTRAP:
                why = "fewer than half of the resamples hold every class"
            elif common:
                why = "the variance of the difference is not defined"
            test = {"test": None, "auc_a": None, "auc_b": None, "difference": None} | test
            test |= {"difference_ci": None, "p": None, "undefined": why}
        found.append(test)
    adjusted = holm([float("nan") if c["p"] is None else c["p"] for c in found])
    for test, p in zip(found, adjusted, strict=True):
        test["p_holm"] = _or_none(p)
    return found


def _by_delong(one: Cases, other: Cases, resampling: Resampling) -> dict[str, Any]:
    positive, groups = one.labels == 1, one.patients
    scores = np.stack([one.probabilities[:, 1], other.probabilities[:, 1]])
    area, _, freedom = delong(positive, scores, groups=groups)
    test = delong_test(positive, *scores, groups=groups, level=resampling.level)
    return {
        "test": "DeLong" if freedom == inf else "DeLong-Obuchowski",
        "auc_a": _or_none(area[0]),
        "auc_b": _or_none(area[1]),
        "difference": _or_none(test.difference),
        "difference_ci": [_or_none(bound) for bound in test.interval],
        "z": _or_none(test.z),
        "p": _or_none(test.p),
    }


def _by_bootstrap(one: Cases, other: Cases, resampling: Resampling) -> dict[str, Any]:
    """Compare macro one-vs-rest AUCs on the same resamples."""
    onehot = one.labels[:, None] == np.arange(one.probabilities.shape[1])
    draw = partial(
        bootstrap,
        onehot,
        groups=one.patients,
        resamples=resampling.resamples,
        seed=resampling.seed,
    )
    samples = draw(one.probabilities).auc.mean(1) - draw(other.probabilities).auc.mean(1)
    areas = [_macro_auc(onehot, case.probabilities) for case in (one, other)]
    kept = samples[~np.isnan(samples)]
    defined = enough(samples) and not isnan(areas[0])
    # A finite number of resamples cannot show a p value of 0.
    tail = min((kept <= 0).sum(), (kept >= 0).sum()) + 1
    interval = percentile_interval(samples, resampling.level)
    return {
        "test": _BOOTSTRAP,
        "auc_a": _or_none(areas[0]),
        "auc_b": _or_none(areas[1]),
        "difference": _or_none(areas[0] - areas[1]),
        "difference_ci": [_or_none(bound) for bound in interval],
        "p": min(1.0, 2 * float(tail) / (len(kept) + 1)) if defined else None,
    }


def _macro_auc(onehot: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    return float(np.mean([auc(t, s) for t, s in zip(onehot.T, scores.T, strict=True)]))


def _or_none(value: float) -> float | None:
    return None if isnan(value) else float(value)
