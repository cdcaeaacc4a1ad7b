"""Backbones against torchvision's own networks."""

from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from slidelens.errors import ModelError
from slidelens.nn.backbones import (
    BACKBONES,
    build_features,
    freeze_norm_statistics,
    load_weights,
)


@pytest.fixture(scope="module")
def networks():
    """Torchvision's networks, with random weights, made when first asked for."""
    made = {}
    # With the weights that torchvision offers, the Inceptions transform their input.
    inception = {"transform_input": True, "init_weights": False}
    options = {"googlenet": inception, "inception_v3": inception}

    def network(name):
        if name not in made:
            torch.manual_seed(0)
            made[name] = models.get_model(name, weights=None, **options.get(name, {})).eval()
        return made[name]

    return network


def _penultimate(network, images):
    """What torchvision's network gives to its classifier, pooled."""
    if hasattr(network, "fc"):
        kept, network.fc = network.fc, torch.nn.Identity()
        try:
            return network(images)
        finally:
            network.fc = kept
    pooled = network.features(images).mean((2, 3), keepdim=True)
    first = network.classifier[0]
    return (first(pooled) if "LayerNorm" in type(first).__name__ else pooled).flatten(1)


@pytest.mark.parametrize("name", BACKBONES)
def test_loads_torchvisions_layout_and_gives_its_features(name, networks, tmp_path):
    network = networks(name)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    features = build_features(name).eval()
    report = load_weights(features, tmp_path / "w.safetensors")
    side = 96 if name == "inception_v3" else 64  # the least that it takes is 75
    images = torch.randn(2, 3, side, side)
    with torch.inference_mode():
        got, expected = features(images), _penultimate(network, images)
    assert got.shape == (2, features.dim)
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert features.trunk(images).shape[:2] == (2, features.dim)
    assert report.loaded == len(features.state_dict())
    assert report.ignored
    assert all(k.startswith(("fc.", "classifier.", "aux", "Aux")) for k in report.ignored)


def test_fp16_files_load_as_fp32(networks, tmp_path):
    halves = {k: v.half() for k, v in networks("squeezenet1_1").state_dict().items()}
    save_file(halves, tmp_path / "w.safetensors")
    features = build_features("squeezenet1_1")
    load_weights(features, tmp_path / "w.safetensors")
    weight = features.state_dict()["trunk.features.0.weight"]
    assert weight.dtype == torch.float32
    assert torch.equal(weight, halves["features.0.weight"].float())


@pytest.mark.parametrize(
    ("given", "wanted"),
    # Every tensor of resnet18 is in resnet34 with the same shape: the surplus must tell.
    [("resnet34", "resnet18"), ("resnet18", "resnet34"), ("squeezenet1_1", "resnet18")],
)
def test_weights_of_another_backbone_are_named(given, wanted, networks, tmp_path):
    save_file(networks(given).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=f"looks like {given}: use --backbone {given}"):
        load_weights(build_features(wanted), tmp_path / "w.safetensors")


def test_a_file_of_something_else_is_refused_with_its_fault(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"unknown \(first: a\).*torchvision's layout"):
        load_weights(build_features("squeezenet1_1"), tmp_path / "w.safetensors")
    (tmp_path / "text.safetensors").write_text("no tensors here")
    with pytest.raises(ModelError, match="not a safetensors file"):
        load_weights(build_features("squeezenet1_1"), tmp_path / "text.safetensors")
    with pytest.raises(ModelError, match="no such weights file"):
        load_weights(build_features("squeezenet1_1"), tmp_path / "none.safetensors")


def test_weights_of_another_shape_are_refused(networks, tmp_path):
    tensors = networks("squeezenet1_1").state_dict() | {"features.0.bias": torch.zeros(7)}
    save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="of another shape"):
        load_weights(build_features("squeezenet1_1"), tmp_path / "w.safetensors")


def test_without_a_network_the_way_out_is_said(monkeypatch):
    def fail(*_args, **_kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", fail)
    with pytest.raises(ModelError, match=r"no route to host.*--weights FILE.*--weights none"):
        load_weights(build_features("squeezenet1_1"), "imagenet")


def test_download_asks_for_checked_weights_only(monkeypatch, networks):
    asked = {}

    def give(url, **options):
        asked.update(options, url=url)
        return networks("squeezenet1_1").state_dict()

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", give)
    features = build_features("squeezenet1_1")
    load_weights(features, "imagenet")
    assert asked["weights_only"] is True
    assert asked["check_hash"] is True
    assert "squeezenet1_1" in asked["url"]
    expected = networks("squeezenet1_1").features[0].weight
    assert torch.equal(features.trunk.features[0].weight, expected)


@pytest.mark.realdata
def test_real_imagenet_weights_load(data):
    features = build_features("squeezenet1_1")
    report = load_weights(features, data / "weights" / "squeezenet1_1_imagenet.safetensors")
    assert report.ignored == ("classifier.1.bias", "classifier.1.weight")


def test_unknown_backbone_lists_the_known():
    with pytest.raises(ModelError, match=r"resnet18.*convnext_tiny"):
        build_features("resnet999")


def test_frozen_statistics_stay_while_scale_and_shift_learn():
    features = build_features("resnet18").train()
    freeze_norm_statistics(features)
    before = {k: v.clone() for k, v in features.state_dict().items() if "running" in k}
    features(torch.randn(2, 3, 64, 64)).sum().backward()
    assert all(torch.equal(features.state_dict()[k], v) for k, v in before.items())
    assert features.trunk.bn1.weight.grad is not None
    assert features.trunk.training
