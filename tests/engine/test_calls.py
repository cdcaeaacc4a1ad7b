"""Tests between the calls of two models."""

from itertools import product

import numpy as np
import pytest
from scipy.stats import binomtest

from slidelens.engine.evaluation.calls import flip_test


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (1, 0), (5, 5), (9, 2), (0, 14), (40, 61)])
def test_single_slides_give_mcnemars_exact_test(only_a, only_b):
    differences = np.array([1] * only_a + [-1] * only_b + [0] * 30, np.int64)
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert flip_test(differences) == pytest.approx(expected)


def test_patients_with_several_slides_are_flipped_as_one():
    differences = np.array([3, -1, 2, 2, 0, -1])
    sums = [abs((differences * signs).sum()) for signs in product((-1, 1), repeat=6)]
    assert flip_test(differences) == pytest.approx(np.mean(np.array(sums) >= differences.sum()))


def test_one_patient_with_many_slides_proves_nothing():
    assert flip_test(np.array([50])) == 1.0


def test_under_chance_few_tests_are_significant():
    draws = np.random.default_rng(0).integers(-2, 3, (400, 20))
    share = np.mean([flip_test(row) <= 0.05 for row in draws])
    assert 0.01 < share <= 0.06
