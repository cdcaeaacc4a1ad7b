"""Trainings of the families, without their pictures."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", autouse=True)
def _no_curves(without_curves: None) -> None:
    """Whoever looks at them draws them."""
