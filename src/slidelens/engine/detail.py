"""Check that a slide suits a model: fine enough (enlarging adds no detail), and brightfield."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from slidelens.errors import SlideError
from slidelens.geometry import Box
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from slidelens.families.base import FamilyConfig
    from slidelens.slide.base import Slide
    from slidelens.tiling.tissue import TissueMask

__all__ = ["check_detail", "warn_of_fluorescence"]

_WARNED = 1.5
"""Above it a slide is coarser than scanners differ at one magnification."""
_REFUSED = 4.2
"""Two magnifications, such as 10x for 40x, and as much as scanners differ."""
log = logging.getLogger(__name__)


def check_detail(
    slide: Slide,
    config: FamilyConfig,
    reader: str,
    remedy: str,
    *,
    region: Box | None = None,
    said: set[tuple[float, float]] | None = None,
) -> None:
    """Refuse a slide far coarser than it would be read, and warn of one that is coarser.

    Parameters
    ----------
    slide
        Open, with a resolution.
    config
        Of the model; it says how finely it reads
        (:meth:`~slidelens.families.base.FamilyConfig.finest_mpp`).
    reader, remedy
        For the message: who reads the slide, and what the user can do.
    region
        The part that is read, in level-0 px; ``None`` is all of it.
    said
        Of a cohort: µm/px of slides and of reading that were warned of, which is not done again.

    Raises
    ------
    MissingMppError
        The slide has no resolution.
    SlideError
        Its finest µm/px is more than four times what is asked for.
    """
    mpp = slide.require_mpp()
    whole = Box.of_size(slide.size)
    part = (whole if region is None else region.intersect(whole)).scaled(*mpp)
    asked = config.finest_mpp(max(part.w, part.h))
    if asked is None or max(mpp) <= _WARNED * asked:
        return
    facts = (
        f"{slide.path}: its finest resolution is {max(mpp):.4g} µm/px "
        f"({slide.mpp_source or 'given'}), and {reader} reads at {asked:.4g} µm/px"
    )
    if max(mpp) > _REFUSED * asked:
        raise SlideError(f"{facts}, at which it shows nothing. {remedy}")
    if said is None:
        log.warning("%s: details that the model looks for may be missing", facts)
    elif (max(mpp), asked) not in said:
        said.add((max(mpp), asked))
        log.warning(
            "%s: details that the model looks for may be missing (other slides of this resolution "
            "are not named)",
            facts,
        )


def warn_of_fluorescence(
    slide: Slide, asked: TissueSettings | TissueMask, tissue: TissueMask
) -> None:
    """Warn of a fluorescence slide: one that says so, or whose background turns out to be dark.

    Parameters
    ----------
    slide
        Open.
    asked, tissue
        How tissue was to be found, and what was found.
    """
    auto = isinstance(asked, TissueSettings) and asked.method == "auto"
    if not slide.channels and not (auto and tissue.settings.method == "intensity"):
        return
    which = f" ({', '.join(slide.channels)})" if slide.channels else ""
    log.warning(
        "%s: looks like a fluorescence slide%s; the output of models trained on brightfield slides "
        "is meaningless on it",
        *(slide.id, which),
    )
