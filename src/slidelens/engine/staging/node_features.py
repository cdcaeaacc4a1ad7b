"""What a map of tumour says of a whole slide: the figures that a random forest reads.

multi-stage-segmentation-2019, section 4.2.3, takes slide labels from a random forest "as used in"
Lee & Paeng 2018 (arXiv:1805.12067) without naming the figures; these are ours, of the kinds that
were common in CAMELYON17: how high, how much, how many, how large.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.maps.lesions import find_lesions
from slidelens.maps.regions import find_regions

if TYPE_CHECKING:
    from slidelens.maps.result import Result

__all__ = ["FEATURES", "largest_lesion_mm", "node_features"]

_LEVELS = (0.5, 0.9)
_OF_LEVEL = (
    "share",
    "lesions",
    "area",
    "largest",
    "second",
    "area_of_largest",
    "mean_of_largest",
)
FEATURES = ("highest", "mean", *(f"{name}_{level:g}" for level in _LEVELS for name in _OF_LEVEL))
"""Names of the figures: probabilities, shares of the predicted area, mm² and mm."""


def node_features(result: Result) -> dict[str, float]:
    """Measure the map of the last class.

    Raises
    ------
    ResultError
        See :meth:`~slidelens.maps.result.Result.map_of`.
    """
    label = result.classes[-1]
    source = result.map_of(label)
    values = np.asarray(source.levels[0][source.channel(label)], np.float64)
    known = values[~np.isnan(values)]
    figures = {
        "highest": float(known.max(initial=0.0)),
        "mean": float(known.mean()) if known.size else 0.0,
    }
    for level in _LEVELS:
        regions = find_regions(source, label, threshold=level)
        lesions = find_lesions(regions, source)
        first = lesions[0] if lesions else None
        found = (
            float((known >= level).mean()) if known.size else 0.0,
            float(len(lesions)),
            sum(lesion.area_mm2 for lesion in lesions),
            first.diameter_mm if first else 0.0,
            lesions[1].diameter_mm if len(lesions) > 1 else 0.0,
            first.area_mm2 if first else 0.0,
            first.probability if first else 0.0,
        )
        names = [f"{name}_{level:g}" for name in _OF_LEVEL]
        figures |= dict(zip(names, found, strict=True))
    return figures


def largest_lesion_mm(result: Result) -> float | None:
    """Return the diameter of the largest lesion in mm; ``None`` for a slide without one.

    Raises
    ------
    ResultError
        See :meth:`~slidelens.maps.result.Result.map_of`.
    """
    regions = [region for region in result.regions if region.label == result.classes[-1]]
    lesions = find_lesions(regions, result.map_of(result.classes[-1]))
    return lesions[0].diameter_mm if lesions else None
