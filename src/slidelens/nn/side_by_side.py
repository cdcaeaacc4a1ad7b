"""Let the stages of a network compute side by side on a CPU, each in a thread of its own."""

from __future__ import annotations

from concurrent.futures import wait
from contextlib import contextmanager
from threading import Condition, Lock, get_ident
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import torch

from slidelens.nn.threads import modes_here, threads_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["Ahead", "side_by_side"]

ItemT = TypeVar("ItemT")

_TURNS = 2
"""Stages that compute at once; three on three cores, where no two parts are equal. More would wait
for the heaviest: that of ResNet-34 in four modules has 0.37 of the arithmetic."""
_HEAVIEST = 0.55
"""Share of the work in one stage up to which two at once take little more than half of the time."""
_running = Lock()


class Ahead(Protocol):
    """Computes the items of a stage ahead of those that are taken."""

    def __call__(self, items: Iterable[ItemT], /) -> Iterator[ItemT]:
        """Return the same items."""


@contextmanager
def side_by_side(work: Sequence[float], device: torch.device) -> Iterator[Ahead]:
    """Give a function that lets a stage compute ahead of what is taken of it.

    The threads with which PyTorch computes one layer wait for each other at its end, so that what
    any other program takes from one core is lost on all (:mod:`slidelens.nn.map_batches`). Tiles of
    a streamed stage build on each other, and cannot be computed at once; those of two stages can.

    Iterate a stage's items through the function, which the next stage does too. Of each, one item
    lies ready, and one more may be computed and wait for its place. Two stages compute at once,
    each on half of the cores (on three cores, three on one each); a stage that waits for another
    leaves its turn to a third. An error in one ends those after it, and is raised where the last
    one's items are taken. Whoever leaves the context waits for what is being computed, and no more.

    On another device, with one core, where one stage has most of the work, or while another slide
    is computed in this way in the same process, the function returns what it is given.

    Parameters
    ----------
    work
        Of each stage, in any unit.
    device
        Where the network is.
    """
    threads = torch.get_num_threads()
    alone = device.type != "cpu" or threads < _TURNS or max(work) > _HEAVIEST * sum(work)
    if alone or not _running.acquire(blocking=False):
        yield iter
        return
    try:
        each = threads // _TURNS
        run = _Run(threads_of(len(work), each), threads // each)
        try:
            yield run.ahead
        finally:
            run.stop()
    finally:
        _running.release()


class _StoppedError(Exception):
    """Nobody wants the rest."""


class _Place(Generic[ItemT]):
    """Where one thread leaves an item for the next."""

    def __init__(self) -> None:
        self.held: list[ItemT] = []
        self.error: BaseException | None = None
        self.ended = False


class _Run:
    """The threads of one slide, and whose turn it is."""

    def __init__(self, pool: ThreadPoolExecutor, turns: int) -> None:
        self._pool, self._free, self._modes = pool, turns, modes_here()
        self._changed = Condition()
        self._computing: set[int] = set()
        self._stopped = False
        self._work: list[Future[None]] = []

    def ahead(self, items: Iterable[ItemT], /) -> Iterator[ItemT]:
        place = _Place[ItemT]()
        self._work.append(self._pool.submit(self._compute, items, place))
        return self._taken(place)

    def stop(self) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        wait(self._work)

    def _taken(self, place: _Place[ItemT]) -> Iterator[ItemT]:
        while True:
            self._until(lambda: bool(place.held) or place.ended)
            if not place.held:
                break
            with self._changed:
                item = place.held.pop()
                self._changed.notify_all()
            yield item
        if place.error is not None:
            raise place.error

    def _compute(self, items: Iterable[ItemT], place: _Place[ItemT]) -> None:
        try:
            self._until(lambda: True, turn=True)
            with self._modes():
                for item in items:
                    self._until(lambda: not place.held)
                    with self._changed:
                        place.held.append(item)
                        self._changed.notify_all()
                    del item  # a band is large
        except _StoppedError:
            pass
        except BaseException as error:  # noqa: BLE001  # reason: raised where items are taken
            place.error = error
        finally:
            with self._changed:
                self._leave()
                place.ended = True
                self._changed.notify_all()

    def _until(self, ready: Callable[[], bool], *, turn: bool = False) -> None:
        """Wait, and leave the turn to others meanwhile; ``turn``: take one that was not held."""
        with self._changed:
            turn = turn or (get_ident() in self._computing and not ready())
            if turn:
                self._leave()
            self._changed.wait_for(lambda: self._stopped or (ready() and (self._free or not turn)))
            if self._stopped:
                raise _StoppedError
            if turn:
                self._free -= 1
                self._computing.add(get_ident())

    def _leave(self) -> None:
        if get_ident() in self._computing:
            self._computing.remove(get_ident())
            self._free += 1
            self._changed.notify_all()
