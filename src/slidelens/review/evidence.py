"""Draw a slide's evidence: an overview, and the most telling fields under every method."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from slidelens.errors import NewerResultError, ResultError
from slidelens.geometry import Box
from slidelens.maps.overlay import draw_overlay, scale_top
from slidelens.maps.result import Result
from slidelens.review.draw import encode, mark_fields, mark_outlines, mark_scale
from slidelens.review.foci import Focus, annotated_foci, channel_of, find_foci, leading_map
from slidelens.review.pixels import Pixels, open_pixels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from PIL import Image

    from slidelens.maps.map import Kind, Map
    from slidelens.review.errors import ErrorCase
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.tiling.annotations import Annotation

__all__ = ["OPACITY", "Evidence", "Panel", "Picture", "Row", "make_evidence"]

OPACITY = 0.7
"""Of overlays, as in the viewer."""

_OVERVIEW_PX, _NEAR_PX, _AROUND_PX = 400, 384, 240
_CONTEXT = 3.0  # what surrounds a field is this many times as wide
_SAME = 0.5  # fields that share this much, and whose sides differ by less, are one
_ALIKE = 1.5


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG file that was given to ``keep``; ``name`` is what that called it."""

    name: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of a row.

    Attributes
    ----------
    title
        The method; empty for the slide itself.
    note
        The method's value there, or why there is no picture.
    """

    title: str
    note: str
    picture: Picture | None


@dataclass(frozen=True, slots=True)
class Row:
    """The slide, and the same place under every method.

    Attributes
    ----------
    number
        Of the field; 0 for the overview.
    what
        Why it was chosen, by method.
    box, box_um
        Its position: level-0 px, and µm from the slide's upper left corner.
    mpp
        µm per px of the picture of the field.
    """

    number: int
    what: tuple[str, ...]
    box: Box
    box_um: Box
    mpp: float
    panels: tuple[Panel, ...]


@dataclass(slots=True)
class Evidence:
    """All pictures of a slide.

    Attributes
    ----------
    notes
        What is missing, and why.
    kinds
        Kinds of maps that are shown, for the legend.
    annotated
        Whether annotations are outlined.
    """

    slide_id: str
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    kinds: list[Kind] = field(default_factory=list)
    annotated: bool = False


def make_evidence(
    saved: SavedEvaluation,
    cases: Sequence[ErrorCase],
    keep: Callable[[bytes], str],
    *,
    fields: int = 3,
    files: Mapping[str, Path] | None = None,
    annotations: Sequence[Annotation] = (),
) -> Evidence:
    """Draw what speaks for and against a slide's errors.

    Anything missing (a result, the slide's file) is left out and listed in ``notes``.

    Parameters
    ----------
    cases
        Errors of one slide, of one or several methods.
    keep
        Takes each JPEG file and returns a name for it, so that pictures need not stay in memory.
    fields
        Number of places in all, at least one for each method that is wrong.
    files
        Slide id to file, for slides that have moved since the run.
    annotations
        Of this slide: outlined, and shown where a false negative missed them.
    """
    found = Evidence(cases[0].slide_id)
    results = _load(saved, found)
    with open_pixels(list(results.values()), files or {}) as pixels:
        if pixels is not None:
            _Sheet(saved, cases, results, pixels, keep, found, list(annotations)).draw(fields)
            found.notes += [pixels.note] if pixels.note else []
        elif results:
            found.notes.append(
                "There is nothing to draw: the results do not state size and resolution of the "
                "slide, and its file is gone. If it lies elsewhere now, make the report again with "
                "--slides FOLDER."
            )
    return found


def _load(saved: SavedEvaluation, found: Evidence) -> dict[str, Result]:
    """Load the slide's result of every model that has one; note what is missing."""
    results = {}
    for model in saved.models:
        folder = saved.result_folder(model, found.slide_id)
        if folder is None:
            if not saved.cases[model].scored.folds:  # whose tables have no results beside them
                found.notes.append(f"{model} has no result of this slide.")
            continue
        try:
            results[model] = Result.load(folder)
        except NewerResultError:
            found.notes.append(
                f"The result of {model} was rewritten by a newer slidelens; update this one."
            )
        except ResultError:  # its text names paths, which a report must not
            what = "is damaged" if (folder / "result.json").exists() else "is gone"
            found.notes.append(f"The result of {model} {what}.")
    return results


class _Field(NamedTuple):
    """A field of view, and what surrounds it, in level-0 px; number 0 is the whole slide."""

    number: int
    what: tuple[str, ...]
    box: Box
    near: NDArray[np.uint8]
    """Pixels of ``box``."""
    around: Box
    far: NDArray[np.uint8]
    """Pixels of ``around``."""
    marks: list[Box]

    @property
    def name(self) -> str:
        return f"field {self.number}" if self.number else "the whole slide"


@dataclass(frozen=True)
class _Sheet:
    """The pictures of one slide while they are drawn."""

    saved: SavedEvaluation
    cases: Sequence[ErrorCase]
    results: Mapping[str, Result]
    pixels: Pixels
    keep: Callable[[bytes], str]
    found: Evidence
    annotations: list[Annotation]

    @cached_property
    def target(self) -> dict[str, str]:
        """Model to the class of its (first) error."""
        return {case.model: case.target for case in reversed(self.cases)}

    def draw(self, fields: int) -> None:
        """Draw the overview, then a row per field."""
        foci = self._foci(fields)
        self.found.annotated = bool(self.annotations)
        whole, boxes = Box.of_size(self.pixels.size), [focus.box for _, focus in foci]
        thumbnail = self.pixels.whole(_OVERVIEW_PX)
        self._row(_Field(0, ("Overview",), whole, thumbnail, whole, thumbnail, boxes))
        for number, (what, focus) in enumerate(foci, 1):
            box, around = focus.box, _scaled(focus.box, _CONTEXT)
            far = self.pixels.field(around, _AROUND_PX)
            near = self.pixels.field(box, _NEAR_PX)
            self._row(_Field(number, what, box, near, around, far, [box]))

    def _foci(self, fields: int) -> list[tuple[tuple[str, ...], Focus]]:
        """Return the places to show: the strongest of each method first, each place once."""
        per_model = [
            [(case.model, focus) for focus in self._foci_of(case, fields)]
            for case in self.cases
            if case.model in self.results
        ]
        missed = [case for case in self.cases if case.kind == "fn"]
        if missed and self.annotations:
            drawn = annotated_foci(self.annotations, missed[0].target, self.pixels.mpp, 1)
            per_model.append([("", focus) for focus in drawn])
        ranked = [f for turn in zip_longest(*per_model) for f in turn if f is not None]
        count = max(fields, len(per_model))
        chosen: list[tuple[list[str], Focus]] = []
        placed: set[str] = set()
        for model, focus in ranked:
            near = [entry for entry in chosen if _shared(entry[1].box, focus.box)]
            same = next((e for e in near if _alike(e[1].box, focus.box)), None)
            if model in placed and near:
                continue  # the method's next place is already shown
            if same is not None:
                same[0].append(_sentence(model, focus))
            elif len(chosen) < count:
                chosen.append(([_sentence(model, focus)], focus))
            placed.add(model)
        return [(tuple(what), focus) for what, focus in chosen]

    def _foci_of(self, case: ErrorCase, fields: int) -> list[Focus]:
        try:
            return find_foci(self.results[case.model], case.target, fields)
        except ResultError:
            self.found.notes.append(f"Maps or tiles of {case.model} are damaged.")
            return []

    def _row(self, place: _Field) -> None:
        """Add the field itself, then what surrounds it under every method."""
        marks = place.marks if place.number == 0 else []
        plain = self._finish(place.near, place.box, marks, place.name, numbers=True)
        panels = (
            Panel("", "", plain),
            *(self._panel(model, place) for model in self.saved.models),
        )
        mpp = self.pixels.mpp
        um_per_px = place.box.w * mpp.x / place.near.shape[1]
        row = Row(place.number, place.what, place.box, place.box.scaled(*mpp), um_per_px, panels)
        self.found.rows.append(row)

    def _panel(self, model: str, place: _Field) -> Panel:
        if model not in self.results:
            return Panel(model, "no result", None)
        source = leading_map(self.results[model])
        if source is None:
            return Panel(model, "no map", None)
        target = self.target.get(model, next(iter(self.target.values())))
        channel, size = channel_of(source, target), self.pixels.size
        overview = place.number == 0
        try:
            heat = draw_overlay(place.far, size, source, channel, box=place.around, opacity=OPACITY)
            note = _value(source, target, None if overview else place.box)
        except ResultError:
            return Panel(model, "its map is damaged", None)
        if source.kind not in self.found.kinds:
            self.found.kinds.append(source.kind)
        alt = f"{place.name} under the {source.kind} of {model}"
        drawn = self._finish(heat, place.around, place.marks, alt, numbers=overview)
        return Panel(model, note, drawn)

    def _finish(
        self,
        pixels: NDArray[np.uint8],
        shown: Box,
        marks: Sequence[Box],
        alt: str,
        *,
        numbers: bool,
    ) -> Picture:
        """Add marks and scale bar, and hand over the file."""
        image = _image(pixels)
        mark_outlines(image, shown, self.annotations)
        mark_fields(image, shown, marks, numbers=numbers)
        mark_scale(image, shown.w * self.pixels.mpp.x / image.width)
        return Picture(self.keep(encode(image)), image.width, image.height, alt)


def _image(pixels: NDArray[np.uint8]) -> Image.Image:
    from PIL import Image as Pillow

    return Pillow.fromarray(np.ascontiguousarray(pixels))


def _scaled(box: Box, factor: float) -> Box:
    w, h = box.w * factor, box.h * factor
    return Box(box.x - (w - box.w) / 2, box.y - (h - box.h) / 2, w, h)


def _shared(one: Box, other: Box) -> bool:
    return one.intersect(other).area > _SAME * min(one.area, other.area)


def _alike(one: Box, other: Box) -> bool:
    """Return whether two fields are about the same size; otherwise one cannot replace the other."""
    return 1 / _ALIKE <= one.w / other.w <= _ALIKE


def _sentence(model: str, focus: Focus) -> str:
    value = "" if focus.value is None else f", {focus.value:.3g}"
    return f"{model}: {focus.what}{value}" if model else focus.what


def _value(source: Map, target: str, box: Box | None) -> str:
    """Return the map's name or, for a field, its mean there."""
    name = channel_of(source, target)
    if box is None or name is None:
        return source.name if name is None else f"{source.name}, {name}"
    mean = float(source.mean([box])[0, source.channel(name)])
    if np.isnan(mean):
        return "not looked at"
    if source.kind == "probability":
        return f"P({name}) {mean:.2f}"
    return f"{source.name}: {mean / scale_top(source, name):.2f} of the colour scale."
