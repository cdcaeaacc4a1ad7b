"""Read scores from result folders and join them with a labels table.

All faults are found before anything is computed, and listed at once.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from unicodedata import normalize

import numpy as np

from slidelens.engine.evaluation.warnings import near_misses
from slidelens.engine.last_run import failed_slides
from slidelens.engine.lost_zeros import zeros_hint
from slidelens.engine.mistaken_folder import what_it_is
from slidelens.errors import LabelError, ResultError, listed
from slidelens.maps.result import find_results
from slidelens.maps.schema import read_result_file
from slidelens.slide.base import id_of_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from slidelens.engine.labels import LabelledSlide, LabelTable, Split
    from slidelens.geometry import Size
    from slidelens.maps.run_settings import RunSettings
    from slidelens.maps.schema import ResultFile

__all__ = ["Cases", "LeftOut", "Scored", "join", "read_scores"]

_SHOWN = 20
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """All results of one model.

    Attributes
    ----------
    classes
        In label order.
    probabilities
        Slide id to ``(C,)`` float64.
    folders
        Slide id to result folder.
    threshold
        The operating point stored with the model (chosen on its tuning split), if any.
    settings
        Slide id to how it was run, for the results that state it.
    last_run_failed
        Slides whose last run failed, so that their result is of an earlier one.
    sizes
        Slide id to level-0 width and height, for the results that state it.
    weights
        SHA-256 of the model's weights, if its results state it.
    learnt_from
        Slide id to its split in the model's training, for the slides that had one.
    folds
        How many models of a cross-validation made these scores, each those of the slides that it
        held out; 0: one model made them all.
    thresholds
        Slide id to the threshold that is stored with its fold's model, where one is.
    """

    name: str
    classes: tuple[str, ...]
    probabilities: Mapping[str, NDArray[np.float64]]
    folders: Mapping[str, Path]
    threshold: float | None
    settings: Mapping[str, RunSettings] = field(default_factory=dict)
    last_run_failed: frozenset[str] = frozenset()
    sizes: Mapping[str, Size] = field(default_factory=dict)
    weights: str | None = None
    learnt_from: Mapping[str, Split] = field(default_factory=dict)
    folds: int = 0
    thresholds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Cases:
    """The slides of one model that have a result and a label, in the order of the table.

    Attributes
    ----------
    rows
        ``n`` rows of the labels table, with slide ids as in the results.
    labels
        ``(n,)`` int64 class indices.
    probabilities
        ``(n, C)`` float64.
    """

    scored: Scored
    rows: tuple[LabelledSlide, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def ids(self) -> list[str]:
        """Slide ids."""
        return [row.slide_id for row in self.rows]

    @property
    def patients(self) -> NDArray[np.int64] | None:
        """``(n,)`` patient numbers; a slide without one has its own. ``None``: no slide has one."""
        if not any(row.patient for row in self.rows):
            return None
        keys = [(0, row.patient) if row.patient else (1, row.slide_id) for row in self.rows]
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        return np.array([number[key] for key in keys])

    @property
    def unit(self) -> str:
        """The independent unit: ``patient``, or ``slide`` if no patient is named."""
        return "slide" if self.patients is None else "patient"

    @property
    def clustered(self) -> bool:
        """Whether some slides share a patient."""
        return self.patients is not None and len(np.unique(self.patients)) < len(self.rows)

    @property
    def groups(self) -> NDArray[np.int64]:
        """``(n,)``: numbers of patients, or slides; cases that share one are not independent."""
        return np.arange(len(self.rows)) if self.patients is None else self.patients

    @property
    def units(self) -> NDArray[np.int64]:
        """``(C,)``: how many patients (or slides) have a case of each class."""
        classes = range(self.probabilities.shape[1])
        return np.array([len(np.unique(self.groups[self.labels == k])) for k in classes])

    def subset(self, ids: Sequence[str]) -> Cases:
        """Return the cases of these slides, in this order."""
        at = {slide_id: i for i, slide_id in enumerate(self.ids)}
        index = [at[slide_id] for slide_id in ids]
        rows = tuple(self.rows[i] for i in index)
        return Cases(self.scored, rows, self.labels[index], self.probabilities[index])


class LeftOut(NamedTuple):
    """Slides that were not evaluated, as ``--allow-missing`` permits."""

    no_label: list[str]
    no_result: list[str]


def read_scores(folder: str | Path, *, allow_unreadable: bool = False) -> dict[str, Scored]:
    """Read the ``result.json`` of every result folder below ``folder``, by model.

    Parameters
    ----------
    allow_unreadable
        Skip results that cannot be read, with a warning, as if they did not exist.

    Raises
    ------
    ResultError
        No result; files that are malformed or hold no finite probabilities; two results of one
        model for one slide; one name for models with different weights or classes; models with
        different classes.
    """
    faults: list[str] = []
    unread: list[str] = []
    of_model: dict[str, list[tuple[Path, ResultFile]]] = defaultdict(list)
    for path in find_results(folder):
        try:
            content = read_result_file(path / "result.json")
        except ResultError as error:
            (unread if allow_unreadable else faults).append(str(error))
            continue
        if len(content.probabilities) < 2:
            faults.append(
                f"{path / 'result.json'}: probabilities of {len(content.probabilities)} classes; "
                "expected one per class, of at least two."
            )
        of_model[content.model.name].append((path, content))
    if not of_model:
        faults += unread
    if not of_model and not faults:
        expected = "expected <model>/<slide>/result.json, as written by `slidelens predict --out`."
        raise ResultError(f"{folder}: no results; {what_it_is(Path(folder)) or expected}")
    for name, found in of_model.items():
        faults += _model_faults(name, found)
    if faults:
        raise ResultError(f"{folder}: {len(faults)} results cannot be used:\n" + _lines(faults))
    if unread:
        many = "1 result is" if len(unread) == 1 else f"{len(unread)} results are"
        log.warning("%s: %s left out:\n%s", folder, many, _lines(unread))
    scored = {name: _scored(name, of_model[name]) for name in sorted(of_model)}
    if len({one.classes for one in scored.values()}) > 1:
        classes = _lines([f"{one.name}: {', '.join(one.classes)}" for one in scored.values()])
        first, other = sorted({one.classes for one in scored.values()})[:2]
        near = near_misses(other, first)
        raise ResultError(
            f"{folder}: models with different classes cannot be compared; evaluate the folder of "
            f"each by itself.{near}\n{classes}"
        )
    return scored


def join(
    scored: Mapping[str, Scored],
    table: LabelTable,
    *,
    split: Split | None = None,
    allow_missing: bool = False,
) -> tuple[dict[str, Cases], dict[str, LeftOut]]:
    """Join each model's slides with their labels.

    Parameters
    ----------
    split
        Only the slides of this split; results of the others are skipped.
    allow_missing
        Leave out slides with a result and no label, or a label and no result, instead of refusing
        them.

    Returns
    -------
    dict of Cases, dict of LeftOut
        By model.

    Raises
    ------
    LabelError
        Slides without label or without result, all at once; a split without slides; two rows for
        one slide; nothing left to evaluate.
    """
    wanted = (table if split is None else table.only(split)).rows
    known = {slide_id for one in scored.values() for slide_id in one.probabilities}
    ids = _result_ids(table, known)
    cases: dict[str, Cases] = {}
    left_out: dict[str, LeftOut] = {}
    for name, one in scored.items():
        rows = [r for r in wanted if ids[r.slide_id] in one.probabilities]
        left_out[name] = LeftOut(
            no_label=sorted(set(one.probabilities) - set(ids.values())),
            no_result=[r.slide_id for r in wanted if ids[r.slide_id] not in one.probabilities],
        )
        cases[name] = _cases(one, rows, ids)
    if not allow_missing:
        _refuse_left_out(table, split, left_out)
    empty = [name for name, one in cases.items() if not one.rows]
    if empty:
        raise LabelError(
            f"{table.path}: no labelled slide has a result of {', '.join(empty)}."
            + _zeros_hint(left_out)
        )
    return cases, left_out


def _model_faults(name: str, found: Sequence[tuple[Path, ResultFile]]) -> list[str]:
    faults = []
    places: dict[str, list[str]] = defaultdict(list)
    for path, content in found:
        places[content.slide.id].append(str(path))
    faults += [
        f"model {name}, slide {slide_id}: results in {' and '.join(paths)}; keep one."
        for slide_id, paths in places.items()
        if len(paths) > 1
    ]
    stated: tuple[tuple[str, Iterable[object]], ...] = (
        ("classes", (", ".join(c.probabilities) for _, c in found)),
        ("weights (sha256)", (c.model.sha256 or "not stated" for _, c in found)),
        ("thresholds", ("none" if (t := c.model.threshold) is None else t for _, c in found)),
    )
    for what, values in stated:
        unlike = sorted({str(value) for value in values})
        if len(unlike) > 1:
            faults.append(
                f"model {name}: results with different {what} ({' | '.join(unlike)}), so "
                "they come from several models under one name; predict again with --overwrite."
            )
    return faults


def _scored(name: str, found: Sequence[tuple[Path, ResultFile]]) -> Scored:
    thresholds = {c.model.threshold for _, c in found} - {None}
    failed = {folder: failed_slides(folder) for folder in {path.parent for path, _ in found}}
    return Scored(
        name=name,
        classes=tuple(found[0][1].probabilities),
        probabilities={
            c.slide.id: np.array(list(c.probabilities.values()), np.float64) for _, c in found
        },
        folders={c.slide.id: path for path, c in found},
        threshold=thresholds.pop() if thresholds else None,
        settings={c.slide.id: c.settings for _, c in found if c.settings is not None},
        last_run_failed=frozenset(
            c.slide.id for path, c in found if c.slide.id in failed[path.parent]
        ),
        sizes={c.slide.id: c.slide.size for _, c in found if c.slide.size is not None},
        weights=found[0][1].model.sha256,
        learnt_from={c.slide.id: split for _, c in found if (split := c.model.learnt_from)},
    )


def _result_ids(table: LabelTable, known: set[str]) -> dict[str, str]:
    """Return the id of results that each id of the table means: itself, or without extension."""
    ids = {}
    composed = {normalize("NFC", name): name for name in known}  # older results may have others
    for given in (row.slide_id for row in table.rows):
        names = (given, id_of_name(given), composed.get(normalize("NFC", id_of_name(given))))
        ids[given] = next((name for name in names if name in known), None) or given
    rows_of: dict[str, list[str]] = defaultdict(list)
    for given, meant in ids.items():
        rows_of[meant].append(given)
    double = [" and ".join(rows) for rows in rows_of.values() if len(rows) > 1]
    if double:
        raise LabelError(f"{table.path}: rows of one slide: {listed(double)}; keep one of each.")
    return ids


def _cases(one: Scored, rows: Sequence[LabelledSlide], ids: Mapping[str, str]) -> Cases:
    renamed = tuple(replace(r, slide_id=ids[r.slide_id]) for r in rows)
    stacked = [one.probabilities[r.slide_id] for r in renamed]
    return Cases(
        scored=one,
        rows=renamed,
        labels=np.array([r.label for r in renamed], np.int64),
        probabilities=np.array(stacked, np.float64).reshape(-1, len(one.classes)),
    )


def _refuse_left_out(
    table: LabelTable, split: Split | None, left_out: Mapping[str, LeftOut]
) -> None:
    models_of: dict[str, list[str]] = defaultdict(list)  # models often lack the same slides
    for name, slides in left_out.items():
        if slides.no_label:
            models_of[f"results without a label: {listed(slides.no_label)}"].append(name)
        if slides.no_result:
            models_of[f"labelled, no result: {listed(slides.no_result)}"].append(name)
    faults = [f"{', '.join(names)}: {fault}" for fault, names in models_of.items()]
    if faults:
        splits = {row.split for row in table.rows} - {None}
        choose = "choose a --split, " if split is None and splits else ""
        raise LabelError(
            f"{table.path}: labels and results are not of the same slides ({choose}complete them, "
            f"or give --allow-missing to evaluate the slides that have both):\n{_lines(faults)}"
            + _zeros_hint(left_out)
        )


def _zeros_hint(left_out: Mapping[str, LeftOut]) -> str:
    every = left_out.values()
    return zeros_hint(
        [name for one in every for name in one.no_result],
        [name for one in every for name in one.no_label],
    )


def _lines(things: Sequence[str]) -> str:
    more = [f"... and {len(things) - _SHOWN} more"] if len(things) > _SHOWN else []
    return "\n".join(f"  {thing}" for thing in [*things[:_SHOWN], *more])
