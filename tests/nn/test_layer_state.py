"""Layers whose calls or settings a trunk would miss are told, not passed over."""

from __future__ import annotations

from types import MethodType
from typing import Any

import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, relative_error, settle
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from slidelens.errors import StreamingError
from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.streaming import StreamingTrunk

FIELD = ReceptiveField(-2, 2, 1)


class Scaled(nn.Module):
    """A convolution, an average and a norm, and plain attributes that forward() uses."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.pool = nn.AvgPool2d(3, 1, 1)
        self.scale, self.shifts, self.twice = 1.0, (0.0, 0.5), None

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.norm(self.conv(x))) * self.scale + self.shifts[1]
        return 2 * x if self.twice else x


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 40, 41, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("path", ["", "conv", "pool"])
@pytest.mark.parametrize("field", [None, FIELD])
def test_a_forward_of_a_layers_own_is_refused(path: str, field: ReceptiveField | None) -> None:
    module = settle(Scaled())
    layer = module.get_submodule(path)
    forward = layer.forward
    layer.forward = lambda x: 10 * forward(x)
    with pytest.raises(StreamingError, match=rf"layer '{path}' \(.*has another forward\(\) than"):
        StreamingTrunk(module, 16, field=field)
    del layer.forward
    trunk = StreamingTrunk(module, 16, field=field)
    layer.forward = lambda x: 10 * forward(x)
    with pytest.raises(StreamingError, match=rf"is now layer '{path}', .* with a hook"):
        trunk(picture())


def test_another_convolution_of_a_layers_own_is_refused() -> None:
    def adapted(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return nn.functional.conv2d(x, 2 * weight, bias, padding=1)

    module = settle(Scaled())
    module.conv._conv_forward = MethodType(adapted, module.conv)
    with pytest.raises(StreamingError, match=r"'conv'.* another _conv_forward\(\)"):
        StreamingTrunk(module, 16)


@pytest.mark.parametrize(
    ("path", "name", "value", "told"),
    [
        ("", "scale", 5.0, "scale=1.0 when .* scale=5.0"),
        ("", "shifts", (0.0, 1.0), r"shifts=\(0.0, 0.5\) when"),
        ("", "twice", True, "twice=None when .* twice=True"),
        ("", "more", "text", "more='text'"),
        ("pool", "count_include_pad", False, "'pool', .* count_include_pad=False"),
        ("norm", "running_mean", None, "'norm', .* without running statistics"),
    ],
)
def test_what_is_set_later_is_noticed(path: str, name: str, value: object, told: str) -> None:
    module = settle(Scaled())
    trunk, image = StreamingTrunk(module, 16), picture()
    trunk(image)
    setattr(module.get_submodule(path), name, value)
    with pytest.raises(StreamingError, match=told):
        trunk(image)


def test_what_a_trunk_does_not_look_at_may_change() -> None:
    module = settle(Scaled())
    trunk, image = StreamingTrunk(module, 16), picture()
    module._calls, module.names = 1, ["a"]
    module.conv.weight.requires_grad_(False)
    with torch.no_grad():
        assert relative_error(trunk(image), module(image)) <= TOLERANCE


def test_a_spectral_norm_that_every_call_changes_is_refused() -> None:
    module = settle(Scaled())
    parametrizations.spectral_norm(module.conv).train()
    with pytest.raises(
        StreamingError, match=r"spectral norm 'conv\.parametrizations\.weight\.0' is in"
    ):
        StreamingTrunk(module, 16)
    module.eval()
    with torch.no_grad():
        expected = module(picture())
        assert relative_error(StreamingTrunk(module, 16)(picture()), expected) <= TOLERANCE
