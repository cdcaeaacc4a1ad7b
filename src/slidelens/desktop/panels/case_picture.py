"""The picture of an error under review: its slide, a method's maps, the places to look at."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from qtpy.QtCore import QObject

from slidelens.desktop.layers import resolution_of
from slidelens.desktop.qt import Signal
from slidelens.desktop.shown import DRAWN, layers_on
from slidelens.desktop.world import World, is_stated
from slidelens.errors import ResultError
from slidelens.geometry import Box
from slidelens.maps.folder import FILE
from slidelens.maps.schema import read_result_file
from slidelens.review.foci import FIELD_UM, find_foci

if TYPE_CHECKING:
    from slidelens.desktop.panels.case import CaseView
    from slidelens.desktop.workbench import Workbench
    from slidelens.maps.result import Result
    from slidelens.maps.schema import SlideInfo
    from slidelens.review.errors import ErrorCase
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.review.foci import Focus

__all__ = ["CasePicture"]

_PLACES = 5


class _Wanted(NamedTuple):
    """What is to be seen: a method's maps of the slide of an error."""

    saved: SavedEvaluation
    case: ErrorCase
    model: str


class CasePicture(QObject):
    """Shows the slide of an error with a method's maps, and flies to the strongest evidence.

    Where there are no maps, the slide is shown alone: never that of another error.

    Parameters
    ----------
    bench
        The window.
    view
        Lists the places, or says why there are none.
    parent
        The panel: once it is gone, nothing is shown.

    Signals
    -------
    lost
        One sentence: the slide's file is not found.
    """

    lost = Signal(str)

    def __init__(self, bench: Workbench, view: CaseView, parent: QObject) -> None:
        super().__init__(parent)
        self._bench, self._view = bench, view
        self.slides: dict[str, Path] = {}
        """Where slides are now, by id, if they have moved since they were run."""
        self._wanted: _Wanted | None = None
        self._foci: list[Focus] = []
        self._world = World.of(None)

    def expect(self, saved: SavedEvaluation, case: ErrorCase | None, model: str = "") -> None:
        """Take what is to be seen next; what is still being read for another error is dropped.

        Parameters
        ----------
        saved
            The evaluation.
        case
            The error; ``None`` if none is listed.
        model
            The method whose maps are to be seen.
        """
        self._wanted = None if case is None else _Wanted(saved, case, model)
        self._foci = []

    def show(self) -> None:
        """Show what is expected."""
        wanted = self._wanted
        if wanted is None or self._bench.closed:
            return
        slide_id, model = wanted.case.slide_id, wanted.model
        folder = wanted.saved.result_folder(model, slide_id)
        if folder is None or not folder.is_dir():
            why = f"The result of {model} is gone, so no map is shown; run the model again."
            self._show_alone(wanted, why)
            return
        self._bench.show_result(
            folder,
            slide_file=self.slides.get(slide_id),
            wanted=lambda: self._wanted is wanted,
            then=lambda result: self._shown(wanted, result),
            failed=lambda text: self._show_alone(wanted, f"No map is shown. {text}"),
            owner=self,
        )

    def fly(self, number: int) -> None:
        """Fly to a place, counted from 0; beyond the last: stay."""
        if number < len(self._foci):
            self._bench.fly_to(_field(self._foci[number].box, self._world), self._world)

    def _shown(self, wanted: _Wanted, result: Result) -> None:
        if self._wanted is not wanted:
            return
        slide, case = self._bench.slide, wanted.case
        there = slide is not None and slide.id == result.slide.id
        self._world = (
            slide.world if slide is not None and there else World.of(resolution_of(result))
        )
        if not there:
            self.lost.emit(f"The file of slide {case.slide_id} is gone; its maps are shown alone.")

        def take(foci: list[Focus]) -> None:
            if self._wanted is wanted:
                self._foci = foci
                none = f"No evidence for {case.target} was found."
                self._view.show_places(foci, "" if foci else none)
                self.fly(0)

        self._bench.background.run(
            lambda: find_foci(result, case.target, _PLACES),
            take,
            owner=self,
            failed=lambda text: self._view.show_places((), text),
        )

    def _show_alone(self, wanted: _Wanted, why: str) -> None:
        """Show the slide of an error without maps, or an empty picture; say why."""
        if self._wanted is not wanted:
            return
        self._view.show_places((), why)
        slide_id = wanted.case.slide_id

        def lost(text: str) -> None:
            if self._wanted is wanted:
                self._bench.show_nothing(slide_id)
                self.lost.emit(text)

        def found(made_on: SlideInfo | None) -> None:
            if self._wanted is not wanted:
                return
            file = self.slides.get(slide_id, None if made_on is None else made_on.path)
            if file is None:
                lost(f"The file of slide {slide_id} is not known, so no slide is shown.")
                return
            known = made_on is not None and not is_stated(made_on.mpp_source)
            mpp = made_on.resolution if made_on is not None and known else None
            self._bench.open_slide(Path(file), mpp=mpp, then=bare, failed=lost)

        def bare() -> None:
            slide = self._bench.slide
            if self._wanted is wanted and slide is not None:
                for layer in layers_on(self._bench.viewer, slide, *DRAWN):
                    layer.visible = False

        self._bench.background.run(lambda: _made_on(wanted), found, owner=self)


def _field(box: Box, world: World) -> Box:
    """Return a place with as much around it as the report shows: some methods' tiles are tiny."""
    w, h = (max(side, FIELD_UM / mpp) for side, mpp in zip(box[2:], world.mpp, strict=True))
    return Box(box.x + (box.w - w) / 2, box.y + (box.h - h) / 2, w, h)


def _made_on(wanted: _Wanted) -> SlideInfo | None:
    """Return the slide of an error as any method's result states it."""
    for model in wanted.saved.models:
        folder = wanted.saved.result_folder(model, wanted.case.slide_id)
        if folder is not None:
            with suppress(ResultError, OSError):
                made_on = read_result_file(folder / FILE).slide
                if made_on.path is not None:
                    return made_on
    return None
