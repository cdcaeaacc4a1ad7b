"""Modules that are not looked into: what would make tiles wrong is refused, and nothing changed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from tests.nn.streaming_oracle import TOLERANCE, relative_error, settle
from torch import Tensor, nn

from slidelens.errors import StreamingError
from slidelens.nn.receptive import ReceptiveField
from slidelens.nn.streaming import StreamingTrunk

FIELD = ReceptiveField(-1, 1, 1)


class Opaque(nn.Module):
    """Branches on the shape of its input, counts its calls and may write into the input."""

    def __init__(self, *, writes: bool = False) -> None:
        super().__init__()
        self.writes = writes
        self.conv, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        if self.writes:
            x.mul_(2)
        return self.drop(self.norm(self.conv(x))) if x.shape[2] > 1 else x


def picture() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, 40, 41, generator=generator, dtype=torch.float64)


def _no_statistics(module: nn.Module) -> None:
    module.norm = nn.BatchNorm2d(4, track_running_stats=False).eval()


@pytest.mark.parametrize(
    ("prepare", "told"),
    [
        (lambda m: m.train(), "'norm' .*training mode; call eval"),
        (lambda m: m.drop.train(), "'drop' .*training mode; call eval"),
        (_no_statistics, "'norm' .*no running statistics"),
        (lambda m: m.conv.register_forward_hook(lambda *_: None), "'conv' .*has a hook"),
    ],
)
def test_layers_that_would_see_tiles_are_refused_before_anything_runs(
    prepare: Callable[[nn.Module], object], told: str
) -> None:
    module = settle(Opaque())
    prepare(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(StreamingError, match=told):
        StreamingTrunk(module, 24, field=FIELD)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_making_a_trunk_leaves_the_module_as_it_is() -> None:
    module = settle(Opaque())
    before = {name: value.clone() for name, value in module.state_dict().items()}
    StreamingTrunk(module, 24, field=FIELD)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_a_module_that_writes_into_its_input_leaves_the_image_alone() -> None:
    module, image = settle(Opaque(writes=True)), picture()
    before = image.clone()
    with torch.no_grad():
        found = StreamingTrunk(module, 24, field=FIELD)(image)
        assert torch.equal(image, before)
        assert relative_error(found, module(before)) <= TOLERANCE


def test_torchscript_is_refused_in_words() -> None:
    module = torch.jit.trace(nn.Conv2d(3, 4, 3, padding=1), torch.zeros(1, 3, 8, 8))
    with pytest.raises(StreamingError, match=r"TorchScript.*stream the Python module"):
        StreamingTrunk(module, 24, field=FIELD)
