from __future__ import annotations

import pytest
import torch
from lightning.fabric import Fabric
from torch import nn

from slidelens.engine import device
from slidelens.engine.device import autocast_plugin, evaluating, pick_device, uses_bf16
from slidelens.errors import ModelError


def test_names_of_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")


@pytest.mark.parametrize("name", ["gpu", "cuda:x", ""])
def test_a_name_torch_does_not_know(name):
    with pytest.raises(ModelError, match="is not one of auto, cpu, cuda"):
        pick_device(name)


def test_a_device_that_is_not_there():
    with pytest.raises(ModelError, match="'cuda:99' is not on this machine"):
        pick_device("cuda:99")


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(device, "_has_bf16", lambda _: True)
    assert uses_bf16(cpu, "auto")
    assert not uses_bf16(cpu, "fp32")
    monkeypatch.setattr(device, "_has_bf16", lambda _: False)
    assert not uses_bf16(cpu, "auto")
    assert uses_bf16(cpu, "bf16")


def test_cpu_flags_decide(monkeypatch):
    cpu = torch.device("cpu")
    for flags, expected in (({"avx512_bf16": True}, True), ({"avx512_f": True}, False)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        device._has_bf16.cache_clear()
        assert device._has_bf16(cpu) is expected
    device._has_bf16.cache_clear()


@pytest.mark.parametrize("bf16", [False, True])
def test_evaluating_ends_with_its_block(bf16):
    linear = nn.Linear(4, 4)
    with evaluating(torch.device("cpu"), bf16):
        inside = linear(torch.ones(1, 4))
        assert torch.is_inference_mode_enabled()
    assert inside.dtype == (torch.bfloat16 if bf16 else torch.float32)
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


class _Told(torch.nn.Linear):
    """Keeps what it was told and what it made of it."""

    def forward(self, place: torch.Tensor) -> torch.Tensor:
        self.seen = place, super().forward(place)
        return self.seen[1]


def test_training_in_bf16_multiplies_in_it_and_leaves_inputs_their_digits():
    fabric = Fabric(accelerator="cpu", devices=1, plugins=[autocast_plugin(torch.device("cpu"))])
    place = torch.tensor([[0.7123456]])
    module = _Told(1, 1)
    out = fabric.setup_module(module)(place)
    given, made = module.seen
    assert torch.equal(given, place)
    assert made.dtype == torch.bfloat16
    assert out.dtype == torch.float32
