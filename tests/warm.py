"""Processes of their own that begin with PyTorch imported: as real as any, without its 8 s of CPU.

They are forks of a server that has imported what every command imports; in all else they are what
``python -m ...``, ``python -c ...`` or ``python file`` starts: killed, stopped and limited alike.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TextIO

START = "spawn" if os.name == "nt" else "forkserver"
"""How other programs of the tests, which start processes themselves, start such ones."""
_CONTEXT = multiprocessing.get_context(START)
if START == "forkserver":
    _CONTEXT.set_forkserver_preload(
        ["torch", "torch._dynamo", "torchvision.models", "lightning.fabric", "zarr", "typer"]
    )


class Warm:
    """A running Python with what it writes, with the names of :class:`subprocess.Popen`."""

    def __init__(
        self,
        *words: object,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        packages: Path | None = None,
        before: Callable[[], Any] | None = None,
    ) -> None:
        """Start ``python *words``; ``packages`` is a site-packages besides, ``before`` runs first.

        What ``before`` names has to be importable, as functions of test modules are.
        """
        ends = [_CONTEXT.Pipe(duplex=False) for _ in range(2)]
        place = {"env": dict(os.environ if env is None else env), "cwd": str(cwd or Path.cwd())}
        writers = [writer for _, writer in ends]
        self._process = _CONTEXT.Process(
            target=_become,
            args=([str(word) for word in words], writers, place, packages, before),
        )
        self._process.start()
        atexit.register(self.kill)  # before multiprocessing waits for what a test has left
        self.stdout, self.stderr = (_text(reader) for reader, _ in ends)
        for writer in writers:
            writer.close()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0)
        return self._process.exitcode

    def kill(self) -> None:
        if self.returncode is None:
            self._process.kill()

    def send_signal(self, number: signal.Signals) -> None:
        if self.returncode is None:
            assert self._process.pid is not None
            os.kill(self._process.pid, number)

    def communicate(self, timeout: float = 500) -> tuple[str, str]:
        """Read all that it says, wait for its end."""
        with ThreadPoolExecutor(2) as pool:
            said = [pool.submit(stream.read) for stream in (self.stdout, self.stderr)]
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            out, err = (text.result() for text in said)
        self.close()
        return out, err

    def close(self) -> None:
        self.stdout.close()
        self.stderr.close()


def start_warm(*words: object, **place: Any) -> Warm | subprocess.Popen[str]:
    """Start ``python *words``, wherever there is no fork as any; arguments as of :class:`Warm`."""
    if os.name == "nt":
        program, pipe = [sys.executable, *map(str, words)], subprocess.PIPE
        return subprocess.Popen(program, stdout=pipe, stderr=pipe, text=True, **place)
    return Warm(*words, **place)


def run_warm(*words: object, **place: Any) -> subprocess.CompletedProcess[str]:
    """Run ``python *words`` to its end, as ``subprocess.run``; arguments as of :class:`Warm`."""
    process = start_warm(*words, **place)
    out, err = process.communicate()
    assert process.returncode is not None
    return subprocess.CompletedProcess([*map(str, words)], process.returncode, out, err)


def _text(reader: Connection) -> TextIO:
    stream = os.fdopen(os.dup(reader.fileno()), encoding="utf-8")
    reader.close()
    return stream


def _become(
    words: list[str],
    writers: list[Connection],
    place: dict[str, Any],
    packages: Path | None,
    before: Callable[[], Any] | None,
) -> None:
    """Be what ``python *words`` is, in a fork of the server."""
    for number, writer in enumerate(writers, start=1):
        os.dup2(writer.fileno(), number)
        writer.close()
    # The server's own remember what they were opened on.
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", 1, errors="backslashreplace", closefd=False)
    multiprocessing.set_start_method(None, force=True)  # a program's own, not how this one began
    os.environ.clear()
    os.environ.update(place["env"])
    os.chdir(place["cwd"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    if packages is not None:
        site.addsitedir(str(packages))
    if before is not None:
        before()
    try:
        _run(*words)
    finally:
        threading._shutdown()
        atexit._run_exitfuncs()  # which multiprocessing leaves out


def _run(kind: str, *rest: str) -> None:
    if kind == "-m":
        sys.argv = [*rest]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.argv = ["-c", *rest[1:]]
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = [kind, *rest]
        sys.path.insert(0, str(Path(kind).parent))
        runpy.run_path(kind, run_name="__main__")
