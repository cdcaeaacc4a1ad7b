"""Batches on all cores: in order, at once, in the caller's modes, and no more than are wanted."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from signal import SIGINT, pthread_kill
from threading import Barrier, Event, Thread, Timer, current_thread, main_thread
from time import sleep

import pytest
import torch

from slidelens.nn.map_batches import map_batches

CPU = torch.device("cpu")
THREADS = 3


@pytest.fixture(autouse=True)
def cores() -> Iterator[None]:
    """Let PyTorch have some threads, also where the tests are run with one."""
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    with torch.no_grad():
        yield
    torch.set_num_threads(before)


def test_values_come_in_the_order_of_their_batches() -> None:
    def slow_at_first(number: int) -> int:
        sleep(0.02 if number % 3 == 0 else 0)
        return number * number

    assert list(map_batches(slow_at_first, range(20), CPU)) == [n * n for n in range(20)]


def test_as_many_are_computed_at_once_as_there_are_threads() -> None:
    together = Barrier(THREADS)

    def meet(_: int) -> int:
        together.wait(30)  # breaks if fewer come
        return torch.get_num_threads()

    assert list(map_batches(meet, range(2 * THREADS), None)) == [1] * 2 * THREADS


def test_many_threads_are_shared_out() -> None:
    torch.set_num_threads(20)
    together = Barrier(6)  # of three threads each

    def meet(_: int) -> int:
        together.wait(30)
        return torch.get_num_threads()

    assert list(map_batches(meet, range(6), CPU)) == [3] * 6


@pytest.mark.parametrize(("tile", "each"), [(448, 1), (1024, 3), (1200, 4), (4096, 8)])
def test_of_large_tiles_fewer_are_computed_at_once(tile: int, each: int) -> None:
    torch.set_num_threads(8)
    found = list(map_batches(lambda _: torch.get_num_threads(), range(3), CPU, tile))
    assert found == [each] * 3


def test_the_network_runs_in_the_callers_modes() -> None:
    layer, images = torch.nn.Linear(4, 2), torch.randn(3, 4)

    def modes(batch: torch.Tensor) -> tuple[bool, bool, torch.dtype]:
        return torch.is_inference_mode_enabled(), torch.is_grad_enabled(), layer(batch).dtype

    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        inferring = list(map_batches(modes, [images] * 2, CPU))
    assert inferring == [(True, False, torch.bfloat16)] * 2
    assert list(map_batches(modes, [images] * 2, CPU)) == [(False, False, torch.float32)] * 2


def test_elsewhere_the_caller_computes() -> None:
    def name(_: int) -> str:
        return current_thread().name

    here = [current_thread().name] * 2
    assert list(map_batches(name, range(2), CPU)) != here
    assert list(map_batches(name, range(2), torch.device("cuda"))) == here
    with torch.enable_grad():
        assert list(map_batches(name, range(2), CPU)) == here
    torch.set_num_threads(1)
    assert list(map_batches(name, range(2), CPU)) == here


def test_no_more_is_read_than_is_computed_and_one() -> None:
    taken: list[int] = []

    def batches() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    values = map_batches(lambda number: number, batches(), CPU)
    for wanted in range(1, 5):
        next(values)
        assert len(taken) <= THREADS + 1 + wanted


def test_closing_waits_for_what_has_begun_and_drops_the_rest() -> None:
    begun, done, may_end = Event(), [], Event()

    def compute(number: int) -> int:
        if number:
            begun.set()
            may_end.wait(30)
        done.append(number)
        return number

    values = map_batches(compute, range(100), CPU)
    assert next(values) == 0
    assert begun.wait(30)
    Timer(0.1, may_end.set).start()
    values.close()
    assert may_end.is_set()
    after = len(done)
    assert 2 <= after <= THREADS + 2
    sleep(0.1)
    assert len(done) == after, "nothing goes on"


def test_what_fails_is_raised_after_the_batches_before() -> None:
    def compute(number: int) -> int:
        if number == 2:
            raise ValueError("no such tile")
        return number

    def unreadable() -> Iterator[int]:
        yield 0
        raise OSError("gone")

    seen: list[int] = []
    with pytest.raises(ValueError, match="no such tile"):
        seen += map_batches(compute, range(9), CPU)
    values = map_batches(compute, range(9), CPU)
    assert [next(values), next(values)] == [0, 1]
    with pytest.raises(OSError, match="gone"):
        list(map_batches(compute, unreadable(), CPU))
    assert list(map_batches(compute, range(2), CPU)) == [0, 1], "and the next run is well"


def test_nothing_goes_on_after_an_error_of_the_batches() -> None:
    begun, done = Event(), []

    def compute(number: int) -> None:
        begun.set()
        sleep(0.2)
        done.append(number)

    def unreadable() -> Iterator[int]:
        yield 0
        begun.wait(30)
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(map_batches(compute, unreadable(), CPU))
    assert done == [0]


@pytest.mark.skipif(sys.platform == "win32", reason="has no signals to threads")
def test_nothing_goes_on_after_an_interrupt() -> None:
    done = []

    def compute(number: int) -> None:
        sleep(0.2)  # by now the caller waits for this
        pthread_kill(main_thread().ident, SIGINT)
        sleep(0.2)
        done.append(number)

    with pytest.raises(KeyboardInterrupt):
        list(map_batches(compute, [0], CPU))
    assert done == [0]


def test_other_threads_keep_their_number() -> None:
    assert list(map_batches(lambda number: number, range(4), CPU)) == [0, 1, 2, 3]
    found = [torch.get_num_threads()]
    other = Thread(target=lambda: found.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert found == [THREADS, THREADS]


FORKED = """
import os, torch
from slidelens.nn.map_batches import map_batches
torch.set_num_threads(2)
with torch.no_grad():
    print(list(map_batches(abs, [-1, 2], None)), flush=True)
    if os.fork() == 0:
        print(list(map_batches(abs, [-3, 4], None)), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="processes are not forked here")
def test_a_forked_process_has_threads_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKED], capture_output=True, text=True, timeout=180
    )
    assert done.stdout.splitlines() == ["[1, 2]", "[3, 4]"], done.stderr
