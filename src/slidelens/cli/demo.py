"""``slidelens demo``: run the bundled models on a small synthetic cohort."""

from __future__ import annotations

import sys
from contextlib import closing
from pathlib import Path
from shlex import quote
from shutil import which
from typing import Annotated

import typer

from slidelens.cli.progress import Bar
from slidelens.cli.view import find_viewer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("demo", epilog="Example: slidelens demo --view")(demo)


def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write into.")] = Path("demo"),
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL", help="Model to run; may be repeated. Default: all bundled ones."
        ),
    ] = None,
    view: Annotated[
        bool, typer.Option(help="Open a slide and its layers in napari at the end.")
    ] = False,
) -> None:
    """Run the bundled models on a small synthetic cohort.

    Draws the slides, then writes heatmaps, regions and pictures.
    """
    from slidelens.engine.demo import demo as steps
    from slidelens.engine.labels import read_labels

    open_viewer = find_viewer() if view else None  # before minutes of work
    slides = []
    typer.echo(f"{'slide':<14}{'truth':<8}{'model':<18}{'P(tumor)':>9}  regions   seconds")
    with Bar() as bar, closing(steps(out, models=model or ())) as run:
        for step in run:
            if step.result is None:
                bar.update(step.doing, step.done, step.total, step.slide_id)
                continue
            result = step.result
            slides.append(result.slide.id)
            score = list(result.probabilities.values())[-1]
            seconds = sum(result.timings.values())
            typer.echo(
                f"{step.slide_id:<14}{step.label:<8}{result.model.name:<18}{score:>9.3f}  "
                f"{len(result.regions):>7}   {seconds:>7.1f}"
            )
    program = _called()
    first = f"{out}/cohort/slides/{slides[-1]}.tif"
    results = quote(f"{out}/results")
    folder, labels = (quote(f"{out}/cohort/{name}") for name in ("slides", "labels.csv"))
    # A cohort that is there from an earlier version has none to test on.
    split = "test" if read_labels(out / "cohort" / "labels.csv").of("test") else "tune"
    typer.echo(
        f"""
Made in {out}/
  overview/   a picture of each slide beside its heatmaps: open {out}/overview/{slides[-1]}.png
  geojson/    the regions above threshold, for QuPath
  windows/    every window that a magnifying network looked through
  results/    maps (OME-Zarr), tiles (CSV) and scores, one folder per slide

Next
  {program} view {quote(first)} --results {results}
  {program} predict YOUR_SLIDE.svs --model demo-mil --out results
  {program} evaluate {results} --labels {labels} --split {split} --out verdict
  {program} train mil --slides {folder} --labels {labels} \\
      --backbone squeezenet1_1 --out my-model"""
    )
    if open_viewer is not None:
        open_viewer([first], results=out / "results", task="look")


def _called() -> str:
    """Return how the program is called here: `make demo` leaves it in .venv, off the path."""
    own = Path(sys.argv[0])
    return (
        quote(str(own)) if own.name == "slidelens" and which("slidelens") is None else "slidelens"
    )
