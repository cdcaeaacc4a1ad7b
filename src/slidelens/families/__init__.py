"""The model families: one file per method. They do not know each other."""

from __future__ import annotations

from typing import Any

from slidelens.registry import Registry

__all__ = ["FAMILIES"]

FAMILIES: Registry[Any] = Registry(
    "slidelens.families",
    "slidelens.families.base:Family",
    {
        "local": "slidelens.families.local:FAMILY",
        "magnet": "slidelens.families.magnet:FAMILY",
        "mil": "slidelens.families.mil:FAMILY",
        "multistage": "slidelens.families.multistage:FAMILY",
        "streaming": "slidelens.families.streaming:FAMILY",
    },
)
