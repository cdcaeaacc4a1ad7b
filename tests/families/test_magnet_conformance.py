"""MagNet holds what every family must hold."""

from __future__ import annotations

from slidelens.families.magnet import FAMILY
from slidelens.testing.conformance import FamilyConformance


class TestMagNet(FamilyConformance):
    family = FAMILY
    config = {
        "backbone": "small",
        "auxiliary": "small",
        "patches": (2, 2),
        "glance": 24,
        "look": 32,
        "width": 8,
        "state": 16,
        "mpp": 0.5,
    }
