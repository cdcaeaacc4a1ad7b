"""The one type that makers of layers, readers and windows share: napari's layer data."""

from __future__ import annotations

from typing import Any

__all__ = ["LayerData"]

LayerData = tuple[Any, dict[str, Any], str]
"""napari's (data, keywords, layer type)."""
