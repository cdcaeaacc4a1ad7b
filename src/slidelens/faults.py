"""What pydantic found wrong, for our messages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from pydantic import ValidationError

__all__ = ["Fault", "first_fault", "plain"]


class Fault(NamedTuple):
    """A field (with dots, where it lies within others; empty: the whole), why, and its value."""

    where: str
    why: str
    given: Any

    def __str__(self) -> str:
        return f"{self.where}: {self.why}" if self.where else self.why


def first_fault(error: ValidationError) -> Fault:
    """Return the first fault, in our own words where a check of ours found it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return Fault(where, plain(first["msg"]), first["input"])


def plain(message: str) -> str:
    """Return a message without the words that pydantic puts before and behind it."""
    return message.removeprefix("Value error, ").partition(", unable to parse")[0].rstrip(".")
