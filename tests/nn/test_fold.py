"""Frozen norms become part of the convolutions before them: where they can, and exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, errors, gradients, image_of, settle
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from slidelens.nn.frozen import freeze_norms
from slidelens.nn.streaming import StreamingTrunk
from slidelens.nn.streaming.trace import trace


def norms_left(module: nn.Module) -> int:
    layers = dict(module.named_modules())
    nodes = trace(module).nodes
    return sum(isinstance(layers.get(node.module or " "), nn.BatchNorm2d) for node in nodes)


def check(module: nn.Module) -> None:
    """Stream it, and compare with what PyTorch makes of it."""
    image = image_of((50, 61), 2, nhwc=False).requires_grad_()
    expected = gradients(module, module, image)
    found = errors(gradients(StreamingTrunk(module, (16, 24)), module, image), expected)
    assert max(found.values()) <= TOLERANCE, found


class Twice(nn.Module):
    """Layers that are used more than once, as ``how`` says."""

    def __init__(self, how: Callable[[Twice, Tensor], Tensor]) -> None:
        super().__init__()
        self.how = how
        self.conv, self.other = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_a_norm_after_a_convolution(bias: bool, affine: bool) -> None:
    parts = [nn.Conv2d(3, 4, 3, 2, bias=bias), nn.BatchNorm2d(4, eps=0.1, affine=affine), nn.ReLU()]
    module = settle(nn.Sequential(*parts, nn.Conv2d(4, 2, 3, groups=2, bias=False),
                                  nn.BatchNorm2d(2, affine=affine)))  # fmt: skip
    assert norms_left(module) == 0
    check(module)


def test_a_scale_of_zero_has_its_gradient() -> None:
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3)))
    with torch.no_grad():
        module[1].weight[1:3] = 0
    check(module)
    assert module[1].weight.grad is not None
    assert bool((module[1].weight.grad[1:3] != 0).all())


@pytest.mark.parametrize(
    ("left", "how"),
    [
        (1, lambda m, x: m.conv(x) + m.norm(m.conv(x))),
        (2, lambda m, x: m.norm(m.conv(m.second(m.conv(x))))),
        (0, lambda m, x: m.norm(m.other(m.norm(m.conv(x))))),
        (1, lambda m, x: m.second(m.norm(m.conv(x)))),
        (1, lambda m, x: m.conv(m.norm(x))),
        (1, lambda m, x: (lambda y: y + m.norm(y))(m.conv(x))),
    ],
)
def test_only_norms_that_alone_read_a_convolution(
    left: int, how: Callable[[Twice, Tensor], Tensor]
) -> None:
    module = settle(Twice(how))
    assert norms_left(module) == left
    check(module)


def test_shared_weights_stay() -> None:
    module = Twice(lambda m, x: m.other(m.norm(m.conv(x))))
    module.other.weight = module.conv.weight
    assert norms_left(settle(module)) == 1
    check(module)


@pytest.mark.parametrize(
    ("left", "how"),
    [
        (1, lambda m, x: F.conv2d(m.norm(m.conv(x)), m.conv.weight, padding=1)),
        (1, lambda m, x: m.norm(m.conv(x)) / m.conv.weight.norm()),
        (1, lambda m, x: m.norm(m.conv(x)) + m.conv.bias.view(1, -1, 1, 1)),
        (0, lambda m, x: m.norm(m.conv(x)) * m.norm.weight.view(1, -1, 1, 1) + m.other.bias.sum()),
    ],
)
def test_weights_that_the_code_reads_too_stay_as_they_are(
    left: int, how: Callable[[Twice, Tensor], Tensor]
) -> None:
    module = settle(Twice(how))
    assert norms_left(module) == left
    check(module)


@pytest.mark.parametrize("kind", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_parametrized_weights_stay_what_they_are(kind: Callable[[nn.Module], nn.Module]) -> None:
    """What is put in the place of such a weight would be written into the user's parameters."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    for layer in (0, 3):
        kind(module[layer])
    settle(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    image = image_of((50, 61), 1, nhwc=False)
    with torch.no_grad():
        twice = [StreamingTrunk(module, (16, 24))(image) for _ in range(2)]
        whole = module(image)
    assert all(float((one - whole).abs().max()) <= TOLERANCE for one in twice)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    check(module)


def test_norms_that_are_frozen_whole() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))
    freeze_norms(module)
    assert norms_left(settle(module)) == 0
    check(module)


def test_half_weights_are_rounded_once() -> None:
    module = settle(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))).float().bfloat16()
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        exact = module.float()(image)
        module.bfloat16()
        plain, ours = module(image.bfloat16()), StreamingTrunk(module, 16)(image.bfloat16())
    assert ours.dtype == torch.bfloat16
    worst = [float((y.float() - exact).abs().max()) for y in (plain, ours)]
    assert worst[1] <= 2 * worst[0]
