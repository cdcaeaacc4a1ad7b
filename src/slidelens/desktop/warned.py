"""What the package warns of: in a terminal it would be read, in a window it would be lost."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from threading import get_ident
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["Warnings", "warned"]

_LOG = logging.getLogger("slidelens")


class Warnings(logging.Handler):
    """Passes on the text of each warning; errors are reported by what they end.

    Parameters
    ----------
    tell
        Takes the text, on the thread that warns.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on the text."""
        if record.levelno == logging.WARNING:
            self._tell(record.getMessage())


@contextmanager
def warned() -> Iterator[list[str]]:
    """Collect what is warned of within, on this thread."""
    texts: list[str] = []
    thread = get_ident()
    handler = Warnings(texts.append)
    handler.addFilter(lambda record: record.thread == thread)
    _LOG.addHandler(handler)
    try:
        yield texts
    finally:
        _LOG.removeHandler(handler)
