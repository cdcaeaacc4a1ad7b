"""Where methods agree on a slide: maps on common cells, regions of disagreement."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from slidelens.engine.class_order import in_order
from slidelens.geometry import Affine, Box
from slidelens.maps.map import Map

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.maps.result import Result

__all__ = ["Comparison", "Disagreement", "Method", "compare", "method_of", "shared_class"]

_SIDE = 1536  # cells along the longest side that are compared
_THRESHOLD = 0.5
_ROWS = 64  # boxes that are averaged at once

AGREED, DISPUTED = "agreed positive", "disputed"


@dataclass(frozen=True)
class Method:
    """What one method predicts for a slide.

    Attributes
    ----------
    name
        Of the model.
    score
        Probability of the class that is looked at, of the whole slide.
    positive
        Name of that class.
    map, channel
        Its probability map, and which plane is that class's; ``None`` if it draws none.
    threshold
        A cell is positive from here on: by the model's operating point, otherwise 0.5.
    """

    name: str
    score: float
    positive: str
    map: Map | None
    channel: str
    threshold: float


@dataclass(frozen=True)
class Disagreement:
    """A connected region on which the methods differ.

    Attributes
    ----------
    box
        In level-0 px.
    area_mm2
        Of the cells in dispute.
    spread
        Mean difference of the highest and the lowest probability there.
    positive
        The methods that call most of it positive; the others do not.
    """

    box: Box
    area_mm2: float
    spread: float
    positive: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Two or more methods, cell by cell, where all of them predicted.

    Attributes
    ----------
    names
        Of the methods, in order.
    positive
        The class that they are compared by.
    agreement
        Labels: agreed positive, disputed, and with two methods which of them alone is positive.
    difference
        Probability of the first method minus that of the second.
    regions
        Those in dispute; the largest and clearest first.
    agreed
        Share of the cells on which all methods agree.
    """

    names: tuple[str, ...]
    positive: str
    agreement: Map
    difference: Map
    regions: tuple[Disagreement, ...]
    agreed: float


def method_of(result: Result, label: str | None = None) -> Method:
    """Return what a result predicts; the map is its first probability map.

    Parameters
    ----------
    result
        Of one model.
    label
        The class to look at: one of :func:`shared_class`; by default the model's positive one.
    """
    classes = result.classes
    positive = classes[-1] if label is None else label
    source = _drawn_by(result)
    channel = positive
    if source is not None and positive not in source.channels:
        channel = source.channels[-1]
    return Method(
        result.model.name,
        result.probabilities[positive],
        positive,
        source,
        channel,
        _limit(result, positive),
    )


def shared_class(results: Sequence[Result]) -> str | None:
    """Return the class that methods are compared by: all of them draw one of this name.

    Parameters
    ----------
    results
        Of one slide, each with a probability map, in any order.

    Returns
    -------
    The class that most of them have as their positive one; of several such classes the last by
    name, those that stand for the negative (normal, benign) first; ``None`` if they have none in
    common.
    """
    shared = {c for result in results for c in result.classes if all(_draws(r, c) for r in results)}
    positive = Counter(result.classes[-1] for result in results)
    by_name, _ = in_order(shared)
    return max(reversed(by_name), key=positive.__getitem__, default=None)


def _draws(result: Result, label: str) -> bool:
    """Whether a map shows a class: a plane that is named otherwise is the positive class's."""
    source, classes = _drawn_by(result), result.classes
    if source is None or label not in classes:
        return False
    return label in source.channels or (
        label == classes[-1] and not set(classes) & set(source.channels)
    )


def _drawn_by(result: Result) -> Map | None:
    return next((m for m in result.maps.values() if m.kind == "probability"), None)


def _limit(result: Result, label: str) -> float:
    """Return from which probability on a class is called; a model states it for its last class."""
    threshold, classes = result.model.threshold, result.classes
    if threshold is None or (label != classes[-1] and len(classes) != 2):
        return _THRESHOLD
    return threshold if label == classes[-1] else 1 - threshold


