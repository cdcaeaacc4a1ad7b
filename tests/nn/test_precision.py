"""Weights that are cast once."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from slidelens.nn.backbones import build_features
from slidelens.nn.multistage import MultiStage
from slidelens.nn.precision import cast_once, halved
from slidelens.nn.slide_classifier import SlideClassifier


class Casts(TorchDispatchMode):
    """Counts what is cast to bfloat16."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self.count += kwargs.get("dtype") is torch.bfloat16 and "_to_copy" in str(func)
        return func(*args, **kwargs)


NETWORKS = ["squeezenet1_1", "resnet18", "mobilenet_v3_small", "convnext_tiny"]


@pytest.mark.parametrize("name", NETWORKS)
def test_it_gives_the_values_of_autocast(name):
    torch.manual_seed(0)
    features = build_features(name).eval()
    images = torch.randn(1, 3, 32, 32)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        quick = cast_once(features)
        assert torch.equal(quick(images), features(images))
    assert quick is not features
    assert all(p.dtype == torch.float32 for p in features.parameters())


def test_nothing_is_copied_that_is_not_cast():
    features = build_features("resnet18").eval()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        quick = cast_once(features).state_dict()
    for name, values in features.state_dict().items():
        assert (quick[name].data_ptr() == values.data_ptr()) == (quick[name].dtype == values.dtype)


def test_no_weight_is_cast_at_a_step():
    features = build_features("squeezenet1_1").eval()
    images = torch.randn(1, 3, 64, 64)
    layers = sum(isinstance(layer, torch.nn.Conv2d) for layer in features.modules())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        with Casts() as plain:
            features(images)
        quick = cast_once(features)
        with Casts() as once:
            quick(images)
    assert plain.count == 2 * layers + 1  # weights, biases, the images
    assert once.count == 1


def _distinct(scores):
    assert scores.dtype == torch.float32
    return len(scores.unique()) / scores.numel()


@pytest.mark.parametrize("pooling", ["max", "mean", "lse"])
def test_scores_of_slides_do_not_tie_under_autocast(pooling):
    """Rounded to 8 bits, 400 slides had 95 scores."""
    torch.manual_seed(0)
    network = SlideClassifier("squeezenet1_1", 2, layers="features.5", pooling=pooling)
    cells = torch.rand(400, network.features.dim, 2, 2)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = network.score(network.pooled(cells.bfloat16()))
    assert _distinct(scores) > 0.95


@pytest.mark.parametrize("part", ["classify", "segment"])
def test_scores_of_patches_do_not_tie_under_autocast(part):
    torch.manual_seed(0)
    network = MultiStage("multistage", "squeezenet1_1", 16, 8, 1).eval()
    inputs = torch.rand(1, 16, 20, 20) if part == "segment" else torch.rand(60, 3, 32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = network(inputs, part)
        assert torch.equal(cast_once(network)(inputs, part), scores)
    assert _distinct(scores) > 0.95


def test_without_autocast_it_is_the_network_itself():
    features = build_features("squeezenet1_1")
    assert cast_once(features) is features


def test_values_too_large_for_half_precision_are_kept_as_they_are():
    assert halved(torch.tensor([1.0, 65_000.0])).dtype == torch.float16
    large = torch.tensor([1.0, 70_000.0])
    assert torch.equal(halved(large), large)
