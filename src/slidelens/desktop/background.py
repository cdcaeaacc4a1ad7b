"""Work that takes longer than a blink, on threads of its own: results come back to the window's."""

from __future__ import annotations

import logging
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from qtpy.QtCore import QObject

from slidelens.desktop.qt import Signal, alive
from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Background"]

T = TypeVar("T")
log = logging.getLogger(__name__)


class Background(QObject):
    """Runs functions that touch neither window nor viewer.

    Signals
    -------
    failed
        One sentence: work that gave no ``failed`` of its own was not done.
    """

    failed = Signal(str)
    _finished = Signal(object)

    def __init__(self, parent: QObject | None = None, threads: int = 2) -> None:
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="slidelens-window")
        self._waiting = 0
        # The signal crosses to this object's thread: slots run where the window lives.
        self._finished.connect(self._deliver)

    @property
    def busy(self) -> bool:
        """Whether work is under way or its result not yet delivered."""
        return self._waiting > 0

    def run(
        self,
        work: Callable[[], T],
        then: Callable[[T], object],
        *,
        owner: QObject | None = None,
        failed: Callable[[str], object] | None = None,
    ) -> None:
        """Do work, then hand its result over on the window's thread.

        Parameters
        ----------
        work
            Takes nothing.
        then
            Takes what ``work`` returned.
        owner
            A widget: when it is gone nothing is handed over any more.
        failed
            Takes the sentence of a :class:`SlideLensError` that ``work`` raised.
        """
        self._waiting += 1
        future = self._pool.submit(work)
        future.add_done_callback(lambda done: self._tell((done, then, owner, failed)))

    def close(self) -> None:
        """Drop what has not begun and wait for what has."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, parcel: tuple[Any, ...]) -> None:
        if alive(self):
            self._finished.emit(parcel)

    def _deliver(self, parcel: tuple[Future[Any], Any, QObject | None, Any]) -> None:
        self._waiting -= 1
        done, then, owner, failed = parcel
        if done.cancelled() or (owner is not None and not alive(owner)):
            return
        error = done.exception()
        if error is None:
            then(done.result())
        elif isinstance(error, SlideLensError):
            (failed or self.failed.emit)(str(error))
        else:
            log.error("work in the background failed", exc_info=error)
            (failed or self.failed.emit)(f"unexpected {type(error).__name__}: {error}")
