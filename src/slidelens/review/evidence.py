"""Draw a slide's evidence: an overview, and the most telling fields under every method."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING

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
_CONTEXT = 3.0  # what surrounds a field is shown to so many times its side
_SAME = 0.5  # fields that share so much, and whose sides differ by less, are one
_ALIKE = 1.5


@dataclass(frozen=True, slots=True)
class Picture:
    """A JPEG file that was handed over to be kept; ``name`` is what the keeper calls it."""

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
        Where it lies: level-0 px, and µm from the slide's upper left corner.
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

    What is gone (a result, the slide's file) is left out and said in ``notes``.

    Parameters
    ----------
    cases
        Errors of one slide, of one or several methods.
    keep
        Takes each JPEG file and returns what to call it, so that pictures need not stay in memory.
    fields
        So many places in all, at least one for each method that errs.
    files
        Slide id to file, where slides have moved since the run.
    annotations
        Of this slide: outlined, and shown where a false negative missed them.
    """
    found = Evidence(cases[0].slide_id)
    sheet = _Sheet(saved, cases, keep, found, list(annotations))
    with open_pixels(list(sheet.loaded.values()), files or {}) as pixels:
        if pixels is not None:
            sheet.draw(pixels, fields)
            found.notes += [pixels.note] if pixels.note else []
        elif sheet.loaded:
            found.notes.append(
                "There is nothing to draw: the results do not state size and resolution of the "
                "slide, and its file is gone."
            )
    return found


