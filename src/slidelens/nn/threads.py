"""Threads that share out the cores: each runs PyTorch with a part of them."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import Barrier, Lock
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

__all__ = ["modes_here", "threads_of"]

_lock = Lock()


def modes_here() -> Callable[[], AbstractContextManager[None]]:
    """Return what enters this thread's inference mode and autocast on a CPU, in another thread."""
    inference, autocast = torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
    dtype = torch.get_autocast_dtype("cpu")

    @contextmanager
    def entered() -> Iterator[None]:
        with (
            torch.inference_mode(inference),
            torch.no_grad(),  # last: leaving inference mode turns gradients on
            torch.autocast("cpu", dtype, enabled=autocast),
        ):
            yield

    return entered


def threads_of(count: int, each: int) -> ThreadPoolExecutor:
    """Return ``count`` threads in which PyTorch computes a layer on ``each`` cores.

    They are a process's own, since one that is forked has none of them, and stay for the next run.
    """
    with _lock:
        return _threads_of(os.getpid(), count, each, torch.get_num_threads())


@cache
def _threads_of(process: int, count: int, each: int, threads: int) -> ThreadPoolExecutor:  # noqa: ARG001
    begun = Barrier(count + 1)

    def begin() -> None:
        torch.set_num_threads(each)
        torch.get_num_threads()  # after which this thread keeps what was set last
        begun.wait()

    pool = ThreadPoolExecutor(count, "slidelens-compute", begin)
    for _ in range(count):
        pool.submit(int)
    begun.wait()
    torch.set_num_threads(threads)  # for threads that are yet to come
    return pool
