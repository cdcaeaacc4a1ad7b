"""Jobs of a cluster or a desktop: output to a full disk or nowhere, a cohort split among them."""

import errno
import os
import shutil
import subprocess
import sys
from functools import partial
from shlex import join, quote

import pytest

from warm import run_warm

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs sh and /dev/full")

_PROGRAM = f"exec {quote(sys.executable)} -m slidelens"


def _sh(command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False)


def test_output_to_a_full_disk_is_one_sentence():
    done = _sh(f"{_PROGRAM} models > /dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith("error: No space left on device; make room")
    assert done.stderr.count("\n") == 1


def test_a_copy_that_finds_no_room_names_where_it_goes(slidelens, monkeypatch, tmp_path):
    def copyfile(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", source, None, target)

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    done = slidelens("package", "pack", "demo-mil", "--out", tmp_path / "p")
    assert done.code == 1
    target = tmp_path / "p" / "weights.safetensors"  # not the hidden place that it is staged at
    assert done.err == f"error: {target}: No space left on device.\n"


def _close(number: int) -> None:
    """Begin as Python does where the shell has closed a stream."""
    os.close(number)
    setattr(sys, ("stdin", "stdout", "stderr")[number], None)


@pytest.mark.parametrize("closed", [1, 2, "<&- >&- 2>&-"])
def test_streams_may_be_closed(closed, tmp_path):
    """A bar asked a stream that was not there; a file that was opened got the number of stderr."""
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tif").write_text("no slide")
    out = tmp_path / "out"
    words = ["predict", f"{tmp_path}/slides", "--model", "demo-mil", "--out", f"{out}"]
    if isinstance(closed, str):
        done = _sh(f"{_PROGRAM} {join(words)} {closed}")
    else:
        done = run_warm("-m", "slidelens", *words, before=partial(_close, closed))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    row = (out / "demo-mil" / "predictions.csv").read_text().splitlines()[1]
    assert row.startswith("a,failed,")
