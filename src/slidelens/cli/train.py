"""``slidelens train FAMILY``: a model package from labelled slides."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from slidelens.cli.fields import given_fields, parse_assignments, with_field_options
from slidelens.cli.options import DeviceOption, JsonOption, parse_mpp
from slidelens.cli.progress import TrainBars

if TYPE_CHECKING:
    from slidelens.engine.loop import TrainProgress

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``train`` with one command per family that can be trained.

    The families are read only when the program is asked to train: their options come from their
    configurations, which costs the import of torch.
    """
    group = typer.Typer(
        name="train",
        help="Train or fine-tune a model family on labelled slides.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog="Example: slidelens train mil --slides slides --labels labels.csv --out my-model",
    )
    group.callback()(_group)
    app.add_typer(group)
    if sys.argv[1:2] == ["train"]:
        _add_families(group)


def _group() -> None:
    """Train or fine-tune a model family on labelled slides."""


def _add_families(group: typer.Typer) -> None:
    from slidelens.engine.plan import task_of
    from slidelens.families import FAMILIES

    for name in FAMILIES:
        family = FAMILIES.get(name)
        if family.trainer is None:
            continue
        configs = (family.config, task_of(name).training)
        command = with_field_options(_train_command(name, configs), configs)
        group.command(
            name,
            help=f"{family.title}. {family.about}",
            epilog=f"Example: slidelens train {name} --slides slides --labels labels.csv --out m",
        )(command)


def _train_command(name: str, configs: tuple[type[Any], ...]) -> Any:
    def train(
        slides: Annotated[Path, typer.Option(help="Folder of slides.")],
        labels: Annotated[
            Path, typer.Option(help="CSV: slide_id,label and, if wanted, split and patient.")
        ],
        out: Annotated[Path, typer.Option(help="Folder of the model package to write.")],
        annotations: Annotated[
            Path | None, typer.Option(help="Folder of annotations, for families that learn them.")
        ] = None,
        weights: Annotated[
            str | None,
            typer.Option(help="Initial weights: imagenet, none, or a safetensors file."),
        ] = None,
        from_model: Annotated[
            str | None, typer.Option("--from", help="Fine-tune this model (name or folder).")
        ] = None,
        preset: Annotated[str, typer.Option(help="Named schedule: default or paper.")] = "default",
        epochs: Annotated[int | None, typer.Option(min=1, help="At most so many epochs.")] = None,
        seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
        resume: Annotated[bool, typer.Option(help="Go on with a training that stopped.")] = False,
        config: Annotated[Path | None, typer.Option(help="YAML or JSON file of fields.")] = None,
        assignments: Annotated[
            list[str] | None, typer.Option("--set", metavar="FIELD=VALUE", help="Any other field.")
        ] = None,
        slide_mpp: Annotated[
            str | None, typer.Option(help="Resolution of slides that state none, as predict --mpp.")
        ] = None,
        device: DeviceOption = "auto",
        as_json: JsonOption = False,
        **fields: Any,
    ) -> None:
        from slidelens.engine.train import train as run

        given = _read_config(config)
        for kind in configs:
            given |= given_fields(fields, kind)
        steps = run(
            name,
            slides,
            labels,
            out,
            annotations=annotations,
            weights=weights,
            from_model=from_model,
            preset=preset,
            epochs=epochs,
            seed=seed,
            resume=resume,
            config=given,
            overrides=parse_assignments(assignments or []),
            mpp=parse_mpp(slide_mpp),
            device=device,
        )
        with closing(steps), TrainBars(quiet=as_json) as bars:
            last = None
            for last in steps:
                bars.show(last)
        assert last is not None
        _conclude(out, last, as_json)

    return train


def _read_config(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise typer.BadParameter(f"--config {path}: {error.strerror}") from error
    try:
        import yaml

        fields = yaml.safe_load(text)
    except ImportError:
        fields = json.loads(text)
    except yaml.YAMLError as error:
        raise typer.BadParameter(f"--config {path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise typer.BadParameter(f"--config {path}: expected a mapping of fields to values")
    return fields


def _conclude(out: Path, last: TrainProgress, as_json: bool) -> None:
    if as_json:
        facts = {
            "model": str(out),
            "epochs": last.epoch,
            "tune_loss": last.tune_loss,
            "tune_auc": last.tune_auc,
            "seconds": last.seconds,
        }
        typer.echo(json.dumps(facts, indent=2))
        return
    auc = "" if last.tune_auc is None else f", AUC {last.tune_auc:.3f} on the tuning split"
    typer.echo(f"{out}: trained in {last.seconds / 60:.1f} minutes{auc}")
    typer.echo(f"next: slidelens predict SLIDE --model {out} --out results")
