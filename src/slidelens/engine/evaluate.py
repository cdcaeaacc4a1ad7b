"""Evaluate saved results against labels; no model is run.

::

    result folders + labels.csv  ->  metrics.json          every figure, interval and test
                                     errors.csv            every false positive and negative
                                     evaluation.json       what was evaluated, for the report
                                     roc.png calibration.png
                                     comparison.png comparison.md
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import slidelens
from slidelens.engine.evaluation.calls import compare_calls
from slidelens.engine.evaluation.compare import compare
from slidelens.engine.evaluation.measure import (
    RESAMPLING,
    Measured,
    Resampling,
    by_patient,
    measure,
)
from slidelens.engine.evaluation.memory import numbered, read_kept, weights_now
from slidelens.engine.evaluation.operating_point import STORED, Rule, parse_rule
from slidelens.engine.evaluation.out_of_fold import read_out_of_fold
from slidelens.engine.evaluation.scores import join, read_scores
from slidelens.engine.evaluation.tables import (
    cohort_note,
    comparison_table,
    errors_csv,
    intervals_note,
    markdown,
    number,
    tests_table,
)
from slidelens.engine.evaluation.tiles import measure_tiles, read_annotated
from slidelens.engine.evaluation.warnings import (
    counted_ignored,
    evaluation_warnings,
    named_ignored,
    near_misses,
)
from slidelens.engine.labels import read_labels
from slidelens.engine.last_run import named_warnings
from slidelens.errors import ResultError
from slidelens.files import write_together

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.engine.evaluation.scores import Cases, LeftOut, Scored
    from slidelens.engine.labels import Split

__all__ = [
    "FILES",
    "Evaluation",
    "EvaluationOptions",
    "evaluate",
]

FILES = (
    "roc.png",
    "calibration.png",
    "comparison.png",
    "comparison.md",
    "errors.csv",
    "metrics.json",
    "evaluation.json",
)
"""Names of what an evaluation writes."""


@dataclass(frozen=True)
class EvaluationOptions:
    """What is evaluated, and how.

    Attributes
    ----------
    split
        Only the slides of this split of the labels table.
    rule
        How the operating point is chosen: text for :func:`parse_rule`, or its return value.
    allow_missing
        Leave out slides without label or result (that can be read), instead of refusing them.
    annotations
        Folder of annotations: measure tiles too.
    tile_overlap
        A tile is positive if at least this share of it is annotated.
    resampling
        Of the intervals: number of bootstrap resamples, seed, confidence level.
    """

    split: Split | None = None
    rule: Rule | str = STORED
    allow_missing: bool = False
    annotations: str | Path | None = None
    tile_overlap: float = 0.5
    resampling: Resampling = RESAMPLING

    def __post_init__(self) -> None:
        if not 0 < self.tile_overlap <= 1:
            raise ValueError(f"tile overlap must be in (0, 1], not {self.tile_overlap:g}")
        _rule(self)


@dataclass(frozen=True)
class Evaluation:
    """What :func:`evaluate` found.

    Attributes
    ----------
    folder
        Where it was written.
    metrics
        The content of ``metrics.json``.
    table
        The models' figures as a Markdown table.
    """

    folder: Path
    metrics: dict[str, Any] = field(repr=False)
    table: str = field(repr=False)

    def _repr_markdown_(self) -> str:
        """Return what a notebook shows."""
        return self.table

    @property
    def warnings(self) -> list[str]:
        """What a reader of the figures must know, with the names of slides and annotations.

        ``metrics.json`` only counts these, as reports repeat its warnings.
        """
        classes = self.metrics["classes"]
        named = {
            counted_ignored(name, len(labels)): named_ignored(name, labels)
            + near_misses(labels, classes)
            for name, one in self.metrics["models"].items()
            if (labels := one.get("tiles", {}).get("ignored_labels"))
        }
        return [named.get(text, text) for text in named_warnings(self.metrics)]


def evaluate(
    results: str | Path,
    labels: str | Path,
    out: str | Path,
    options: EvaluationOptions | None = None,
) -> Evaluation:
    """Evaluate every model in ``results`` and write the evaluation folder.

    Files of an earlier evaluation are replaced; other files, such as a review, are kept.

    Parameters
    ----------
    results
        Folder of result folders, ``<model>/<slide_id>/``; or ``out_of_fold.csv`` of a
        cross-validation, of which slides of split ``test`` are no part.
    labels
        CSV with slide_id, label and optionally split and patient.
    out
        The evaluation folder.
    options
        Operating point, split, resampling and so on; default: those of the command line.

    Raises
    ------
    ResultError
        Results that cannot be used, or a folder that cannot be written.
    LabelError
        Labels or annotations that cannot be used, or that belong to other slides.
    """
    options = options or EvaluationOptions()
    rule = _rule(options)
    results, labels, out = Path(results), Path(labels), Path(out)
    scored = _scores(results, options)
    classes = next(iter(scored.values())).classes
    table = read_labels(labels, classes, every_class=False)
    if options.split is None and any(one.folds for one in scored.values()):
        table = table.without("test")
    cases, left_out = join(scored, table, split=options.split, allow_missing=options.allow_missing)
    measured = {name: measure(one, rule, options.resampling) for name, one in cases.items()}
    comparisons = compare(cases, options.resampling)
    calls = compare_calls(cases, measured)
    metrics = _metrics(options, cases, measured, left_out)
    metrics |= {"comparisons": comparisons, "call_comparisons": calls}
    note = (
        f"{cohort_note(cases, options.split)}\n"
        f"{intervals_note(measured, metrics['positive_class'], options.resampling.level)}"
    )
    record = _record(results, labels, out, options, cases, metrics)
    text = markdown(measured, comparisons, calls, note, _tile_lines(metrics))
    files: dict[str, bytes | str] = {
        **_pictures(measured, comparisons, options.resampling.level, note),
        "comparison.md": f"# Evaluation\n\n{text}",
        "errors.csv": errors_csv(cases, measured),
        "metrics.json": _json(metrics),
        "evaluation.json": _json(record),  # last, when everything that it stands for exists
    }
    _write(out, files)
    return Evaluation(out, metrics, text)


def _scores(results: Path, options: EvaluationOptions) -> dict[str, Scored]:
    """Read results, or the one table of a cross-validation."""
    if results.suffix.lower() != ".csv" or results.is_dir():
        return read_scores(results, allow_unreadable=options.allow_missing)
    if options.annotations is not None:
        raise ResultError(
            f"{results}: holds scores of slides, and none of tiles: leave annotations out, or "
            "predict the slides that a fold held out with its model, and evaluate the results."
        )
    one = read_out_of_fold(results)
    return {one.name: one}


def _tile_lines(metrics: Mapping[str, Any]) -> list[str]:
    """Return a line per model on how well its tiles find the annotations, if requested."""
    found = []
    for name, one in metrics["models"].items():
        for what, tiles in _tile_figures(one.get("tiles")):
            where = f"{name}, tiles{what}"
            if tiles["auc"] is None:
                found.append(f"{where}: AUC is undefined, because {tiles['undefined']['auc']}.")
            else:
                found.append(
                    f"{where}: AUC {number(tiles['auc'], tiles['auc_ci'])}, PR-AUC "
                    f"{number(tiles['pr_auc'])} ({tiles['n_positive']} of {tiles['n']} annotated)."
                )
    return found


def _tile_figures(tiles: Mapping[str, Any] | None) -> list[tuple[str, Mapping[str, Any]]]:
    if tiles is None:
        return []
    of_class = tiles.get("per_class")
    return [("", tiles)] if of_class is None else [(f" of {k}", v) for k, v in of_class.items()]


def _rule(options: EvaluationOptions) -> Rule:
    return parse_rule(options.rule) if isinstance(options.rule, str) else options.rule


def _metrics(
    options: EvaluationOptions,
    cases: Mapping[str, Cases],
    measured: Mapping[str, Measured],
    left_out: Mapping[str, LeftOut],
) -> dict[str, Any]:
    models = {name: dict(one.figures) for name, one in measured.items()}
    classes = next(iter(cases.values())).scored.classes
    for name, one in cases.items():
        models[name]["patients"] = by_patient(one, _rule(options), options.resampling)
        if any(left_out[name]):
            models[name]["left_out"] = left_out[name]._asdict()
        if failed := [i for i in one.ids if i in one.scored.last_run_failed]:
            models[name]["last_run_failed"] = failed
    if options.annotations is not None:
        ids = dict.fromkeys(slide_id for one in cases.values() for slide_id in one.ids)
        annotated = read_annotated(Path(options.annotations), ids, classes)
        for name, one in cases.items():
            models[name]["tiles"] = measure_tiles(
                one, annotated, options.tile_overlap, options.resampling.level
            )
    return {
        "schema_version": 1,
        "classes": list(classes),
        "positive_class": classes[-1] if len(classes) == 2 else None,
        "split": options.split,
        "interval": options.resampling._asdict(),
        "models": models,
        "warnings": evaluation_warnings(cases, models),
        "software": {"slidelens": slidelens.__version__, "numpy": np.__version__},
    }


def _record(
    results: Path,
    labels: Path,
    out: Path,
    options: EvaluationOptions,
    cases: Mapping[str, Cases],
    metrics: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what was evaluated, with paths relative to the folder, so that both can be moved."""
    classes = metrics["classes"]
    slides: dict[str, dict[str, Any]] = {}
    for name, one in cases.items():
        for row, p in zip(one.rows, one.probabilities, strict=True):
            about = {"id": row.slide_id, "patient": row.patient, "label": classes[row.label]}
            slide = slides.setdefault(row.slide_id, {**about, "probabilities": {}, "results": {}})
            slide["probabilities"][name] = p.tolist()
            if row.slide_id in one.scored.folders:
                slide["results"][name] = _relative(one.scored.folders[row.slide_id], out)
            if row.slide_id in one.scored.thresholds:
                slide.setdefault("thresholds", {})[name] = one.scored.thresholds[row.slide_id]
    annotations = None if options.annotations is None else Path(options.annotations)
    numbers, weights = read_kept(out)
    now = {name: weights_now(one.scored.weights, weights.get(name)) for name, one in cases.items()}
    return {
        "schema_version": 1,
        "numbers": numbered(slides, numbers),
        "weights": weights | now,
        "results": _relative(results, out),
        "labels": _relative(labels, out),
        "labels_sha256": sha256(labels.read_bytes()).hexdigest(),
        "annotations": None if annotations is None else _relative(annotations, out),
        "split": options.split,
        "operating_point": _rule(options)._asdict(),
        "classes": classes,
        "positive_class": metrics["positive_class"],
        "models": {
            name: {key: one[key] for key in ("threshold", "threshold_source", "threshold_rule")}
            | {"stored_threshold": cases[name].scored.threshold}
            | ({"folds": folds} if (folds := cases[name].scored.folds) else {})
            for name, one in metrics["models"].items()
        },
        "slides": list(slides.values()),
        "software": metrics["software"],
    }


