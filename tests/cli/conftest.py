from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from sample_evaluation import SCORES, TRUTH, evaluated
from slidelens.cli import main


class Done(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def slidelens(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run the program in this process, as its entry point does."""

    def run(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["slidelens", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 0
        done = capsys.readouterr()
        assert "Traceback" not in done.out + done.err
        return Done(code, done.out, done.err)

    return run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an evaluation of two models, without pictures."""
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
    return evaluated(tmp_path, TRUTH, SCORES)
