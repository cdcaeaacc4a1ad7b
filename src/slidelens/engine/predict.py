"""Run one model on one slide: read, infer, assemble, save. All callers use this.

:func:`predict` runs to the end; :class:`Prediction` is the same run step by step: iterating is
progress, closing is cancelling.
"""

from __future__ import annotations

import gc
import logging
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from math import isfinite
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, Self, TypedDict, get_args

import torch

from slidelens.engine.assemble import Assembly
from slidelens.engine.bags import bag_file, check_bags, read_bag
from slidelens.engine.contract import events_of
from slidelens.engine.detail import check_detail, warn_of_fluorescence
from slidelens.engine.device import Precision, evaluating, pick_device, uses_bf16
from slidelens.engine.fields import with_options
from slidelens.engine.heap import PER_READER, heap_trimmer
from slidelens.engine.last_run import failed_slides
from slidelens.engine.loader import SlideView
from slidelens.engine.package import family_of, load_model
from slidelens.engine.prediction_table import Outcome, PredictionTable
from slidelens.engine.progress import Clock, Progress
from slidelens.engine.provenance import LOADED, is_done, run_settings, settings_sha256
from slidelens.engine.results_folder import check_results_folder
from slidelens.engine.tissue_asked import tissue_for
from slidelens.errors import ModelError
from slidelens.families.base import Model
from slidelens.geometry import Box
from slidelens.maps.folder import check_place, restate_path
from slidelens.maps.result import Result
from slidelens.slide.array import in_memory
from slidelens.slide.base import Slide
from slidelens.slide.open import open_slide
from slidelens.tiling.tissue import TissueMask, TissueSettings

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    from slidelens.maps.map import Map
    from slidelens.maps.run_settings import RunSettings
    from slidelens.slide.open import GivenMpp

__all__ = ["Prediction", "Progress", "predict"]

log = logging.getLogger(__name__)

_LARGE = 2 << 20
"""Cells of a tissue mask (134 mm² at the default of 8 µm) that take tens of megabytes to find."""
_REMEDY = (
    "Use a finer scan, or a model made for coarser images; if the slide states a wrong resolution, "
    "give the right one with --mpp X."
)


def predict(
    slide: Slide | str | Path,
    model: Model[Any] | str | Path,
    *,
    out: str | Path | None = None,
    device: str | torch.device = "auto",
    precision: Precision = "auto",
    region: Box | None = None,
    mpp: GivenMpp = None,
    tissue: TissueSettings | TissueMask | None = None,
    batch_size: int | None = None,
    options: Mapping[str, Any] | None = None,
    bags: str | Path | None = None,
    overwrite: bool = False,
) -> Result:
    """Run a model over a slide.

    Parameters
    ----------
    slide
        A path, or an open slide (which stays open).
    model
        Name or folder of a model package, or a loaded model.
    out
        Results folder. The result is written to ``out/<model>/<slide id>/``, whole or not at all;
        an existing result of the same slide, model and settings is returned instead of being
        computed again. ``None``: write nothing.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; ``auto`` leaves a loaded model in place.
    precision
        See :data:`~slidelens.engine.device.Precision`.
    region
        Part of the slide to run on, in level-0 px. Its tiles are those that a run on the whole
        slide has there.
    mpp
        The slide's resolution in µm/px, if the file states none or a wrong one. The resolution at
        which the model works is part of the model.
    tissue
        How to find tissue, or your own mask. Fields of the settings that are not given are as
        when the model was trained.
    batch_size
        Tiles per step; default: as in the model's configuration.
    options
        Values for fields of the model's configuration that its weights do not depend on
        (:attr:`~slidelens.families.base.FamilyConfig.run_fields`).
    bags
        Folder of the slides' feature vectors, ``<slide id>.h5`` as CLAM and TRIDENT write them, for
        a model that was trained on feature vectors.
    overwrite
        Compute again even if there is a matching result. A result of other weights or settings,
        or of another slide of the same id, is always replaced.

    Raises
    ------
    SlideError
        A slide that cannot be read, that states no resolution while none is given, or that is more
        than four times coarser than the model's resolution; a slide whose feature vectors are
        missing in ``bags`` or do not fit the model.
    ModelError
        A model that cannot be used, an unknown option, ``bags`` that are missing or not needed.
    ResultError
        A result that cannot be written; ``out`` is the folder of one model in a results folder, or
        lies in the slide.
    """
    if out is not None:
        at = slide.path if isinstance(slide, Slide) else Path(slide)
        no_file = isinstance(slide, Slide) and in_memory(slide)
        check_results_folder(Path(out), [] if no_file else [at])
    run = Prediction(
        slide,
        model,
        out=out,
        device=device,
        precision=precision,
        region=region,
        mpp=mpp,
        tissue=tissue,
        batch_size=batch_size,
        options=options,
        bags=bags,
        overwrite=overwrite,
    )
    for _ in run:
        pass
    assert run.result is not None
    return run.result


