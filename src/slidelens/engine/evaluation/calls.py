"""Tests between the calls of two models, each at its operating point, on the same slides."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.intervals import holm

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from slidelens.engine.evaluation.measure import Measured
    from slidelens.engine.evaluation.scores import Cases

__all__ = ["compare_calls", "flip_test"]


def compare_calls(
    cases: Mapping[str, Cases], measured: Mapping[str, Measured]
) -> list[dict[str, Any]]:
    """Test all pairs of models on the slides that both have, in the order of the pairs.

    Two classes: sensitivity, specificity and accuracy; more: accuracy. Each has the value of both
    models, the number of slides that only one of them calls correctly, and the two-sided ``p`` of
    :func:`flip_test`, adjusted in ``p_holm`` for the number of pairs. A figure without a slide is
    left out.

    Parameters
    ----------
    cases, measured
        By model.
    """
    found = [
        {"a": a.scored.name, "b": b.scored.name} | _compared(a, b, measured)
        for a, b in combinations(cases.values(), 2)
    ]
    for name in ("sensitivity", "specificity", "accuracy"):
        tests = [pair["figures"][name] for pair in found if name in pair["figures"]]
        for test, p in zip(tests, holm([test["p"] for test in tests]), strict=True):
            test["p_holm"] = p
    return found


def flip_test(differences: NDArray[np.int64]) -> float:
    """Return the two-sided p of the hypothesis that each difference could have the other sign.

    The exact distribution of the sum is taken over all signs. With differences of 1 and -1 this is
    McNemar's exact test.

    Parameters
    ----------
    differences
        ``(n,)``, of independent units.
    """
    sizes = np.abs(differences[differences != 0])
    chances = np.zeros(2 * int(sizes.sum()) + 1)  # of each sum, from the lowest
    middle = len(chances) // 2
    chances[middle] = 1.0
    for size in sizes:  # np.roll turns nothing round: no sum is further off than all sizes
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    least = abs(int(differences.sum()))
    sums = np.abs(np.arange(len(chances)) - middle)
    return min(1.0, float(chances[sums >= least].sum()))


def _compared(a: Cases, b: Cases, measured: Mapping[str, Measured]) -> dict[str, Any]:
    both = set(b.ids)
    common = [slide_id for slide_id in a.ids if slide_id in both]
    if not common:
        return {"n": 0, "test": None, "figures": {}}
    of_a = a.subset(common)
    right_a, right_b = (_right(one, common, measured) for one in (a, b))
    tests = {
        name: _tested(right_a[chosen], right_b[chosen], of_a.groups[chosen])
        for name, chosen in _figures(of_a)
        if chosen.any()
    }
    test = "exact sign flips of patients" if of_a.clustered else "McNemar, exact"
    return {"n": len(common), "test": test, "figures": tests}


def _right(one: Cases, common: list[str], measured: Mapping[str, Measured]) -> NDArray[np.bool_]:
    right = one.labels == measured[one.scored.name].predictions
    of = dict(zip(one.ids, right, strict=True))
    return np.array([of[slide_id] for slide_id in common], bool)


def _figures(cases: Cases) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    """Yield each figure and which slides it is the share of correct calls of."""
    if len(cases.scored.classes) == 2:
        yield "sensitivity", cases.labels == 1
        yield "specificity", cases.labels == 0
    yield "accuracy", np.ones(len(cases.labels), bool)


def _tested(
    right_a: NDArray[np.bool_], right_b: NDArray[np.bool_], groups: NDArray[np.int64]
) -> dict[str, Any]:
    _, unit = np.unique(groups, return_inverse=True)
    difference = right_a.astype(np.int64) - right_b
    summed = np.zeros(unit.max() + 1, np.int64)
    np.add.at(summed, unit, difference)
    return {
        "n": len(difference),
        "a": float(right_a.mean()),
        "b": float(right_b.mean()),
        "only_a": int((difference > 0).sum()),
        "only_b": int((difference < 0).sum()),
        "p": flip_test(summed),
    }
