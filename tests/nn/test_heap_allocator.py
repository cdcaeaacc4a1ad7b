"""Memory that is free is given back, and only when much of it has piled up."""

from __future__ import annotations

import ctypes
import os
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
        "other_tunables_do_not_matter",
    ],
)
def test_the_guard(what: str) -> None:
    """In a process of its own: what others left in the heap changes what glibc does."""
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); "
    code += f"from test_heap_allocator import {what}; {what}()"
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=env)


def test_a_step_says_its_end_once(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[bool] = []
    monkeypatch.setattr(HeapGuard, "__call__", lambda _, __, *, last=False: said.append(last))
    trunk = StreamingTrunk(torch.nn.Conv2d(3, 4, 3), 64)
    trunk(torch.randn(1, 3, 128, 128)).sum().backward()
    assert said[-1]
    assert said.count(True) == 1
    assert len(said) > 4


def test_in_a_forward_pass_alone_the_output_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    needs: list[int] = []
    monkeypatch.setattr(HeapGuard, "__call__", lambda _, need, *, last=False: needs.append(need))
    trunk = StreamingTrunk(torch.nn.Conv2d(3, 4, 3), 64)
    image = torch.randn(1, 3, 128, 128)
    trunk(image).sum().backward()
    learning = set(needs)
    needs.clear()
    with torch.no_grad():
        output = trunk(image)
    assert {need - output.numel() * 4 for need in needs} == learning


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


def kept_of_a_layer(glibc: ctypes.CDLL) -> float:
    """Return how much of the 40 MB of a layer's maps stays resident when they are freed."""
    size, count = 2 * MB, 20
    filled = [glibc.malloc(size) for _ in range(100)]  # holes that imports have left
    trim_heap()
    before = resident()
    maps = [glibc.malloc(size) for _ in range(count)]
    for at in maps:
        ctypes.memset(at, 1, size)
    for at in maps:
        glibc.free(at)
    kept = resident() - before
    for at in filled:
        glibc.free(at)
    return kept / (count * size)


def keep_little() -> ctypes.CDLL:
    """Let glibc keep 1 MB of free pages: by itself it comes to anything up to 64 MB."""
    glibc = c_library()
    assert glibc.mallopt(-1, MB)  # M_TRIM_THRESHOLD
    assert glibc.mallopt(-3, 32 * MB)  # M_MMAP_THRESHOLD
    assert kept_of_a_layer(glibc) < 0.2
    return glibc


def layers_keep_their_pages() -> None:
    glibc = keep_little()
    keep_pages()
    assert kept_of_a_layer(glibc) > 0.8


def a_users_limits_stay() -> None:
    glibc = keep_little()
    os.environ["GLIBC_TUNABLES"] = "glibc.malloc.top_pad=0"
    keep_pages()
    assert kept_of_a_layer(glibc) < 0.2


def other_tunables_do_not_matter() -> None:
    glibc = keep_little()
    os.environ["GLIBC_TUNABLES"] = "glibc.pthread.rseq=0"
    keep_pages()
    assert kept_of_a_layer(glibc) > 0.8
