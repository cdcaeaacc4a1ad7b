"""SlideLens's own suite says whether the family keeps its promises."""

from __future__ import annotations

from slidelens_example import FAMILY

from slidelens.testing.conformance import FamilyConformance


class TestExample(FamilyConformance):
    family = FAMILY
    config = {"tile": 64}
