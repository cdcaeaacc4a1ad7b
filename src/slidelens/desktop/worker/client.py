"""The window's end of a worker: starts it when there is work, hears from it, reports its death."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QObject, QProcess, QTimer

from slidelens.desktop.qt import Signal
from slidelens.desktop.worker.messages import Decoder, Message, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Job", "WorkerClient"]

_IDLE_MS = 10 * 60 * 1000
_LINES = 40


class Job(QObject):
    """One job of a worker.

    Signals
    -------
    said
        A :class:`~slidelens.desktop.worker.messages.Message` of the job.
    ended
        Status (``done``, ``cancelled``, ``failed`` or ``died``) and, for the last two, one sentence
        for a person. Comes exactly once.
    """

    said = Signal(object)  # not `event`, which is a method of QObject that Qt calls
    ended = Signal(str, str)

    def __init__(self, client: WorkerClient, number: int) -> None:
        super().__init__(client)
        self._client = client
        self.number = number
        self.status: str | None = None
        """How it ended; ``None`` before."""
        self.asked = False
        """Whether it was asked to end."""

    def cancel(self) -> None:
        """Ask for an end after the step under way; a worker that does not answer is killed."""
        if self.status is None:
            self.asked = True
            self._client.cancel(self)

    def end(self, status: str, error: str = "") -> None:
        """Tell once how the job ended."""
        if self.status is None:
            self.status = status
            self.ended.emit(status, error)


class WorkerClient(QObject):
    """Runs jobs in a process of their own, one after the other, in the order given.

    The process starts with the first job and ends after ten minutes without one.

    Parameters
    ----------
    patience
        Seconds after which a worker that was asked to stop is killed.
    """

    def __init__(self, parent: QObject | None = None, *, patience: float = 10.0) -> None:
        super().__init__(parent)
        self._patience = int(1000 * patience)
        self._process: QProcess | None = None
        self._jobs: dict[int, Job] = {}
        self._number = 0
        self._closed = False
        self._decoder = Decoder()
        self._said: deque[str] = deque(maxlen=_LINES)
        self._idle = self._timer(_IDLE_MS, self._rest)
        self._overdue = self._timer(self._patience, self._kill)

    @property
    def busy(self) -> bool:
        """Whether a job is under way or waiting."""
        return bool(self._jobs)

    @property
    def jobs(self) -> list[Job]:
        """What is under way and waiting, in order."""
        return list(self._jobs.values())

    @property
    def pid(self) -> int:
        """Of the worker's process; 0 when there is none."""
        return 0 if self._process is None else int(self._process.processId())

    def submit(self, name: str, facts: Mapping[str, Any]) -> Job:
        """Hand in a job."""
        self._number += 1
        job = Job(self, self._number)
        self._jobs[job.number] = job
        self._idle.stop()
        if self._process is None:
            self._start()
        self._write(Message(job.number, name, facts))
        return job

    def cancel(self, job: Job) -> None:
        """See :meth:`Job.cancel`. A job that waits ends at once; the one under way goes on."""
        self._write(Message(job.number, "cancel"))
        if job is not self.jobs[0]:
            self._end(job, "cancelled")
        elif not self._overdue.isActive():
            self._overdue.start()

    def close(self) -> None:
        """End the worker: politely, then not."""
        self._closed = True
        process = self._process
        if process is None:
            return
        process.closeWriteChannel()
        if not process.waitForFinished(self._patience if self._jobs else 1000):
            process.kill()
            process.waitForFinished(5000)

    def _start(self) -> None:
        self._closed = False  # of an earlier process
        self._decoder = Decoder()
        self._said.clear()
        self._process = process = QProcess(self)
        process.readyReadStandardOutput.connect(self._hear)
        process.readyReadStandardError.connect(self._listen)
        process.finished.connect(self._finished)
        process.errorOccurred.connect(self._failed)
        # -P: a folder called torch where the person happens to be is no module of ours.
        process.start(sys.executable, ["-P", "-m", "slidelens.desktop.worker"])

    def _write(self, message: Message) -> None:
        if self._process is not None:
            self._process.write(encode(message))

    def _hear(self) -> None:
        if self._process is None:
            return
        for message in self._decoder.feed(bytes(self._process.readAllStandardOutput().data())):
            job = self._jobs.get(message.job)
            if job is None:
                continue
            if message.name == "ended":
                self._end(job, message.facts["status"], message.facts.get("error", ""))
            else:
                job.said.emit(message)

    def _listen(self) -> None:
        if self._process is not None:
            text = bytes(self._process.readAllStandardError().data()).decode(errors="replace")
            self._said.extend(text.splitlines())

    def _end(self, job: Job, status: str, error: str = "") -> None:
        if job is self.jobs[0]:
            self._overdue.stop()
        self._jobs.pop(job.number, None)
        if not self._jobs:
            self._idle.start()
        job.end(status, error)
        job.deleteLater()

    def _finished(self, code: int, status: QProcess.ExitStatus) -> None:
        self._hear()
        self._listen()
        killed = status == QProcess.ExitStatus.CrashExit
        self._gone("was killed, perhaps for want of memory" if killed else f"ended (status {code})")

    def _failed(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._gone(f"could not be started ({sys.executable})")

    def _gone(self, why: str) -> None:
        """Tell all jobs that their worker is gone; the next job gets a new one."""
        process, self._process = self._process, None
        if process is not None:
            process.deleteLater()
        said = next((line for line in reversed(self._said) if line.strip()), "")
        detail = f" Its last words: {said}" if said else ""
        for job in list(self._jobs.values()):
            if self._closed or job.asked:
                self._end(job, "cancelled")
            else:
                error = f"The worker {why}; what was finished is kept. Start again.{detail}"
                self._end(job, "died", error)
        self._idle.stop()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    def _rest(self) -> None:
        if self._process is not None and not self._jobs:
            self._process.closeWriteChannel()

    def _timer(self, interval: int, then: Any) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(interval)
        timer.timeout.connect(then)
        return timer
