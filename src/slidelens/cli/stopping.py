"""Ctrl-C between two steps of a long run, where everything that was begun can be put away."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["stopping"]

_SAID = b"\nstopping after this step; Ctrl-C again stops at once\n"
_STDERR = 2


@contextmanager
def stopping() -> Iterator[Callable[[], None]]:
    """Keep the first Ctrl-C for the check that is given; a second one stops at once.

    The check is to be called between two steps; it raises ``KeyboardInterrupt`` if Ctrl-C was
    pressed. Python would raise it between any two instructions: within a destructor it is lost, and
    the run goes on; within the closing of a slide it leaves C code half done. Where Ctrl-C is
    ignored or someone else's already, nothing changes.
    """
    asked = threading.Event()

    def ask(*_: object) -> None:
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(_STDERR, _SAID)  # sys.stderr may be in the middle of a line of its own

    def check() -> None:
        if asked.is_set():
            raise KeyboardInterrupt

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, ask)
    try:
        yield check
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
