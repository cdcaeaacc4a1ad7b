"""Windows: where their pixels lie, and that their gradients are those of the picture's slope."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidelens.nn.sampling import inside, multi_sample, sample, window_grid

part = st.floats(0.05, 1.0)
place = st.floats(-0.9, 0.9)


def _ramp(a: float, b: float, c: float, side: int = 64) -> torch.Tensor:
    """A picture whose value is ``a x + b y + c`` at each pixel's centre."""
    at = window_grid(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), side)[0]
    return (a * at[..., 0] + b * at[..., 1] + c)[None, None]


def _windows(*rows: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64, requires_grad=True)


def test_pixels_are_areas():
    (grid,) = window_grid(torch.tensor([[0.5, 0.25, -0.5]]), 2)
    assert grid[..., 0].tolist() == [[0.0, 0.5], [0.0, 0.5]]
    assert grid[..., 1].tolist() == [[-0.75, -0.75], [-0.25, -0.25]]


def test_the_whole_window_is_the_picture_and_a_quarter_its_quarter():
    picture = torch.rand(1, 3, 16, 16)
    whole = torch.tensor([[1.0, 0.0, 0.0]])
    torch.testing.assert_close(sample(picture, whole, 16), picture)
    quarter = torch.tensor([[0.5, -0.5, 0.5]])
    torch.testing.assert_close(sample(picture, quarter, 8), picture[..., 8:, :8])


@settings(max_examples=40)
@given(part, place, place, part, place, place)
def test_windows_of_windows(s, x, y, s2, x2, y2):
    outer, inner = torch.tensor([[s, x, y]]).double(), torch.tensor([[s2, x2, y2]]).double()
    both = inside(outer, inner)
    corner = window_grid(inner, 3)[0, 0, 0]
    expected = outer[0, 1:] + outer[0, 0] * corner
    torch.testing.assert_close(window_grid(both, 3)[0, 0, 0], expected)


@settings(max_examples=40)
@given(part, place, place, st.floats(-3, 3), st.floats(-3, 3))
def test_on_a_ramp_the_gradient_is_analytic(s, x, y, a, b):
    """d/dx of the sum is a per pixel, d/ds the slope along each pixel's direction."""
    picture = _ramp(a, b, 0.3)
    size, half = 6, 0.45  # stays off the border, where the picture is flat
    windows = _windows((half * s, half * x, half * y))
    weight = torch.rand(1, 1, size, size, dtype=torch.float64)
    out = multi_sample(picture, windows, size, radius=0.3)
    expected = a * (at := window_grid(windows, size).detach())[..., 0] + b * at[..., 1] + 0.3
    torch.testing.assert_close(out[:, 0], expected)
    (got,) = torch.autograd.grad((out * weight).sum(), windows)
    direction = window_grid(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64), size)
    slope = a * direction[..., 0] + b * direction[..., 1]
    total = weight.sum()
    analytic = torch.stack([(weight[:, 0] * slope).sum(), a * total, b * total])
    torch.testing.assert_close(got[0], analytic)


def test_values_are_those_of_plain_sampling():
    pictures = torch.rand(3, 2, 40, 30)
    windows = torch.tensor([[0.3, 0.1, -0.2], [1.0, 0.0, 0.0], [0.05, 0.9, 0.9]])
    plain = sample(pictures, windows, 9)
    assert torch.equal(multi_sample(pictures, windows.requires_grad_(), 9), plain)
    with torch.no_grad():
        assert torch.equal(multi_sample(pictures, windows, 9), plain)


def test_a_distant_slope_is_seen_where_bilinear_sees_none():
    """An edge two output pixels away: flat for bilinear sampling, a slope for the plane."""
    picture = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    picture[..., 40:] = 1
    windows = _windows((0.1, 0.0, 0.0))
    plain = torch.autograd.grad(sample(picture, windows, 5).sum(), windows)[0]
    assert plain[0, 1] == 0
    random = torch.Generator().manual_seed(0)
    out = multi_sample(picture, windows, 5, radius=3, generator=random)
    (got,) = torch.autograd.grad(out.sum(), windows)
    assert got[0, 1] > 0
    assert abs(got[0, 2]) < got[0, 1]


def test_pictures_get_the_gradient_of_plain_sampling():
    pictures = torch.rand(1, 2, 12, 12, dtype=torch.float64, requires_grad=True)
    windows = _windows((0.5, 0.1, 0.2))
    one = torch.autograd.grad(sample(pictures, windows, 4).square().sum(), pictures)[0]
    other = torch.autograd.grad(multi_sample(pictures, windows, 4).square().sum(), pictures)[0]
    torch.testing.assert_close(one, other)


def test_the_generator_decides():
    picture, windows = torch.rand(1, 1, 30, 30), torch.tensor([[0.2, 0.0, 0.0]]).requires_grad_()

    def slope(seed: int) -> torch.Tensor:
        random = torch.Generator().manual_seed(seed)
        out = multi_sample(picture, windows, 8, generator=random)
        return torch.autograd.grad(out.sum(), windows)[0]

    assert torch.equal(slope(1), slope(1))
    assert not torch.equal(slope(1), slope(2))


@pytest.mark.parametrize("shape", [(1, 3, 20, 50), (2, 1, 7, 7)])
def test_pictures_of_any_shape(shape):
    windows = torch.tensor([[1.0, 0.0, 0.0]]).expand(shape[0], 3)
    assert sample(torch.rand(shape), windows, 4).shape == (*shape[:2], 4, 4)
