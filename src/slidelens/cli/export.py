"""``slidelens export``: a result in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "export", epilog="Example: slidelens export results/demo-mil/slide --to geojson --out ."
    )(export)


def export(
    result: Annotated[Path, typer.Argument(help="Result folder of one slide.")],
    to: Annotated[str, typer.Option(help="Format: geojson, ome-zarr, wsinfer-csv, ...")],
    out: Annotated[Path, typer.Option(help="File to write, or a folder to write into.")],
) -> None:
    """Write a result for QuPath, OME-Zarr viewers or spreadsheets."""
    from slidelens.export import EXPORTERS, export_result
    from slidelens.maps.result import Result

    if to not in EXPORTERS:
        raise typer.BadParameter(f"no format {to!r}; there are {', '.join(EXPORTERS)}")
    typer.echo(export_result(Result.load(result), to, out))
