"""Cross-validation: train one model per fold, each scoring the slides it did not see."""

from __future__ import annotations

import csv
import io
import json
import logging
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from slidelens.engine.bootstrap import bootstrap, percentile_interval
from slidelens.engine.labels import read_labels
from slidelens.engine.metrics import auc
from slidelens.engine.train import train
from slidelens.engine.training.contents import check_contents
from slidelens.engine.training.file import read_train_file
from slidelens.engine.training.history import TUNE_TABLE
from slidelens.engine.training.plan import check_seed, plan_training
from slidelens.engine.training.record import SLIDES_TABLE
from slidelens.engine.training.splits import fold_table
from slidelens.engine.training.state import REQUEST, STATE, TrainProgress, changed_settings
from slidelens.errors import ModelError
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping, Sequence

    from slidelens.engine.training.plan import TrainOptions, TrainPlan

__all__ = ["train_folds"]

log = logging.getLogger(__name__)

_PLACES = frozenset(
    {"slides", "labels", "annotations", "device", "devices", "nodes", "bag_cache", "cache_mb"}
)
"""What may differ between folds: where things are, and on what they are computed."""


def train_folds(
    family_name: str,
    slides_dir: str | Path,
    labels_csv: str | Path,
    out: str | Path,
    *,
    folds: int,
    resume: bool = False,
    **options: Unpack[TrainOptions],
) -> Generator[TrainProgress]:
    """Train one model per fold into ``out/fold-1``, ``out/fold-2``, ...; iterate to run it.

    At the end ``out/folds.json`` has the AUC of each fold, its mean and standard deviation, that
    of all held-out scores together with its bootstrap interval, and ``out/out_of_fold.csv`` the
    probabilities of every slide by the model of the fold that it was held out from. Both come from
    epochs that the held-out slides chose, as the tuning split does.

    Parameters
    ----------
    folds
        At least 2; see :func:`~slidelens.engine.training.splits.fold_table`.
    family_name, slides_dir, labels_csv, out, resume, options
        As for :func:`~slidelens.engine.train.train`. With ``resume``, finished folds are kept and
        an unfinished one goes on.

    Raises
    ------
    LabelError, ModelError, SlideError, ResultError
        As :func:`~slidelens.engine.train.train`, the first of them at once.
    """
    if folds < 2:
        raise ModelError(f"cross-validation needs at least 2 folds, not {folds}.")
    once = _Once()
    with once:
        steps = _begun(family_name, slides_dir, labels_csv, Path(out), folds, resume, options)
    return once.each(steps)


def _begun(
    family_name: str,
    slides_dir: str | Path,
    labels_csv: str | Path,
    out: Path,
    folds: int,
    resume: bool,
    options: Mapping[str, Any],
) -> Generator[TrainProgress]:
    """Check the request and begin the first fold that is not there; return the iterator."""
    given: dict[str, Any] = dict(options)
    if given.pop("fold", None) is not None:
        raise ModelError(
            "'fold' trains one fold, 'folds' all of them: leave one of the two out (the "
            "config.yaml that one fold leaves has 'fold')."
        )
    check_seed(given.get("seed", 0))
    fold_table(read_labels(Path(labels_csv), given.get("classes")), 1, folds, given.get("seed", 0))
    request = (family_name, slides_dir, labels_csv)
    places = [out / f"fold-{n}" for n in range(1, folds + 1)]
    done = [(place / "model.json").exists() for place in places]
    if any(done) and not resume:
        raise ModelError(
            f"{out} holds finished folds; continue with --resume, or give another folder."
        )
    strange = sorted({path.name for path in out.glob("fold-*")} - {p.name for p in places})
    if strange:
        raise ModelError(
            f"{out} holds {', '.join(strange)} of another cross-validation; resume with as many "
            "folds as it had, or give another folder."
        )
    for number, place in enumerate(places, start=1):
        if done[number - 1]:
            _check_finished(plan_training(*request, place, fold=(number, folds), **given))
    if resume and not any(done) and not any(map(_unfinished, places)):
        log.warning("%s holds no unfinished training: it begins at the start", out)
    first = done.index(False) if not all(done) else None
    begun = None
    if first is not None:  # so that faults of the input are raised now
        goes_on = resume and _unfinished(places[first])
        begun = train(*request, places[first], fold=(first + 1, folds), resume=goes_on, **given)
    return _steps(request, places, first, begun, resume, given)


def _steps(
    request: tuple[str, str | Path, str | Path],
    places: Sequence[Path],
    first: int | None,
    begun: Generator[TrainProgress] | None,
    resume: bool,
    options: Mapping[str, Any],
) -> Generator[TrainProgress]:
    count = len(places)
    last = TrainProgress("done") if first is None else None
    seconds = 0.0
    for number, place in enumerate(places, start=1):
        if (place / "model.json").exists():
            continue
        steps = begun if number - 1 == first else None
        if steps is None:
            goes_on = resume and _unfinished(place)
            steps = train(*request, place, fold=(number, count), resume=goes_on, **options)
        for step in steps:
            if step.doing != "done":
                yield replace(step, fold=number, folds=count)
            last = step
        seconds += 0.0 if last is None else last.seconds
    if last is None:
        return  # of several processes the first one tells how it goes, and sums it up
    summary = _summarise(places)
    facts = {"seconds": seconds, "tune_auc": summary["auc_mean"]}
    yield replace(last, doing="done", fold=count, folds=count, **facts)


