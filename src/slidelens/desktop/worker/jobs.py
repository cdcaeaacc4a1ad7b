"""The worker's jobs, as generators that can be cancelled between two steps.

A job gets the request's facts and a function that sends an event with facts and bytes. What the
package logs as a warning meanwhile is sent as ``warning``, and so is what a job warns of itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.desktop.worker.pace import Pace
from slidelens.desktop.worker.training import plan, resume, train
from slidelens.errors import SlideError

if TYPE_CHECKING:
    from slidelens.engine.predict import Progress
    from slidelens.engine.prediction_table import Outcome
    from slidelens.families.base import Model
    from slidelens.slide.open import GivenMpp

__all__ = ["JOBS", "Send"]

Facts = Mapping[str, Any]
Send = Callable[[str, Facts, bytes], None]
Job = Callable[[Facts, Send], Iterator[None]]

_KEPT = 3  # models that stay loaded


def catalogue(request: Facts, send: Send) -> Iterator[None]:
    """Send ``catalogue``: models, families, devices."""
    from slidelens.desktop.worker.catalogue import catalogue as collect

    send("catalogue", collect(Path(folder) for folder in request["folders"]), b"")
    yield


def predict(request: Facts, send: Send) -> Iterator[None]:
    """Run models on slides; send ``progress``, ``cells`` of growing maps, and ``outcome``."""
    from slidelens.desktop.worker.preview import Preview
    from slidelens.engine.cohort import predict_cohort
    from slidelens.engine.prediction_table import Outcome
    from slidelens.geometry import Box
    from slidelens.slide.base import slide_id

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
    files = {slide_id(Path(path)): str(path) for path in request["slides"]}
    at: dict[str, str] = {}
    preview = Preview(lambda facts, blob: send("cells", {**at, **facts}, blob))
    pace = Pace()
    with closing(run):
        for event in run:
            if isinstance(event, Outcome):
                facts = _outcome(event, Path(request["out"]))
                send("outcome", {**facts, "file": files.get(event.slide_id, "")}, b"")
            else:
                if pace.due(event.slide_id, event.model, event.stage):
                    send("progress", _progress(event), b"")
                if event.stage in ("infer", "write"):
                    run_id = f"{event.model}/{event.slide_id}"
                    if run_id != at.get("run"):
                        file = files.get(event.slide_id, "")
                        at = {"slide": event.slide_id, "file": file, "model": event.model}
                        at |= {"run": run_id, "content": _content(file)}
                    preview.look(run_id, event.peek, must=event.stage == "write")
            yield


def evaluate(request: Facts, send: Send) -> Iterator[None]:
    """Evaluate results against labels; send each ``warning`` of the evaluation."""
    from slidelens.engine.evaluate import EvaluationOptions
    from slidelens.engine.evaluate import evaluate as run

    options = EvaluationOptions(
        split=request.get("split"), allow_missing=request.get("allow_missing", True)
    )
    yield
    found = run(request["results"], request["labels"], request["out"], options)
    _warn(send, found.warnings)


def report(request: Facts, send: Send) -> Iterator[None]:
    """Write the report of an evaluation; send ``progress``, and each ``warning`` and note.

    It cannot be cancelled half-way: files appear whole or not at all.
    """
    from slidelens.review.errors import choose_rules
    from slidelens.review.evaluation import read_evaluation
    from slidelens.review.report import ReportOptions, write_report

    yield
    pace = Pace()

    def tell(what: str, done: int, total: int) -> None:
        if pace.due(what):
            send("progress", {"what": what, "done": done, "total": total}, b"")

    models = read_evaluation(request["evaluation"]).models
    slides = request.get("slides")
    options = ReportOptions(
        rules=choose_rules(request.get("points", "").split(), models),
        identify=request.get("identify", False),
        slides=None if slides is None else Path(slides),
    )
    made = write_report(
        request["evaluation"],
        request["out"],
        pdf=request.get("pdf"),
        options=options,
        progress=tell,
    )
    _warn(send, [*made.warnings, *made.notes])


JOBS: dict[str, Job] = {
    "catalogue": catalogue,
    "predict": predict,
    "plan": plan,
    "train": train,
    "resume": resume,
    "evaluate": evaluate,
    "report": report,
}


_models: dict[tuple[str, int, str], Model[Any]] = {}


def _model(path: str, device: str, options: Facts) -> Model[Any]:
    """Load a model, or return the one that an earlier job loaded."""
    from slidelens.engine.fields import with_options
    from slidelens.engine.package import load_model
    from slidelens.engine.packages.manifest import MANIFEST

    manifest = Path(path) / MANIFEST
    changed = manifest.stat().st_mtime_ns if manifest.is_file() else 0
    key = (path, changed, device)
    model = _models.pop(key, None) or load_model(path, device)
    _models[key] = model  # the newest last
    while len(_models) > _KEPT:
        del _models[next(iter(_models))]
    return with_options(model, options)


def _warn(send: Send, texts: Iterable[str]) -> None:
    for text in texts:
        send("warning", {"text": text}, b"")


def _resolution(given: Any) -> GivenMpp:
    """Return µm/px as the engine takes it: JSON has no tuples."""
    return (given[0], given[1]) if isinstance(given, list) else given


def _content(file: str) -> str:
    """Return what tells a slide's file from one that took its place; empty for a folder.

    A folder may hold very many files.
    """
    from slidelens.engine.provenance import fingerprint
    from slidelens.slide.open import open_slide

    with suppress(OSError, SlideError):  # gone in this moment
        if Path(file).is_file():
            with open_slide(file) as slide:
                return fingerprint(slide)
    return ""


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
