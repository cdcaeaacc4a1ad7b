"""A window gives free memory back, in a process of its own: what tests left changes the heap."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import time
import numpy as np
from qtpy.QtCore import QCoreApplication, QObject
from slidelens.desktop.background import Background
from slidelens.desktop.spare import SpareMemory
from slidelens.nn.heap import resident, trim_heap

app, parent = QCoreApplication([]), QObject()
background = Background(parent)
trim_heap()
spare = SpareMemory(background, parent)

def run_until(done):
    end = time.monotonic() + 60
    while not done() and time.monotonic() < end:
        app.processEvents()
        time.sleep(0.02)  # other threads work meanwhile

run_until(lambda: spare._guard._low is not None)  # it has looked once
np.ones(16 << 20, np.uint8)  # from here on glibc takes such blocks from its heap
blocks, between = [], []
for _ in range(120):
    blocks.append(np.ones(4 << 20, np.uint8))
    between.append(bytes(300))
before = resident()
blocks.clear()
held = resident()
run_until(lambda: held - resident() > 300 << 20)
after = resident()
spare.stop()
background.close()
assert before - held < 100 << 20, "glibc gave it back by itself: the test shows nothing"
assert held - after > 300 << 20, (held >> 20, after >> 20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc and asks glibc")
def test_free_memory_is_given_back():
    subprocess.run([sys.executable, "-c", CODE], check=True, timeout=120)
