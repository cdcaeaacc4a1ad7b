"""Detected against annotated lesions: the free-response ROC curve of CAMELYON16.

Source: Ehteshami Bejnordi et al. 2017 (JAMA 318, supplement) and the challenge's evaluation page.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.bootstrap import draws, percentile_interval
from slidelens.engine.evaluation.measure import RESAMPLING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.engine.evaluation.measure import Resampling
    from slidelens.engine.intervals import Interval
    from slidelens.geometry import Mpp
    from slidelens.maps.lesions import Peak
    from slidelens.tiling.annotations import Annotation

__all__ = ["RATES", "Froc", "TrueLesion", "froc", "true_lesions"]

RATES = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives per slide at which the sensitivity is averaged."""

_GROWN_UM = 37.5
_CELLS_UM = 275.0


@dataclass(frozen=True)
class TrueLesion:
    """An annotated lesion as the evaluation sees it.

    ``polygon`` is in level-0 px; a detection inside is a hit. Lesions of ``isolated_cells`` need
    not be found, and are not false when found.
    """

    polygon: Any
    isolated_cells: bool


@dataclass(frozen=True, eq=False)
class Froc:
    """The curve.

    Attributes
    ----------
    rates
        ``(K,)`` false positives per slide, ascending.
    sensitivity
        ``(K,)`` share of the lesions that are found.
    at
        Sensitivity at each of :data:`RATES`.
    score
        Their mean.
    lesions, slides
        How many were to be found, and on how many slides (including those without lesions).
    score_ci
        Bootstrap interval of the score; NaN if fewer than half of the resamples have a lesion.
    """

    rates: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    at: tuple[float, ...]
    score: float
    lesions: int
    slides: int
    score_ci: Interval


def true_lesions(tumour: Sequence[Annotation], mpp: Mpp) -> list[TrueLesion]:
    """Make an annotated slide's lesions.

    Annotations grow by 37.5 µm, so that those within 75 µm are one lesion, and holes are filled.
    Lesions with a major axis below 275 µm (200 µm before they grew) are isolated tumour cells.
    """
    import shapely

    if not tumour:
        return []
    scale = (mpp.x, mpp.y)
    in_um = [shapely.transform(a.polygon, lambda xy: xy * scale) for a in tumour]
    grown = shapely.union_all(shapely.buffer(in_um, _GROWN_UM))
    filled_up = [shapely.Polygon(part.exterior) for part in shapely.get_parts(grown)]
    found = []
    # Once more: a lesion that lay in a hole is now part of the filled one.
    for filled in shapely.get_parts(shapely.union_all(filled_up)):
        small = _major_axis(shapely.get_coordinates(filled)) < _CELLS_UM
        found.append(TrueLesion(shapely.transform(filled, lambda xy: xy / scale), small))
    return found


def froc(
    found: Mapping[str, Sequence[Peak]],
    truth: Mapping[str, Sequence[TrueLesion]],
    *,
    patients: NDArray[np.int64] | None = None,
    resampling: Resampling = RESAMPLING,
) -> Froc:
    """Compare detections with lesions, by slide id.

    A lesion counts as found at the highest probability of the detections inside; a detection
    outside all lesions is false. The interval of the score is that of resamples of the slides, or
    of the patients, as in the challenge's evaluation.

    Parameters
    ----------
    found, truth
        Detections, and lesions of each slide that is counted.
    patients
        ``(S,)`` number of the patient of each slide of ``truth``.
    resampling
        Of the interval.

    Raises
    ------
    ValueError
        There is no lesion to find (isolated cells do not count), or a slide has detections and no
        entry in ``truth``.
    """
    import shapely

    unknown = sorted(found.keys() - truth.keys())
    if unknown:
        raise ValueError(f"no truth for {', '.join(unknown)}")
    seen: list[tuple[float, bool, int]] = []
    lesions = np.zeros(len(truth))
    for slide, (slide_id, of_slide) in enumerate(truth.items()):
        peaks = found.get(slide_id, ())
        x, y = np.array([(p.x, p.y) for p in peaks]).reshape(-1, 2).T
        scores = np.array([p.probability for p in peaks])
        inside = np.zeros(len(peaks), bool)
        for lesion in of_slide:
            hit = shapely.intersects_xy(lesion.polygon, x, y)
            inside |= hit
            if not lesion.isolated_cells:
                lesions[slide] += 1
                seen += [(float(scores[hit].max()), True, slide)] if hit.any() else []
        seen += [(score, False, slide) for score in scores[~inside].tolist()]
    if not lesions.any():
        cells = sum(len(of_slide) for of_slide in truth.values())
        below = f": all {cells} that are annotated are isolated tumour cells, below 200 µm"
        raise ValueError(f"no slide has a lesion to find{below if cells else ''}")
    return _curve(_Events(seen), lesions, patients, resampling)


class _Events:
    """Lesions found and false detections, by falling probability.

    Parameters
    ----------
    seen
        Probability, whether it is a lesion, and number of the slide.
    """

    def __init__(self, seen: Sequence[tuple[float, bool, int]]) -> None:
        scores, hit, slide = np.array(seen, np.float64).reshape(-1, 3).T
        order = np.argsort(-scores, kind="stable")
        self._hit, self._slide = hit[order] > 0, slide[order].astype(np.int64)
        levels = scores[order]
        self._last = np.flatnonzero(np.append(levels[1:] != levels[:-1], levels.size > 0))

    def curve(
        self, lesions: NDArray[np.float64], weights: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return false positives per slide and sensitivity at each level, and before the first.

        ``lesions`` and ``weights`` ``(S,)`` are of the slides: to be found, and times drawn.
        """
        drawn = weights[self._slide]
        false, hits = (
            np.append(0.0, np.cumsum(np.where(which, drawn, 0.0))[self._last])
            for which in (~self._hit, self._hit)
        )
        return false / weights.sum(), hits / (lesions @ weights)


def _curve(
    events: _Events,
    lesions: NDArray[np.float64],
    patients: NDArray[np.int64] | None,
    resampling: Resampling,
) -> Froc:
    slides = len(lesions)
    rates, sensitivity = events.curve(lesions, np.ones(slides))
    # Straight lines between the points, as the challenge's evaluation draws them.
    at = tuple(np.interp(RATES, rates, sensitivity).tolist())
    members = np.arange(slides) if patients is None else np.unique(patients, return_inverse=True)[1]
    scores = [
        float(np.interp(RATES, *events.curve(lesions, row)).mean()) if lesions @ row else np.nan
        for weights in draws(members, resampling.resamples, np.random.default_rng(resampling.seed))
        for row in weights
    ]
    interval = percentile_interval(np.array(scores), resampling.level)
    return Froc(rates, sensitivity, at, float(np.mean(at)), int(lesions.sum()), slides, interval)


def _major_axis(ring: NDArray[np.float64]) -> float:
    """Return the major axis of the ellipse that has a closed ring's second moments."""
    ring = ring - ring.mean(0)
    (x, y), (u, v) = ring[:-1].T, ring[1:].T
    cross = x * v - u * y
    area = cross.sum() / 2
    centre = np.array([((x + u) * cross).sum(), ((y + v) * cross).sum()]) / (6 * area)
    xx = ((x * x + x * u + u * u) * cross).sum() / 12
    yy = ((y * y + y * v + v * v) * cross).sum() / 12
    xy = ((x * v + 2 * x * y + 2 * u * v + u * y) * cross).sum() / 24
    covariance = np.array([[xx, xy], [xy, yy]]) / area - np.outer(centre, centre)
    return float(4 * np.sqrt(np.linalg.eigvalsh(covariance)[-1]))
