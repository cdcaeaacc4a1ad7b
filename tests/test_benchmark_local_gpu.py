"""The benchmark of local networks that needs a GPU runs on a CPU too, on a small image."""

from __future__ import annotations

import pytest

from benchmark_script import load


@pytest.fixture
def script(monkeypatch):
    module = load(monkeypatch, "local_gpu")
    monkeypatch.setattr(module, "DEVICE", "cpu")
    return module


@pytest.mark.parametrize(("modules", "tile"), [(0, 0), (4, 0), (4, 64)])
def test_a_step_is_taken_and_memory_is_counted_on_cuda_alone(script, modules, tile):
    assert script.step(modules, tile, 64, 96) == (None, None)


def test_peaks_are_judged_where_plain_training_fits(script):
    row = {
        "size": "1 x 1",
        "plain_mb": 1000.0,
        "modules_4_mb": 350.0,
        "modules_4_streamed_mb": 200.0,
        "modules_8_mb": 250.0,
        "modules_8_streamed_mb": 220.0,
    }
    claims = script.judged(row, 0)
    assert [(c.value, c.target, c.holds) for c in claims] == [
        (0.2, "<= 0.299", True), (0.35, "", None), (0.22, "<= 0.207", False), (0.25, "", None),
    ]  # fmt: skip
    assert row["modules_4_streamed_to_plain"] == 0.2
    assert script.judged({**row, "plain_mb": None}, 0) == []
