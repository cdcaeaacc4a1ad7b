"""The count of kept tensors runs on any release of PyTorch: on tensors without data, in no time."""

from __future__ import annotations

import pytest

from benchmark_script import load


@pytest.fixture
def script(monkeypatch):
    return load(monkeypatch, "local")


def test_modules_keep_less_than_plain_training_the_more_there_are(script):
    plain = script.kept_plain(768, 960)
    one, four, eight = (script.kept_local(modules, 768, 960) for modules in (1, 4, 8))
    assert 0 < eight < four < one < plain
    assert four < 0.4 * plain


def test_the_count_grows_with_the_image(script):
    assert script.kept_plain(768, 960) == pytest.approx(4 * script.kept_plain(384, 480), rel=0.05)
