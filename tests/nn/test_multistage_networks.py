"""U-Net and feature maps, and End-to-End gradients against the un-divided computation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slidelens.nn.multistage import MultiStage, arrange, backward_by_parts
from slidelens.nn.orientation import orient_points
from slidelens.nn.unet import UNet


@pytest.mark.parametrize("size", [(1, 1), (5, 9), (8, 8), (13, 2)])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_unet_takes_maps_of_any_size(size, depth):
    torch.manual_seed(0)
    network = UNet(4, 2, width=3, depth=depth)
    maps = torch.randn(2, 4, *size, requires_grad=True)
    logits = network(maps)
    assert logits.shape == (2, 2, *size)
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    assert maps.grad.any()


def test_unet_centres_a_map_in_zeros():
    network = UNet(2, 1, width=4, depth=2).eval()
    maps = torch.randn(1, 2, 5, 6)
    padded = torch.nn.functional.pad(maps, (1, 1, 1, 2))
    assert torch.equal(network(maps), network(padded)[:, :, 1:6, 1:7])


def test_unet_refuses_what_is_no_network():
    with pytest.raises(ValueError, match="width"):
        UNet(3, 1, width=0)


def _places(seed, count):
    random = np.random.default_rng(seed)
    cells = random.permutation(12 * 17)[:count]
    return np.stack([cells % 17 + 40, cells // 17 + 7], 1)


@settings(max_examples=30)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60))
def test_a_map_holds_each_vector_at_its_place_and_zeros_elsewhere(seed, count):
    index = _places(seed, count)
    vectors = torch.randn(count, 3, dtype=torch.float64, requires_grad=True)
    laid, cells = arrange(vectors, index)
    assert torch.equal(laid[0].flatten(1)[:, cells].T, vectors)
    assert int((laid != 0).any(1).sum()) == count
    columns, rows = (cells % laid.shape[3]).numpy(), (cells // laid.shape[3]).numpy()
    assert (np.diff(columns) == np.diff(index[:, 0])).all()
    assert (np.diff(rows) == np.diff(index[:, 1])).all()
    (laid * torch.arange(laid.numel()).view_as(laid)).sum().backward()
    assert vectors.grad[:, 0].tolist() == cells.tolist()


def test_eight_orientations_of_a_map_are_eight():
    index = np.array([[0, 0], [1, 0], [3, 0], [0, 1]])
    seen = set()
    for way in range(8):
        laid, _ = arrange(torch.ones(4, 1), orient_points(index, way))
        seen.add((laid.shape, laid.numpy().tobytes()))
        assert int(laid.sum()) == 4
    assert len(seen) == 8


@pytest.fixture
def small():
    torch.manual_seed(1)
    return MultiStage("multistage", "squeezenet1_1", 16, 4, 2).double().eval()


@pytest.mark.parametrize("batch", [1, 4, 11, 50])
def test_end_to_end_gradients_are_those_of_the_undivided_network(small, batch):
    """The issue's oracle: monolithic autograd in fp64, to 1e-10 of the largest gradient."""
    images = torch.randn(11, 3, 40, 40, dtype=torch.float64)
    index = _places(3, 11)
    labels = (torch.rand(11) < 0.5).double()

    def loss_of(vectors):
        laid, cells = arrange(vectors, index)
        logits = small(laid, "segment")[0, 0].flatten()[cells]
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)

    whole = loss_of(small(images, "vectors"))
    whole.backward()
    learning = [*small.extractor(), *small.unet.parameters()]
    expected = [p.grad.clone() for p in learning]
    small.zero_grad()
    calls = []

    def extract(some):
        calls.append((len(some), torch.is_grad_enabled()))
        return small(some, "vectors")

    loss = backward_by_parts(
        extract, lambda: images.split(batch), loss_of, lambda value: value.backward()
    )
    torch.testing.assert_close(loss, whole.detach())
    assert max(n for n, _ in calls) == min(batch, 11)
    assert [grad for _, grad in calls] == [False] * (len(calls) // 2) + [True] * (len(calls) // 2)
    scale = max(float(g.abs().max()) for g in expected)
    assert scale > 1e-6
    for parameter, gradient in zip(learning, expected, strict=True):
        assert float((parameter.grad - gradient).abs().max()) <= 1e-10 * scale
    assert all(p.grad is None for p in small.final.parameters())


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("multistage", {"features", "vector", "final", "unet"}),
        ("classifier", {"features", "vector", "final"}),
        ("imagenet", {"features", "unet"}),
        ("segmentation", {"unet"}),
    ],
)
def test_each_method_has_its_parts(method, parts):
    network = MultiStage(method, "squeezenet1_1", 16, 4, 1)
    assert {name for name, _ in network.named_children()} == parts
    images = torch.rand(3, 3, 32, 32)
    if "final" in parts:
        assert network(images, "classify").shape == (3, 1)
    if "features" in parts:
        dim = 512 if method == "imagenet" else 16
        vectors = network(images, "vectors")
        assert vectors.shape == (3, dim)
        assert (vectors >= 0).all()
    if method == "segmentation":
        assert network(images, "segment").shape == (3, 1, 32, 32)
