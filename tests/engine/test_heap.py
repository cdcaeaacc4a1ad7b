"""Memory that a run has let go of goes back to the system while the run goes on."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from slidelens.engine import heap
from slidelens.engine import predict as predicting
from slidelens.engine.heap import HeapTrimmer
from slidelens.slide.array import from_array
from slidelens.slide.cache import tile_cache

linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap is trimmed")


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


def holes(mb: int) -> list[bytes]:
    """Fill the heap with blocks of 64 kB, free them, and return what keeps it from shrinking."""
    between, blocks = [], []
    for _ in range(mb * 16):
        blocks.append(np.ones(1 << 16, np.uint8))
        between.append(bytes(1 << 10))
    return between


@linux
@pytest.mark.parametrize("check", ["free_pages", "piled_up_holes", "what_steps_need"])
def test_heap(check):
    """In a process of its own: what others left in the heap changes what glibc does."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += f"import test_heap; test_heap.{check}()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def free_pages():
    """Free pages between kept objects are given back."""
    HeapTrimmer.now()
    kept = holes(200)
    before = resident()
    HeapTrimmer.now()
    assert before - resident() > 100
    assert sum(map(len, kept)) == 200 * 16 << 10


def piled_up_holes():
    """Holes are given back once they have piled up."""
    HeapTrimmer.now()
    trim = HeapTrimmer(growth=150 << 20)
    for _ in range(3):
        trim()  # what a step needs
    before = resident()
    kept = holes(100)
    trim()
    assert resident() - before > 75
    kept += holes(300)  # the first holes are filled again, and more come
    trim()
    assert resident() - before < 100
    assert kept


def what_steps_need():
    """What every step needs is not given back."""
    HeapTrimmer.now()
    trim = HeapTrimmer(growth=150 << 20)
    kept = holes(200)
    before = resident()
    for _ in range(6):
        trim()
    assert abs(resident() - before) < 20
    assert kept


def test_tiles_that_are_kept_are_no_holes(monkeypatch):
    trims, kept = [], tile_cache().used
    monkeypatch.setattr(heap, "trim_heap", lambda: trims.append(1))
    trim = HeapTrimmer(growth=100 << 20)
    for grown, cached, expected in [(0, 0, 0)] * 3 + [(300, 250, 0), (300, 150, 1)]:
        monkeypatch.setattr(heap, "resident", lambda mb=grown: 1 << 30 | mb << 20)
        monkeypatch.setattr(tile_cache(), "used", kept + (cached << 20))
        trim()
        assert len(trims) == expected


def test_a_run_looks_at_every_step(tiny, monkeypatch):
    calls = []

    class Counting(HeapTrimmer):
        def __call__(self) -> None:
            calls.append(1)
            super().__call__()

    monkeypatch.setattr(predicting, "HeapTrimmer", Counting)
    tissue = np.full((128, 128, 3), (200, 80, 150), np.uint8)
    with from_array(tissue, mpp=1.0) as slide:
        result = predicting.predict(slide, tiny, device=torch.device("cpu"), batch_size=1)
    assert result.tiles is not None
    assert len(calls) >= len(result.tiles)
