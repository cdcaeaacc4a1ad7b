"""Evaluate lesion detection: detections per slide, the FROC curve and its picture."""

from __future__ import annotations

import json
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.annotations import find_annotations
from slidelens.engine.evaluation.froc import RATES, froc, true_lesions
from slidelens.engine.evaluation.measure import RESAMPLING
from slidelens.engine.evaluation.scores import join, read_scores
from slidelens.engine.evaluation.tables import number
from slidelens.engine.labels import LabelTable, read_labels
from slidelens.engine.last_run import named_failed
from slidelens.errors import LabelError, ResultError
from slidelens.files import staged_folder
from slidelens.maps.lesions import find_peaks
from slidelens.maps.result import Result
from slidelens.tiling.annotations import read_annotations
from slidelens.tiling.patch_labels import PatchRules, check_drawn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.figure import Figure

    from slidelens.engine.evaluation.froc import Froc
    from slidelens.engine.evaluation.measure import Resampling
    from slidelens.engine.evaluation.scores import Cases
    from slidelens.engine.labels import Split
    from slidelens.maps.lesions import Peak
    from slidelens.tiling.annotations import Annotation, Annotations

__all__ = ["evaluate_lesions"]

_FACTS, _DETECTIONS, _PICTURE = "froc.json", "detections", "froc.png"
_WAY = "--tumour NAME (of several: --tumour A --tumour B)"


def evaluate_lesions(
    results: str | Path,
    labels: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    tumour: Sequence[str] = (),
    radius_um: float = 200.0,
    split: Split | None = None,
    allow_missing: bool = False,
    resampling: Resampling = RESAMPLING,
) -> dict[str, Any]:
    """Measure the peaks of a model's maps against annotated lesions.

    Writes ``froc.json``, ``froc.png`` and ``detections/<slide>.csv`` (CAMELYON16's
    ``probability,X,Y``) to the folder ``out``.

    Parameters
    ----------
    results
        Results of one model.
    labels
        Table of labels; only slides of the last class have lesions.
    annotations
        Folder of annotations; see :func:`~slidelens.engine.annotations.find_annotations`.
    tumour
        Annotation classes that are tumour. By default, as in training: the one named like the last
        class, or the only one that is drawn on any of the slides.
    radius_um
        See :func:`~slidelens.maps.lesions.find_peaks`.
    split, allow_missing
        Which slides, see :func:`~slidelens.engine.evaluation.scores.join`; those left out are in
        ``left_out``.
    resampling
        Of the interval of the score: slides are drawn, or patients if some slides share one.

    Returns
    -------
    The content of ``froc.json``; ``warnings`` are for the user.

    Raises
    ------
    LabelError, ResultError
        Tables, annotations or results cannot be read or do not fit.
    """
    scored = read_scores(results, allow_unreadable=allow_missing)
    if len(scored) > 1:
        raise ResultError(f"{results}: results of {', '.join(scored)}; give RESULTS/<model>.")
    (one,) = scored.values()
    table = read_labels(Path(labels), one.classes, every_class=False)
    joined, left_out = join(scored, table, split=split, allow_missing=allow_missing)
    cases = joined[one.name]
    failed = sorted(one.last_run_failed.intersection(row.slide_id for row in cases.rows))
    truth = _truth(cases, Path(annotations), tumour)
    label = one.classes[-1]
    maps = {slide: Result.load(one.folders[slide]).map_of(label) for slide in truth}
    found = {s: find_peaks(source, label, radius_um=radius_um) for s, source in maps.items()}
    lesions = {s: true_lesions(truth[s], source.slide_mpp) for s, source in maps.items()}
    try:
        curve = froc(found, lesions, patients=cases.patients, resampling=resampling)
    except ValueError as error:
        raise LabelError(f"{annotations}: {error}.") from error
    facts = {
        "model": one.name,
        "score": curve.score,
        "score_ci": None if isnan(curve.score_ci.low) else list(curve.score_ci),
        "interval": resampling._asdict() | {"drawn": f"{cases.unit}s"},
        "sensitivity_at": _sensitivity_at(curve),
        "lesions": curve.lesions,
        "isolated_cells": sum(lesion.isolated_cells for of in lesions.values() for lesion in of),
        "slides": curve.slides,
        "detections": sum(map(len, found.values())),
        "radius_um": radius_um,
        "split": split,
        "left_out": left_out[one.name]._asdict(),
        "last_run_failed": failed,
        "warnings": [named_failed(one.name, failed)] if failed else [],
        "curve": np.stack([curve.rates, curve.sensitivity], 1).tolist(),
    }
    with staged_folder(Path(out), {_FACTS, _DETECTIONS, _PICTURE}) as staging:
        (staging / _FACTS).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        _write_detections(staging / _DETECTIONS, found)
        _draw(curve, one.name).savefig(staging / _PICTURE, dpi=120)
    return facts