class _Sheet:
    """The pictures of one slide while they are drawn."""

    def __init__(
        self,
        saved: SavedEvaluation,
        cases: Sequence[ErrorCase],
        keep: Callable[[bytes], str],
        found: Evidence,
        annotations: list[Annotation],
    ) -> None:
        self.saved, self.cases, self.keep, self.found = saved, cases, keep, found
        self.annotations = annotations
        self.target = {case.model: case.target for case in reversed(cases)}
        self.loaded: dict[str, Result] = {}
        for model in saved.models:
            self._load(model)

    def draw(self, pixels: Pixels, fields: int) -> None:
        """Draw the overview, then a row per field."""
        foci = self._foci(pixels, fields)
        self.found.annotated = bool(self.annotations)
        boxes = [focus.box for _, focus in foci]
        whole = Box.of_size(pixels.size)
        thumbnail = pixels.whole(_OVERVIEW_PX)
        self._row(pixels, 0, ("Overview",), whole, thumbnail, (whole, thumbnail), boxes)
        for number, (what, focus) in enumerate(foci, 1):
            wide = _scaled(focus.box, _CONTEXT)
            under = wide, pixels.field(wide, _AROUND_PX)
            near = pixels.field(focus.box, _NEAR_PX)
            self._row(pixels, number, what, focus.box, near, under, [focus.box])

    def _load(self, model: str) -> None:
        folder = self.saved.result_folder(model, self.found.slide_id)
        if folder is None:
            self.found.notes.append(f"{model} has no result of this slide.")
            return
        try:
            self.loaded[model] = Result.load(folder)
        except NewerResultError:
            self.found.notes.append(
                f"The result of {model} was written anew by a newer slidelens; update this one."
            )
        except ResultError:  # its text names paths, which a report must not
            what = "is damaged" if (folder / "result.json").exists() else "is gone"
            self.found.notes.append(f"The result of {model} {what} since the evaluation.")

    def _foci(self, pixels: Pixels, fields: int) -> list[tuple[tuple[str, ...], Focus]]:
        """Return the places to show, the strongest of each method first, each place once."""
        per_model = [
            [(case.model, focus) for focus in self._foci_of(case, fields)]
            for case in self.cases
            if case.model in self.loaded
        ]
        missed = [case for case in self.cases if case.kind == "fn"]
        if missed and self.annotations:
            drawn = annotated_foci(self.annotations, missed[0].target, pixels.mpp, 1)
            per_model.append([("", focus) for focus in drawn])
        ranked = [f for turn in zip_longest(*per_model) for f in turn if f is not None]
        count = max(fields, len(per_model))
        chosen: list[tuple[list[str], Focus]] = []
        placed: set[str] = set()
        for model, focus in ranked:
            near = [entry for entry in chosen if _shared(entry[1].box, focus.box)]
            same = next((e for e in near if _alike(e[1].box, focus.box)), None)
            if model in placed and near:
                continue  # the method's next place lies where one is shown already
            if same is not None:
                same[0].append(_sentence(model, focus))
            elif len(chosen) < count:
                chosen.append(([_sentence(model, focus)], focus))
            placed.add(model)
        return [(tuple(what), focus) for what, focus in chosen]

    def _foci_of(self, case: ErrorCase, fields: int) -> list[Focus]:
        try:
            return find_foci(self.loaded[case.model], case.target, fields)
        except ResultError:
            self.found.notes.append(f"Maps or tiles of {case.model} are damaged.")
            return []

    def _row(
        self,
        pixels: Pixels,
        number: int,
        what: tuple[str, ...],
        box: Box,
        near: NDArray[np.uint8],
        under: tuple[Box, NDArray[np.uint8]],
        marks: list[Box],
    ) -> None:
        """Add the field itself, then what surrounds it under every method."""
        place = f"field {number}" if number else "the whole slide"
        plain = self._finish(near, box, pixels, () if number else marks, place)
        panels = [
            Panel("", "", plain),
            *(self._panel(m, pixels, box, under, marks, place) for m in self.saved.models),
        ]
        mpp = box.w * pixels.mpp.x / near.shape[1]
        row = Row(number, what, box, box.scaled(*pixels.mpp), mpp, tuple(panels))
        self.found.rows.append(row)

    def _panel(
        self,
        model: str,
        pixels: Pixels,
        box: Box,
        under: tuple[Box, NDArray[np.uint8]],
        marks: list[Box],
        place: str,
    ) -> Panel:
        if model not in self.loaded:
            return Panel(model, "no result", None)
        source = leading_map(self.loaded[model])
        if source is None:
            return Panel(model, "no map", None)
        target = self.target.get(model, next(iter(self.target.values())))
        (shown, base), channel = under, channel_of(source, target)
        try:
            heat = draw_overlay(base, pixels.size, source, channel, box=shown, opacity=OPACITY)
            note = _value(source, target, None if box == shown else box)
        except ResultError:
            return Panel(model, "its map is damaged", None)
        if source.kind not in self.found.kinds:
            self.found.kinds.append(source.kind)
        alt = f"{place} under the {source.kind} of {model}"
        whole = box == shown
        return Panel(model, note, self._finish(heat, shown, pixels, marks, alt, numbers=whole))

    def _finish(
        self,
        pixels: NDArray[np.uint8],
        shown: Box,
        source: Pixels,
        marks: Sequence[Box],
        alt: str,
        *,
        numbers: bool = True,
    ) -> Picture:
        """Add marks and scale bar, and hand the file over."""
        image = _image(pixels)
        mark_outlines(image, shown, self.annotations)
        mark_fields(image, shown, marks, numbers)
        mark_scale(image, shown.w * source.mpp.x / image.width)
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
    """Say whether two fields are of about one size; else one shows what the other does not."""
    return 1 / _ALIKE <= one.w / other.w <= _ALIKE


def _sentence(model: str, focus: Focus) -> str:
    value = "" if focus.value is None else f", {focus.value:.3g}"
    return f"{model}: {focus.what}{value}" if model else focus.what


def _value(source: Map, target: str, box: Box | None) -> str:
    """Say which map it is, or what it gives in a field, on average."""
    name = channel_of(source, target)
    if box is None or name is None:
        return source.name if name is None else f"{source.name}, {name}"
    mean = float(source.mean([box])[0, source.channel(name)])
    if np.isnan(mean):
        return "not looked at"
    if source.kind == "probability":
        return f"P({name}) {mean:.2f}"
    return f"{source.name}: {mean / scale_top(source, name):.2f} of the colour scale."
