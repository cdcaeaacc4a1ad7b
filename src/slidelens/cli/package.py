"""``slidelens package``: make, check, show and fetch model packages."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from slidelens.cli.options import JsonOption, print_json, printable
from slidelens.cli.progress import Bar
from slidelens.steps import Steps

__all__ = ["register"]

_Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name, folder, hf:// or https:// reference.")
]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    group = typer.Typer(
        name="package",
        help="Pack, verify, show and fetch model packages.",
        no_args_is_help=True,
        rich_markup_mode=None,
        epilog="Example: slidelens package pack my-model --out upload --licence Apache-2.0",
    )
    group.command(
        epilog="Example: slidelens package pack my-model --out upload --evaluation evaluation"
    )(pack)
    group.command(epilog="Example: slidelens package verify demo-mil")(verify)
    group.command(epilog="Example: slidelens package show demo-mil")(show)
    group.command(epilog="Example: slidelens package fetch hf://lab/model@v1")(fetch)
    app.add_typer(group)


def pack(
    model: _Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write, ready to upload.")],
    name: Annotated[
        str | None, typer.Option(metavar="NAME", help="New name for the model.")
    ] = None,
    evaluation: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Evaluation folder whose figures go into the card."),
    ] = None,
    licence: Annotated[
        str | None, typer.Option(metavar="LICENCE", help="Licence, such as Apache-2.0.")
    ] = None,
    intended_use: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="What the model is for, and what it is not for."),
    ] = None,
) -> None:
    """Pack a model to share it.

    Adds a model card, golden tensors and checksums; leaves out logs and paths.
    """
    from slidelens.engine.publish import pack as write

    folder = write(
        model,
        out,
        name=name,
        evaluation=evaluation,
        licence=licence,
        intended_use=intended_use,
    )
    for path in sorted(folder.iterdir()):
        typer.echo(f"{path}  {path.stat().st_size / 1e6:.2f} MB")
    typer.echo(f"read the card {folder / 'README.md'}, then upload the folder as it is")


def verify(model: _Model) -> None:
    """Check a package.

    Checks every file against its checksum, loads the model and replays its golden tensors.
    """
    from slidelens.engine.publish import check_package

    for line in check_package(model):
        typer.echo(line)


def show(model: _Model, as_json: JsonOption = False) -> None:
    """Show the card of a package."""
    from slidelens.engine.package import locate_model
    from slidelens.engine.packages.card import model_card
    from slidelens.engine.packages.manifest import read_manifest

    manifest = read_manifest(locate_model(model))
    if as_json:
        print_json(manifest.model_dump(mode="json"))
    else:
        typer.echo(printable(model_card(manifest)), nl=False)


def fetch(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="REFERENCE",
            help="hf://owner/repository[@revision] or https://..., [#sha256=...]",
        ),
    ],
    refresh: Annotated[bool, typer.Option(help="Fetch again even if it is in the cache.")] = False,
) -> None:
    """Download a package into the cache.

    `predict --model REFERENCE` does this by itself.
    """
    from slidelens.engine.package import check_received
    from slidelens.engine.packages.fetch import fetching

    work = fetching(reference, refresh=refresh, check=check_received)
    steps = Steps(work)
    with Bar() as bar, closing(work):
        for done, total in steps:
            bar.update(reference, done, total, "bytes")
    typer.echo(str(steps.result))
