"""An evaluation to review: two methods, six slides."""

from __future__ import annotations

from pathlib import Path

import pytest
from phantoms import write_evaluation

from sample_evaluation import SCORES, TRUTH, evaluated


@pytest.fixture
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes ten times as long as all the rest."""
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})


@pytest.fixture
def _no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the curves out of reports, most of their time where slides have no pictures."""
    monkeypatch.setattr("slidelens.review.report._plots", lambda *_: [])


@pytest.fixture
def evaluation(tmp_path: Path, _no_pictures: None) -> Path:
    """Folder of an evaluation whose errors are few enough to be counted by hand."""
    return evaluated(tmp_path, TRUTH, SCORES)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an evaluation with slides and maps; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
        return write_evaluation(tmp_path_factory.mktemp("phantoms"))
