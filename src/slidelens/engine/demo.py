"""The demonstration: a phantom cohort, a bundled model over it, and pictures of what it saw."""

from __future__ import annotations

import csv
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slidelens.engine.package import load_model
from slidelens.engine.predict import Prediction
from slidelens.export import export_result
from slidelens.files import write_atomic
from slidelens.maps.picture import overview
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import write_cohort

if TYPE_CHECKING:
    from collections.abc import Generator

    from slidelens.maps.result import Result

__all__ = ["DemoStep", "demo"]

_SIZE = (2560, 2048)
_SEED = 2026
"""Of the cohort's phantoms: none of these slides is among those that the models learnt from."""


@dataclass(frozen=True, slots=True)
class DemoStep:
    """Where the demonstration stands; ``result`` is set when a slide is finished."""

    doing: Literal["drawing slides", "running the model", "slide done"]
    done: int
    total: int
    slide_id: str = ""
    label: str = ""
    result: Result | None = None


def demo(out: str | Path, *, model: str = "demo-mil", n_slides: int = 4) -> Generator[DemoStep]:
    """Make the demonstration in ``out``; what is there from an earlier time is used again.

    Writes ``cohort/`` (slides, labels, annotations), ``results/`` as ``predict`` does, and per
    slide ``geojson/<slide>.geojson`` for QuPath and ``overview/<slide>.png``.

    Parameters
    ----------
    out
        Made where it does not exist.
    model
        Name or folder of the model to run.
    n_slides
        Size of the cohort; every second slide has tumour.

    Raises
    ------
    ModelError, ResultError
        As for :func:`slidelens.predict`.
    """
    out = Path(out)
    loaded = load_model(model)
    cohort = out / "cohort"
    if not (cohort / "labels.csv").exists():
        yield DemoStep("drawing slides", 0, n_slides)
        write_cohort(cohort, n_slides, _SEED, size=_SIZE)
    with (cohort / "labels.csv").open(newline="", encoding="utf-8") as file:
        labels = {row["slide_id"]: row["label"] for row in csv.DictReader(file)}
    for name in ("geojson", "overview"):
        (out / name).mkdir(exist_ok=True)
    for slide_id, label in labels.items():
        path = cohort / "slides" / f"{slide_id}.tif"
        with closing(Prediction(path, loaded, out=out / "results")) as run:
            for step in run:
                yield DemoStep("running the model", step.done, step.total, slide_id)
        assert run.result is not None
        _draw(path, run.result, out)
        yield DemoStep("slide done", 1, 1, slide_id, label, run.result)


def _draw(path: Path, result: Result, out: Path) -> None:
    """Write the regions for QuPath and the overview picture of one slide."""
    from io import BytesIO

    export_result(result, "geojson", out / "geojson")
    with open_slide(path) as slide:
        picture = overview(result, slide.thumbnail(1440))
    data = BytesIO()
    picture.save(data, "PNG")
    write_atomic(out / "overview" / f"{result.slide.id}.png", data.getvalue())
