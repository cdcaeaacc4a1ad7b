"""Read results with their slides, and annotations, for the window, without touching it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from slidelens.desktop.belonging import misfit, open_own, replaced, same_place
from slidelens.desktop.layers import annotation_layers, check_same_slide, result_layers
from slidelens.desktop.world import World, is_stated, lie_on
from slidelens.engine.annotations import slides_named
from slidelens.engine.provenance import is_other_content
from slidelens.errors import SlideError
from slidelens.maps.result import Result
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.shown import ShownSlide
    from slidelens.slide.base import Slide

__all__ = ["Parcel", "read_outlines", "read_result", "without_slide"]


class Parcel(NamedTuple):
    """A result that was read for the window.

    Attributes
    ----------
    result
        What was read.
    opened
        Its slide, if that is to be shown in place of the current one.
    layers
        Its maps and outlines, on ``opened`` or on the slide that was current.
    said
        What is to be said of the slide; empty: nothing.
    """

    result: Result
    opened: Slide | None
    layers: list[LayerData]
    said: str


def read_result(
    folder: Path, shown: ShownSlide | None, slide_file: Path | None, visible: bool
) -> Parcel:
    """Read a result, and open its slide unless that is the one shown.

    Of two files with one name, that which the result was made on is shown.

    Parameters
    ----------
    folder
        Of the result.
    shown
        The current slide.
    slide_file
        Where the result's slide is now, if it has moved.
    visible
        Whether the first map and the regions are shown.

    Raises
    ------
    ResultError
        It cannot be read, or belongs to another slide than the one shown under its name, and its
        own cannot be opened.
    """
    result = Result.load(folder)
    if shown is not None and shown.id == result.slide.id:
        return _for_shown(result, shown, slide_file, visible)
    opened, said = _slide_of(result, slide_file)
    layers = result_layers(result, opened, visible=visible)
    if opened is not None and is_other_content(opened, result.slide):
        said = replaced(result.slide, result.model.name, opened)
    return Parcel(result, opened, lie_on(layers, None if opened is None else opened.path), said)


def read_outlines(path: Path, slide: ShownSlide | None) -> tuple[list[LayerData], list[str]]:
    """Read a file of annotations.

    Parameters
    ----------
    path
        GeoJSON or XML.
    slide
        The slide that they are drawn on; ``None`` if none is shown.

    Returns
    -------
    The layers, and sentences about them for the user.

    Raises
    ------
    LabelError
        The file cannot be read.
    """
    annotations, names, said = read_annotations(path), slides_named(path), list[str]()
    if slide is None:
        said.append(f"No slide is open, so {path.name} is shown in pixels. Open its slide first.")
    elif slide.id not in names:
        said.append(
            f"{path.name} is drawn on {slide.id}: no open slide is named {names[-1]}. If it "
            "belongs to another slide, remove its layer, open that slide and drop it again."
        )
    if annotations.ignored:
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(annotations.ignored.items()))
        said.append(f"{path.name}: {counts} left out, because they enclose no area.")
    layers = annotation_layers(
        annotations,
        World.of(None) if slide is None else slide.world,
        name=path.stem,
        slide_id="" if slide is None else slide.id,
    )
    if not layers:
        said.append(f"No areas in {path.name}.")
    return lie_on(layers, None if slide is None else slide.path), said


def without_slide(error: str) -> str:
    """Return the message for maps whose slide cannot be opened, given why."""
    return (
        f"Maps are shown without their slide. {error} If the slide has moved, drop it on the maps."
    )


def _for_shown(result: Result, shown: ShownSlide, file: Path | None, visible: bool) -> Parcel:
    """Read a result whose slide has the name of the one shown, but may be another."""
    said = misfit(result.slide, result.model.name, shown)
    own = open_own(result, file) if said else None
    if own is not None:
        said = (
            f"{own.path.name} was replaced while it was open, so it was opened again."
            if same_place(own.path, shown.path)
            else f"{own.path} was opened: {result.model.name} was run on it, not on the other "
            f"slide named {shown.id} ({shown.path or 'in memory'})."
        )
        layers = lie_on(result_layers(result, own, visible=visible), own.path)
        return Parcel(result, own, layers, said)
    check_same_slide(result, shown.id, shown.size)
    layers = result_layers(result, world=shown.world, visible=visible)
    return Parcel(result, None, lie_on(layers, shown.path), said)


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
