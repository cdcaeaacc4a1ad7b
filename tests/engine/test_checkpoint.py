"""Checkpoints: whole or not at all, and everything comes back."""

from __future__ import annotations

import errno
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from slidelens.engine.training.checkpoint import (
    Checkpoint,
    CheckpointStore,
    random_state,
    restore_random,
)
from slidelens.engine.training.optimiser import optimizer_state, restore_optimizer
from slidelens.errors import ModelError, ResultError


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "training")


def _checkpoint(value):
    return Checkpoint({"model.w": torch.full((3,), float(value))}, {"epoch": value})


def test_the_latest_comes_back_and_the_one_before_is_gone(store):
    assert not store.exists
    for value in (1, 2):
        store.save(_checkpoint(value))
    loaded = store.load()
    assert loaded.record["epoch"] == 2
    assert torch.equal(loaded.part("model.")["w"], torch.full((3,), 2.0))
    assert len(list(store.folder.glob("*.safetensors"))) == 1
    store.clear()
    assert not list(store.folder.iterdir())


@pytest.mark.parametrize("fails_on", ["safetensors", "json"])
def test_a_full_disk_leaves_the_old_checkpoint(store, monkeypatch, fails_on):
    store.save(_checkpoint(1))
    before = {p.name: p.read_bytes() for p in store.folder.iterdir()}
    replace = Path.replace

    def fail(self, target):
        if str(target).endswith(fails_on):
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ResultError, match=r"No space left.*is as it was.*--resume"):
        store.save(_checkpoint(2))
    monkeypatch.undo()
    assert store.load().record["epoch"] == 1
    after = {p.name: p.read_bytes() for p in store.folder.iterdir()}
    assert before.items() <= after.items()
    store.save(_checkpoint(3))  # and the next one succeeds
    assert store.load().record["epoch"] == 3


def test_damage_is_said(store):
    store.save(_checkpoint(1))
    next(store.folder.glob("*.safetensors")).write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot read checkpoint"):
        store.load()
    (store.folder / "checkpoint.json").write_text("{}")
    with pytest.raises(ModelError, match=r"checkpoint.json is not of this version"):
        store.load()


def test_weights_of_epochs_are_kept_as_asked(store):
    for epoch in range(4):
        store.save_weights(epoch, {"w": torch.tensor([float(epoch)])})
    store.keep_weights({1, 3})
    assert store.load_weights(3)["w"].item() == 3
    with pytest.raises(ModelError, match="epoch-00002"):
        store.load_weights(2)


def test_generators_continue_where_they_were():
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    random.seed(1)
    tensors, record = random_state()

    def draw():
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()  # noqa: NPY002

    first = draw()
    assert draw() != first
    restore_random(tensors, record)
    assert draw() == first


def test_every_device_gets_its_own_state_back_where_there_are_more_than_ten(monkeypatch):
    tensors, record = random_state()
    tensors = {k: v for k, v in tensors.items() if not k.startswith("cuda.")}
    tensors |= {f"cuda.{device}": torch.tensor([device]) for device in range(12)}
    given = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 12)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.extend)
    restore_random(tensors, record)
    assert [state.item() for state in given] == list(range(12))


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_optimisers_continue_bit_for_bit(kind):
    def make():
        torch.manual_seed(0)
        module = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        return module, kind(module.parameters(), lr=0.1, **options)

    def step(module, optimizer, seed):
        torch.manual_seed(seed)
        module(torch.randn(1, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    module, optimizer = make()
    step(module, optimizer, 1)
    weights = {k: v.clone() for k, v in module.state_dict().items()}
    tensors, groups = optimizer_state(optimizer)
    tensors = {k: v.clone() for k, v in tensors.items()}
    other, resumed = make()
    other.load_state_dict(weights)
    restore_optimizer(resumed, tensors, groups)
    for seed in (2, 3):
        step(module, optimizer, seed)
        step(other, resumed, seed)
    for key, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[key])
