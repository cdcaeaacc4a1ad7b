"""The rules of CAMELYON17 on hand-made patients: every rule, and both sides of every limit."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from slidelens.engine.staging.pn_stage import (
    NODE_CLASSES,
    STAGES,
    node_class,
    pn_stage,
    stage_kappa,
)

N, ITC, MI, MA = NODE_CLASSES


@pytest.mark.parametrize(
    ("diameter", "expected"),
    [(None, N), (0.01, ITC), (0.2, ITC), (0.2001, MI), (2.0, MI), (2.0001, MA), (30.0, MA)],
)
def test_the_largest_lesion_makes_the_class_of_a_node(diameter, expected):
    assert node_class(diameter) == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # No micro-metastases or macro-metastases or ITCs found.
        ([N, N, N, N, N], "pN0"),
        ([N], "pN0"),
        # Only ITCs found.
        ([ITC, N, N, N, N], "pN0(i+)"),
        ([ITC, ITC, ITC, ITC, ITC], "pN0(i+)"),
        # Micro-metastases found, but no macro-metastases found.
        ([MI, N, N, N, N], "pN1mi"),
        ([MI, ITC, N, N, N], "pN1mi"),
        ([MI, MI, MI, MI, MI], "pN1mi"),
        # Metastases found in 1-3 lymph nodes, of which at least one is a macro-metastasis.
        ([MA, N, N, N, N], "pN1"),
        ([MA, MA, MA, N, N], "pN1"),
        ([MA, MI, MI, N, N], "pN1"),
        ([MA, MI, MI, ITC, ITC], "pN1"),  # nodes with ITC alone are not counted
        # Metastases found in 4-9 lymph nodes, of which at least one is a macro-metastasis.
        ([MA, MI, MI, MI, N], "pN2"),
        ([MA, MA, MA, MA, ITC], "pN2"),
        ([MA, MA, MA, MA, MA], "pN2"),
        ([MA] + [MI] * 8, "pN2"),
    ],
)
def test_the_nodes_make_the_stage_of_a_patient(nodes, expected):
    assert pn_stage(nodes) == expected
    assert pn_stage(nodes[::-1]) == expected


def test_what_has_no_stage_is_refused():
    with pytest.raises(ValueError, match="not none at all"):
        pn_stage([])
    with pytest.raises(ValueError, match="not tumour"):
        pn_stage(["macro", "tumour"])
    with pytest.raises(ValueError, match=r"10 nodes with metastases.*ends at 9"):
        pn_stage([MA] * 10)


def test_kappa_is_quadratic_and_weighted():
    random = np.random.default_rng(4)
    for _ in range(20):
        truth, found = random.integers(0, 5, (2, 30))
        names = [f"patient_{i:03}" for i in range(30)]
        by_name = [dict(zip(names, (STAGES[k] for k in of), strict=True)) for of in (truth, found)]
        expected = cohen_kappa_score(truth, found, labels=range(5), weights="quadratic")
        assert stage_kappa(*by_name) == pytest.approx(expected)


def test_kappa_by_hand():
    """Two of four right, one a stage off, one four stages off."""
    truth = {"a": "pN0", "b": "pN1mi", "c": "pN1", "d": "pN2"}
    found = {"a": "pN0", "b": "pN1mi", "c": "pN2", "d": "pN0", "e": "pN1"}
    # Observed 1 + 16; by chance the sum of all squared distances of the marginals over 4.
    chance = sum((i - j) ** 2 for i in (0, 2, 3, 4) for j in (0, 2, 4, 0)) / 4
    assert stage_kappa(truth, found) == pytest.approx(1 - 17 / chance)
    with pytest.raises(ValueError, match="no stage was found for z"):
        stage_kappa({"z": "pN0"}, found)
    with pytest.raises(ValueError, match=r"not pN3"):
        stage_kappa({"a": "pN3"}, found)
