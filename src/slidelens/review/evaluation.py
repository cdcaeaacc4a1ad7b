"""Read an evaluation folder, so that errors can be listed at any threshold."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from slidelens.engine.evaluate import FILES
from slidelens.engine.evaluation.memory import numbered
from slidelens.engine.evaluation.operating_point import Rule, RuleKind
from slidelens.engine.evaluation.scores import Cases, Scored
from slidelens.engine.labels import LabelledSlide
from slidelens.engine.mistaken_folder import what_it_is
from slidelens.errors import ResultError
from slidelens.review.store import STORE_FILE
from slidelens.review.taxonomy import TAXONOMY_FILE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["SavedEvaluation", "read_evaluation"]

_FILE, _METRICS = "evaluation.json", "metrics.json"
_VERSION = 1


@dataclass(frozen=True)
class SavedEvaluation:
    """An evaluation folder that has been read.

    Attributes
    ----------
    folder
        Its path.
    classes
        In label order; of two classes, the last is the positive one.
    cases
        Model to its slides, labels and probabilities.
    rule
        How the evaluation chose its operating point.
    record, metrics
        The content of ``evaluation.json`` and ``metrics.json``.
    """

    folder: Path
    classes: tuple[str, ...]
    cases: Mapping[str, Cases]
    rule: Rule
    record: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(self.cases)

    @property
    def positive(self) -> str | None:
        """The positive class of a binary task."""
        return self.classes[1] if len(self.classes) == 2 else None

    @cached_property
    def labels(self) -> dict[str, str]:
        """Slide id to the class of its label."""
        return {
            row.slide_id: self.classes[row.label] for one in self.cases.values() for row in one.rows
        }

    @cached_property
    def patients(self) -> dict[str, str | None]:
        """Slide id to patient."""
        return {row.slide_id: row.patient for one in self.cases.values() for row in one.rows}

    @cached_property
    def numbers(self) -> dict[str, int]:
        """Slide id to its number in reports."""
        given = self.record.get("numbers", {})
        return given if self.labels.keys() <= given.keys() else numbered(self.labels)

    @cached_property
    def since(self) -> dict[str, str]:
        """Model to when it was first evaluated here with its present weights (UTC, ISO 8601).

        Only models that were evaluated here with other weights before.
        """
        known = self.record.get("weights", {})
        times = {name: known.get(name, {}).get("since") for name in self.models}
        return {name: str(time) for name, time in times.items() if time}

    def rules(self, given: Rule | Mapping[str, Rule] | None) -> dict[str, Rule]:
        """Return each model's operating point: one for all, its own, or the evaluation's."""
        if given is None or isinstance(given, Rule):
            return dict.fromkeys(self.models, given or self.rule)
        return {name: given.get(name, self.rule) for name in self.models}

    @property
    def labels_table(self) -> Path:
        """The table of labels that was evaluated, at its path of that time."""
        return self.folder / str(self.record.get("labels", ""))

    def refuse_own(self, path: Path) -> None:
        """Refuse to overwrite a file that the evaluation needs.

        Raises
        ------
        ResultError
            The path is the evaluated table of labels, or a file of the evaluation or of its review.
        """
        if _same(path, self.labels_table):
            raise ResultError(
                f"{path}: is the table of labels that was evaluated, which would be replaced; "
                "choose another file."
            )
        if any(_same(path, self.folder / name) for name in (*FILES, STORE_FILE, TAXONOMY_FILE)):
            raise ResultError(
                f"{path}: is a file of the evaluation itself, which would be replaced; choose "
                "another name."
            )

    def result_folder(self, model: str, slide_id: str) -> Path | None:
        """Return where a result was when it was evaluated; ``None`` if there was none."""
        return self.cases[model].scored.folders.get(slide_id)

    def other(self, label: str) -> str | None:
        """Return the other class of a binary task; ``None`` if there are more."""
        if len(self.classes) != 2:
            return None
        return self.classes[1 - self.classes.index(label)]


def read_evaluation(folder: str | Path) -> SavedEvaluation:
    """Read ``evaluation.json`` and ``metrics.json``; result folders are not opened.

    Raises
    ------
    ResultError
        A file is missing, damaged or of a newer version; the message names the file and the key.
    """
    path = Path(folder)
    record, metrics = _json(path / _FILE), _json(path / _METRICS)
    try:
        classes = tuple(str(name) for name in record["classes"])
        cases = {name: _cases(path, name, classes, record) for name in record["models"]}
        rule = _rule(record["operating_point"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"no key {error}" if isinstance(error, KeyError) else str(error)
        raise ResultError(
            f"{path / _FILE}: not as `slidelens evaluate` writes it ({what}); evaluate again."
        ) from error
    empty = [name for name, one in cases.items() if not one.rows]
    if empty or not cases:
        raise ResultError(f"{path / _FILE}: no slides of {', '.join(empty) or 'any model'}.")
    return SavedEvaluation(path, classes, cases, rule, record, metrics)


def _same(path: Path, other: Path) -> bool:
    """Return whether two paths are one file, also if case does not matter or neither exists yet."""
    if path.exists() and other.exists():
        return path.samefile(other)
    return path.resolve() == other.resolve()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError) as error:
        instead = what_it_is(path.parent) if path.name == _FILE else None
        told = instead or "expected a folder written by `slidelens evaluate --out`."
        raise ResultError(f"{path}: no such file; {told}") from error
    except (OSError, ValueError) as error:
        raise ResultError(f"{path}: cannot be read ({error}); evaluate again.") from error
    if not isinstance(content, dict):
        raise ResultError(f"{path}: holds a {type(content).__name__}, expected an object.")
    version = content.get("schema_version", _VERSION)
    if isinstance(version, int) and version > _VERSION:
        raise ResultError(
            f"{path}: schema_version {version} is newer than this slidelens reads ({_VERSION}); "
            "update slidelens."
        )
    return content


def _cases(folder: Path, name: str, classes: tuple[str, ...], record: dict[str, Any]) -> Cases:
    about = record["models"][name]
    slides = [slide for slide in record["slides"] if name in slide["probabilities"]]
    rows = tuple(
        LabelledSlide(str(s["id"]), classes.index(s["label"]), None, s.get("patient"))
        for s in slides
    )
    values = [np.array(s["probabilities"][name], np.float64) for s in slides]
    stacked = np.stack(values) if values else np.empty((0, len(classes)))
    if stacked.shape != (len(rows), len(classes)) or not np.isfinite(stacked).all():
        raise ValueError(f"probabilities of {name!r} are not {len(classes)} finite numbers")
    scored = Scored(
        name,
        classes,
        {row.slide_id: p for row, p in zip(rows, values, strict=True)},
        {str(s["id"]): folder / s["results"][name] for s in slides if name in s["results"]},
        _stored(about),
        folds=int(about.get("folds", 0)),
        thresholds={
            str(s["id"]): float(s["thresholds"][name]) for s in slides if "thresholds" in s
        },
    )
    return Cases(scored, rows, np.array([row.label for row in rows], np.int64), stacked)


def _stored(about: Mapping[str, Any]) -> float | None:
    """Return the threshold stored with the model, also for folders that do not name it."""
    fallback = about["threshold"] if about.get("threshold_source") == "model" else None
    stored = about.get("stored_threshold", fallback)
    return None if stored is None else float(stored)


def _rule(content: Mapping[str, Any]) -> Rule:
    kind = content["kind"]
    if kind not in get_args(RuleKind):
        raise ValueError(f"operating_point.kind {kind!r}")
    value = content.get("value")
    return Rule(kind, None if value is None else float(value))
