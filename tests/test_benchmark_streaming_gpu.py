"""The benchmark of streaming that needs a GPU runs on a CPU too, on a small image."""

from __future__ import annotations

import pytest

from benchmark_script import load


@pytest.fixture
def script(monkeypatch):
    script = load(monkeypatch, "streaming_gpu")
    monkeypatch.setattr(script, "NETWORK", ("resnet18", "layer2"))
    return script


def test_steps_in_both_precisions(script):
    claims, steps = script.paper(160, (64, 96), "cpu")
    assert [(s["precision"], s["tile"]) for s in steps] == [
        ("float32", 64), ("float32", 96), ("bfloat16", 64), ("bfloat16", 96),
    ]  # fmt: skip
    assert all(s["seconds"] > 0 and s["size"] == 160 and s["planned_gb"] > 0 for s in steps)
    assert all(s["peak_gb"] is None for s in steps)  # which only CUDA tells
    assert claims == []


def test_against_the_whole_image(script):
    claims, pairs = script.against_whole((128,), 96, "cpu", rounds=1)
    assert [p["whole"]["tile"] for p in pairs] == [None, None]
    assert [p["streamed"]["tile"] for p in pairs] == [96, 96]
    assert [c.value for c in claims] == [round(p["ratio"], 3) for p in pairs]


def test_the_image_has_the_size_and_no_two_strips_are_alike(script):
    image = script.random_image(600)
    assert image.shape == (1, 3, 600, 600)
    assert not (image[:, :, :256] == image[:, :, 256:512]).all()
