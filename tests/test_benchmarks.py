"""Every benchmark is there to be run: none has been left behind by what it imports."""

from __future__ import annotations

import subprocess
import sys

import pytest

from benchmark_script import BENCHMARKS, load

TOOLS = {"common", "run", "magnet_slides", "results_rows"}
"""What benchmarks share."""


@pytest.mark.parametrize("name", sorted(path.stem for path in BENCHMARKS.glob("*.py")))
def test_a_benchmark_finds_all_that_it_imports(monkeypatch, name):
    script = load(monkeypatch, name)
    assert script.__doc__
    if name not in TOOLS:
        assert callable(script.measure)


def test_a_benchmark_says_which_real_data_it_lacks(monkeypatch, tmp_path):
    monkeypatch.setenv("SLIDELENS_TEST_DATA", str(tmp_path))
    command = [sys.executable, str(BENCHMARKS / "read.py"), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith(f"read.py: no {tmp_path / 'wsi' / 'CMU-1-Small-Region.svs'}, ")
    assert "SLIDELENS_TEST_DATA" in done.stderr
    assert "Traceback" not in done.stderr
