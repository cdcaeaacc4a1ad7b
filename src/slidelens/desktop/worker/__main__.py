"""``python -m slidelens.desktop.worker``: run jobs from standard input until it ends.

Only messages go to the output; whatever libraries print goes to the error stream.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import closing, suppress
from queue import SimpleQueue
from threading import Lock, Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from slidelens.desktop.warned import Warnings
from slidelens.desktop.worker.jobs import JOBS
from slidelens.desktop.worker.messages import Decoder, Message, encode
from slidelens.engine.heap import heap_trimmer
from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Worker", "main"]

_NICE = 5  # the window goes first
_PIECE = 1 << 16
log = logging.getLogger("slidelens.worker")


class Worker:
    """Runs jobs in the order in which they arrive.

    Parameters
    ----------
    source, target
        Where messages come from and go to.
    """

    def __init__(self, source: BinaryIO, target: BinaryIO) -> None:
        self._source, self._target = source, target
        self._waiting: SimpleQueue[Message | None] = SimpleQueue()
        self._cancelled: set[int] = set()
        self._closed = False
        self._sending = Lock()
        self._job = 0

    def run(self) -> None:
        """Work until the input ends; the job under way is then cancelled."""
        logging.getLogger("slidelens").addHandler(Warnings(self.warn))
        Thread(target=self._listen, daemon=True, name="slidelens-listen").start()
        self._send(Message(0, "ready"))
        while (message := self._waiting.get()) is not None:
            self._send(Message(message.job, "ended", self._do(message)))
            if self._waiting.empty():
                heap_trimmer().now()  # it may be hours until the next

    def _listen(self) -> None:
        decoder = Decoder()
        while data := os.read(self._source.fileno(), _PIECE):
            for message in decoder.feed(data):
                if message.name == "cancel":
                    self._cancelled.add(message.job)
                else:
                    self._waiting.put(message)
        self._closed = True
        self._waiting.put(None)

    def _do(self, message: Message) -> dict[str, Any]:
        """Run one job and report how it ended."""

        def send(name: str, facts: Mapping[str, Any], blob: bytes) -> None:
            self._send(Message(message.job, name, facts, blob))

        self._job = message.job
        try:
            with closing(JOBS[message.name](message.facts, send)) as steps:  # type: ignore[type-var]
                if self._stopped(message.job):
                    return {"status": "cancelled"}
                for _ in steps:
                    if self._stopped(message.job):
                        return {"status": "cancelled"}
        except SlideLensError as error:
            return {"status": "failed", "error": str(error)}
        except Exception as error:  # reason: the window must hear of any fault
            log.exception("job %s failed", message.name)
            return {"status": "failed", "error": f"unexpected {type(error).__name__}: {error}"}
        return {"status": "done"}

    def _stopped(self, job: int) -> bool:
        return self._closed or job in self._cancelled

    def warn(self, text: str) -> None:
        """Send ``warning`` about the job under way."""
        with suppress(OSError):  # the window is gone, as the job will notice
            self._send(Message(self._job, "warning", {"text": text}))

    def _send(self, message: Message) -> None:
        with self._sending:  # threads of a job may warn
            self._target.write(encode(message))
            self._target.flush()


def main() -> None:
    """Serve the process that started this one."""
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s")
    messages = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    if hasattr(os, "nice"):
        os.nice(_NICE)
    try:
        Worker(sys.stdin.buffer, messages).run()
    except BrokenPipeError:
        sys.exit(1)  # the window is gone


if __name__ == "__main__":
    main()
