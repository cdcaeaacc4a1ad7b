"""Feature vectors that were made elsewhere: of which slide they are, and for which model.

A bag of SlideLens says how its vectors were made, and of which slide. A model that learnt from such
bags keeps what they said, under :data:`BAG_FACTS` of its card, and takes no others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np

from slidelens.errors import SlideError
from slidelens.families.base import bag_fields, in_short
from slidelens.geometry import Box, Size

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from slidelens.families.base import Bag

__all__ = ["BAG_FACTS", "learnt_facts", "region_of", "stated", "taken", "unlike", "wrong_length"]

BAG_FACTS: Final = "bag_facts"
"""Key of ``model.json``: what the bags that a model on vectors learnt from say of themselves."""
_MADE_BY = "backbone_sha256"
"""The fact that tells bags of SlideLens from those of other programs."""
_SLIVER = 1e-6
"""Level-0 px below which a strip is a float's rounding error, not a part of the slide."""


def learnt_facts(card: Mapping[str, Any]) -> dict[str, float | str]:
    """Return what the bags that a model learnt from stated; nothing where its card has none."""
    kept = card.get(BAG_FACTS)
    if not isinstance(kept, dict):
        return {}
    return {name: value for name, value in kept.items() if isinstance(value, str | int | float)}


def stated(facts: Mapping[str, str]) -> dict[str, float | str]:
    """Return what a bag of SlideLens states of how its vectors were made.

    Those of other programs give nothing, since the meanings of what they state differ. A bag
    without a stated stain normalisation is from an older version and counts as ``none``.

    Parameters
    ----------
    facts
        Of the bag.

    Raises
    ------
    SlideError
        It states no number where one belongs.
    """
    if _MADE_BY not in facts:
        return {}
    try:
        fields = bag_fields(facts)
    except ValueError as error:
        raise SlideError(f"its bag states no number where one belongs ({error}).") from error
    return {"stain_normalization": "none", **fields, _MADE_BY: facts[_MADE_BY]}


def unlike(told: Mapping[str, float | str], wanted: Mapping[str, Any], whose: str) -> str:
    """Return the message for a bag that was made in another way than wanted; empty if it was not.

    Parameters
    ----------
    told
        What it states, from :func:`stated`.
    wanted
        What it has to state, as far as both say it.
    whose
        Introduces what is wanted, such as ``"the model has"``.
    """
    wrong = [k for k, value in told.items() if wanted.get(k, value) != value]
    if not wrong:
        return ""
    what = ", ".join(f"{k} {in_short(told[k])} ({whose} {in_short(wanted[k])})" for k in wrong)
    return f"its bag has {what}; give bags that were made alike."


def wrong_length(bag: Bag, dim: int) -> str:
    """Return the message for a bag whose vectors have another length than the model takes."""
    return f"its bag holds vectors of length {bag.vectors.shape[1]}, the model takes {dim}."


def region_of(bag: Bag) -> Box | None:
    """Return the part of its slide (level-0 px) that a bag of SlideLens is of; ``None``: all of it.

    Raises
    ------
    SlideError
        It states something else.
    """
    told = bag.facts.get("region")
    if told is None or _MADE_BY not in bag.facts:
        return None
    try:
        return Box(*map(float, told.split(",")))
    except (TypeError, ValueError) as error:
        raise SlideError(
            f"its bag states region {told}, expected x,y,w,h in level-0 px."
        ) from error


def taken(bag: Bag, size: Size, region: Box) -> NDArray[np.int64]:
    """Return the rows ``(n,)`` of a bag whose tiles a run on a part of its slide takes.

    On the whole slide that is all of them, as in training. A region has the tiles that own a part
    of it, as in :func:`~slidelens.tiling.grid.make_grid`: neighbours that overlap meet in the
    middle, and those at the slide's border own what is up to it.

    Parameters
    ----------
    bag
        Its boxes, and what it states.
    size, region
        Of the slide, and what is run, in level-0 px.

    Raises
    ------
    SlideError
        The bag is of another slide, or of less than the region; or no tile lies in that.
    """
    _check_slide(bag, size)
    part = region_of(bag)
    if part is not None and not _within(region, part):
        raise SlideError(
            f"its bag is of a part of the slide alone; run that part, with --region "
            f"{','.join(f'{n:.12g}' for n in part)}, or make a bag of the whole slide."
        )
    if region == Box.of_size(size):
        return np.arange(len(bag.boxes))
    left, right = _owned(bag, 0, size.width)
    top, bottom = _owned(bag, 1, size.height)
    rows = np.flatnonzero(
        (left < region.right - _SLIVER)
        & (right > region.x + _SLIVER)
        & (top < region.bottom - _SLIVER)
        & (bottom > region.y + _SLIVER)
    )
    if len(rows) == 0:
        raise SlideError(
            f"none of the {len(bag.boxes)} tiles of its bag lies in the region of {region.w:g} x "
            f"{region.h:g} px; check that the bag is of this slide."
        )
    return rows


def _check_slide(bag: Bag, size: Size) -> None:
    """Refuse a bag of a slide of another size, stated or seen."""
    facts, (x, y, w, h) = bag.facts, bag.boxes.T
    ours = f"{size.width} x {size.height} px"
    told = [facts.get(name, "") for name in ("level0_width", "level0_height")]
    if _MADE_BY in facts and all(told) and told != [str(size.width), str(size.height)]:
        raise SlideError(
            f"its bag is of a slide of {told[0]} x {told[1]} px, this one has {ours}: it is of "
            "another slide of this name; give this one's."
        )
    outside = (x >= size.width) | (y >= size.height)
    outside |= ((x < 0) & (x + w <= 0)) | ((y < 0) & (y + h <= 0))
    if outside.any():
        first = np.flatnonzero(outside)[0]
        raise SlideError(
            f"{outside.sum()} of the {len(x)} tiles of its bag lie outside the slide of {ours}, "
            f"such as the one at x={x[first]:.0f}, y={y[first]:.0f}: it is of another slide of "
            "this name; give this one's."
        )


def _within(inner: Box, outer: Box) -> bool:
    return (
        inner.x >= outer.x - _SLIVER
        and inner.y >= outer.y - _SLIVER
        and inner.right <= outer.right + _SLIVER
        and inner.bottom <= outer.bottom + _SLIVER
    )


def _owned(bag: Bag, axis: int, length: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return where what each tile owns begins and ends along an axis of the slide."""
    low, side = bag.boxes[:, axis], bag.boxes[:, axis + 2]
    high, margin = low + side, side * _overlap(bag) / 2
    middle = (low.clip(min=0) + high.clip(max=length)) / 2
    begins = np.where(low <= 0, 0.0, np.minimum(low + margin, middle))
    ends = np.where(high >= length - _SLIVER, length, np.maximum(high - margin, middle))
    return begins, ends


def _overlap(bag: Bag) -> float:
    """Return the part of a tile's side that its neighbour shares; 0 where the bag does not say."""
    told = [bag.facts.get(name, "0") for name in ("overlap", "tile")]
    try:
        overlap, tile = map(float, told)
    except ValueError as error:
        raise SlideError(
            f"its bag states overlap {told[0]} of tiles of {told[1]}, expected numbers of px."
        ) from error
    return overlap / tile if 0 < overlap < tile else 0.0
