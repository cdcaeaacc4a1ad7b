"""``slidelens stage``: classify lymph nodes and stage patients (pN), as in CAMELYON17."""

from __future__ import annotations

from math import isnan
from pathlib import Path
from typing import Annotated

import typer

from slidelens.cli.options import JsonOption, print_json

__all__ = ["register"]

_KAPPAS = ("stage_kappa", "slide_kappa")
_Results = Annotated[
    Path, typer.Argument(help="Results of one model: RESULTS/<model>.", metavar="RESULTS")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        name="stage",
        help="Classify lymph nodes and stage patients (pN).",
        epilog="Example: slidelens stage patients results/my-model --out pn.csv",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    group.command(
        "patients",
        epilog="Example: slidelens stage patients results/my-model --forest forest --out pn.csv",
    )(patients)
    group.command(
        "fit",
        epilog="Example: slidelens stage fit results/my-model --stages stages.csv --out forest",
    )(fit)
    app.add_typer(group)


def patients(
    results: _Results,
    out: Annotated[Path, typer.Option(metavar="CSV", help="CSV to write: patient,stage.")],
    forest: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Forest from `stage fit`. Default: decide by the largest lesion of each slide.",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="CSV", help="Known stages (patient,stage), to compute kappa."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Classify every slide and stage every patient (pN).

    The classes are negative, itc, micro and macro.
    """
    from slidelens.engine.staging.stage import stage_patients

    staged = stage_patients(results, out, forest=forest, truth=truth)
    if as_json:
        kappas = {key: _or_null(staged.metrics[key]) for key in _KAPPAS if key in staged.metrics}
        facts = {"stages": staged.table.stages, "nodes": staged.table.nodes, **staged.metrics}
        print_json(facts | kappas)
        return
    for patient, stage in staged.table.stages.items():
        typer.echo(f"{patient}: {stage} ({', '.join(staged.table.nodes[patient].values())})")
    if staged.metrics:
        figures = staged.metrics
        typer.echo(
            f"quadratic weighted kappa: {_kappa(figures['stage_kappa'])} of {figures['patients']} "
            f"patients, {_kappa(figures['slide_kappa'])} of {figures['slides']} slides"
        )


def _or_null(kappa: float) -> float | None:
    """JSON has no NaN, which a kappa is where all are of one class."""
    return None if isnan(kappa) else kappa


def _kappa(kappa: float) -> str:
    return "not defined" if isnan(kappa) else f"{kappa:.3f}"


def fit(
    results: _Results,
    stages: Annotated[
        Path,
        typer.Option(
            metavar="CSV", help="Known classes of the slides (patient,stage, as in CAMELYON17)."
        ),
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write the forest to.")],
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Seed of the forest.")] = 0,
) -> None:
    """Fit a random forest that classifies slides by their maps.

    Its features are measurements of each slide's map.
    """
    from slidelens.engine.staging.stage import fit_staging

    forest = fit_staging(results, stages, out, seed=seed)
    counts = ", ".join(f"{n} {name}" for name, n in forest.card["cases"].items())
    accuracy = forest.card["out_of_bag_accuracy"]
    typer.echo(f"{out}: fitted to {counts}; accuracy out of the bag {accuracy:.3f}")
