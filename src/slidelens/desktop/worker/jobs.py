"""What the worker can do. Each job is a generator: between its steps it can be cancelled.

A job gets the request's facts and a function that sends an event with facts and bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from slidelens.engine.cohort import Outcome
    from slidelens.engine.loop import TrainProgress
    from slidelens.engine.plan import TrainPlan
    from slidelens.engine.predict import Progress
    from slidelens.families.base import Model
    from slidelens.slide.open import GivenMpp

__all__ = ["JOBS", "Send"]

Facts = Mapping[str, Any]
Send = Callable[[str, Facts, bytes], None]
Job = Callable[[Facts, Send], Iterator[None]]

_EVERY = 0.15  # seconds between two messages of progress
_KEPT = 3  # models that stay loaded
_PLANNED = (
    "family_name",
    "slides_dir",
    "labels_csv",
    "out",
    "weights",
    "epochs",
    "seed",
    "preset",
    "config",
    "annotations",
    "from_model",
    "device",
    "mpp",
)


def catalogue(request: Facts, send: Send) -> Iterator[None]:
    """Send ``catalogue``: models, families, devices."""
    from slidelens.desktop.worker.catalogue import catalogue as collect

    send("catalogue", collect(Path(folder) for folder in request["folders"]), b"")
    yield


def predict(request: Facts, send: Send) -> Iterator[None]:
    """Run models over slides; send ``progress``, ``cells`` of growing maps, and ``outcome``."""
    from slidelens.desktop.worker.preview import Preview
    from slidelens.engine.cohort import Outcome, predict_cohort
    from slidelens.geometry import Box

    models = []
    for number, given in enumerate(request["models"]):
        facts = {"stage": "load", "done": number, "total": len(request["models"])}
        send("progress", facts | {"slide": "", "model": Path(given["path"]).name}, b"")
        yield
        models.append(_model(given["path"], request["device"], given["options"]))
    region = request.get("region")
    run = predict_cohort(
        request["slides"],
        models,
        request["out"],
        device=request["device"],
        mpp=_resolution(request.get("mpp")),
        region=None if region is None else Box(*region),
        overwrite=request.get("overwrite", False),
    )
    at: dict[str, str] = {}
    preview = Preview(lambda facts, blob: send("cells", {**at, **facts}, blob))
    pace = _Pace()
    with closing(run):
        for event in run:
            if isinstance(event, Outcome):
                send("outcome", _outcome(event, Path(request["out"])), b"")
            else:
                if pace.due(event.slide_id, event.model, event.stage):
                    send("progress", _progress(event), b"")
                if event.stage in ("infer", "write"):
                    at = {"slide": event.slide_id, "model": event.model}
                    run_id = f"{event.model}/{event.slide_id}"
                    preview.look(run_id, event.peek, must=event.stage == "write")
            yield


def plan(request: Facts, send: Send) -> Iterator[None]:
    """Send ``plan``: split, class balance and schedule of a training, or why it cannot begin."""
    send("plan", _described(_plan(request)), b"")
    yield


def train(request: Facts, send: Send) -> Iterator[None]:
    """Train a model; send ``plan``, ``progress`` and, after each epoch, ``history``."""
    from slidelens.engine.train import train as start

    arguments = _arguments(request)
    send("plan", _described(_plan(request)), b"")
    yield
    pace = _Pace()
    with closing(start(**arguments, resume=request.get("resume", False))) as run:
        for event in run:
            if pace.due(event.doing, event.epoch) or event.doing in ("epoch", "done"):
                send("progress", _train_progress(event), b"")
            yield


def evaluate(request: Facts, send: Send) -> Iterator[None]:
    """Evaluate results against labels; send ``evaluation`` with its folder and warnings."""
    from slidelens.engine.evaluate import EvaluationOptions
    from slidelens.engine.evaluate import evaluate as run

    options = EvaluationOptions(
        split=request.get("split"), allow_missing=request.get("allow_missing", True)
    )
    yield
    found = run(request["results"], request["labels"], request["out"], options)
    send("evaluation", {"folder": str(found.folder), "warnings": found.warnings}, b"")


JOBS: dict[str, Job] = {
    "catalogue": catalogue,
    "predict": predict,
    "plan": plan,
    "train": train,
    "evaluate": evaluate,
}


class _Pace:
    """Lets through what is new, and else one message in a while."""

    def __init__(self) -> None:
        self._last: tuple[object, ...] = ()
        self._time = 0.0

    def due(self, *where: object) -> bool:
        now = perf_counter()
        if where == self._last and now - self._time < _EVERY:
            return False
        self._last, self._time = where, now
        return True


_models: dict[tuple[str, int, str], Model[Any]] = {}


def _model(path: str, device: str, options: Facts) -> Model[Any]:
    """Load a model, or take the one that an earlier job loaded."""
    from slidelens.engine.fields import with_options
    from slidelens.engine.manifest import MANIFEST
    from slidelens.engine.package import load_model

    manifest = Path(path) / MANIFEST
    changed = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    key = (path, changed, device)
    model = _models.pop(key, None) or load_model(path, device)
    _models[key] = model  # the newest last
    while len(_models) > _KEPT:
        del _models[next(iter(_models))]
    return with_options(model, options)


def _resolution(given: Any) -> GivenMpp:
    """Return µm/px as the engine takes it: JSON has no tuples."""
    return (given[0], given[1]) if isinstance(given, list) else given


def _progress(event: Progress) -> dict[str, Any]:
    return {
        "slide": event.slide_id,
        "model": event.model,
        "stage": event.stage,
        "done": event.done,
        "total": event.total,
        "seconds": event.seconds,
        "eta": event.eta,
    }


def _outcome(event: Outcome, out: Path) -> dict[str, Any]:
    return {
        "slide": event.slide_id,
        "model": event.model,
        "status": event.status,
        "error": event.error,
        "probabilities": event.probabilities,
        "seconds": event.seconds,
        "folder": str(out / event.model / event.slide_id),
    }


def _arguments(request: Facts) -> dict[str, Any]:
    """Return the keywords of ``plan_training``; what is empty is left out."""
    return {n: request[n] for n in _PLANNED if request.get(n) not in (None, "")}


def _plan(request: Facts) -> TrainPlan:
    from slidelens.engine.plan import plan_training

    return plan_training(**_arguments(request))


def _described(plan: TrainPlan) -> dict[str, Any]:
    table = plan.labels
    return {
        "classes": table.classes,
        "split": {
            split: [sum(r.label == i for r in table.of(split)) for i in range(len(table.classes))]
            for split in ("train", "tune")
        },
        "slides": [[r.slide_id, r.label, r.split] for r in table.rows],
        "epochs": sum(stage.epochs for stage in plan.training.stages),
        "out": str(plan.out),
    }


def _train_progress(event: TrainProgress) -> dict[str, Any]:
    return {
        "doing": event.doing,
        "done": event.done,
        "total": event.total,
        "slide": event.slide_id,
        "epoch": event.epoch,
        "epochs": event.epochs,
        "train_loss": event.train_loss,
        "tune_loss": event.tune_loss,
        "tune_auc": event.tune_auc,
        "seconds": event.seconds,
    }
