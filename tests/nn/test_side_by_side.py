"""Stages side by side: the same items, two at once, little ahead, an end to all when one ends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from signal import SIGINT, pthread_kill
from threading import Barrier, Event, Lock, Timer, current_thread, main_thread

import pytest
import torch

from slidelens.nn.side_by_side import side_by_side

CPU = torch.device("cpu")
EVEN = (1.0, 1.0, 1.0)


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Let PyTorch have two threads, also where the tests are run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def doubled(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        yield 2 * item


def taken(work: Iterable[float] = EVEN, first: Iterable[int] = range(20)) -> list[int]:
    with side_by_side(list(work), CPU) as ahead:
        return list(ahead(doubled(ahead(doubled(ahead(first))))))


def test_the_items_are_those_of_the_last_stage_in_order() -> None:
    assert taken() == [4 * n for n in range(20)]
    assert taken(first=[]) == []
    assert taken() == [4 * n for n in range(20)], "and the same threads serve the next slide"


def test_two_stages_compute_at_once_each_on_half_of_the_cores() -> None:
    torch.set_num_threads(4)
    both = Barrier(2)

    def meeting(items: Iterable[int]) -> Iterator[int]:
        for _ in items:
            both.wait(30)  # breaks if the other does not come
            yield torch.get_num_threads()

    def first() -> Iterator[int]:
        yield 0
        for _ in range(4):
            both.wait(30)
            yield 0
        both.wait(30)

    with side_by_side(EVEN, CPU) as ahead:
        assert list(ahead(meeting(ahead(first())))) == [2] * 5


@pytest.mark.parametrize(("threads", "turns"), [(2, 2), (3, 3), (4, 2), (5, 2)])
def test_no_more_than_two_compute_at_once_on_three_cores_three(threads: int, turns: int) -> None:
    torch.set_num_threads(threads)
    lock, now, most = Lock(), 0, 0

    def counted(items: Iterable[int]) -> Iterator[int]:
        nonlocal now, most
        for item in items:
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.003)
            with lock:
                now -= 1
            yield item

    with side_by_side((1.0,) * 5, CPU) as ahead:
        items: Iterable[int] = range(12)
        for _ in range(5):
            items = ahead(counted(items))
        assert list(items) == list(range(12))
    assert most == turns


def test_of_a_stage_one_item_lies_ready_and_one_waits() -> None:
    made = []

    def first() -> Iterator[int]:
        for number in range(10):
            made.append(number)
            yield number

    with side_by_side(EVEN, CPU) as ahead:
        items = ahead(first())
        assert next(items) == 0
        waited = time.monotonic() + 10
        while len(made) < 3 and time.monotonic() < waited:
            time.sleep(0.001)
        time.sleep(0.05)
        assert made == [0, 1, 2], "one lies ready, and one is made and finds no place"


@pytest.mark.parametrize(
    ("work", "device", "threads"),
    [
        (EVEN, CPU, 1),
        (EVEN, torch.device("meta"), 2),
        ((1.0, 5.0, 1.0), CPU, 2),
        ((0.1, 1.0), CPU, 2),
    ],
)
def test_where_it_gains_nothing_the_callers_thread_computes(
    work: tuple[float, ...], device: torch.device, threads: int
) -> None:
    torch.set_num_threads(threads)

    def here() -> Iterator[bool]:
        yield current_thread() is main_thread()

    with side_by_side(work, device) as ahead:
        assert list(ahead(here())) == [True]
    torch.set_num_threads(2)
    with side_by_side(EVEN, CPU) as ahead:
        assert list(ahead(here())) == [False]
        with side_by_side(EVEN, CPU) as other:  # its threads are taken
            assert list(other(here())) == [True]
    with side_by_side(EVEN, CPU) as ahead:
        assert list(ahead(here())) == [False], "they are free again"


def test_stages_have_the_callers_modes() -> None:
    def modes() -> Iterator[tuple[bool, bool, bool]]:
        for _ in range(2):
            autocast = torch.is_autocast_enabled("cpu")
            yield torch.is_inference_mode_enabled(), torch.is_grad_enabled(), autocast

    autocast, inference = torch.autocast("cpu", torch.bfloat16), torch.inference_mode()
    with autocast, inference, side_by_side(EVEN, CPU) as ahead:
        assert list(ahead(modes())) == [(True, False, True)] * 2
    with side_by_side(EVEN, CPU) as ahead:
        assert list(ahead(modes())) == [(False, False, False)] * 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_in_any_stage_is_raised_and_ends_all(place: int) -> None:
    begun = []

    def fails(items: Iterable[int], stage: int) -> Iterator[int]:
        for item in items:
            begun.append(stage)
            if stage == place and item == 2:
                raise ValueError(f"stage {stage} cannot")
            yield item

    def run() -> None:
        with side_by_side(EVEN, CPU) as ahead:
            items: Iterable[int] = range(100)
            for stage in range(3):
                items = ahead(fails(items, stage))
            list(items)

    with pytest.raises(ValueError, match=f"stage {place} cannot"):
        run()
    assert len(begun) < 20
    assert taken() == [4 * n for n in range(20)], "and the next slide is well"


def test_who_leaves_waits_only_for_what_is_being_computed() -> None:
    computing, ended = Event(), []

    def slow() -> Iterator[int]:
        yield 0
        computing.set()
        time.sleep(0.1)
        ended.append(1)
        yield 1
        ended.append(2)

    with side_by_side(EVEN, CPU) as ahead:
        assert next(ahead(doubled(ahead(slow())))) == 0
        assert computing.wait(30)
    assert ended == [1]
    assert taken() == [4 * n for n in range(20)]


def test_ctrl_c_ends_all() -> None:
    computing = Event()

    def endless() -> Iterator[int]:
        while True:
            computing.set()
            time.sleep(0.01)
            yield 0

    def never(items: Iterable[int]) -> Iterator[int]:
        for _ in items:
            pass
        yield 1

    ident = main_thread().ident
    assert ident is not None
    timer = Timer(0.2, pthread_kill, (ident, SIGINT))

    def run() -> None:
        with side_by_side(EVEN, CPU) as ahead:
            timer.start()
            next(ahead(never(ahead(endless()))))

    with pytest.raises(KeyboardInterrupt):
        run()
    assert computing.is_set()
    assert taken() == [4 * n for n in range(20)]
