"""What pydantic found wrong, in our words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["Fault", "first_fault"]

_ASKS = "Input should be "
_WITHOUT_VALUE = ("Field required", "Extra inputs are not permitted")
"""What is told of a field, not of its value."""
_OURS = {
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid": "a",
}


class Fault(NamedTuple):
    """A field (with dots, where it lies within others; empty: the whole), why, and its value."""

    where: str
    why: str
    given: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" if self.where else self.why

    @property
    def told(self) -> str:
        """Why, and the value unless that is in it: a 3 is not in 'at least 32' nor in '0.3'."""
        given = repr(self.given)
        named = re.search(rf"(?<![\w.]){re.escape(given)}(?!\.?\w)", self.why)
        return self.why if named or self.why in _WITHOUT_VALUE else f"{self.why}, not {given}"


def first_fault(error: ValidationError) -> Fault:
    """Return the first fault."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return Fault(where, _plain(first["msg"]), first["input"])


def _plain(message: str) -> str:
    """Return our words for a message of pydantic's, which may be those of a check of ours."""
    message = message.removeprefix("Value error, ").rstrip(".")
    if not message.startswith(_ASKS):
        return message
    message = re.split(", (?:unable to|got) ", message.removeprefix(_ASKS))[0]
    for words, ours in _OURS.items():
        message = message.replace(words, ours)
    return f"must be {message}"
