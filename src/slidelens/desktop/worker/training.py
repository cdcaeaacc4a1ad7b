"""The worker's training jobs: planning and running."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.desktop.worker.pace import Pace
from slidelens.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from slidelens.engine.training.loop import TrainProgress
    from slidelens.engine.training.plan import TrainPlan

__all__ = ["plan", "resume", "train"]

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
    "classes",
)


def plan(
    request: Mapping[str, Any], send: Callable[[str, Mapping[str, Any], bytes], None]
) -> Iterator[None]:
    """Send ``plan``: split, class balance and schedule of a run, or why it cannot begin."""
    from slidelens.engine.training.plan import plan_training

    send("plan", _described(plan_training(**_arguments(request))), b"")
    yield


def train(
    request: Mapping[str, Any], send: Callable[[str, Mapping[str, Any], bytes], None]
) -> Iterator[None]:
    """Train a model; send ``plan`` and ``progress``, which has the losses after each epoch."""
    yield from _train(_arguments(request), send, resume=False)


def resume(
    request: Mapping[str, Any], send: Callable[[str, Mapping[str, Any], bytes], None]
) -> Iterator[None]:
    """Resume the training run in a folder, begun here or on the command line, as :func:`train`."""
    yield from _train(_kept_arguments(Path(request["out"])), send, resume=True)


def _train(
    arguments: dict[str, Any],
    send: Callable[[str, Mapping[str, Any], bytes], None],
    *,
    resume: bool,
) -> Iterator[None]:
    from slidelens.engine.train import train as start
    from slidelens.engine.training.plan import plan_training

    send("plan", _described(plan_training(**arguments)), b"")
    yield
    pace = Pace()
    with closing(start(**arguments, resume=resume)) as run:
        for event in run:
            if pace.due(event.doing, event.epoch) or event.doing in ("epoch", "done"):
                send("progress", _progress(event), b"")
            yield


def _arguments(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of ``plan_training``; empty ones are left out."""
    return {n: request[n] for n in _PLANNED if request.get(n) not in (None, "")}


def _kept_arguments(out: Path) -> dict[str, Any]:
    """Return the keywords of ``plan_training`` from the file that a training run leaves behind."""
    from slidelens.engine.training.file import read_train_file, train_arguments

    options, fields = read_train_file(out / "training" / "config.yaml")
    lacking = [name for name in ("family", "slides", "labels") if name not in options]
    if lacking:
        raise ModelError(
            f"{out}: its training configuration lacks {', '.join(lacking)}; start a new run."
        )
    return train_arguments(options | {"out": out}, fields)


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


def _progress(event: TrainProgress) -> dict[str, Any]:
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
