"""Open slides and results in a viewer: ``slidelens view`` and ``slidelens demo --view``."""

from __future__ import annotations

import gc
import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import napari

from slidelens.desktop.belonging import misfit
from slidelens.desktop.layers import result_layers, slide_layer
from slidelens.desktop.reader import no_resolution
from slidelens.desktop.shown import select_map
from slidelens.desktop.window import dress, notify
from slidelens.desktop.world import lie_on
from slidelens.errors import ResultError, SlideLensError
from slidelens.maps.result import Result, find_results
from slidelens.slide.base import slide_id
from slidelens.slide.open import open_slide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from napari.components import ViewerModel

    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.workbench import Workbench
    from slidelens.slide.base import Slide
    from slidelens.slide.open import GivenMpp

__all__ = ["TASKS", "add_slides", "check_display", "view"]

log = logging.getLogger(__name__)

TASKS = {
    "look": ("navigator",),
    "run": ("navigator", "run"),
    "compare": ("navigator", "compare"),
    "train": ("train",),
    "review": ("review",),
}
"""What a user wants to do, and the panels for it."""


def view(
    slides: Sequence[str | Path] = (),
    results: str | Path | None = None,
    *,
    mpp: GivenMpp = None,
    task: str | None = None,
    show: bool = True,
) -> napari.Viewer:
    """Open slides with all their results in a napari window.

    Parameters
    ----------
    slides
        Slide files; if none are given, the slide that ``results`` belong to is opened.
    results
        A results folder of ``slidelens predict``, or one model's folder or one result in it.
    mpp
        Resolution of the slides whose files state none, see
        :func:`~slidelens.slide.open.open_slide`.
    task
        A key of :data:`TASKS`: its panels are open.
    show
        Show the window and return when it is closed; otherwise return the hidden viewer at once.

    Raises
    ------
    SlideError, ResultError
        A slide or result cannot be opened; raised before any window appears.
    SlideLensError
        There is no display.
    """
    check_display()
    opened = _open(slides, results, mpp)
    # napari collects garbage whenever a layer goes; it need not search what was imported
    gc.freeze()
    viewer = napari.Viewer(show=show)
    hidden = _fill(viewer, opened)
    if task is not None:
        bench = _open_panels(viewer, TASKS[task], None if results is None else Path(results))
        bench.see_later(hidden)
        bench.see_all()  # the panels have taken space
        for slide, _ in reversed(opened):
            bench.memory.opened(slide.path)  # each is one click away
    if show:
        napari.run()
    return viewer


def add_slides(
    viewer: ViewerModel,
    slides: Sequence[str | Path] = (),
    results: str | Path | None = None,
    *,
    mpp: GivenMpp = None,
) -> None:
    """Add slides and their results to a viewer; of several slides the first is visible.

    Takes the arguments of :func:`view`. If anything cannot be opened, nothing is added.
    """
    _fill(viewer, _open(slides, results, mpp))


def _open(
    slides: Sequence[str | Path], results: str | Path | None, mpp: GivenMpp
) -> list[tuple[Slide, list[LayerData]]]:
    folder = None if results is None else Path(results)
    paths = [Path(s) for s in slides]
    if not paths and folder is not None:
        paths = [_only_slide(folder)]
    opened: list[tuple[Slide, list[LayerData]]] = []
    try:
        for path in paths:
            found = [] if folder is None else _results_of(slide_id(path), folder)
            known = next((r.slide.resolution for r in found if r.slide.resolution), None)
            slide = open_slide(path, mpp=mpp)
            if slide.mpp is None and known is not None:
                slide.close()
                slide = open_slide(path, mpp=known)
            opened.append((slide, []))
            opened[-1][1].extend(_layers(slide, found, several=len(paths) > 1))
    except SlideLensError:
        for slide, _ in opened:
            slide.close()
        raise
    return opened


def _layers(slide: Slide, results: Sequence[Result], *, several: bool) -> list[LayerData]:
    layers = [slide_layer(slide)]
    for number, result in enumerate(results):
        made = result_layers(result, slide, visible=number == 0, tissue=number == 0)
        lie_on(made, slide.path)
        if fault := misfit(result.slide, result.model.name, slide):
            log.warning("%s", fault)
        if several:
            for _, options, _ in made:
                options["name"] = f"{slide.id} · {options['name']}"
        layers += made
    return layers


def _fill(viewer: ViewerModel, opened: Sequence[tuple[Slide, list[LayerData]]]) -> list[Any]:
    """Add layers; return those of all slides but the first, to be shown with their slide."""
    hidden = []
    for number, (slide, layers) in enumerate(opened):
        for data, options, kind in layers:
            seen = options.get("visible", True)
            own = {**options, "visible": seen and number == 0}
            layer = viewer.add_layer(napari.layers.Layer.create(data, own, kind))
            if seen and number > 0:
                hidden.append(layer)
        if slide.mpp is None:
            notify(no_resolution(slide))
    if opened:
        viewer.title = ", ".join(slide.id for slide, _ in opened)
        select_map(viewer)
        viewer.reset_view()
    dress(viewer)
    return hidden


def _open_panels(viewer: napari.Viewer, panels: Sequence[str], results: Path | None) -> Workbench:
    from slidelens.desktop.workbench import workbench_of

    bench = workbench_of(viewer)
    if results is not None:
        bench.use_results(results, remember=False)
    for name in panels:
        bench.open_panel(name)
    return bench


def _results_of(slide: str, folder: Path) -> list[Result]:
    found = list(find_results(folder))
    # Folders are named after the slide; one that is given directly may have been renamed.
    mine = [p for p in found if p.name == slide or p == folder]
    if not mine:
        there = ", ".join(sorted({p.name for p in found})[:5]) or "none"
        raise ResultError(
            f"{folder}: no result of slide {slide!r} (there are: {there}). "
            "Run: slidelens predict SLIDE --model MODEL --out DIR"
        )
    return _readable(mine)


def _only_slide(folder: Path) -> Path:
    """Return the file of the one slide that the results in a folder belong to."""
    found = _readable(list(find_results(folder)))
    ids = sorted({result.slide.id for result in found})
    if len(ids) != 1:
        what = f"results of {len(ids)} slides" if ids else "no results"
        raise ResultError(
            f"{folder}: holds {what}; name a slide: slidelens view SLIDE --results DIR"
        )
    path = next((r.slide.path for r in found if r.slide.path is not None), None)
    if path is None:
        raise ResultError(
            f"{folder}: does not state the file of slide {ids[0]!r}; name it: slidelens view "
            "SLIDE --results DIR"
        )
    return Path(path)


def _readable(folders: Sequence[Path]) -> list[Result]:
    """Load results; skip those that cannot be read with a warning, unless none can."""
    found: list[Result] = []
    faults: list[ResultError] = []
    for folder in folders:
        try:
            found.append(Result.load(folder))
        except ResultError as error:
            faults.append(error)
    if faults and not found:
        raise faults[0]
    for fault in faults:
        log.warning("%s It is not shown.", fault)
    return found


def check_display() -> None:
    """Refuse where there is no display: Qt would end the whole process.

    Raises
    ------
    SlideLensError
        There is none.
    """
    chosen = os.environ.get("QT_QPA_PLATFORM") or os.environ.get("DISPLAY")
    if sys.platform == "linux" and not (chosen or os.environ.get("WAYLAND_DISPLAY")):
        raise SlideLensError(
            "there is no display to open a window on. On a server: "
            "`ssh -X`, a remote desktop, or `xvfb-run slidelens view ...`"
        )
