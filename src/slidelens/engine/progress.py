"""Progress of one model on one slide."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.engine.loader import SlideView
    from slidelens.maps.map import Map

__all__ = ["Clock", "Progress", "time_text"]

Stage = Literal["wait", "open", "tissue", "infer", "write", "done"]


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of a run of ``model`` on ``slide_id``.

    ``stage`` is what it is doing. ``done`` of ``total`` counts tiles (or the family's other
    steps); ``total`` is 0 until it is known. In stage ``wait`` other runs work on all remaining
    slides, ``total`` of them. ``seconds`` have passed since the run began.
    """

    slide_id: str
    model: str
    stage: Stage
    done: int = 0
    total: int = 0
    seconds: float = 0.0
    eta: float | None = None
    """Estimated remaining seconds, at the pace so far; ``None`` until there is one."""
    peek: Callable[[], dict[str, Map]] = field(default=dict, repr=False, compare=False)
    """The run's :meth:`Prediction.peek`: the maps as they are now."""


class Clock:
    """Makes the :class:`Progress` of one run."""

    def __init__(self, peek: Callable[[], dict[str, Map]]) -> None:
        self._peek = peek
        self._start = perf_counter()
        self._inferring: float | None = None
        self._names = ("", "")

    def seconds(self) -> float:
        """Return the seconds since the run began."""
        return perf_counter() - self._start

    def name(self, slide_id: str, model: str) -> None:
        """Set the slide and model of the run."""
        self._names = (slide_id, model)

    def progress(self, stage: Stage, view: SlideView | None = None) -> Progress:
        """Return the progress of the run: at ``stage``, with the finished steps of ``view``."""
        now = perf_counter()
        done, total = (view.done, view.steps) if view else (0, 0)
        if stage == "tissue":
            self._inferring = now
        eta = None
        if self._inferring is not None and 0 < done <= total:
            eta = (now - self._inferring) / done * (total - done)
        return Progress(*self._names, stage, done, total, now - self._start, eta, self._peek)


def time_text(seconds: float) -> str:
    """Return a duration in words: ``5 s``, ``about 3 min``, ``about 2.5 h``."""
    if seconds < 55:
        return f"{max(1, round(seconds / 5) * 5) if seconds > 8 else max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
