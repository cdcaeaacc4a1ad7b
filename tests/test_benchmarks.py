"""Every benchmark is there to be run: none has been left behind by what it imports."""

from __future__ import annotations

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
