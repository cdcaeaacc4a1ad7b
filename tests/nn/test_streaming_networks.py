"""Well-known networks, streamed, equal the module: kernels, strides and depth as published."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision.models as tv
from tests.nn.streaming_oracle import TOLERANCE, errors, gradients, settle
from torch import nn

from slidelens.nn.streaming import StreamingTrunk

SHARE = 16  # of the channels


def resnet(make: Callable[..., tv.ResNet]) -> nn.Module:
    net = make()
    return nn.Sequential(
        net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3,
        net.layer4[0],
    )  # fmt: skip


def googlenet() -> nn.Module:
    net = tv.googlenet(aux_logits=False, init_weights=False)
    parts = list(net.named_children())
    last = [name for name, _ in parts].index("inception4e")
    return nn.Sequential(*(part for _, part in parts[: last + 1]))


def convnext() -> nn.Module:
    return tv.convnext_tiny().features[:4]


# Networks, with an image that their strides do not divide, and a tile.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int], tuple[int, int]]] = {
    "resnet18": (lambda: resnet(tv.resnet18), (201, 165), (64, 96)),
    "resnet34": (lambda: resnet(tv.resnet34), (165, 201), (96, 64)),
    "resnet50": (lambda: resnet(tv.resnet50), (133, 165), (64, 64)),
    "squeezenet": (lambda: tv.squeezenet1_1().features, (165, 133), (48, 64)),
    "vgg16-bn": (lambda: tv.vgg16_bn().features, (133, 101), (64, 64)),
    "googlenet": (googlenet, (133, 165), (64, 80)),
    "densenet121": (lambda: tv.densenet121().features[:7], (101, 133), (48, 64)),
    "convnext-tiny": (convnext, (131, 101), (48, 56)),
}


def thin(module: nn.Module) -> nn.Module:
    """Keep a sixteenth of the channels of every layer."""

    def share(n: int) -> int:
        return max(n // SHARE, 1)

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            cin = layer.in_channels if layer.in_channels == 3 else share(layer.in_channels)
            cout = share(layer.out_channels)
            grouped = layer.groups > 1
            layer.in_channels, layer.out_channels = cin, cout
            layer.groups = cin if grouped else 1
            rest = (1 if grouped else cin, *layer.kernel_size)
            layer.weight = nn.Parameter(torch.empty(cout, *rest))
            if layer.bias is not None:
                layer.bias = nn.Parameter(torch.empty(cout))
        elif isinstance(layer, nn.BatchNorm2d | nn.LayerNorm | nn.Linear):
            replace_vectors(layer, share)
    for owner in module.modules():
        scale = owner._parameters.get("layer_scale")
        if scale is not None:
            owner._parameters["layer_scale"] = nn.Parameter(scale.detach()[: share(len(scale))])
    return module


def replace_vectors(layer: Any, share: Callable[[int], int]) -> None:
    for tensors in (layer._parameters, layer._buffers):
        for name, value in tensors.items():
            if value is not None and value.dim():
                fewer = torch.empty([share(n) for n in value.shape])
                tensors[name] = nn.Parameter(fewer) if tensors is layer._parameters else fewer
    if isinstance(layer, nn.LayerNorm):
        layer.normalized_shape = tuple(share(n) for n in layer.normalized_shape)


def densenet_thin() -> nn.Module:
    # Concatenation makes channels that do not divide: built thin instead.
    net = tv.DenseNet(growth_rate=2, block_config=(6, 12), num_init_features=4, bn_size=4)
    return net.features[:7]


@pytest.mark.parametrize("scheme", ["seam", "halo"])
@pytest.mark.parametrize("name", NETWORKS)
def test_thin(name: str, scheme: str) -> None:
    make, size, tile = NETWORKS[name]
    module = settle(densenet_thin() if name == "densenet121" else thin(make().eval()))
    if scheme == "halo":
        # Halos are wide: tiles along one axis only.
        field = StreamingTrunk(module).graph.field[0]
        tile = (sum(field.halo) + 2 * field.stride, 80)
        size = (tile[0] + 2 * field.stride + 5, 67)
    check(module, size, tile, scheme)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_full_width(name: str) -> None:
    make, size, tile = NETWORKS[name]
    check(settle(make().eval()), size, tile, "seam")


def check(module: nn.Module, size: tuple[int, ...], tile: tuple[int, ...], scheme: str) -> None:
    generator = torch.Generator().manual_seed(5)
    image = torch.randn(1, 3, *size, generator=generator, dtype=torch.float64).requires_grad_()
    trunk = StreamingTrunk(module, tile, scheme=scheme)
    plan = trunk.plan(*size)
    assert plan.scheme == scheme
    assert plan.tiles > 1
    found = errors(gradients(trunk, module, image), gradients(module, module, image))
    assert len(found) == 2 + len(list(module.parameters()))
    assert max(found.values()) <= TOLERANCE, found
