"""``slidelens lesions``: compare detected with annotated lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from slidelens.cli.options import JsonOption, ResamplesOption, SeedOption, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "lesions",
        epilog="Example: slidelens lesions results/my-model --labels labels.csv "
        "--annotations annotations --out lesions",
    )(lesions)


def lesions(
    results: Annotated[
        Path, typer.Argument(help="Results of one model: RESULTS/<model>.", metavar="RESULTS")
    ],
    labels: Annotated[
        Path,
        typer.Option(
            metavar="CSV", help="CSV (slide_id,label) that says which slides have lesions."
        ),
    ],
    annotations: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of annotations, one file per slide.")
    ],
    out: Annotated[
        Path,
        typer.Option(metavar="DIR", help="Folder to write froc.json, froc.png and detections to."),
    ],
    tumour: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS",
            help="Annotation class that is tumour; may be repeated. Default: as in training.",
        ),
    ] = None,
    radius: Annotated[
        float, typer.Option(min=0, metavar="X", help="Least distance between two detections in µm.")
    ] = 200.0,
    split: Annotated[
        Literal["train", "tune", "test"] | None,
        typer.Option(help="Only the slides of this split."),
    ] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out slides without a label or a result.")
    ] = False,
    resamples: ResamplesOption = 10_000,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Evaluate lesion detection by the FROC curve of CAMELYON16.

    Also writes each slide's detections as probability,X,Y.
    """
    from slidelens.engine.evaluation.lesions import evaluate_lesions
    from slidelens.engine.evaluation.measure import Resampling
    from slidelens.engine.evaluation.tables import number

    found = evaluate_lesions(
        results,
        labels,
        annotations,
        out,
        tumour=tuple(tumour or ()),
        radius_um=radius,
        split=split,
        allow_missing=allow_missing,
        resampling=Resampling(resamples, seed),
    )
    for warning in found["warnings"]:
        typer.echo(f"note: {warning}", err=True)
    if as_json:
        print_json(found)
        return
    score = number(found["score"], found["score_ci"])
    typer.echo(f"FROC score {score}: {found['lesions']} lesions on {found['slides']} slides")
    for rate, sensitivity in found["sensitivity_at"].items():
        typer.echo(f"  {sensitivity:.3f} of them at {rate} false detections per slide")
