"""Run work on threads and hand results back to the window's thread."""

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
_Parcel = tuple[Future[Any], Any, QObject | None, Any, Any]
log = logging.getLogger(__name__)


class Background(QObject):
    """Runs functions that touch neither window nor viewer.

    Signals
    -------
    failed
        One sentence: work without a ``failed`` of its own could not be done.
    """

    failed = Signal(str)
    _finished = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="slidelens-window")
        self._waiting = 0
        self._closed = False
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
        unused: Callable[[T], object] | None = None,
    ) -> None:
        """Do work, then hand over its result on the window's thread; nothing once it is closed.

        Parameters
        ----------
        work
            Takes nothing.
        then
            Takes what ``work`` returned.
        owner
            A widget: once it is gone, nothing is handed over.
        failed
            Takes the sentence of a :class:`SlideLensError` that ``work`` raised.
        unused
            Takes the return value of ``work`` if ``then`` does not get it, to close it; on any
            thread.
        """
        if self._closed:
            return
        self._waiting += 1
        future = self._pool.submit(work)
        future.add_done_callback(lambda done: self._tell((done, then, owner, failed, unused)))

    def close(self) -> None:
        """Drop work that has not begun, wait for the rest, and hand nothing over any more."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _tell(self, parcel: _Parcel) -> None:
        if alive(self) and not self._closed:
            self._finished.emit(parcel)
        else:
            _drop(parcel)

    def _deliver(self, parcel: _Parcel) -> None:
        self._waiting -= 1
        done, then, owner, failed, _ = parcel
        if self._closed or done.cancelled() or (owner is not None and not alive(owner)):
            _drop(parcel)
            return
        error = done.exception()
        if error is None:
            then(done.result())
        elif isinstance(error, SlideLensError):
            (failed or self.failed.emit)(str(error))
        else:
            log.error("work in the background failed", exc_info=error)
            (failed or self.failed.emit)(f"unexpected {type(error).__name__}: {error}")


def _drop(parcel: _Parcel) -> None:
    """Close what nobody will take."""
    done, *_, unused = parcel
    if unused is not None and not done.cancelled() and done.exception() is None:
        unused(done.result())
