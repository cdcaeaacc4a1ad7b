"""Layer data and shape rows, shared by readers, windows and the modules that make layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LayerData", "nothing_known"]

LayerData = tuple[Any, dict[str, Any], str]
"""napari's (data, keywords, layer type)."""

_UNKNOWN = {"f": float("nan"), "i": -1}  # by numpy's kind of number


def nothing_known(features: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the row of a shape that a user adds to a layer with these features.

    Without it, napari copies the last shape's row for the new one: its id, its probability.
    """
    return {
        name: [_UNKNOWN.get(np.asarray(values).dtype.kind, "")] for name, values in features.items()
    }
