from __future__ import annotations

from concurrent.futures import Future

import numpy as np
import pytest
import torch

from slidelens.engine import read_ahead
from slidelens.engine.read_ahead import Busy, ReadAhead, Reading


class Slide:
    """Batches of one pixel, each read as soon as it is begun."""

    def __init__(self, *spent: Busy, fails: int | None = None) -> None:
        self.spent, self.fails = spent, fails
        self.begun: list[Reading] = []

    def __iter__(self) -> Slide:
        return self

    def __next__(self) -> Reading:
        n = len(self.begun)
        if n == len(self.spent):
            raise StopIteration
        part: Future[Busy] = Future()
        if n == self.fails:
            part.set_exception(OSError("unreadable"))
        else:
            part.set_result(self.spent[n])
        images = torch.full((1, 1, 1, 3), n, dtype=torch.uint8)
        self.begun.append(Reading(np.full((1, 4), float(n)), images, [part]))
        return self.begun[-1]


def ahead_of(slide: Slide, readers: int = 2, waited=lambda _: None) -> ReadAhead:
    cpu = torch.device("cpu")
    return ReadAhead(
        slide, first=1, ahead=2, readers=readers, device=cpu, copies=None, waited=waited
    )


COMPUTES, WAITS = Busy(1.0, 0.9), Busy(1.0, 0.1)


@pytest.mark.parametrize(
    ("spent", "begun"),
    [
        ([COMPUTES] * 7, [2, 2, 5, 5, 5, 7, 7]),  # in turns, the first of them short
        ([WAITS] * 9, [2, 2, 5, 6, 7, 8, 9, 9, 9]),  # beside, once a turn has shown it
        ([COMPUTES] * 2 + [WAITS] * 6, [2, 2, 5, 5, 5, 8, 8, 8]),
        ([], []),
    ],
)
def test_a_cpu_takes_turns_with_readers_that_compute(monkeypatch, spent, begun):
    monkeypatch.setattr(read_ahead, "cores", lambda: 2)
    slide = Slide(*spent)
    order, seen = [], []
    for batch in ahead_of(slide):
        order.append(int(batch.images[0, 0, 0, 0]))
        seen.append(len(slide.begun))
    assert order == list(range(len(spent)))
    assert seen == begun


def test_readers_that_share_a_core_do_not_wait_for_storage(monkeypatch):
    monkeypatch.setattr(read_ahead, "cores", lambda: 1)
    slide = Slide(*[Busy(1.0, 0.3)] * 6)  # of two on one core, each has half of it at most
    assert [len(slide.begun) for _ in ahead_of(slide)] == [2, 2, 5, 5, 5, 6]


def test_an_error_of_a_reader_cancels_the_rest():
    slide = Slide(*[COMPUTES] * 6, fails=4)
    batches = iter(ahead_of(slide))
    with pytest.raises(OSError, match="unreadable"):
        list(batches)
    assert [reading.cancelled for reading in slide.begun] == [False] * 2 + [True] * 3


def test_waiting_is_counted():
    told: list[float] = []
    assert len(list(ahead_of(Slide(*[COMPUTES] * 3), waited=told.append))) == 3
    assert told
    assert min(told) >= 0
