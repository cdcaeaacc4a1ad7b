"""``slidelens-wsinfer``: import, export, trust."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from slidelens.errors import SlideLensError

app = typer.Typer(
    name="slidelens-wsinfer",
    help="WSInfer model folders in SlideLens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command("import")
def import_(
    folder: Annotated[Path, typer.Argument(help="Folder with config.json and weights.")],
    out: Annotated[Path, typer.Option(help="Folder of the model package to write.")],
    trust: Annotated[bool, typer.Option(help="Accept a TorchScript program and run it.")] = False,
) -> None:
    """Make a model package of a zoo folder."""
    from slidelens_wsinfer.zoo import import_zoo

    typer.echo(f"next: slidelens predict SLIDE --model {import_zoo(folder, out, trusted=trust)}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="Model package.")],
    out: Annotated[Path, typer.Option(help="Zoo folder to write.")],
) -> None:
    """Write a zoo folder of a model package that classifies tiles."""
    from slidelens_wsinfer.zoo import export_zoo

    typer.echo(str(export_zoo(model, out)))


@app.command()
def trust(model: Annotated[str, typer.Argument(help="Model package.")]) -> None:
    """Let a package's TorchScript program run on this machine."""
    from slidelens_wsinfer.zoo import trust_package

    trust_package(model)


def main() -> None:
    """Run the program; a user's mistake is one sentence."""
    try:
        app()
    except SlideLensError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(1)
