"""The part of the streaming benchmark that needs a GPU runs on a CPU too, on a small image."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "streaming.py"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    spec = spec_from_file_location("benchmark_streaming", SCRIPT)
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_training_steps_in_both_precisions_and_against_the_whole_image(script):
    claims, figures = script.gpu(160, (96,), (128,), device="cpu")
    steps, pairs = figures["gpu"]["steps"], figures["gpu"]["against_whole"]
    assert [s["precision"] for s in steps] == ["float32", "bfloat16"]
    assert all(s["seconds"] > 0 and s["size"] == 160 and s["tile"] == 96 for s in steps)
    assert all(s["peak_gb"] is None for s in steps)  # which only CUDA tells
    assert [p["whole"]["tile"] for p in pairs] == [None, None]
    assert all(p["ratio"] > 0 for p in pairs)
    assert [c.value for c in claims] == [p["ratio"] for p in pairs]
    assert all(c.holds is None for c in claims)