def _pictures(
    measured: Mapping[str, Measured],
    comparisons: Sequence[Mapping[str, Any]],
    level: float,
    note: str,
) -> dict[str, bytes | str]:
    # matplotlib takes half a second to import; a caller who reads an Evaluation needs none of it.
    from slidelens.engine.evaluation.pictures import calibration_picture, roc_picture, table_picture

    tables = [comparison_table(measured)]
    if comparisons:
        tables.append(tests_table(comparisons))
    return {
        "roc.png": roc_picture(measured, level),
        "calibration.png": calibration_picture(measured),
        "comparison.png": table_picture(tables, note),
    }


def _write(out: Path, files: Mapping[str, bytes | str]) -> None:
    try:
        write_together(out, files)
    except UnicodeEncodeError as error:
        raise ResultError(
            "names of slides have letters that this system's settings cannot tell; set "
            "LC_ALL=C.UTF-8, then evaluate again."
        ) from error
    except OSError as error:
        raise ResultError(
            f"{out}: cannot write the evaluation ({error.strerror or error}). Choose another --out."
        ) from error


def _relative(path: Path, out: Path) -> str:
    try:
        return Path(os.path.relpath(path.resolve(), out.resolve())).as_posix()
    except ValueError:  # another drive on Windows
        return path.resolve().as_posix()


def _json(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
