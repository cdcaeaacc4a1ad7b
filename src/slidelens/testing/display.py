"""A virtual display for tests and pictures, whatever the environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["virtual_display"]


@contextmanager
def virtual_display() -> Iterator[None]:
    """Run an Xvfb and point Qt at it; on systems other than Linux the real display is used.

    Must be entered before Qt is started.

    Raises
    ------
    SlideLensError
        There is no Xvfb, or it does not start.
    """
    if sys.platform != "linux":
        yield
        return
    program = shutil.which("Xvfb")
    if program is None:
        raise SlideLensError("no Xvfb found; install it (Debian: apt-get install xvfb).")
    read, write = os.pipe()
    options = ["-displayfd", str(write), "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
    quiet = subprocess.DEVNULL
    # If this process is killed, its display should not stay behind.
    ends = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    command = [*ends, program, *options]
    server = subprocess.Popen(command, pass_fds=[write], stdout=quiet, stderr=quiet)  # noqa: S603  # reason: a program found on the path, no user's text
    os.close(write)
    before = {name: os.environ.get(name) for name in ("DISPLAY", "QT_QPA_PLATFORM")}
    try:
        with os.fdopen(read) as pipe:
            number = pipe.readline().strip()  # the server writes it when it is ready
        if not number:
            raise SlideLensError(f"{program} did not start (exit status {server.wait()}).")
        os.environ.update(DISPLAY=f":{number}", QT_QPA_PLATFORM="xcb")
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        server.terminate()
        server.wait()
