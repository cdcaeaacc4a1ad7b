"""Which slide a layer of shapes was drawn on, also one that SlideLens did not make.

napari's button "New shapes layer" copies the scale of the layer that is selected, which may be a
map's and not the slide's. So the slide is noted when such a layer comes into the window. The note
is under a key of its own: the layer stays the user's, and is not hidden with its slide.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.window import open_viewer
from slidelens.desktop.world import KEY, World, describe, described, world_of
from slidelens.errors import LabelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from napari.components import ViewerModel

    from slidelens.desktop.shown import ShownSlide

__all__ = ["slide_of", "tie", "world_of_shapes"]

_TIED = "slidelens drawn on"


def tie(viewer: ViewerModel, layer: Any) -> None:
    """Note in a new layer of shapes the slide that is current; other layers are left alone.

    Parameters
    ----------
    viewer
        The window that the layer is in.
    layer
        Any layer of napari's.
    """
    from slidelens.desktop.shown import current_slide

    known = described(layer.metadata) or _TIED in layer.metadata
    if known or getattr(layer, "_type_string", "") != "shapes":
        return
    slide = current_slide(viewer)
    if slide is not None:
        layer.metadata[_TIED] = _note(slide)


def slide_of(attributes: Mapping[str, Any]) -> tuple[str, str]:
    """Return the id of the slide that a layer of shapes is on, and its file.

    Parameters
    ----------
    attributes
        As napari gives them to a writer.

    Returns
    -------
    Both empty if no slide is known; only the file if the layer does not state it.
    """
    facts = _facts(attributes)
    return str(facts.get("slide", "")), str(facts.get("on") or "")


def world_of_shapes(attributes: Mapping[str, Any]) -> World:
    """Return the world of the slide that a layer of shapes is on.

    That is the slide which the layer states, else the current one of the window in front. Without
    one, a layer that is not scaled and has no unit is on level-0 px.

    Parameters
    ----------
    attributes
        As napari gives them to a writer.

    Raises
    ------
    LabelError
        The layer has a scale or a unit, and no slide is known that it could be of; or another slide
        is shown than the one that it was made on, with another resolution, so that its shapes may
        be of either.
    """
    facts = _facts(attributes)
    name = attributes.get("name", "Shapes")
    known = world_of({KEY: facts})
    if known is not None:
        now = _shown()
        if _TIED in attributes.get("metadata", {}) and now and now["mpp"] != facts["mpp"]:
            names = [one["slide"] for one in (facts, now)]
            if names[0] == names[1]:  # two files can have one name
                names = [one["on"] or one["slide"] for one in (facts, now)]
            own, other = names
            raise LabelError(
                f"Layer {name!r} was made on slide {own}, but {other} is shown, which has another "
                f"resolution: its shapes may be of either. Open {own} to save them, or draw those "
                f"of {other} in a new layer."
            )
        return known
    scale = np.asarray(attributes.get("scale", (1, 1)), np.float64)[-2:]
    units = attributes.get("units")
    unit = "pixel" if units is None else str(units[-1])
    if unit in ("pixel", "dimensionless") and (scale == 1).all():
        return World.of(None)
    raise LabelError(
        f"Layer {name!r}: its cells of {scale[1]:g} x {scale[0]:g} {unit} are of no slide that is "
        "open, so its shapes cannot be written in the slide's pixels. Open the slide, then save "
        "again."
    )


def _facts(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return slide, file and resolution as a layer states, else those of the current slide."""
    metadata = attributes.get("metadata", {})
    own, tied = described(metadata), metadata.get(_TIED)
    if "mpp" in own:
        return own
    return tied if isinstance(tied, dict) else _shown()


def _shown() -> dict[str, Any]:
    """Return the same of the current slide of the window in front; empty: none."""
    from slidelens.desktop.shown import current_slide

    viewer = open_viewer()
    slide = None if viewer is None else current_slide(viewer)
    return {} if slide is None else _note(slide)


def _note(slide: ShownSlide) -> dict[str, Any]:
    file = None if slide.path is None else str(slide.path)
    return described(describe(slide.world, "shapes", slide.id, on=file))
