"""Ctrl-C between two steps of a long run, where everything that was begun can be put away."""

from __future__ import annotations

import os
import signal
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Stopping"]

_SAID = b"\nstopping after this step; Ctrl-C again stops at once\n"
_STDERR = 2


class Stopping:
    """While entered, the first Ctrl-C waits for :meth:`check`; the second one stops at once.

    Python raises ``KeyboardInterrupt`` between any two instructions. Within a destructor it is
    lost, and the run goes on; within the closing of a slide it leaves C code half done. Where
    Ctrl-C is ignored or someone else's already, nothing changes.
    """

    def __init__(self) -> None:
        self._asked = False
        self._ours = False

    def __enter__(self) -> Self:
        self._ours = (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        )
        if self._ours:
            signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _ask(self, *_: object) -> None:
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(_STDERR, _SAID)  # sys.stderr may be in the middle of a line of its own

    def check(self) -> None:
        """Call between two steps.

        Raises
        ------
        KeyboardInterrupt
            Ctrl-C was pressed since :meth:`__enter__`.
        """
        if self._asked:
            raise KeyboardInterrupt
