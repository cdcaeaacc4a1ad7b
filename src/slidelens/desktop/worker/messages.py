"""Messages between window and worker: a line of JSON, followed by bytes if it says so.

Nothing is pickled. Both sides read from pipes, so a message may arrive in any number of pieces.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

__all__ = ["Decoder", "Message", "encode", "pack", "unpack"]


@dataclass(frozen=True, slots=True)
class Message:
    """One message.

    Attributes
    ----------
    job
        Number of the job that it belongs to.
    name
        From the window the kind of job, or ``cancel``; from the worker the event.
    facts
        JSON values.
    blob
        Bytes, for arrays (see :func:`pack`).
    """

    job: int
    name: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    blob: bytes = b""


def encode(message: Message) -> bytes:
    """Return the bytes to send."""
    head = [message.job, message.name, len(message.blob), message.facts]
    return json.dumps(head, ensure_ascii=False).encode() + b"\n" + message.blob


class Decoder:
    """Puts messages together from the pieces in which they arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Message]:
        """Take what has arrived and yield the messages that are then complete.

        Raises
        ------
        ValueError
            The other side sent something invalid.
        """
        self._buffer += data
        while (end := self._buffer.find(b"\n")) >= 0:
            job, name, size, facts = json.loads(self._buffer[:end])
            if len(self._buffer) < end + 1 + size:
                return
            blob = bytes(self._buffer[end + 1 : end + 1 + size])
            del self._buffer[: end + 1 + size]
            yield Message(job, name, facts, blob)


def pack(array: NDArray[Any]) -> tuple[dict[str, Any], bytes]:
    """Return an array as facts and bytes; heatmaps shrink to a fraction."""
    facts = {"shape": array.shape, "dtype": array.dtype.str}
    return facts, zlib.compress(np.ascontiguousarray(array).tobytes(), 1)


def unpack(message: Message) -> NDArray[Any]:
    """Return the array of a message whose facts and blob were made by :func:`pack`."""
    values = np.frombuffer(zlib.decompress(message.blob), message.facts["dtype"])
    return values.reshape(message.facts["shape"])
