"""``slidelens predict``: run models on slides."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slidelens.cli.fields import parse_assignments
from slidelens.cli.options import (
    DeviceOption,
    JsonOption,
    MppOption,
    TissueOption,
    parse_mpp,
    parse_region,
    parse_tissue,
    print_json,
)
from slidelens.cli.progress import Bar

if TYPE_CHECKING:
    from slidelens.engine.prediction_table import Outcome

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "predict", epilog="Example: slidelens predict slide.svs --model demo-mil --out results"
    )(predict)


def predict(
    slides: Annotated[
        list[Path], typer.Argument(metavar="SLIDE", help="Slide files, or folders of slides.")
    ],
    model: Annotated[
        list[str], typer.Option(metavar="MODEL", help="Name or folder of a model; may be repeated.")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Results folder: OUT/<model>/<slide>/.")],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="CSV", help="CSV: slide_id and optionally split. Only these slides are run."
        ),
    ] = None,
    split: Annotated[
        Literal["train", "tune", "test"] | None,
        typer.Option(help="Only the slides of this split of --labels."),
    ] = None,
    device: DeviceOption = "auto",
    mpp: MppOption = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="Only this part, in level-0 px.")
    ] = None,
    tissue: TissueOption = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tiles per step.")
    ] = None,
    precision: Annotated[
        Literal["auto", "fp32", "bf16"],
        typer.Option(help="auto: bf16 where the hardware supports it natively, else fp32."),
    ] = "auto",
    assignments: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Change a field of the model for this run."
        ),
    ] = None,
    bags: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of feature vectors, <slide id>.h5, for a model trained on them.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option(
            help="Compute every slide again, and replace results of other weights, regions or "
            "slides."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Run models on slides.

    A slide that already has a result with the same model and settings is skipped.
    """
    if split and labels is None:
        raise typer.BadParameter("needs --labels, which say the split", param_hint="--split")
    box, resolution = parse_region(region), parse_mpp(mpp)
    given = parse_assignments(assignments or [])
    found_by = parse_tissue(tissue)
    from slidelens.engine.cohort import predict_cohort
    from slidelens.engine.fields import read_value
    from slidelens.engine.last_run import PREDICTIONS
    from slidelens.engine.prediction_table import Outcome
    from slidelens.errors import listed

    outcomes: list[Outcome] = []
    run = predict_cohort(
        slides,
        model,
        out,
        labels=labels,
        split=split,
        device=device,
        mpp=resolution,
        region=box,
        tissue=found_by,
        batch_size=batch_size,
        precision=precision,
        options={name: read_value(text) for name, text in given.items()},
        bags=bags,
        overwrite=overwrite,
        replace=overwrite,
    )
    elsewhere = 0
    with Bar(quiet=as_json) as bar, closing(run):
        for event in run:
            if isinstance(event, Outcome):
                outcomes.append(event)
                bar.line(_line(event, several=len(model) > 1) + _standing(outcomes))
            elif event.stage == "wait":
                if event.total != elsewhere:
                    elsewhere = event.total
                    bar.line(_waiting(elsewhere))
                bar.update(_waiting(elsewhere), 0, 0)
            else:
                bar.update(f"{event.slide_id} {event.model}", event.done, event.total)
    failed = [_name(o, several=len(model) > 1) for o in outcomes if o.status == "failed"]
    if as_json:
        print_json([_row(outcome) for outcome in outcomes])
    elif failed and len(outcomes) > 1:
        said = f"{len(failed)} of {len(outcomes)} failed: {listed(failed)}"
        typer.echo(f"{said} ({PREDICTIONS} says why)", err=True)
    if failed:
        raise typer.Exit(1)


def _waiting(slides: int) -> str:
    many, them = ("1 slide is", "it") if slides == 1 else (f"{slides} slides are", "them")
    return f"{many} being computed by another run; waiting for {them}"


def _name(outcome: Outcome, several: bool) -> str:
    return outcome.slide_id + (f" {outcome.model}" if several else "")


def _line(outcome: Outcome, several: bool) -> str:
    name = _name(outcome, several)
    if outcome.status == "skipped":
        return f"{name}: skipped"
    if outcome.status == "failed":
        return f"{name}: failed: {outcome.error}"
    scores = ", ".join(f"{k} {v:.3f}" for k, v in outcome.probabilities.items())
    return f"{name}: {scores} ({outcome.seconds:.1f} s)"


def _standing(outcomes: list[Outcome]) -> str:
    """Report progress and the remaining time, estimated from the mean so far."""
    from slidelens.engine.progress import time_text

    done, left = len(outcomes), outcomes[-1].left
    if done + left == 1:
        return ""
    took = [outcome.seconds for outcome in outcomes if outcome.status != "skipped"]
    eta = f", {time_text(sum(took) / len(took) * left)} left" if took and left else ""
    return f" [{done} of {done + left}{eta}]"


def _row(outcome: Outcome) -> dict[str, Any]:
    return {
        "model": outcome.model,
        "slide_id": outcome.slide_id,
        "status": outcome.status,
        "error": outcome.error,
        "probabilities": outcome.probabilities,
        "seconds": round(outcome.seconds, 3),
    }
