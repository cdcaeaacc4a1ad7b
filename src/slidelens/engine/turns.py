"""The slides of a run in turn: the next one is opened ahead, and other runs may share them."""

from __future__ import annotations

import logging
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from slidelens.engine.locks import claimed
from slidelens.errors import ResultError
from slidelens.slide.base import slide_id

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence
    from concurrent.futures import Future
    from pathlib import Path

    from slidelens.families.base import Model
    from slidelens.slide.base import Slide

__all__ = ["Part", "Turns", "claim", "close_slide"]

log = logging.getLogger(__name__)

_GOLDEN = 0.618
"""Part of the slides that are left to go ahead by: several runs that do so keep apart."""


class Part:
    """A slide, the models that are to see it, and the slide as it is being opened."""

    def __init__(self, path: Path, models: Sequence[Model[Any]]) -> None:
        self.path, self.slide_id, self.models = path, slide_id(path), list(models)
        self._ready: Future[Slide] | None = None

    def open(self, ready: Future[Slide]) -> None:
        """Keep what opens the slide."""
        self._ready = ready

    def take(self) -> Slide:
        """Return the open slide, which is the caller's to close now."""
        assert self._ready is not None
        ready, self._ready = self._ready, None
        return ready.result()

    def close(self) -> None:
        """Close the slide, or do not open it, unless it was taken."""
        ready, self._ready = self._ready, None
        if ready is not None and not ready.cancel() and ready.exception() is None:
            close_slide(ready.result())


class Turns:
    """The slides that are left, in turn.

    Parameters
    ----------
    paths, models
        The slides, and the models that are to see each of them.
    out
        Results folder: whoever is at a slide has claimed its results there.
    prepare
        Begins to open a slide.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        models: Sequence[Model[Any]],
        out: Path,
        prepare: Callable[[Path], Future[Slide]],
    ) -> None:
        self.todo = deque(Part(path, models) for path in paths)
        self._out, self._prepare = out, prepare

    def round(self) -> Generator[Part]:
        """Yield what no other run is at; :attr:`todo` is what is left, with models to run.

        The caller claims a slide when it gets it, not when it is opened: else a run that has time
        might wait for a slide that nobody is at.
        """
        elsewhere: deque[Part] = deque()
        following = self._next(elsewhere)
        try:
            while following is not None:
                part, following = following, self._next(elsewhere)
                yield part
                if part.models:
                    elsewhere.append(part)
        finally:
            if following is not None:
                following.close()
        self.todo = elsewhere

    def _next(self, elsewhere: deque[Part]) -> Part | None:
        """Begin to open the next slide that no other run is at."""
        while self.todo:
            part = self.todo.popleft()
            if self._is_free(part):
                part.open(self._prepare(part.path))
                return part
            elsewhere.append(part)
            self.todo.rotate(-int(len(self.todo) * _GOLDEN))  # what follows is next there, too
        return None

    def _is_free(self, part: Part) -> bool:
        try:
            with ExitStack() as held:
                return bool(claim(part, self._out, held))
        except ResultError:  # is said when its turn comes
            return True


def claim(part: Part, out: Path, held: ExitStack) -> list[Model[Any]]:
    """Claim a slide while ``held``; return the models with which no other run is at it.

    Raises
    ------
    ResultError
        Its results cannot be written.
    """
    at = {model.name: out / model.name / part.slide_id for model in part.models}
    try:
        return [m for m in part.models if held.enter_context(claimed(at[m.name]))]
    except OSError as error:
        raise ResultError(
            f"{next(iter(at.values()))}: cannot write the result ({error.strerror or error}). "
            "Free some space or choose another --out."
        ) from error


def close_slide(slide: Slide) -> None:
    """Close a slide; one that cannot be closed is no reason to end a run: its results are there."""
    try:
        slide.close()
    except Exception as error:  # noqa: BLE001  # reason: one bad slide must not end the cohort
        log.warning("%s: cannot be closed (%s: %s)", slide.path, type(error).__name__, error)
