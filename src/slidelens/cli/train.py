"""``slidelens train FAMILY``: train a model package on labelled slides."""

from __future__ import annotations

import json
import sys
from contextlib import closing
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from slidelens.cli.fields import given_fields, parse_assignments, with_field_options
from slidelens.cli.options import JsonOption, parse_mpp, parse_tissue, print_json, tissue_option
from slidelens.cli.progress import TrainBars
from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Generator

    from slidelens.engine.training.loop import TrainProgress
    from slidelens.families.training import TrainConfig

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``train`` with one command per family that can be trained.

    The families are read only when the program is asked to train: their options come from their
    configurations, which costs the import of torch.
    """
    group = typer.Typer(
        name="train",
        cls=_Families,
        subcommand_metavar="FAMILY [ARGS]...",
        help="Train or fine-tune a model family on labelled slides.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog="Example: slidelens train mil --slides slides --labels labels.csv --out my-model",
    )
    group.callback()(_group)
    app.add_typer(group)
    if sys.argv[1:2] == ["train"]:
        _add_families(group)


class _Families(TyperGroup):
    """One command per family; which there are is said where one is not."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the family's command."""
        if self.get_command(ctx, args[0]) is None and not args[0].startswith("-"):
            from slidelens.families import FAMILIES

            if args[0] in FAMILIES and FAMILIES.get(args[0]).trainer is None:
                ctx.fail(f"family {args[0]!r} only runs models, and cannot be trained.")
            there = ", ".join(self.list_commands(ctx))  # none where the one that is there is no use
            others = f"; there are {there}. Plugins bring others" if there else ""
            ctx.fail(f"no family {args[0]!r} can be trained here{others}.")
        return super().resolve_command(ctx, args)


def _group() -> None:
    """Train or fine-tune a model family on labelled slides."""


def _add_families(group: typer.Typer) -> None:
    """Add the family that is asked for, or all of them where none is, as for ``--help``."""
    from slidelens.engine.training.start import task_of
    from slidelens.families import FAMILIES

    asked = [name for name in sys.argv[2:3] if name in FAMILIES]
    for name in asked or FAMILIES:
        try:
            family = FAMILIES.get(name)
            if family.trainer is None:
                continue
            configs = (family.config, task_of(name).training)
            command = with_field_options(_train_command(name, configs), configs, name)
        except SlideLensError as error:
            typer.echo(f"warning: {error}", err=True)
            continue
        group.command(
            name,
            help=f"{family.title}. {family.about}",
            epilog=f"Example: slidelens train {name} --slides slides --labels labels.csv --out m",
        )(command)


def _train_command(name: str, configs: tuple[type[Any], ...]) -> Any:
    def train(
        slides: Annotated[
            Path | None,
            typer.Option(metavar="DIR", help="Folder of slides, or of subfolders of slides."),
        ] = None,
        labels: Annotated[
            Path | None,
            typer.Option(
                metavar="CSV", help="CSV: slide_id, label and optionally split and patient."
            ),
        ] = None,
        out: Annotated[
            Path | None, typer.Option(metavar="DIR", help="Folder to write the model package to.")
        ] = None,
        classes: Annotated[
            str | None,
            typer.Option(
                metavar="A,B",
                help="Class names in order; of two, the second is the positive one. "
                "[default: sorted, normal, benign or negative first]",
            ),
        ] = None,
        annotations: Annotated[
            Path | None,
            typer.Option(
                metavar="DIR", help="Folder of annotations, for families that learn from them."
            ),
        ] = None,
        weights: Annotated[
            str | None,
            typer.Option(
                metavar="WEIGHTS",
                help="Initial weights: imagenet, none, or a safetensors file. [default: imagenet]",
            ),
        ] = None,
        from_model: Annotated[
            str | None,
            typer.Option("--from", metavar="MODEL", help="Fine-tune this model (name or folder)."),
        ] = None,
        preset: Annotated[
            str | None,
            typer.Option(
                metavar="NAME",
                help="Training preset: default, paper, or another one; overrides what --config "
                "says of the schedule. [default: default]",
            ),
        ] = None,
        epochs: Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="Length of the whole schedule in epochs."),
        ] = None,
        seed: Annotated[
            int | None,
            typer.Option(min=0, max=2**32 - 1, metavar="N", help="Random seed. [default: 0]"),
        ] = None,
        fraction: Annotated[
            float | None,
            typer.Option(metavar="X", help="Fraction of the training slides to use. [default: 1]"),
        ] = None,
        folds: Annotated[
            int | None,
            typer.Option(min=2, metavar="N", help="Cross-validate with this many folds."),
        ] = None,
        resume: Annotated[
            bool, typer.Option(help="Continue a training run that was stopped.")
        ] = False,
        config: Annotated[
            Path | None,
            typer.Option(
                metavar="YAML",
                help="YAML file of options and fields; the command line takes precedence.",
            ),
        ] = None,
        assignments: Annotated[
            list[str] | None,
            typer.Option("--set", metavar="FIELD=VALUE", help="Set any other field."),
        ] = None,
        slide_mpp: Annotated[
            str | None,
            typer.Option(
                metavar="X",
                help="The slides' resolution, overriding their files, as with predict --mpp.",
            ),
        ] = None,
        slide_tissue: Any = None,
        device: Annotated[
            str | None,
            typer.Option(help="auto, cpu, cuda, cuda:N or mps. [default: auto]", metavar="DEVICE"),
        ] = None,
        devices: Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="GPUs (or processes) per node. [default: 1]"),
        ] = None,
        nodes: Annotated[
            int | None,
            typer.Option(min=1, metavar="N", help="Nodes of a cluster job. [default: 1]"),
        ] = None,
        as_json: JsonOption = False,
        **fields: Any,
    ) -> None:
        named = {
            "slides": slides,
            "labels": labels,
            "out": out,
            "classes": None if classes is None else [c.strip() for c in classes.split(",")],
            "annotations": annotations,
            "weights": weights,
            "from": from_model,
            "preset": preset,
            "epochs": epochs,
            "seed": seed,
            "fraction": fraction,
            "folds": folds,
            "slide_mpp": slide_mpp,
            "slide_tissue": parse_tissue(slide_tissue),
            "device": device,
            "devices": devices,
            "nodes": nodes,
        }
        overrides = parse_assignments(assignments or [])
        bags = overrides.get("bags") or fields.get("bags")
        options, given = _merged(name, config, named, bags, configs[-1])
        for kind in configs:
            given |= given_fields(fields, kind)
        steps = _begin(name, options, resume, given, overrides)
        with TrainBars(quiet=as_json) as bars, closing(steps):
            last = None
            for last in steps:
                bars.show(last)
        if last is not None:  # a second process of the same training says nothing
            _conclude(Path(options["out"]), last, as_json)

    # Where a field of the model is called so, its option is that field's.
    short = [] if any("tissue" in kind.model_fields for kind in configs) else ["--tissue"]
    told = "Kept with the model, and used when it predicts."
    option = tissue_option(*short, "--slide-tissue", more=told)
    train.__annotations__["slide_tissue"] = Annotated[list[str] | None, option]
    return train


