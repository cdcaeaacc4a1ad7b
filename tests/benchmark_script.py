"""Benchmarks that need a GPU are loaded as modules: their parts run on a CPU too, at small size."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def load(monkeypatch, name):
    """Return ``benchmarks/<name>.py``, imported as the script finds its neighbours."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
