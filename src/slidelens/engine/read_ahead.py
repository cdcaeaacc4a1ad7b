"""Tiles under way from a slide to a model: begun ahead of it, handed on in order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter
from typing import TYPE_CHECKING

import torch

from slidelens.families.base import Batch
from slidelens.settings import cores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Busy", "ReadAhead", "Reading"]

_BUSY, _FIRST = 0.5, 0.25
"""Readers that compute for less than this share of their time wait for storage. In the first turn,
while the model is being prepared on the same cores, it must be plainer."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Seconds that reading some tiles took a thread, and those in which it had a core."""

    wall: float
    cpu: float


@dataclass(slots=True)
class Reading:
    """A batch under way: its memory on the host, and a future for some tiles each."""

    boxes: NDArray[np.float64]
    images: torch.Tensor
    parts: list[Future[Busy]] = field(default_factory=list)
    cancelled: bool = False

    def on_device(self, device: torch.device, stream: torch.cuda.Stream | None) -> torch.Tensor:
        """Copy to the device once, without waiting for the copy."""
        if self.images.device != device:
            with torch.cuda.stream(stream):  # does nothing for None
                self.images = self.images.to(device, non_blocking=stream is not None)
        return self.images

    def cancel(self) -> None:
        """Read no further tile of it."""
        self.cancelled = True
        for part in self.parts:
            part.cancel()


class ReadAhead:
    """Finishes batches in order while others are read.

    Beside a GPU another one is begun for each that the model takes. On a CPU the network's threads
    and those that read want the same cores, and where the threads of a layer wait for the slowest,
    what one reader takes from one core is lost on all. There ``ahead`` batches are read, then
    computed, in turns; unless the readers turn out to wait for storage: then they go on beside the
    model. The first turn, from which that is seen, is a short one. A model that computes several
    batches at once (:mod:`slidelens.nn.map_batches`) still has the last ones of a turn under way
    while the next turn is read.

    Parameters
    ----------
    readings
        Batches, each being read from when it is taken from here.
    first, ahead
        How many are begun at once, and how many beside the one that the model has from then on.
    readers
        Threads that read.
    device
        Where batches are put.
    copies
        Stream of the copies to a GPU.
    waited
        Is told the seconds of each time that the model waits for tiles.
    """

    def __init__(
        self,
        readings: Iterator[Reading],
        *,
        first: int,
        ahead: int,
        readers: int,
        device: torch.device,
        copies: torch.cuda.Stream | None,
        waited: Callable[[float], None],
    ) -> None:
        self._more, self._some, self._ahead = readings, first, ahead
        self._pending = deque(islice(readings, first))
        self._readers, self._device, self._copies = readers, device, copies
        self._waited = waited
        self._in_turns = device.type == "cpu"

    def __iter__(self) -> Iterator[Batch]:
        """Yield all batches; closing the iterator cancels what is still to be read."""
        try:
            while True:
                # One more than is ahead: the oldest is the model's now.
                self._pending.extend(islice(self._more, self._some + 1 - len(self._pending)))
                if not self._pending:
                    return
                for _ in range(self._turn()):
                    yield self._finish()
                self._some = self._ahead
        finally:
            for reading in self._pending:
                reading.cancel()

    def _turn(self) -> int:
        """Return how many batches the model gets before others are begun; wait for these."""
        if not self._in_turns:
            return 1
        busy = [part for reading in self._pending for part in self._wait(reading)]
        least = _FIRST if self._some < self._ahead else _BUSY
        self._in_turns = _share(busy, self._readers) >= least
        return len(self._pending)

    def _finish(self) -> Batch:
        """Wait for the oldest batch; start the next one's copy, to run beside the model."""
        first = self._pending[0]
        self._wait(first)
        self._pending.popleft()
        images = first.on_device(self._device, self._copies)
        if self._copies is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._copies)
            images.record_stream(current)
            following = self._pending[0] if self._pending else None
            if following and all(part.done() for part in following.parts):
                following.on_device(self._device, self._copies)
        return Batch(first.boxes, images.permute(0, 3, 1, 2))

    def _wait(self, reading: Reading) -> list[Busy]:
        """Wait until a batch is read; raise what a reader raised."""
        start = perf_counter()
        busy = [part.result() for part in reading.parts]
        self._waited(perf_counter() - start)
        return busy


def _share(busy: Sequence[Busy], readers: int) -> float:
    """Return the share of their time in which readers had a core, of what they could have had."""
    wall = sum(part.wall for part in busy) * min(readers, cores()) / readers
    return sum(part.cpu for part in busy) / wall if wall else 1.0