class _Once(logging.Handler):
    """Passes each warning on once while it is entered: every fold warns of labels and schedule."""

    _logger = logging.getLogger("slidelens")
    _entered, _before, _one = 0, True, Lock()
    """How many cross-validations are under way, in threads of their own, and what was before."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def __enter__(self) -> None:
        with _Once._one:
            if not _Once._entered:
                _Once._before, self._logger.propagate = self._logger.propagate, False
            _Once._entered += 1
            self._logger.addHandler(self)

    def __exit__(self, *_: object) -> None:
        with _Once._one:
            self._logger.removeHandler(self)
            _Once._entered -= 1
            if not _Once._entered:
                self._logger.propagate = _Once._before

    def each(self, steps: Generator[TrainProgress]) -> Generator[TrainProgress]:
        """Iterate over the steps; between two of them nothing is entered."""
        with closing(steps):
            while True:
                with self:
                    step = next(steps, None)
                if step is None:
                    return
                yield step

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on a text that is new."""
        text = record.getMessage()
        if text not in self._said and self._before:
            logging.getLogger().handle(record)
        self._said.add(text)


def _unfinished(place: Path) -> bool:
    from slidelens.engine.training.checkpoint import CheckpointStore

    return CheckpointStore(place / STATE).exists


def _check_finished(plan: TrainPlan) -> None:
    """Refuse to go on beside a fold that was trained in another way or on other slides."""
    kept = plan.out / STATE
    options, fields = read_train_file(kept / REQUEST)
    learning, asked = json.loads(json.dumps([plan.learning, plan.file]))
    both = (learning | options | fields, learning | asked)  # files leave out what is derived
    changed = changed_settings(
        *({k: v for k, v in one.items() if k not in _PLACES} for one in both)
    )
    held = {(row["slide_id"], row["label"]) for row in _table(kept / TUNE_TABLE)}
    if held != {(r.slide_id, plan.labels.classes[r.label]) for r in plan.labels.of("tune")}:
        changed.append("labels")
    if changed:
        raise ModelError(
            f"{plan.out} was trained with other settings ({', '.join(changed)}); resume with the "
            "same ones, or train into another folder."
        )
    check_contents(plan)


def _summarise(places: Sequence[Path]) -> dict[str, Any]:
    """Combine the folds' tables and write the summary."""
    rows: list[dict[str, str]] = []
    per_fold = []
    for number, place in enumerate(places, start=1):
        table = _table(place / STATE / TUNE_TABLE)
        used = place / STATE / SLIDES_TABLE  # older versions wrote none
        patients = {r["slide_id"]: r["patient"] for r in _table(used)} if used.exists() else {}
        for row in table:
            patient = patients.get(row["slide_id"], "")
            rows.append({"fold": str(number), "patient": patient, **row})
        card = json.loads((place / "model.json").read_text(encoding="utf-8"))
        metrics = card["metrics"]
        per_fold.append({"fold": number, "n": len(table), "auc": metrics["auc"]})
    areas = [fold["auc"] for fold in per_fold if fold["auc"] is not None]
    summary: dict[str, Any] = {
        "folds": per_fold,
        "auc_mean": float(np.mean(areas)) if areas else None,
        "auc_sd": float(np.std(areas, ddof=1)) if len(areas) > 1 else None,
        **_pooled(rows),
        "note": "held-out slides also chose the epochs: expect less on unseen slides",
    }
    root = places[0].parent
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(root / "out_of_fold.csv", text.getvalue())
    write_atomic(root / "folds.json", json.dumps(summary, indent=2))
    return summary


def _table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _pooled(rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    """Measure all held-out scores together, with a 95 % interval; for two classes."""
    columns = [name for name in rows[0] if name.startswith("prob_")]
    if len(columns) != 2:
        return {"auc_pooled": None}
    positive = columns[-1].removeprefix("prob_")
    labels = [row["label"] == positive for row in rows]
    scores = [float(row[columns[-1]]) for row in rows]
    known = any(row["patient"] for row in rows)
    units = [row["patient"] or f"slide {row['slide_id']}" for row in rows]
    groups = np.unique(units, return_inverse=True)[1] if known else None
    drawn = bootstrap(labels, scores, groups=groups)
    interval = percentile_interval(drawn.auc[:, 0])
    return {
        "auc_pooled": float(auc(labels, scores)),
        "auc_pooled_ci": None if np.isnan(interval.low) else list(interval),
        "bootstrap": {
            "resamples": len(drawn.auc),
            "degenerate": drawn.degenerate,
            "drawn": "patients" if known else "slides",
        },
    }
