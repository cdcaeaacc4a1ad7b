"""Read a result and its slide for the window, without touching it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from slidelens.desktop.layers import check_same_slide, result_layers
from slidelens.desktop.world import is_stated
from slidelens.engine.provenance import is_other_content
from slidelens.errors import SlideError
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.shown import ShownSlide
    from slidelens.slide.base import Slide

__all__ = ["read_result", "without_slide"]


def read_result(
    folder: Path, shown: ShownSlide | None, slide_file: Path | None, visible: bool
) -> tuple[Result, Slide | None, list[LayerData], str]:
    """Return a result, its slide if that is not shown, its layers, and what to say of the slide.

    Raises
    ------
    ResultError
        It cannot be read, or belongs to another slide than the one shown under its name.
    """
    result = Result.load(folder)
    if shown is not None and shown.id == result.slide.id:
        check_same_slide(result, shown.id, shown.size)
        return result, None, result_layers(result, world=shown.world, visible=visible), ""
    opened, said = _slide_of(result, slide_file)
    layers = result_layers(result, opened, visible=visible)
    if opened is not None and is_other_content(opened, result.slide):
        said = (
            f"{opened.path.name} was changed or replaced after {result.model.name} was run on it: "
            "the maps may not fit; run the model again."
        )
    return result, opened, layers, said


def without_slide(error: str) -> str:
    """Return the message for maps whose slide cannot be opened, given why."""
    return (
        f"Maps are shown without their slide. {error} If the slide has moved, drop it on the maps."
    )


def _slide_of(result: Result, file: Path | None) -> tuple[Slide | None, str]:
    """Open the slide of a result, or return the message that says why not."""
    from slidelens.slide.open import open_slide

    path = file or result.slide.path
    if path is None:
        why = f"{result.path} does not state the file of slide {result.slide.id!r}."
        return None, without_slide(why)
    stated = is_stated(result.slide.mpp_source)
    try:
        return open_slide(path, mpp=None if stated else result.slide.resolution), ""
    except SlideError as error:
        return None, without_slide(str(error))
