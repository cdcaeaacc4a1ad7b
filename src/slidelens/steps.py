"""Generators that yield steps and return a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

__all__ = ["Steps", "finish"]

StepT = TypeVar("StepT")
ResultT = TypeVar("ResultT")


class Steps(Generic[StepT, ResultT]):
    """Iterates over a generator's steps; ``result`` is what it returned, once all are taken."""

    result: ResultT

    def __init__(self, steps: Generator[StepT, None, ResultT]) -> None:
        self._steps = steps

    def __iter__(self) -> Iterator[StepT]:
        self.result = yield from self._steps


def finish(steps: Generator[StepT, None, ResultT]) -> ResultT:
    """Take all steps of a generator, and return what it returns."""
    taken = Steps(steps)
    for _ in taken:
        pass
    return taken.result
