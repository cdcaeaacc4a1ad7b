"""Steps that draw from random generators of their own, whatever runs between two of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from slidelens.engine.training.checkpoint import random_state, restore_random

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["with_own_random"]

T = TypeVar("T")


def with_own_random(steps: Generator[T]) -> Generator[T]:
    """Run steps that seed and use the global generators of Python, numpy and torch.

    Between steps and afterwards the generators are as the caller left them: the caller's draws do
    not affect the steps, nor the steps the caller's draws. Closing the iterator closes the steps.

    Parameters
    ----------
    steps
        What is run.

    Yields
    ------
    Their steps.
    """
    own: tuple[Any, Any] | None = None

    @contextmanager
    def ours() -> Iterator[None]:
        nonlocal own
        callers = random_state()
        if own is not None:
            restore_random(*own)
        try:
            yield
        finally:
            own = random_state()
            restore_random(*callers)

    try:
        while True:
            with ours():
                step = next(steps, None)
            if step is None:
                return
            yield step
    finally:
        with ours():
            steps.close()
