"""Sparsemax against its definition, the projection onto the simplex, by an independent solver."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.optimize import brentq

from slidelens.nn.sparsemax import sparsemax, spatial_sparsemax

scores = arrays.arrays(
    np.float64, st.tuples(st.integers(1, 4), st.integers(1, 30)), elements=st.floats(-50, 50)
)


def projected(z):
    """The projection by its optimality condition: the threshold at which the parts sum to 1."""

    def rest(threshold):
        return np.maximum(z - threshold, 0).sum() - 1

    return np.maximum(z - brentq(rest, z.min() - 2, z.max(), xtol=1e-14), 0)


@settings(max_examples=40)
@given(scores)
def test_is_the_projection_onto_the_simplex(z):
    out = sparsemax(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(out, [projected(row) for row in z], atol=1e-9)
    np.testing.assert_allclose(out.sum(1), 1, atol=1e-12)
    assert (out >= 0).all()


@settings(max_examples=40)
@given(scores, st.floats(-1e6, 1e6))
def test_only_differences_count(z, shift):
    one, other = sparsemax(torch.from_numpy(z)), sparsemax(torch.from_numpy(z) + shift)
    torch.testing.assert_close(one, other, atol=1e-8, rtol=0)


def test_the_jacobian_is_exact():
    torch.manual_seed(0)
    z = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(sparsemax, z)
    assert torch.autograd.gradgradcheck(sparsemax, z)
    out = sparsemax(z)
    assert 1 < (out > 0).sum(1).float().mean() < 12
    grad = torch.randn_like(out)
    (got,) = torch.autograd.grad(out, z, grad)
    for row in range(5):  # proposition 2: diag(s) - s s' / |s|
        s = (out[row] > 0).double()
        expected = (torch.diag(s) - torch.outer(s, s) / s.sum()) @ grad[row]
        torch.testing.assert_close(got[row], expected)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_works_along_any_axis(dim):
    z = torch.randn(3, 4, 5, dtype=torch.float64)
    expected = sparsemax(z.movedim(dim, -1)).movedim(-1, dim)
    assert torch.equal(sparsemax(z, dim), expected)


def test_a_map_is_one_vector():
    maps = torch.randn(2, 3, 6, 7)
    out = spatial_sparsemax(maps)
    assert out.shape == maps.shape
    torch.testing.assert_close(out.sum((2, 3)), torch.ones(2, 3))
    assert torch.equal(out[1, 2].flatten(), sparsemax(maps[1, 2].flatten()))
    assert torch.equal(spatial_sparsemax(torch.zeros(1, 8, 8)), torch.full((1, 8, 8), 1 / 64))
