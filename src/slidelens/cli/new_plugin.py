"""``slidelens new-plugin``: write the project of a new plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("new-plugin", epilog="Example: slidelens new-plugin colour-mil")(new_plugin)


def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the family, such as colour-mil.")
    ],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder to write. [default: slidelens-NAME]")
    ] = None,
) -> None:
    """Write the project of a plugin that adds a model family.

    It comes with tests and runs as it is.
    """
    from slidelens.engine.scaffold import new_plugin as write

    folder = write(name, out)
    module = next((folder / "src").iterdir())
    typer.echo(f"{folder}: a family {name!r} that trains and predicts. Next:")
    typer.echo(f"  edit {module / '__init__.py'}")
    typer.echo(f"  pip install -e '{folder}[test]'")
    typer.echo(f"  pytest {folder / 'tests'}")
    typer.echo(f"  slidelens train {name} --slides SLIDES --labels labels.csv --out my-{name}")
