"""Lengths in micrometres, from the unit names that OME-XML and OME-NGFF use."""

from __future__ import annotations

from math import isfinite

__all__ = ["micrometres"]

_UNITS = {
    "µm": 1.0,
    "μm": 1.0,  # Greek mu, as some writers have it
    "um": 1.0,
    "micrometer": 1.0,
    "micron": 1.0,
    "nm": 1e-3,
    "nanometer": 1e-3,
    "pm": 1e-6,
    "picometer": 1e-6,
    "å": 1e-4,
    "angstrom": 1e-4,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "centimeter": 1e4,
    "m": 1e6,
    "meter": 1e6,
    "inch": 25_400.0,
    "in": 25_400.0,
}


def micrometres(value: float, unit: str | None) -> float | None:
    """Convert a length; ``None`` if it is not above zero or has no unit of length."""
    factor = _UNITS.get((unit or "").strip().lower())
    if factor is None or not isfinite(value) or value <= 0:
        return None
    return value * factor