class Prediction:
    """:func:`predict`, step by step; takes the same arguments.

    Iterating runs it and yields :class:`Progress`; :meth:`close` cancels it, stops all threads and
    cleans up. Nothing is computed between two steps.

    Attributes
    ----------
    result
        The result, when the run has ended.
    skipped
        Whether a matching result already existed.
    """

    def __init__(
        self,
        slide: Slide | str | Path,
        model: Model[Any] | str | Path,
        *,
        out: str | Path | None = None,
        device: str | torch.device = "auto",
        precision: Precision = "auto",
        region: Box | None = None,
        mpp: GivenMpp = None,
        tissue: TissueSettings | TissueMask | None = None,
        batch_size: int | None = None,
        options: Mapping[str, Any] | None = None,
        bags: str | Path | None = None,
        overwrite: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, not {batch_size}")
        if precision not in get_args(Precision):
            raise ValueError(f"precision is {precision!r}, expected auto, fp32 or bf16")
        if not isinstance(tissue, TissueSettings | TissueMask | None):
            raise TypeError(
                f"tissue is a {type(tissue).__name__}, expected TissueSettings(method=...) or "
                "TissueMask(array, affine)"
            )
        if mpp is not None and isinstance(slide, Slide):
            raise ValueError(
                "mpp is for a slide that is given by its path; this one is open: open it with "
                "open_slide(path, mpp=...)"
            )
        self.result: Result | None = None
        self.skipped = False
        self._slide, self._given_mpp = slide, mpp
        self._model = model
        self._out = None if out is None else Path(out)
        self._device, self._precision = device, precision
        # Plain numbers, as the result stores them and is recognised by them.
        self._region = None if region is None else Box(*map(float, region))
        if self._region is not None and not all(map(isfinite, self._region)):
            raise ValueError(f"region is {region}, expected finite x, y, w and h in level-0 px")
        self._tissue = TissueSettings() if tissue is None else tissue
        self._batch_size = batch_size
        self._options = options or {}
        self._bags = bags
        self._bag: Path | None = None
        self._overwrite = overwrite
        self._assembly: Assembly | None = None
        self._bf16 = False
        self._timings = dict.fromkeys(("open", "tissue", "read", "infer"), 0.0)
        self._steps = self._run()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Progress:
        return next(self._steps)

    def close(self) -> None:
        """Cancel the run. A finished result stays."""
        self._steps.close()

    def peek(self) -> dict[str, Map]:
        """Return the current maps; NaN where nothing is predicted yet."""
        return {} if self._assembly is None else self._assembly.peek()

    def _run(self) -> Generator[Progress, None, None]:
        clock = Clock(self.peek)
        given = self._slide
        model = with_options(self._on_device(self._model), self._options)
        self._tissue = tissue_for(model, self._tissue)
        check_bags(model, self._bags)
        # A slide that the caller opened is the caller's to close.
        opening = (
            nullcontext(given)
            if isinstance(given, Slide)
            else open_slide(given, mpp=self._given_mpp)
        )
        with opening as slide, ExitStack() as held:
            self._bag = None if self._bags is None else bag_file(self._bags, slide.id)
            asked = self._asked()
            digest = settings_sha256(slide, model, **asked, bag=self._bag)
            settings = run_settings(model, **asked)
            opened = given.open_seconds if isinstance(given, Slide) else 0.0
            self._timings["open"] = opened + clock.seconds()
            clock.name(slide.id, model.name)
            yield clock.progress("open")
            folder = None if self._out is None else self._out / model.name / slide.id
            if folder is not None and not self._overwrite and is_done(folder, digest):
                if not in_memory(slide):
                    restate_path(folder, slide.path)
                self.result, self.skipped = Result.load(folder), True
            else:
                if folder is not None:
                    check_place(folder)
                view, assembly = yield from self._infer(slide, model, clock, held)
                yield clock.progress("write", view)
                _trim(view)
                self.result = self._write(assembly, settings, digest, folder)
        yield clock.progress("done")

    def _on_device(self, given: Model[Any] | str | Path) -> Model[Any]:
        if not isinstance(given, Model):
            return load_model(given, self._device)
        if self._device == "auto" and given.device is not None:
            return given
        device = pick_device(self._device)
        if device == given.device:
            return given
        digest = LOADED.get(given.module)
        module = given.module.to(device)
        if digest is not None:  # it has other buffers there
            LOADED.keep(module, digest)
        return replace(given, device=device, module=module)

    def _asked(self) -> _Asked:
        return {"region": self._region, "precision": self._precision, "tissue": self._tissue}

    def _infer(
        self, slide: Slide, model: Model[Any], clock: Clock, held: ExitStack
    ) -> Generator[Progress, None, tuple[SlideView, Assembly]]:
        """Run the model; if it does not fit on the GPU, start again with half the batch."""
        bag = None if self._bag is None else read_bag(self._bag)
        if bag is None:
            name = f"model {model.name!r}"
            check_detail(slide, model.config, name, _REMEDY, region=self._region)
        batch_size, asked = self._batch_size, self._tissue
        while True:
            view = SlideView(
                slide,
                tissue=self._tissue,
                region=self._region,
                device=model.device,
                batch_size=batch_size,
                stain="none" if bag is not None else model.config.stain_normalization,
                bag=bag,
            )
            with view:
                yield clock.progress("tissue", view)
                if self._tissue is asked:  # the first try
                    warn_of_fluorescence(slide, asked, view.tissue)
                self._tissue = view.tissue  # kept for the next try
                _trim(view)
                self._timings["tissue"] += view.tissue_seconds
                try:
                    return view, (yield from self._pass(view, model, clock, held))
                except torch.OutOfMemoryError as error:
                    batch_size = _halved(view, model, error)
            # Not in the handler, whose traceback holds the tensors of the failed step.
            gc.collect()
            torch.cuda.empty_cache()

    def _pass(
        self, view: SlideView, model: Model[Any], clock: Clock, held: ExitStack
    ) -> Generator[Progress, None, Assembly]:
        """Run the family once and assemble its events."""
        family = family_of(model.family)
        self._assembly = assembly = held.enter_context(closing(Assembly(family, model, view)))
        self._bf16 = bf16 = uses_bf16(view.device, self._precision, auto=family.auto_bf16)
        model.module.eval()
        spent, trim = 0.0, heap_trimmer()
        events, ended = events_of(model, view), object()
        while True:
            start = perf_counter()
            with evaluating(view.device, bf16):
                event = next(events, ended)
            spent += perf_counter() - start
            if event is ended:
                break
            assembly.add(event)
            trim(view.readers * PER_READER)
            yield clock.progress("infer", view)
        self._timings |= {"read": view.waited, "infer": spent - view.waited}
        return assembly

    def _write(
        self,
        assembly: Assembly,
        settings: RunSettings,
        digest: str,
        folder: Path | None,
    ) -> Result:
        result = assembly.finish(settings=settings, digest=digest, bf16=self._bf16)
        result.timings = self._timings
        if folder is not None:
            result.save(folder)  # which adds how long writing took
            self._no_longer_failed(result, folder.parent)
        return result

    def _no_longer_failed(self, result: Result, folder: Path) -> None:
        """Clear the failure of a slide's previous run from ``predictions.csv``."""
        slide = result.slide.id
        if slide in failed_slides(folder):
            seconds = sum(self._timings.values())
            done = Outcome(result.model.name, slide, "done", "", result.probabilities, seconds)
            PredictionTable(folder, result.classes).record(done)


class _Asked(TypedDict):
    """The arguments that a result depends on, besides slide and model."""

    region: Box | None
    precision: Precision
    tissue: TissueSettings | TissueMask


def _trim(view: SlideView) -> None:
    """Return free memory to the system between two stages, if the slide is a large one.

    A smaller one needs the same pages again for its tiles, and the next slide does; each then costs
    a fault: 3 to 10 % of such a run's time. So would any beside a GPU, where maps lie.
    """
    if view.device.type == "cpu" and view.tissue.array.size > _LARGE:
        heap_trimmer().now()


def _halved(view: SlideView, model: Model[Any], error: torch.OutOfMemoryError) -> int:
    """Return half the batch size that did not fit."""
    if view.batch_in_use < 2:
        raise ModelError(
            f"model {model.name!r} does not fit in the memory of {view.device}, even one tile at a "
            "time. Free the device's memory, or use --device cpu."
        ) from error
    half = view.batch_in_use // 2
    log.warning("%s: out of memory; going on with %d tiles at a time", view.device, half)
    return half