def compare(methods: Sequence[Method]) -> Comparison:
    """Compare methods on the cells of the coarsest of their maps.

    Parameters
    ----------
    methods
        All of one class; those without a map are left out.

    Raises
    ------
    ValueError
        Fewer than two methods draw a probability map, or their classes differ.
    """
    drawn = [(method, method.map) for method in methods if method.map is not None]
    if len(drawn) < 2:
        raise ValueError("two methods with a probability map are needed to compare")
    labels_seen = {method.positive for method, _ in drawn}
    if len(labels_seen) > 1:
        raise ValueError(f"one class is compared at a time, not {sorted(labels_seen)}")
    coarsest = max((source for _, source in drawn), key=lambda source: source.mpp)
    affine, shape = _cells(coarsest)
    values = np.stack([_resampled(m.channel, source, affine, shape) for m, source in drawn])
    known = np.asarray(np.isfinite(values).all(0))
    limits = np.array([method.threshold for method, _ in drawn])[:, None, None]
    with np.errstate(invalid="ignore"):
        positive = values >= limits
    counts = positive.sum(0)
    disputed = known & (counts > 0) & (counts < len(drawn))
    names = tuple(method.name for method, _ in drawn)
    labels, classes = _labels(known, positive, disputed, names)
    mpp = coarsest.slide_mpp
    difference = np.where(known, values[0] - values[1], np.nan)
    area = affine.sx * mpp.x * affine.sy * mpp.y * 1e-6
    return Comparison(
        names,
        drawn[0][0].positive,
        Map.from_array("agreement", "labels", classes, labels, affine, mpp),
        Map.from_array(
            "difference", "saliency", [f"{names[0]} − {names[1]}"], difference, affine, mpp
        ),
        tuple(_regions(values, positive, disputed, names, affine, area)),
        float(1 - disputed.sum() / max(1, known.sum())),
    )


def _cells(source: Map) -> tuple[Affine, tuple[int, int]]:
    """Return a map's cells, or whole blocks of them if there are very many."""
    _, height, width = source.shape
    block = -(-max(height, width) // _SIDE)
    affine = source.affine
    scaled = Affine(affine.sx * block, affine.sy * block, affine.tx, affine.ty)
    return scaled, (-(-height // block), -(-width // block))


def _resampled(
    channel: str, source: Map, affine: Affine, shape: tuple[int, int]
) -> NDArray[np.float32]:
    """Average one plane over the cells of another map, weighted by area."""
    plane = source.channel(channel)
    if source.affine == affine and source.shape[1:] == shape:
        whole = np.asarray(source.levels[0][plane : plane + 1, :, :], np.float32)
        return whole.reshape(shape)
    height, width = shape
    out = np.empty(shape, np.float32)
    x = affine.tx + np.arange(width) * affine.sx
    for top in range(0, height, _ROWS):
        rows = np.arange(top, min(top + _ROWS, height))
        boxes = np.empty((len(rows), width, 4))
        boxes[..., 0], boxes[..., 1] = x, (affine.ty + rows * affine.sy)[:, None]
        boxes[..., 2], boxes[..., 3] = affine.sx, affine.sy
        mean = source.mean(boxes.reshape(-1, 4))[:, plane]
        out[rows] = mean.reshape(len(rows), width)
    return out


def _labels(
    known: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    disputed: NDArray[np.bool_],
    names: tuple[str, ...],
) -> tuple[NDArray[np.uint8], list[str]]:
    labels = np.where(known & positive.all(0), 1, 0)
    if len(names) > 2:
        return np.asarray(np.where(disputed, 2, labels), np.uint8), [AGREED, DISPUTED]
    labels = np.where(disputed, np.where(positive[0], 2, 3), labels)
    return np.asarray(labels, np.uint8), [AGREED, *(f"only {name}" for name in names)]


def _regions(
    values: NDArray[np.float32],
    positive: NDArray[np.bool_],
    disputed: NDArray[np.bool_],
    names: tuple[str, ...],
    affine: Affine,
    cell_mm2: float,
) -> list[Disagreement]:
    numbers, _ = ndimage.label(disputed)
    spread = np.where(disputed, values.max(0) - values.min(0), 0.0)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(numbers), start=1):
        mine: NDArray[Any] = numbers[rows, columns] == number
        cells = int(mine.sum())
        shares = positive[:, rows, columns][:, mine].mean(1)
        found.append(
            Disagreement(
                affine.box(
                    columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start
                ),
                cells * cell_mm2,
                float(spread[rows, columns][mine].mean()),
                tuple(n for n, share in zip(names, shares, strict=True) if share >= 0.5),
            )
        )
    return sorted(found, key=lambda one: one.area_mm2 * one.spread, reverse=True)
