"""A warm process is what a new one is, but for its imports."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from warm import run_warm

pytestmark = pytest.mark.skipif(os.name == "nt", reason="knows no fork: all are new there")

_LEAVES = """
import warm
warm._CONTEXT.set_forkserver_preload([])
left = warm.Warm("-c", "import time; print('on', flush=True); time.sleep(600)")
print(left.stdout.readline())
"""


@pytest.mark.parametrize(
    "code",
    [
        "import sys; print(sys.argv, __name__, repr(sys.stdin.read()))",
        "import sys; sys.exit('no µ')",
        "import sys; sys.exit(130)",
        "print('said'); raise ValueError('why')",
        "import os; os.kill(os.getpid(), 9)",
        "import multiprocessing; print(multiprocessing.get_start_method())",
        "import atexit; atexit.register(print, 'last'); print('first')",
        "from threading import Timer; Timer(0.1, print, [1]).start()",
        "import os; print(os.getcwd(), sorted(os.environ))",
    ],
)
def test_it_does_and_says_what_a_new_process_does(code, tmp_path):
    place = {"cwd": tmp_path, "env": {"LC_ALL": "C.UTF-8", "A": "b"}}
    words = ("-c", code, "x", "y")
    new = subprocess.run([sys.executable, *words], **place, capture_output=True, text=True)
    warm = run_warm(*words, **place)
    assert (warm.returncode, warm.stdout) == (new.returncode, new.stdout)
    assert warm.stderr.splitlines()[-1:] == new.stderr.splitlines()[-1:]


def test_what_a_test_leaves_behind_ends_with_the_tests():
    place = {"PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", _LEAVES], env=place, capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout.strip()) == (0, "on"), done.stderr
