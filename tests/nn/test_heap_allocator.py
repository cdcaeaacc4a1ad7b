"""Memory that is free is given back, and only when much of it has piled up."""

from __future__ import annotations

import ctypes
import mmap
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from slidelens.nn import heap
from slidelens.nn.heap import HeapGuard, keep_pages, trim_heap
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
    "what",
    [
        "much_is_given_back",
        "what_tiles_need_is_kept",
        "at_the_end_it_is_given_back",
        "layers_keep_their_pages",
        "a_users_limits_stay",
    ],
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


def c_library() -> ctypes.CDLL:
    glibc = ctypes.CDLL(None)
    glibc.malloc.restype = ctypes.c_void_p
    glibc.malloc.argtypes = [ctypes.c_size_t]
    glibc.free.argtypes = [ctypes.c_void_p]
    return glibc


def faults_of_layers(glibc: ctypes.CDLL) -> float:
    """Return the page faults of twenty layers, each with 20 maps of 2 MB, per page of those."""
    size, count = 2 * MB, 20
    filled = [glibc.malloc(size) for _ in range(100)]  # holes that imports have left
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(count):
        maps = [glibc.malloc(size) for _ in range(count)]
        for at in maps:
            ctypes.memset(at, 1, size)
        for at in maps:
            glibc.free(at)
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    for at in filled:
        glibc.free(at)
    return faults / (count * count * size / mmap.PAGESIZE)


def keep_little() -> ctypes.CDLL:
    """Let glibc keep 1 MB of free pages: by itself it comes to anything up to 64 MB."""
    glibc = c_library()
    assert glibc.mallopt(-1, MB)  # M_TRIM_THRESHOLD
    assert glibc.mallopt(-3, 32 * MB)  # M_MMAP_THRESHOLD
    assert faults_of_layers(glibc) > 0.5
    return glibc


def layers_keep_their_pages() -> None:
    glibc = keep_little()
    keep_pages()
    assert faults_of_layers(glibc) < 0.2


def a_users_limits_stay() -> None:
    glibc = keep_little()
    os.environ["MALLOC_TOP_PAD_"] = "0"
    keep_pages()
    assert faults_of_layers(glibc) > 0.5
