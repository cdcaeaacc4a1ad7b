"""Makes the tiny family known to the registry, for the tests of the engine only."""

from __future__ import annotations

import pytest
from tiny_family import FAMILY, TinyConfig, make_model

from slidelens.families import FAMILIES
from slidelens.families.base import Model


@pytest.fixture(autouse=True)
def tiny_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES._builtins, "tiny", "tiny_family:FAMILY")
    monkeypatch.setitem(FAMILIES._loaded, "tiny", FAMILY)


@pytest.fixture(scope="module", autouse=True)
def _no_curves(without_curves: None) -> None:
    """Whoever looks at them draws them."""


@pytest.fixture
def tiny() -> Model[TinyConfig]:
    return make_model()
