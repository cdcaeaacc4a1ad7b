"""The window of epochs with the lowest mean loss, and what must be kept for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slidelens.engine.training.checkpoint import average_weights
from slidelens.engine.training.selection import best_window, wanted_epochs

losses = st.lists(st.floats(0, 10, allow_nan=False), min_size=1, max_size=30)


def test_a_lucky_epoch_does_not_win():
    found = best_window([5, 0.1, 5, 5, 5, 1, 1, 1, 1, 1.2, 5], 5)
    assert (found.start, found.stop, found.centre) == (5, 10, 7)
    assert found.loss == pytest.approx(1.04)


def test_fewer_epochs_than_the_window_are_all_taken():
    assert list(best_window([3, 1], 5).epochs) == [0, 1]


@given(losses, st.integers(1, 6))
def test_best_window_against_the_definition(values, size):
    found = best_window(values, size)
    size = min(size, len(values))
    means = [np.mean(values[i : i + size]) for i in range(len(values) - size + 1)]
    assert found.loss == pytest.approx(min(means))
    assert np.mean(values[found.start : found.stop]) == pytest.approx(min(means))


@given(losses, st.integers(1, 6))
def test_weights_that_later_windows_need_are_kept(values, size):
    kept: set[int] = set()
    for count in range(1, len(values) + 1):
        kept = (kept | {count - 1}) & wanted_epochs(values[:count], size)
        assert set(best_window(values[:count], size).epochs) <= kept
        assert len(kept) < 2 * size


def test_average_leaves_what_did_not_change_to_the_bit():
    frozen = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    for n in (3, 5, 7):
        states = [{"frozen": frozen, "head": torch.tensor([float(i)])} for i in range(n)]
        found = average_weights(states)
        assert torch.equal(found["frozen"], frozen)
        assert found["head"].item() == pytest.approx((n - 1) / 2)


def test_average_takes_integers_from_the_centre():
    weights = [{"w": torch.full((2,), float(i)), "n": torch.tensor(10 + i)} for i in range(5)]
    average = average_weights(weights)
    assert torch.equal(average["w"], torch.full((2,), 2.0))
    assert average["n"].dtype == torch.int64
    assert average["n"] == 12
