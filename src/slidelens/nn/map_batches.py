"""Run a network over many batches: on a CPU several at once, each on its own share of the cores."""

from __future__ import annotations

from collections import deque
from concurrent.futures import wait
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import torch

from slidelens.nn.threads import modes_here, threads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from concurrent.futures import Future

__all__ = ["map_batches"]

BatchT = TypeVar("BatchT")
ValueT = TypeVar("ValueT")

_MOST = 8
"""Batches that are computed at once, at most: each holds feature maps of its own."""
_MOST_PIXELS = _MOST * 8 * 224 * 224
"""Of tiles so large that a batch is one of them, not more are computed at once than so many pixels:
SqueezeNet holds 0.5 GB for one of 2048 px."""


def map_batches(
    compute: Callable[[BatchT], ValueT],
    batches: Iterable[BatchT],
    device: torch.device | None,
    tile: int = 224,
) -> Generator[ValueT]:
    """Yield ``compute(batch)`` of each batch, in their order.

    The threads with which PyTorch computes one layer on a CPU wait for each other at its end. What
    any other program, or a thread that reads, takes from one core is so lost on all: with two
    programs that never rest on two cores, SqueezeNet took five times as long instead of twice. So
    there every core has a batch to itself, and nothing waits. Batches are taken ahead of what is
    yielded, one more than are computed. However the generator ends, by an error or by being closed
    too, it waits for those that have begun.

    Parameters
    ----------
    compute
        Is called from several threads at once, with the caller's autocast and inference mode.
    batches
        Iterated in the caller's thread.
    device
        Where the network is. Not on a CPU, or while gradients are on, batches are computed one by
        one in the caller's thread.
    tile
        Side of a tile in px: of very large ones fewer are computed at once, each on more cores.
    """
    threads, most = torch.get_num_threads(), max(1, min(_MOST, _MOST_PIXELS // tile**2))
    each = -(-threads // most)
    on_cpu = device is None or device.type == "cpu"
    if threads < 2 * each or not on_cpu or torch.is_grad_enabled():
        for batch in batches:
            yield compute(batch)
        return
    modes = modes_here()

    def computed(batch: BatchT) -> ValueT:
        with modes():
            return compute(batch)

    pool, more = threads_of(threads // each, each), iter(batches)
    pending: deque[Future[ValueT]] = deque()
    try:
        for batch in islice(more, pool._max_workers + 1):
            pending.append(pool.submit(computed, batch))
        while pending:
            value = pending[0].result()
            pending.popleft()  # only now: it may be Ctrl-C that ends the waiting
            pending.extend(pool.submit(computed, batch) for batch in islice(more, 1))
            yield value
    finally:
        for future in pending:
            future.cancel()
        wait(pending)
