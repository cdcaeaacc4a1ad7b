"""``slidelens models``: list model packages and families."""

from __future__ import annotations

import typer

from slidelens.cli.options import JsonOption, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("models", epilog="Example: slidelens models --json")(models)


def models(as_json: JsonOption = False) -> None:
    """List model packages and model families."""
    from slidelens.engine.package import find_models
    from slidelens.families import FAMILIES

    found = find_models()
    if as_json:
        rows = [
            {
                "name": model.name,
                "family": model.family,
                "path": str(model.path),
                "classes": list(model.classes),
                "mpp": model.mpp,
                "sha256": model.sha256,
            }
            for model in found
        ]
        print_json(rows)
        return
    for model in found:
        facts = f"{model.mpp or 0:g} µm/px  {', '.join(model.classes)}"
        if model.error is not None:
            facts = f"BROKEN: {model.error}"
        typer.echo(f"{model.name:<18}{model.family:<12}{facts}")
        typer.echo(f"{'':18}{model.path}")
    if not found:
        typer.echo("no model packages found; make one with `slidelens train` or `make models`")
    typer.echo(f"families: {', '.join(FAMILIES.names())}")
