"""Every built-in family holds what a plugin must hold."""

from __future__ import annotations

from typing import Any

import pytest

from slidelens.families import FAMILIES
from slidelens.testing.conformance import FamilyConformance

SMALL: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "local": ({"backbone": "squeezenet1_1", "modules": 2, "mpp": 2.0}, {}),
    "magnet": (
        {
            "backbone": "small",
            "auxiliary": "small",
            "patches": (2, 2),
            "glance": 24,
            "look": 32,
            "width": 8,
            "state": 16,
            "mpp": 0.5,
        },
        {},
    ),
    "mil": (
        {"backbone": "squeezenet1_1", "tile": 64, "mpp": 1.0},
        {"warm_steps": "2", "train_batch": "4"},
    ),
    "multistage": (
        {"backbone": "squeezenet1_1", "tile": 64, "mpp": 1.0, "width": 4, "depth": 1},
        {"map_batch": "4"},
    ),
    "streaming": (
        {"backbone": "squeezenet1_1", "layers": "features.5", "tile": 256},
        {"accumulate": "2"},
    ),
}
"""Family to its configuration and training, small enough for a test."""


def suite(name: str) -> type[FamilyConformance]:
    config, training = SMALL[name]
    family = FAMILIES.get(name)
    members = {"family": family, "config": config, "training": training}
    return type(f"Test{name.title()}", (FamilyConformance,), members)


for _name in SMALL:
    globals()[f"Test{_name.title()}"] = suite(_name)


@pytest.mark.parametrize("name", [n for n in FAMILIES.names() if n not in FAMILIES.plugins()])
def test_every_built_in_family_is_among_them(name):
    assert name in SMALL
