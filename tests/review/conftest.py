"""An evaluation to review: two methods, six slides."""

from __future__ import annotations

from pathlib import Path

import pytest
from evaluated import evaluated

TRUTH = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}
GOOD = {"a": 0.1, "b": 0.7, "c": 0.35, "d": 0.4, "e": 0.8, "f": 0.9}
WEAK = {"a": 0.3, "b": 0.9, "c": 0.6, "d": 0.45, "e": 0.2, "f": 0.55}


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes ten times as long as all the rest."""
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})


@pytest.fixture
def evaluation(tmp_path: Path, _no_pictures: None) -> Path:
    """Folder of an evaluation whose errors are few enough to be counted by hand."""
    return evaluated(tmp_path, TRUTH, {"good": GOOD, "weak": WEAK})
