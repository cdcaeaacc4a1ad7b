"""The window's end of a worker: start it on demand, receive messages, report its death."""

from __future__ import annotations

import sys
from collections import deque
from typing import TYPE_CHECKING, Any
from weakref import ref

from qtpy.QtCore import QObject, QProcess, QTimer

from slidelens.desktop.qt import Signal
from slidelens.desktop.worker.messages import Decoder, Message, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

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
        for the user. Emitted exactly once.
    """

    said = Signal(object)  # not `event`, which is a method of QObject that Qt calls
    ended = Signal(str, str)

    def __init__(self, client: WorkerClient, request: Message) -> None:
        super().__init__(client)
        # Weak: in a cycle, the garbage collector might delete a job that is being deleted.
        self._client = ref(client)
        self.request = request
        """The message to the worker."""
        self.begun = False
        """Whether the worker has sent anything about it."""
        self.status: str | None = None
        """How it ended; ``None`` before."""
        self.asked = False
        """Whether it was asked to end."""
        self.warnings: list[str] = []
        """What it has warned of, each text once."""

    @property
    def number(self) -> int:
        """Its number."""
        return self.request.job

    def cancel(self) -> None:
        """Ask for an end after the step under way; a worker that does not answer is killed."""
        client = self._client()
        if self.status is None and client is not None:
            self.asked = True
            client.cancel(self)

    def hear(self, message: Message) -> None:
        """Pass on what the worker says of it, and keep its warnings."""
        if message.name == "warning" and message.facts["text"] not in self.warnings:
            self.warnings.append(message.facts["text"])
        self.said.emit(message)

    def end(self, status: str, error: str = "") -> None:
        """Report once how the job ended."""
        if self.status is None:
            self.status = status
            self.ended.emit(status, error)


class WorkerClient(QObject):
    """Runs jobs in a separate process, one after the other, in the order given.

    The process starts with the first job and ends after ten minutes without one. If it is killed
    because a job does not end, the jobs after that get a new process.

    Parameters
    ----------
    patience
        Seconds after which a worker that was asked to stop is killed.
    """

    def __init__(self, parent: QObject | None = None, *, patience: float = 10.0) -> None:
        super().__init__(parent)
        self._patience = int(1000 * patience)
        self._process: QProcess | None = None
        self._leaving: list[QProcess] = []
        """Processes that were told to end and may still be running."""
        self._killed = False
        """Whether the process was killed here."""
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
        """The job under way and those waiting, in order."""
        return list(self._jobs.values())

    @property
    def pid(self) -> int:
        """Of the worker's process; 0 when there is none."""
        return 0 if self._process is None else int(self._process.processId())

    def submit(self, name: str, facts: Mapping[str, Any]) -> Job:
        """Hand in a job."""
        self._number += 1
        job = Job(self, Message(self._number, name, facts))
        self._jobs[job.number] = job
        self._idle.stop()
        if self._process is None:
            self._start()
        self._write(job.request)
        return job

    def cancel(self, job: Job) -> None:
        """See :meth:`Job.cancel`. A waiting job ends at once; the one under way continues."""
        self._write(Message(job.number, "cancel"))
        if job is not self.jobs[0]:
            self._end(job, "cancelled")
        elif not self._overdue.isActive():
            self._overdue.start()

    def close(self) -> None:
        """End the worker: politely, then by force."""
        self._closed = True
        now = [] if self._process is None else [self._process]
        for process in (*self._leaving, *now):
            process.closeWriteChannel()
            if not process.waitForFinished(self._patience if self._jobs else 1000):
                process.kill()
                process.waitForFinished(5000)

    def _start(self) -> None:
        self._closed = self._killed = False  # of an earlier process
        self._decoder = Decoder()
        self._said.clear()
        self._process = process = QProcess(self)
        for signal, ear in self._ears(process):
            signal.connect(ear)
        # -P: a folder called torch where the person happens to be is no module of ours.
        process.start(sys.executable, ["-P", "-m", "slidelens.desktop.worker"])

    def _ears(self, process: QProcess) -> list[tuple[Any, Callable[..., None]]]:
        """Return which of a process's signals are connected, and to what."""
        return [
            (process.readyReadStandardOutput, self._hear),
            (process.readyReadStandardError, self._listen),
            (process.finished, self._finished),
            (process.errorOccurred, self._failed),
        ]

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
            job.begun = True
            if message.name == "ended":
                self._end(job, message.facts["status"], message.facts.get("error", ""))
            else:
                job.hear(message)

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
        self._gone(
            "was killed, perhaps because memory ran out" if killed else f"ended (status {code})"
        )

    def _failed(self, error: QProcess.ProcessError) -> None:
        if error == QProcess.ProcessError.FailedToStart:
            self._gone(f"could not be started ({sys.executable})")

    def _gone(self, why: str) -> None:
        """End the jobs of a worker that is gone; the next job gets a new one.

        If it was killed here, jobs that had not begun are submitted again.
        """
        process, self._process = self._process, None
        if process is not None:
            process.deleteLater()
        said = next((line for line in reversed(self._said) if line.strip()), "")
        detail = f" Its last output: {said}" if said else ""
        error = f"The worker {why}; finished work is kept. Start again.{detail}"
        ours = self._killed and not self._closed
        again = [job for job in self.jobs if ours and not job.asked and not job.begun]
        if again:  # before anyone hears of an end and submits more
            self._start()
        for job in again:
            self._write(job.request)
        for job in self.jobs:
            if job.status is not None:
                continue  # a listener of another job's end cancelled it
            if self._closed or job.asked:
                self._end(job, "cancelled")
            elif job not in again:
                self._end(job, "died", error)
        if not self._jobs:
            self._idle.stop()

    def _kill(self) -> None:
        if self._process is not None:
            self._killed = True
            self._process.kill()

    def _rest(self) -> None:
        """Let an idle worker end; a job that arrives meanwhile gets a new one."""
        process = self._process
        if process is None or self._jobs:
            return
        self._process = None
        for signal, ear in self._ears(process):
            signal.disconnect(ear)
        process.finished.connect(self._left)
        self._leaving.append(process)
        process.closeWriteChannel()

    def _left(self) -> None:
        ended = [p for p in self._leaving if p.state() == QProcess.ProcessState.NotRunning]
        for process in ended:
            self._leaving.remove(process)
            process.deleteLater()

    def _timer(self, interval: int, then: Any) -> QTimer:
        timer = QTimer(self)
        timer.setSingleShot(True)
        timer.setInterval(interval)
        timer.timeout.connect(then)
        return timer
