"""napari readers for slides, result folders and annotations.

napari asks a reader by file name; the reader looks at the content and returns ``None`` for what it
does not know. Errors while opening are shown as messages; without a window they are raised.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.desktop.belonging import misfit, open_own
from slidelens.desktop.layers import check_same_slide, result_layers, slide_layer
from slidelens.desktop.reading import read_outlines, without_slide
from slidelens.desktop.state.dropped import holds_annotations
from slidelens.desktop.window import dress, notify, open_viewer
from slidelens.desktop.world import is_stated, lie_on
from slidelens.errors import SlideError, SlideLensError

if TYPE_CHECKING:
    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.shown import ShownSlide
    from slidelens.geometry import Mpp
    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide

__all__ = [
    "get_annotation_reader",
    "get_result_reader",
    "get_slide_reader",
    "no_resolution",
    "read_annotation_file",
    "read_result",
    "read_slide",
]

Paths = str | Sequence[str]
Read = Callable[[Paths], "list[LayerData]"]

_NOTHING: list[Any] = [(None,)]
"""napari's way to say: I took the file, there are no layers."""

_RESULT = "result.json"


def get_slide_reader(path: Paths) -> Read | None:
    """Return the reader if the content of every file is a slide."""
    return _reader(read_slide) if all(_is_slide(p) for p in _paths(path)) else None


def get_result_reader(path: Paths) -> Read | None:
    """Return the reader if every path is a result folder, or the ``result.json`` in one."""
    found = all((_folder(p) / _RESULT).is_file() for p in _paths(path))
    return _reader(read_result) if found else None


def get_annotation_reader(path: Paths) -> Read | None:
    """Return the reader if every file looks like annotations."""
    found = all(holds_annotations(p) for p in _paths(path))
    return _reader(read_annotation_file) if found else None


def read_slide(path: Path) -> list[LayerData]:
    """Open a slide; its file stays open as long as its layer lives.

    Raises
    ------
    SlideError
        It cannot be opened.
    """
    from slidelens.slide.open import open_slide

    slide = open_slide(path)
    if slide.mpp is None:
        notify(no_resolution(slide))
    return [slide_layer(slide)]


def read_result(path: Path) -> list[LayerData]:
    """Open a result and, if the window does not show it yet, its slide.

    A slide that is shown under its name may be another: its own is then opened, if it is found.

    Raises
    ------
    ResultError
        A damaged result, or one of another slide than the file it names.
    """
    from slidelens.desktop.shown import shown_slides
    from slidelens.maps.result import Result

    result = Result.load(_folder(path))
    viewer = open_viewer()
    named = [] if viewer is None else shown_slides(viewer)
    faults = {
        slide: misfit(result.slide, result.model.name, slide)
        for slide in named
        if slide.id == result.slide.id
    }
    shown = next((slide for slide, fault in faults.items() if not fault), None)
    if shown is not None:
        return _on_shown(result, shown)
    shown = next(iter(faults), None)
    slide = _slide_of(result) if shown is None else open_own(result)
    if slide is None and shown is not None:
        layers = _on_shown(result, shown)
        notify(faults[shown])
        return layers
    if slide is None:
        return result_layers(result) or _NOTHING
    return [slide_layer(slide), *lie_on(result_layers(result, slide), slide.path)]


def read_annotation_file(path: Path) -> list[LayerData]:
    """Read annotations onto the slide in the window: the one of the same name, or the current one.

    Raises
    ------
    LabelError
        A file that cannot be read.
    """
    from slidelens.desktop.shown import slide_for
    from slidelens.engine.annotations import slides_named

    viewer = open_viewer()
    slide = None if viewer is None else slide_for(viewer, slides_named(path))
    layers, said = read_outlines(path, slide)
    for text in said:
        notify(text)
    return layers or _NOTHING


def no_resolution(slide: Slide) -> str:
    """Return the message about a slide shown in pixels; napari shows its first few words."""
    name = slide.path.name
    return (
        f"{name} states no resolution, so it is shown in pixels, not in µm. "
        f"To give it: slidelens view {name} --mpp X"
    )


def _on_shown(result: Result, shown: ShownSlide) -> list[LayerData]:
    """Return a result's layers on a slide of its name that is shown."""
    check_same_slide(result, shown.id, shown.size)
    return lie_on(result_layers(result, world=shown.world), shown.path) or _NOTHING


def _slide_of(result: Result) -> Slide | None:
    """Open the file that a result names, at the resolution it was predicted with."""
    from slidelens.slide.open import open_slide

    if result.slide.path is None:
        return None
    stated = is_stated(result.slide.mpp_source)
    mpp: Mpp | None = None if stated else result.slide.resolution
    try:
        return open_slide(result.slide.path, mpp=mpp)
    except SlideError as error:
        notify(without_slide(str(error)))
        return None


def _paths(path: Paths) -> list[Path]:
    return [Path(path)] if isinstance(path, str) else [Path(p) for p in path]


def _folder(path: Path) -> Path:
    return path.parent if path.name == _RESULT else path


def _is_slide(path: Path) -> bool:
    from slidelens.slide.open import is_slide

    return is_slide(path)


def _reader(read: Callable[[Path], list[LayerData]]) -> Read:
    """Make a napari reader of a function that reads one path."""

    @wraps(read)
    def reader(path: Paths) -> list[LayerData]:
        viewer = open_viewer()
        layers: list[LayerData] = []
        for one in _paths(path):
            try:
                layers += read(one)
            except SlideLensError as error:
                if viewer is None:
                    raise
                # napari shows the first few words, which should not be only the folder's
                notify(str(error).replace(f"{one.parent}{os.sep}", "", 1), error=True)
        if viewer is not None:
            dress(viewer)
        # Compared by length: layers hold arrays, which == compares cell by cell.
        return [layer for layer in layers if len(layer) > 1] or _NOTHING

    return reader
