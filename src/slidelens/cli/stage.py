"""``slidelens stage``: lymph nodes to classes, patients to pN stages, as in CAMELYON17."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from slidelens.cli.options import JsonOption

__all__ = ["register"]

_Results = Annotated[
    Path, typer.Argument(help="Results of one model: RESULTS/<model>.", metavar="RESULTS_DIR")
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    group = typer.Typer(
        name="stage",
        help="Classes of lymph nodes and pN stages of patients, from maps of tumour.",
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
    out: Annotated[Path, typer.Option(help="CSV to write: patient,stage.")],
    forest: Annotated[
        Path | None,
        typer.Option(help="From `stage fit`; default: the largest lesion of a slide decides."),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(help="Known stages (patient,stage) to compare with: kappa."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Tell every slide's class (negative, itc, micro, macro) and every patient's pN stage."""
    from slidelens.engine.staging import stage_patients

    staged = stage_patients(results, out, forest=forest, truth=truth)
    if as_json:
        facts = {"stages": staged.table.stages, "nodes": staged.table.nodes, **staged.metrics}
        typer.echo(json.dumps(facts, indent=2, ensure_ascii=False))
        return
    for patient, stage in staged.table.stages.items():
        typer.echo(f"{patient}: {stage} ({', '.join(staged.table.nodes[patient].values())})")
    if staged.metrics:
        figures = staged.metrics
        typer.echo(
            f"quadratic weighted kappa: {figures['stage_kappa']:.3f} of {figures['patients']} "
            f"patients, {figures['slide_kappa']:.3f} of {figures['slides']} slides"
        )


def fit(
    results: _Results,
    stages: Annotated[
        Path, typer.Option(help="Known classes of the slides (patient,stage, as CAMELYON17).")
    ],
    out: Annotated[Path, typer.Option(help="Folder of the forest to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Of the forest.")] = 0,
) -> None:
    """Fit a random forest that tells a slide's class from figures of its map."""
    from slidelens.engine.staging import fit_staging

    forest = fit_staging(results, stages, out, seed=seed)
    counts = ", ".join(f"{n} {name}" for name, n in forest.card["cases"].items())
    accuracy = forest.card["out_of_bag_accuracy"]
    typer.echo(f"{out}: fitted to {counts}; accuracy out of the bag {accuracy:.3f}")