def _merged(
    family: str,
    file: Path | None,
    named: dict[str, Any],
    bags: str | None,
    training: type[TrainConfig],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Override a file's options by those of the command line; return the file's fields too.

    Of these, a preset of the command line overrides what presets decide. Feature bags stand in
    for slides.
    """
    from slidelens.engine.training.file import read_train_file, without_preset

    options, fields = ({}, {}) if file is None else read_train_file(file, family)
    if named["preset"] is not None:
        fields = without_preset(fields, training)
    options |= {key: value for key, value in named.items() if value is not None}
    if bags or fields.get("bags"):
        options.setdefault("slides", bags or fields["bags"])
    lacking = [f"--{key}" for key in ("slides", "labels", "out") if key not in options]
    if lacking:
        raise typer.BadParameter(f"missing {', '.join(lacking)}")
    return options, fields


def _begin(
    family: str,
    options: dict[str, Any],
    resume: bool,
    fields: dict[str, Any],
    overrides: dict[str, str],
) -> Generator[TrainProgress]:
    from slidelens.engine.training.file import train_arguments

    request = train_arguments(options, fields) | {"overrides": overrides, "resume": resume}
    if isinstance(request.get("mpp"), str):
        request["mpp"] = parse_mpp(request["mpp"], "--slide-mpp")
    if "folds" in request:
        from slidelens.engine.folds import train_folds

        return train_folds(family, **request)
    from slidelens.engine.train import train

    return train(family, **request)


def _conclude(out: Path, last: TrainProgress, as_json: bool) -> None:
    from slidelens.engine.packages.manifest import read_manifest
    from slidelens.engine.progress import time_text

    if as_json:
        facts: dict[str, Any] = {
            "model": str(out),
            "epochs": last.epoch,
            "tune_loss": last.tune_loss,
            "tune_auc": last.tune_auc,
            "seconds": last.seconds,
        }
        if last.folds:
            facts["cross_validation"] = json.loads((out / "folds.json").read_text())
        print_json(facts)
        return
    split = f"mean of {last.folds} folds" if last.folds else "on the tuning split"
    auc = "" if last.tune_auc is None else f", AUC {last.tune_auc:.3f} {split}"
    took = f" in {time_text(last.seconds)}" if last.seconds else ""  # else all folds were there
    typer.echo(f"{out}: trained{took}{auc}")
    if last.folds:
        typer.echo(f"next: {out}/folds.json, {out}/out_of_fold.csv; each fold contains a model")
        return
    bags = " --bags DIR" if read_manifest(out).config.get("bag_dim") else ""
    typer.echo(f"next: slidelens predict SLIDE --model {quote(str(out))}{bags} --out results")
