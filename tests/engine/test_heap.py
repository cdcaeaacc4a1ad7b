"""Memory that runs have let go of goes back to the system when much has piled up."""

from __future__ import annotations

import platform
import subprocess
import sys
from mmap import PAGESIZE
from pathlib import Path

import numpy as np
import pytest
import torch

from slidelens.engine import heap
from slidelens.engine import predict as predicting
from slidelens.engine.heap import HeapTrimmer, heap_trimmer
from slidelens.nn.heap import trim_heap
from slidelens.slide.array import from_array
from slidelens.slide.cache import tile_cache

linux = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's heap is trimmed")


def resident() -> float:
    """Resident memory of this process in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * PAGESIZE / 2**20


def holes(mb: int) -> list[bytes]:
    """Fill the heap with blocks of 64 kB, free them, and return what keeps it from shrinking."""
    between, blocks = [], []
    for _ in range(mb * 16):
        blocks.append(np.ones(1 << 16, np.uint8))
        between.append(bytes(1 << 10))
    return between


@linux
@pytest.mark.parametrize("check", ["piled_up_holes", "what_steps_need"])
def test_heap(check):
    """In a process of its own: what others left in the heap changes what glibc does."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += f"import test_heap; test_heap.{check}()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def piled_up_holes():
    """Holes are given back once they have piled up."""
    trim_heap()
    trim = HeapTrimmer()
    for _ in range(3):
        trim(150 << 20)  # what a step needs
    before = resident()
    kept = holes(100)
    trim(150 << 20)
    assert resident() - before > 75
    kept += holes(300)  # the first holes are filled again, and more come
    trim(150 << 20)
    assert resident() - before < 100
    assert kept


def what_steps_need():
    """What every step needs is not given back."""
    trim_heap()
    trim = HeapTrimmer()
    kept = holes(200)
    before = resident()
    for _ in range(6):
        trim(150 << 20)
    assert abs(resident() - before) < 20
    assert kept


def test_neither_tiles_nor_their_room_are_holes(monkeypatch):
    trims, kept = [], tile_cache().used
    monkeypatch.setattr(heap, "trim_heap", lambda: trims.append(1))
    trim = HeapTrimmer()
    steps = [(0, 0, 0)] * 3 + [(300, 250, 0), (300, 150, 0), (400, 150, 1)]
    for grown, cached, expected in steps:
        monkeypatch.setattr(heap, "resident", lambda mb=grown: 1 << 30 | mb << 20)
        monkeypatch.setattr(tile_cache(), "used", kept + (cached << 20))
        trim(100 << 20)
        assert len(trims) == expected


def run_slide(model, side=128):
    tissue = np.full((side, side, 3), (200, 80, 150), np.uint8)
    with from_array(tissue, mpp=1.0) as slide:
        return predicting.predict(slide, model, device=torch.device("cpu"), batch_size=1)


def test_a_run_looks_at_every_step(tiny, monkeypatch):
    calls = []
    monkeypatch.setattr(HeapTrimmer, "__call__", lambda self, growth: calls.append((self, growth)))
    result = run_slide(tiny)
    assert result.tiles is not None
    assert len(calls) >= len(result.tiles)
    assert {trim for trim, _ in calls} == {heap_trimmer()}, "the next slide needs the same pages"
    assert all(growth > 0 for _, growth in calls)


def test_only_a_large_slide_is_trimmed_between_stages(tiny, monkeypatch):
    trims = []
    heap_trimmer.cache_clear()  # it knows the process as it was some tests ago
    monkeypatch.setattr(HeapTrimmer, "now", lambda _: trims.append(1))
    run_slide(tiny)
    assert not trims
    monkeypatch.setattr(predicting, "_LARGE", 100)
    run_slide(tiny)
    assert len(trims) == 2


def test_a_trim_from_outside_is_known(monkeypatch):
    """What was usual before it, of a larger model, is forgotten."""
    trims = []
    monkeypatch.setattr(heap, "trim_heap", lambda: trims.append(1))
    trim = HeapTrimmer()
    for grown in (4000, 4000, 4000):
        monkeypatch.setattr(heap, "resident", lambda mb=grown: mb << 20)
        trim(100 << 20)
    trim.now()
    for grown in (1000, 1000, 1000, 1300):
        monkeypatch.setattr(heap, "resident", lambda mb=grown: mb << 20)
        trim(100 << 20)
    assert len(trims) == 2
