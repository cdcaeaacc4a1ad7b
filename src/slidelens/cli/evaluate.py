"""``slidelens evaluate``: metrics, errors and figures from saved results and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from slidelens.cli.options import JsonOption, ResamplesOption, SeedOption, print_json
from slidelens.errors import ResultError

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "evaluate",
        epilog="Example: slidelens evaluate results --labels labels.csv --split test --out eval",
    )(evaluate)


def evaluate(
    results: Annotated[
        Path,
        typer.Argument(
            help="Folder that `slidelens predict --out` wrote, or out_of_fold.csv of a "
            "cross-validation.",
            metavar="RESULTS",
        ),
    ],
    labels: Annotated[
        Path,
        typer.Option(
            "--labels", metavar="CSV", help="CSV: slide_id, label and optionally split and patient."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Evaluation folder to write.")],
    split: Annotated[
        Literal["train", "tune", "test"] | None,
        typer.Option("--split", help="Only the slides of this split."),
    ] = None,
    operating_point: Annotated[
        str,
        typer.Option(
            "--operating-point",
            metavar="RULE",
            help="stored (with the model, of folds with each; else 0.5), max-accuracy or "
            "sensitivity=S (both chosen on the evaluated slides), or a threshold from 0 to 1.",
        ),
    ] = "stored",
    annotations: Annotated[
        Path | None,
        typer.Option(
            "--annotations", metavar="DIR", help="Folder of annotations, to evaluate tiles as well."
        ),
    ] = None,
    tile_overlap: Annotated[
        float,
        typer.Option(
            "--tile-overlap",
            min=0.01,
            max=1.0,
            metavar="X",
            help="Annotated fraction from which a tile counts as positive.",
        ),
    ] = 0.5,
    resamples: ResamplesOption = 10_000,
    seed: SeedOption = 0,
    allow_missing: Annotated[
        bool,
        typer.Option("--allow-missing", help="Leave out slides without a label or a result."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare results with labels: AUC, tests, errors.

    Computes AUC with confidence intervals, DeLong tests between models, operating
    points, ROC curves and a list of all errors. No model is run.
    """
    from slidelens.engine.evaluate import EvaluationOptions
    from slidelens.engine.evaluate import evaluate as run
    from slidelens.engine.evaluation.measure import Resampling
    from slidelens.engine.evaluation.operating_point import parse_rule
    from slidelens.review.evaluation import read_evaluation
    from slidelens.review.store import STORE_FILE, ReviewStore
    from slidelens.review.tally import earlier_notes
    from slidelens.review.wording import merge_notes

    try:
        rule = parse_rule(operating_point)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--operating-point") from error
    options = EvaluationOptions(
        split=split,
        rule=rule,
        allow_missing=allow_missing,
        annotations=annotations,
        tile_overlap=tile_overlap,
        resampling=Resampling(resamples, seed),
    )
    found = run(results, labels, out, options)
    try:
        decisions = ReviewStore(out / STORE_FILE, read_only=True).decisions()
        earlier = earlier_notes(decisions, read_evaluation(out).since)
    except ResultError as error:  # of the review, which is no part of the evaluation
        earlier = [str(error)]
    for warning in merge_notes([*found.warnings, *earlier], list(found.metrics["models"])):
        typer.echo(f"note: {warning}", err=True)
    if as_json:
        print_json(found.metrics)
    else:
        typer.echo(found.table, nl=False)
