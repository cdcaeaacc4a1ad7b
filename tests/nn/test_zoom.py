"""Windows read out of attention, the grey filter, and foresight."""

from __future__ import annotations

import pytest
import torch

from slidelens.nn.zoom import Attention, foresight_loss, places, read_out, remove_grey

SIDE = 40


def _disc(x: float, y: float, radius: float) -> torch.Tensor:
    at = places(SIDE, torch.zeros((), dtype=torch.float64))
    inside = (at - x).square() + (at[:, None] - y).square() < radius**2
    return inside / inside.sum()


def test_grey_is_blackened_and_colour_stays():
    colours = torch.tensor(
        [[255, 255, 255], [240, 245, 254], [200, 216, 208], [200, 185, 190], [0, 0, 0]],
        dtype=torch.uint8,
    ).T.reshape(3, 1, 5)
    out = remove_grey(colours)
    assert out.dtype == torch.uint8
    assert out[:, 0].T.tolist() == [[0, 0, 0], [0, 0, 0], [200, 216, 208], [0, 0, 0], [0, 0, 0]]
    batch = torch.stack([colours, colours])
    assert torch.equal(remove_grey(batch)[1], out)


def test_even_attention_is_the_whole_picture():
    even = torch.full((2, SIDE, SIDE), 1 / SIDE**2, dtype=torch.float64)
    window = read_out(even)
    torch.testing.assert_close(window[1], torch.tensor([1.0, 0, 0]).double(), atol=1e-3, rtol=0)


def test_attention_to_a_point_is_the_smallest_window_there():
    mass = torch.zeros(SIDE, SIDE, dtype=torch.float64)
    mass[30, 4] = 1
    window = read_out(mass, least=0.07)
    assert window.tolist() == pytest.approx([0.07, (2 * 4 + 1) / SIDE - 1, (2 * 30 + 1) / SIDE - 1])


@pytest.mark.parametrize(("x", "y", "radius"), [(0.0, 0.0, 0.5), (0.5, -0.3, 0.3)])
def test_attention_to_a_disc_is_a_window_around_it(x, y, radius):
    window = read_out(_disc(x, y, radius))
    assert window[1:].tolist() == pytest.approx([x, y], abs=0.01)
    assert window[0].item() == pytest.approx(radius * 0.75**0.5, rel=0.05)
    wider = read_out(_disc(x, y, radius), reach=1.5)
    assert wider[0].item() == pytest.approx(1.5 * window[0].item())


def test_opposite_corners_give_no_window_larger_than_the_picture():
    mass = torch.zeros(SIDE, SIDE)
    mass[0, 0] = mass[-1, -1] = 0.5
    assert read_out(mass).tolist() == pytest.approx([1, 0, 0], abs=1e-6)


def test_the_centre_is_the_expected_position_or_its_tanh():
    mass = _disc(0.6, 0.0, 0.1)
    exact, pulled = read_out(mass), read_out(mass, centre="tanh")
    torch.testing.assert_close(pulled[1:], exact[1:].tanh())
    assert exact[0] == pulled[0]


def test_windows_have_a_gradient_to_attention():
    mass = torch.rand(3, SIDE, SIDE, dtype=torch.float64)
    mass = (mass / mass.sum((1, 2), keepdim=True)).requires_grad_()
    assert torch.autograd.gradcheck(lambda m: read_out(m, reach=0.5), mass)


def test_attention_begins_even_and_learns():
    torch.manual_seed(0)
    attention = Attention(8)
    scores = attention(torch.randn(2, 3, 24, 20))
    assert scores.shape == (2, 24, 20)
    assert not scores.any()
    scores.square().sum().backward()
    target = torch.randn(2, 24, 20)
    ((attention(torch.randn(2, 3, 24, 20)) - target) ** 2).sum().backward()
    assert attention.third.weight.grad.any()


def _scores() -> torch.Tensor:
    """Two maps of 4 x 4: 3 on the right half, -3 on the left."""
    half = torch.full((4, 4), -3.0)
    half[:, 2:] = 3.0
    return torch.stack([half, half])[None].requires_grad_()


def test_foresight_is_cross_entropy_at_the_probes_places():
    parents = torch.tensor([[[1.0, 0, 0], [0.5, 0.5, 0.5]]])
    probes = torch.tensor([[[0.1, -0.75, 0.0], [0.1, 0.75, 0.5]]])
    evidence = torch.tensor([[0.0, 1.0]])
    scores = _scores()
    loss = foresight_loss(scores, parents, probes, evidence)
    # The first map holds both probes (left and right), the second only the second, at its middle.
    agree = torch.nn.functional.softplus(torch.tensor(-3.0))
    middle = torch.nn.functional.softplus(torch.tensor(0.0))
    torch.testing.assert_close(loss, (agree + agree + (agree + middle) / 2) / 3, atol=0.3, rtol=0)
    (gradient,) = torch.autograd.grad(loss, scores)
    assert gradient[0, 0, 1, 0] > 0  # nothing was found there: less attention
    assert gradient[0, 0, 2, 3] < 0
    assert gradient[0, 1].sum() < 0


def test_foresight_teaches_nothing_to_windows_and_evidence():
    parents = torch.tensor([[[0.5, 0.0, 0.0]]], requires_grad=True)
    probes = torch.tensor([[[0.1, 0.1, 0.1]]], requires_grad=True)
    evidence = torch.tensor([[0.3]], requires_grad=True)
    scores = _scores()[:, :1]
    found = torch.autograd.grad(
        foresight_loss(scores, parents, probes, evidence),
        [parents, probes, evidence],
        allow_unused=True,
    )
    assert found == (None, None, None)


def test_foresight_without_probes_is_nothing():
    scores = _scores()
    away = torch.tensor([[[0.1, 0.9, 0.9]]])
    loss = foresight_loss(
        scores, torch.tensor([[[0.2, 0.0, 0.0], [0.3, -0.5, 0.0]]]), away, torch.ones(1, 1)
    )
    loss.backward()
    assert loss == 0
    assert not scores.grad.any()