def _write_detections(folder: Path, found: Mapping[str, Sequence[Peak]]) -> None:
    folder.mkdir()
    for slide, peaks in found.items():
        rows = (f"{p.probability:.6g},{p.x:.0f},{p.y:.0f}\n" for p in peaks)
        (folder / f"{slide}.csv").write_text("".join(rows), encoding="utf-8")


def _truth(cases: Cases, folder: Path, tumour: Sequence[str]) -> dict[str, list[Annotation]]:
    """Read the tumour annotated on slides of the last class; one error lists all faults."""
    classes = cases.scored.classes
    has = {row.slide_id: row.label == len(classes) - 1 for row in cases.rows}
    rows = tuple(replace(row, label=int(has[row.slide_id])) for row in cases.rows)
    files = find_annotations(folder, LabelTable(folder, (classes[0], classes[-1]), rows))
    drawn, faults = _read(files)
    given = PatchRules(tumour=tuple(tumour), positive=classes[-1], way=_WAY)
    try:
        rules = given.of_cohort(
            {files[slide].name: {a.label for a in areas} for slide, areas in drawn.items()}
        )
    except LabelError as error:
        raise LabelError(f"{folder}: {error}") from error
    truth: dict[str, list[Annotation]] = {slide: [] for slide in has}
    for row in cases.rows:
        if row.slide_id not in drawn:
            continue
        try:
            if has[row.slide_id]:
                truth[row.slide_id] = rules.some_tumour_of(drawn[row.slide_id])
                size = cases.scored.sizes.get(row.slide_id)
                if size is not None:
                    check_drawn(truth[row.slide_id], size)
            else:
                rules.check_negative(drawn[row.slide_id], classes[row.label])
        except LabelError as error:
            faults[row.slide_id] = str(error)
    if faults:
        lines = "\n".join(f"{slide}: {fault}" for slide, fault in sorted(faults.items()))
        raise LabelError(f"{folder}: {len(faults)} files cannot be used:\n{lines}")
    return truth


def _read(files: Mapping[str, Path]) -> tuple[dict[str, Annotations], dict[str, str]]:
    """Read annotations by slide, and what is wrong with those that cannot be read."""
    drawn, faults = {}, {}
    for slide, file in files.items():
        try:
            drawn[slide] = read_annotations(file)
        except LabelError as error:
            faults[slide] = str(error)
    return drawn, faults


def _sensitivity_at(curve: Froc) -> dict[str, float]:
    return {f"{rate:g}": value for rate, value in zip(RATES, curve.at, strict=True)}


def _draw(curve: Froc, name: str) -> Figure:
    """Draw the curve and the sensitivities whose mean is the score."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot(curve.rates, curve.sensitivity, color="#0072b2")
    axes.plot(RATES, curve.at, "o", color="#d55e00")
    axes.set_xlabel("false detections per slide")
    axes.set_ylabel("lesions found")
    axes.set_xlim(0, 8.4)
    axes.set_ylim(0, 1.02)
    axes.set_title(f"{name}: FROC score {number(curve.score, curve.score_ci)}")
    return figure
