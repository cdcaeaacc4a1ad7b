"""Pixels for evidence: the slide's own, or its saved tissue mask if the file is gone."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from slidelens.engine.provenance import is_other_content
from slidelens.errors import SlideError
from slidelens.geometry import Box, Mpp, Size
from slidelens.maps.overlay import draw_overlay

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.maps.map import Map
    from slidelens.maps.result import Result
    from slidelens.slide.base import Slide

__all__ = ["Pixels", "open_pixels"]

_GLASS, _TISSUE = 255, (226, 214, 221)


class Pixels:
    """Where the pictures of a slide come from.

    Attributes
    ----------
    size, mpp
        Of level 0.
    note
        Why there are no pixels of the slide itself, or why they may be other ones; empty if they
        are those that were predicted.
    """

    def __init__(
        self, size: Size, mpp: Mpp, slide: Slide | None, tissue: Map | None, note: str = ""
    ) -> None:
        self.size, self.mpp, self.note = size, mpp, note
        self._slide, self._tissue = slide, tissue

    def whole(self, longest: int) -> NDArray[np.uint8]:
        """Return the whole slide, ``(H, W, 3)`` uint8, its longer side at most ``longest`` px."""
        if self._slide is not None:
            try:
                return self._slide.thumbnail(longest)
            except SlideError:
                self._give_up()
        factor = min(1.0, longest / max(self.size))
        shape = (max(1, round(self.size.height * factor)), max(1, round(self.size.width * factor)))
        return self._drawn(Box.of_size(self.size), shape)

    def field(self, box: Box, side: int) -> NDArray[np.uint8]:
        """Return a part whose longer side has ``side`` px, or fewer if the slide has fewer."""
        um = max(box.w * self.mpp.x, box.h * self.mpp.y)
        mpp = max(um / side, self.mpp.mean)
        if self._slide is not None:
            try:
                return self._slide.read(box, mpp)
            except SlideError:
                self._give_up()
        shape = (
            max(1, round(box.h * self.mpp.y / mpp)),
            max(1, round(box.w * self.mpp.x / mpp)),
        )
        return self._drawn(box, shape)

    def _give_up(self) -> None:
        self._slide = None
        self.note = "The slide's file is damaged; the pictures show the saved maps only."

    def _drawn(self, box: Box, shape: tuple[int, int]) -> NDArray[np.uint8]:
        """Draw tissue in a pale colour on white."""
        out = np.full((*shape, 3), _GLASS, np.uint8)
        if self._tissue is None:
            return out
        marked = draw_overlay(out, self.size, self._tissue, box=box)
        out[(marked != _GLASS).any(-1)] = _TISSUE
        return out


@contextmanager
def open_pixels(results: Sequence[Result], files: Mapping[str, Path]) -> Iterator[Pixels | None]:
    """Open the slide that the results belong to; ``None`` if nothing states its size.

    Parameters
    ----------
    results
        All of one slide.
    files
        Slide id to file, for slides that have moved since the run.
    """
    if not results:
        yield None
        return
    known = [r for r in results if r.slide.size is not None and r.slide.resolution is not None]
    slide, note = _open(results, files)
    try:
        size = known[0].slide.size if known else None
        mpp = known[0].slide.resolution if known else None
        if slide is not None and size is not None and tuple(slide.size) != tuple(size):
            note = (
                "The slide's file is not the one that was predicted: its size is another; the "
                "pictures show the saved maps only."
            )
            slide.close()
            slide = None
        if slide is not None:
            size, mpp = slide.size, slide.mpp or mpp
            if any(is_other_content(slide, result.slide) for result in results):
                note = (
                    "The slide's file was changed or replaced after it was predicted: the pictures "
                    "may not be what a model saw; run `slidelens predict` again."
                )
        tissue = next((r.maps["tissue"] for r in results if "tissue" in r.maps), None)
        yield None if size is None or mpp is None else Pixels(size, mpp, slide, tissue, note)
    finally:
        if slide is not None:
            slide.close()


def _open(results: Sequence[Result], files: Mapping[str, Path]) -> tuple[Slide | None, str]:
    from slidelens.slide.open import open_slide

    about = results[0].slide
    places = [files[about.id]] if about.id in files else []
    places += [Path(r.slide.path) for r in results if r.slide.path]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        return None, (
            "The slide's file is gone; the pictures show the saved maps only. If it lies elsewhere "
            "now, make the report again with --slides FOLDER."
        )
    mpp = next((r.slide.resolution for r in results if r.slide.resolution is not None), None)
    try:
        return open_slide(found, mpp=mpp), ""
    except SlideError:
        return None, "The slide's file cannot be opened; the pictures show the saved maps only."
