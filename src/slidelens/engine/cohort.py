"""Run many models on many slides; bad slides and interruptions do not end the run."""

from __future__ import annotations

import errno
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from slidelens.engine.bags import bag_file, check_bags
from slidelens.engine.fields import with_options
from slidelens.engine.loader import find_tissue
from slidelens.engine.package import load_model
from slidelens.engine.predict import Prediction, Progress
from slidelens.engine.prediction_table import Outcome, PredictionTable, failure
from slidelens.engine.provenance import (
    is_done,
    settings_sha256,
    unlike_result,
    weights_sha256,
)
from slidelens.engine.results_folder import check_results_folder
from slidelens.engine.slide_folder import slides_to_run
from slidelens.engine.tissue_asked import tissue_for
from slidelens.engine.turns import Part, Turns, claim, close_slide
from slidelens.errors import ModelError, ResultError
from slidelens.families.base import Model
from slidelens.slide.base import Slide, slide_id
from slidelens.slide.open import GivenMpp, open_slide
from slidelens.slide.resolution import read_mpp_table, table_of

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping, Sequence

    import torch

    from slidelens.engine.device import Precision
    from slidelens.engine.labels import Split
    from slidelens.geometry import Box
    from slidelens.tiling.tissue import TissueSettings

__all__ = ["RunOptions", "predict_cohort"]

log = logging.getLogger(__name__)

_ASK_S = 1.0
"""Seconds between two looks at the slides that other runs are at."""
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class RunOptions(TypedDict, total=False):
    """Options of :func:`~slidelens.engine.predict.predict` that hold for every slide."""

    precision: Precision
    region: Box | None
    tissue: TissueSettings | None
    batch_size: int | None
    bags: str | Path | None
    overwrite: bool


def predict_cohort(
    slides: Sequence[str | Path] | str | Path,
    models: Sequence[Model[Any] | str | Path] | Model[Any] | str | Path,
    out: str | Path,
    *,
    labels: str | Path | None = None,
    split: Split | None = None,
    device: str | torch.device = "auto",
    mpp: GivenMpp = None,
    options: Mapping[str, Any] | None = None,
    replace: bool = True,
    **run: Unpack[RunOptions],
) -> Generator[Progress | Outcome, None, None]:
    """Run models on many slides, slide by slide.

    Results go to ``out/<model>/<slide id>/``, and ``out/<model>/predictions.csv`` (slide_id,
    status, error, prob_<class>..., seconds) is rewritten after each slide that was run, and once a
    second while slides are skipped; rows from earlier calls are kept. A slide that fails is
    recorded with its error and the next one is run, unless the disk is full. While the model works
    on one slide, the next is opened and its tissue found. Closing the iterator cancels the run.

    Several processes, also on several machines, may share the same slides: each takes slides that
    no other is working on. At the end it waits for the others (``Progress.stage`` is ``wait``), and
    takes over from processes that died. On a file system without locks, each computes all slides.

    Parameters
    ----------
    slides
        Path or paths of slides, or of folders of slides; slide ids (file names without extension)
        must be unique.
    models
        One or more names, folders or loaded models; loaded once, onto ``device``.
    out
        Results folder.
    labels
        Run only the slides in this table: CSV with slide_id and optionally split.
    split
        With ``labels``: only the slides of this split.
    device, mpp, options, run
        As for :func:`~slidelens.engine.predict.predict`, ``mpp`` in µm/px; ``options`` apply to
        every model.
    replace
        If false, refuse to replace results of other weights, of another slide of the same id, or of
        another region.

    Yields
    ------
    Progress, Outcome
        Progress of the current run, and one outcome per slide and model.

    Raises
    ------
    SlideNotFoundError
        Paths where there is nothing, all at once (before anything runs).
    SlideError
        No slides, two slides with one id, or a resolution table that cannot be used (before
        anything runs).
    LabelError
        Folders without any slide, or one with two of one id; a labels table that cannot be used,
        has no slide in the split, or names slides that are not given.
    ModelError
        A model that cannot be loaded, an unknown option, feature bags that are missing or not
        needed, or two models with one name (before anything runs).
    ResultError
        A folder that cannot be written, belongs to one model or lies in a slide; results that may
        not be replaced (before anything runs). A full disk.
    ValueError, TypeError
        An unknown argument, or a split without labels (before anything runs).
    """
    slides = [slides] if isinstance(slides, str | Path) else slides
    models = [models] if isinstance(models, str | Path | Model) else models
    paths = slides_to_run(slides, labels, split)
    if (table := table_of(mpp)) is not None:
        read_mpp_table(table)  # a faulty table is not a fault of every slide
    loaded = [
        with_options(m if isinstance(m, Model) else load_model(m, device), options or {})
        for m in models
    ]
    for model in loaded:
        check_bags(model, run.get("bags"))
        Prediction(paths[0], model, **run).close()  # refuses what no run takes
    check_results_folder(Path(out), paths)
    names = [model.name for model in loaded]
    if not loaded or len(set(names)) < len(names):
        raise ModelError(
            f"models {names}: expected one or more, each of its own name, since results go to "
            "a folder of that name."
        )
    if not replace:
        _check_places(paths, loaded, Path(out), run.get("region"))
    return _Cohort(loaded, Path(out), device, mpp, run).run(paths)


