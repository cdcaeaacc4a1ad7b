"""Handle Ctrl-C and SIGTERM between two steps of a long run, where it can stop cleanly."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SIGNALLED", "stopping"]

SIGNALLED = frozenset({128 + signal.SIGINT, 128 + signal.SIGTERM})
"""Exit codes of what a signal stopped, as shells count them."""

_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_SAID: dict[int, bytes] = {
    signal.SIGINT: b"\nstopping after this step; Ctrl-C again stops at once\n",
    signal.SIGTERM: b"\nstopping after this step\n",
}
_STDERR = 2


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Keep the first Ctrl-C, or SIGTERM, for the check that is given; a second one stops at once.

    SIGTERM is what a cluster sends some time before it kills a job whose time is up. The check is
    to be called between two steps; it raises ``KeyboardInterrupt`` if Ctrl-C was pressed, and
    ``SystemExit`` after SIGTERM. Python would raise it between any two instructions: within a
    destructor it is lost, and the run goes on; within the closing of a slide it leaves C code half
    done. Where a signal is ignored or someone else's already, nothing changes.
    """
    asked: list[int] = []

    def ask(number: int, _: object) -> None:
        asked.append(number)
        signal.signal(number, _USUAL[number])
        with suppress(OSError):  # it goes to a program that Ctrl-C has ended, such as tee
            # sys.stderr may be in the middle of a line of its own
            os.write(_STDERR, _SAID[number])

    def check() -> None:
        if signal.SIGINT in asked:
            raise KeyboardInterrupt
        if asked:
            sys.exit(128 + asked[0])

    in_main = threading.current_thread() is threading.main_thread()
    ours = [n for n, usual in _USUAL.items() if in_main and signal.getsignal(n) is usual]
    for number in ours:
        signal.signal(number, ask)
    try:
        yield check
    finally:
        for number in ours:
            signal.signal(number, _USUAL[number])
