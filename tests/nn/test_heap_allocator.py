"""Memory that is free is given back, and only when much of it has piled up."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slidelens.nn import heap
from slidelens.nn.heap import HeapGuard, trim_heap
from slidelens.nn.streaming import StreamingTrunk

MB = 1 << 20

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and asks glibc")


def resident() -> int:
    found = heap.resident()
    assert found is not None
    return found


def pile_up(count: int) -> list[torch.Tensor]:
    """Fill and free blocks of 4 MB with others between them that stay.

    Those are larger than the holes that imports leave in the heap: they would go there.
    """
    torch.ones(4 * MB)  # from here on glibc takes such blocks from its heap
    blocks, between = [], []
    for _ in range(count):
        blocks.append(torch.ones(MB))
        between.append(torch.ones(MB // 8))
    return between


@pytest.mark.parametrize(
    "what", ["much_is_given_back", "what_tiles_need_is_kept", "at_the_end_it_is_given_back"]
)
def test_the_guard(what: str) -> None:
    """In a process of its own: what others left in the heap changes what glibc does."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += f"from test_heap_allocator import {what}; {what}()"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_step_says_its_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    monkeypatch.setattr(HeapGuard, "__call__", lambda _, __, *, last=False: said.append(last))
    trunk = StreamingTrunk(torch.nn.Conv2d(3, 4, 3), 64)
    trunk(torch.randn(1, 3, 128, 128)).sum().backward()
    assert said[-1]
    assert said.count(True) == 1
    assert len(said) > 4


def much_is_given_back() -> None:
    trim_heap()
    guard = HeapGuard()
    guard(0)
    between = pile_up(100)
    before = resident()
    guard(0)
    assert before - resident() > 250 * MB
    assert all(bool((t == 1).all()) for t in between)


def what_tiles_need_is_kept() -> None:
    trim_heap()
    guard = HeapGuard()
    guard(0)
    between = pile_up(100)
    before = resident()
    guard(1000 * MB)
    assert abs(before - resident()) < 20 * MB
    assert len(between) == 100


def at_the_end_it_is_given_back() -> None:
    trim_heap()
    guard = HeapGuard()
    guard(0)
    between = pile_up(100)
    before = resident()
    guard(1000 * MB)
    guard(1000 * MB, last=True)
    assert before - resident() > 250 * MB
    assert len(between) == 100
