"""Every error that slidelens raises on purpose.

::

    SlideLensError                     root: catch this to catch them all
    ├── SlideError (+ OSError)         a slide file that cannot be opened or read
    │   ├── SlideNotFoundError (+ FileNotFoundError)
    │   ├── UnsupportedSlideError      no backend reads this format
    │   └── MissingMppError (+ ValueError)   the file states no resolution and none was given
    ├── ModelError (+ ValueError)      a model package or configuration that cannot be used
    ├── LabelError (+ ValueError)      a labels table or an annotation that cannot be used
    ├── ResultError (+ ValueError)     a result folder that cannot be read or written
    │   └── NewerResultError           a newer slidelens wrote it; nothing is wrong with it
    ├── PluginError (+ RuntimeError)   a plugin that does not load or breaks its contract
    └── StreamingError (+ ValueError)  a network or a tile that cannot be streamed exactly

Each message says what was read, what was expected and what to do. Each error also inherits the
built-in one that a caller who does not know slidelens would catch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "LabelError",
    "MissingMppError",
    "ModelError",
    "NewerResultError",
    "PluginError",
    "ResultError",
    "SlideError",
    "SlideLensError",
    "SlideNotFoundError",
    "StreamingError",
    "UnsupportedSlideError",
    "amount",
    "listed",
]


class SlideLensError(Exception):
    """Root of all errors that slidelens raises on purpose."""


class SlideError(SlideLensError, OSError):
    """A slide file that cannot be opened or read."""


class SlideNotFoundError(SlideError, FileNotFoundError):
    """The path of a slide does not exist."""


class UnsupportedSlideError(SlideError):
    """No backend reads this file."""


class MissingMppError(SlideError, ValueError):
    """The slide states no resolution (µm/px) and none was given."""


class ModelError(SlideLensError, ValueError):
    """A model package, family or configuration that cannot be used."""


class LabelError(SlideLensError, ValueError):
    """A labels table or an annotation file that cannot be used."""


class ResultError(SlideLensError, ValueError):
    """A result folder that cannot be read or written."""


class NewerResultError(ResultError):
    """A result in the layout of a newer slidelens, which this one cannot read."""


class PluginError(SlideLensError, RuntimeError):
    """A plugin that does not load or breaks its contract."""


class StreamingError(SlideLensError, ValueError):
    """A network, or a tile size, that cannot be streamed exactly."""


def amount(number: int, noun: str) -> str:
    """Return a number of things for a message: ``1 slide``, ``2 slides``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Return ``names`` as a list for a message: the first ones, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
