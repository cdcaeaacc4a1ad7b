"""The demonstration: draw a phantom cohort, run the bundled models on it, make pictures."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slidelens.engine.labels import read_labels
from slidelens.engine.package import find_models, load_model
from slidelens.engine.predict import Prediction
from slidelens.errors import LabelError, ModelError
from slidelens.export import export_result
from slidelens.files import write_atomic
from slidelens.maps.picture import overview
from slidelens.slide.open import open_slide
from slidelens.testing.phantom import write_cohort

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence
    from typing import Any

    from slidelens.families.base import Model
    from slidelens.maps.result import Result

__all__ = ["DemoStep", "demo"]

_SIZE = (2560, 2048)
_SEED = 2026
"""Of the cohort's phantoms: none of these slides is among those that the models learnt from."""


_BUNDLED = "demo-"
"""The names of the bundled models begin so."""


@dataclass(frozen=True, slots=True)
class DemoStep:
    """Where the demonstration stands; ``result`` is set when a model has finished a slide."""

    doing: Literal["drawing slides", "running the model", "slide done"]
    done: int
    total: int
    slide_id: str = ""
    label: str = ""
    result: Result | None = None


def demo(
    out: str | Path, *, models: Sequence[str | Path] = (), n_slides: int = 6
) -> Generator[DemoStep]:
    """Make the demonstration in ``out``; what is there from an earlier time is used again.

    Writes ``cohort/``: slides, labels, annotations; a third each to train, to tune and to test on.
    What is not for training is run: ``results/`` as ``predict`` writes it,
    ``geojson/<model>/<slide>.geojson`` for QuPath, ``windows/<model>/<slide>.png`` for a model that
    chooses where to look, and per slide ``overview/<slide>.png`` with all models side by side.

    Parameters
    ----------
    out
        Made where it does not exist.
    models
        Names or folders of the models to run; default: all bundled ones (``demo-...``).
    n_slides
        Size of the cohort, in pairs with and without tumour; from six on, every split has some.

    Raises
    ------
    ModelError, ResultError
        As for :func:`slidelens.predict`; or no bundled model is there.
    LabelError
        What lies in ``out/cohort`` is no cohort of an earlier call.
    """
    out = Path(out)
    loaded = [load_model(model) for model in models or _bundled()]
    cohort = out / "cohort"
    if not (cohort / "labels.csv").exists():
        yield DemoStep("drawing slides", 0, n_slides)
        write_cohort(cohort, n_slides, _SEED, size=_SIZE, tune=1 / 3, test=1 / 3)
    table = read_labels(cohort / "labels.csv")
    files = {row: cohort / "slides" / f"{row.slide_id}.tif" for row in table.rows}
    lacking = [row.slide_id for row, path in files.items() if not path.is_file()]
    if lacking:
        raise LabelError(
            f"{cohort}: is not a cohort of the demo: it lacks slides/{lacking[0]}.tif; give "
            "another --out."
        )
    for row, path in files.items():
        if row.split == "train":
            continue
        results = []
        for model in loaded:
            result = yield from _predict(path, model, out)
            results.append(result)
            label = table.classes[row.label]
            yield DemoStep("slide done", 1, 1, row.slide_id, label, result)
        _draw(path, results, out)


def _bundled() -> list[str]:
    names = [info.name for info in find_models() if info.name.startswith(_BUNDLED)]
    if not names:
        raise ModelError(
            f"no bundled model ({_BUNDLED}...) is found; make them with `make models`, or name one "
            "of yours: slidelens demo --model MODEL"
        )
    return names


def _predict(path: Path, model: Model[Any], out: Path) -> Generator[DemoStep, None, Result]:
    """Run one model over one slide; write its regions for QuPath, and what it looked at."""
    with closing(Prediction(path, model, out=out / "results")) as run:
        for step in run:
            yield DemoStep("running the model", step.done, step.total, path.stem)
    assert run.result is not None
    folder = out / "geojson" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    export_result(run.result, "geojson", folder, overwrite=True)
    if run.result.trajectory:
        sheets = out / "windows" / model.name
        sheets.mkdir(parents=True, exist_ok=True)
        export_result(run.result, "contact-sheet", sheets, overwrite=True)
    return run.result


def _draw(path: Path, results: list[Result], out: Path) -> None:
    """Write the overview picture of one slide."""
    from io import BytesIO

    with open_slide(path) as slide:
        picture = overview(results, slide.thumbnail(1440))
    data = BytesIO()
    picture.save(data, "PNG")
    write_atomic(out / "overview" / f"{path.stem}.png", data.getvalue())