class _Cohort:
    """What holds for every slide."""

    def __init__(
        self,
        models: list[Model[Any]],
        out: Path,
        device: str | torch.device,
        mpp: GivenMpp,
        options: RunOptions,
    ) -> None:
        self.models, self.out = models, out
        self.device, self.mpp, self.options = device, mpp, options
        self.left = 0
        self.tables = {m.name: PredictionTable(out / m.name, m.classes) for m in models}

    def run(self, paths: list[Path]) -> Generator[Progress | Outcome, None, None]:
        """Go through the slides, and again through those that other runs were at, until none is."""
        self.left = len(paths) * len(self.models)
        with ExitStack() as end, ThreadPoolExecutor(1, "slidelens-next") as ahead:
            for table in self.tables.values():  # all of them, also where one cannot be written
                end.push(partial(_flush, table))
            turns = Turns(
                paths, self.models, self.out, lambda path: ahead.submit(self._prepare, path)
            )
            while turns.todo:
                before = len(turns.todo)
                with closing(turns.round()) as parts:
                    for part in parts:
                        yield from self._part(part)
                if len(turns.todo) == before:  # other runs are at all of them
                    first = turns.todo[0]
                    yield Progress(first.slide_id, first.models[0].name, "wait", total=before)
                    sleep(_ASK_S)

    def _part(self, part: Part) -> Generator[Progress | Outcome, None, None]:
        """Run the models over one slide; write the outcomes down."""
        with closing(self._slide(part)) as events:
            for event in events:
                if isinstance(event, Outcome):
                    part.models = [m for m in part.models if m.name != event.model]
                    self.tables[event.model].record(event)
                    self.left -= 1
                    event = replace(event, left=self.left)
                yield event

    def _prepare(self, path: Path) -> Slide:
        """Open a slide and find its tissue, unless all its results are there already."""
        slide = open_slide(path, mpp=self.mpp)
        try:
            anew = self.options.get("overwrite")
            for settings in {
                self._tissue(model)
                for model in self.models
                if anew or not is_done(self.out / model.name / slide.id, self._digest(slide, model))
            }:
                find_tissue(slide, settings)
        except BaseException:
            close_slide(slide)
            raise
        return slide

    def _tissue(self, model: Model[Any]) -> TissueSettings:
        return tissue_for(model, self.options.get("tissue"))

    @property
    def _places(self) -> list[Path]:
        """Folders that an error may name, and the table of predictions need not."""
        return [self.out, *(Path(bags) for bags in [self.options.get("bags")] if bags)]

    def _digest(self, slide: Slide, model: Model[Any]) -> str:
        bags = self.options.get("bags")
        return settings_sha256(
            slide,
            model,
            bag=None if bags is None else bag_file(bags, slide.id),
            region=self.options.get("region"),
            precision=self.options.get("precision", "auto"),
            tissue=self._tissue(model),
        )

    def _slide(self, part: Part) -> Generator[Progress | Outcome, None, None]:
        """Run the models over one slide, but for those with which other runs are at it."""
        start = perf_counter()
        with closing(part), ExitStack() as held:
            models = part.models
            try:
                models = claim(part, self.out, held)
                if not models:
                    return
                slide = part.take()
            except Exception as error:  # one bad slide must not end the cohort
                for model in models:
                    yield failure(model.name, part.path, error, start, self._places)
                if _finds_no_room(error):
                    raise
                return
            try:
                for model in models:
                    yield from self._model(slide, model)
            finally:
                close_slide(slide)

    def _model(self, slide: Slide, model: Model[Any]) -> Iterator[Progress | Outcome]:
        start = perf_counter()
        run = Prediction(slide, model, out=self.out, device=self.device, **self.options)
        stage = ""
        try:
            with closing(run):
                for step in run:
                    stage = step.stage
                    yield step
        except Exception as error:  # one bad slide must not end the cohort
            yield failure(model.name, slide.path, error, start, self._places)
            if stage == "write" and _finds_no_room(error):
                raise
            return
        assert run.result is not None
        yield Outcome(
            model.name,
            slide.id,
            "skipped" if run.skipped else "done",
            "",
            run.result.probabilities,
            perf_counter() - start,
        )


def _flush(table: PredictionTable, ending: type[BaseException] | None, *_: object) -> None:
    """Write what waits; what ends the run already, such as Ctrl-C, is not hidden by a failure."""
    try:
        table.flush()
    except ResultError as error:
        if ending is None:
            raise
        log.warning("%s", error)


def _finds_no_room(error: Exception) -> bool:
    """Return whether saving the next slides would fail too."""
    return getattr(error.__cause__, "errno", None) in _NO_ROOM


def _check_places(
    paths: Sequence[Path], models: Sequence[Model[Any]], out: Path, region: Box | None
) -> None:
    """Refuse to replace results of another model, slide or region, before anything runs."""
    weights = {model.name: weights_sha256(model) for model in models}
    places = (
        (out / name / slide_id(path), path, sha) for path in paths for name, sha in weights.items()
    )
    found = [
        (at, there) for at, path, sha in places if (there := unlike_result(at, path, sha, region))
    ]
    if found:
        at, there = found[0]
        more = f" (and so do {len(found) - 1} more)" if len(found) > 1 else ""
        raise ResultError(
            f"{at}: holds {there}{more}. Write to another --out, or give --overwrite to replace it."
        )
