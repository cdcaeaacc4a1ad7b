"""``slidelens export``: a result in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "export",
        epilog="Example: slidelens export results/demo-mil/slide --to geojson --out .",
    )(export)


def export(
    result: Annotated[Path, typer.Argument(help="Result folder of one slide, or of many.")],
    to: Annotated[str, typer.Option(help="Format: geojson, ome-zarr, wsinfer-csv, clam-h5, ...")],
    out: Annotated[Path, typer.Option(help="File to write, or a folder to write into.")],
) -> None:
    """Write results for QuPath, OME-Zarr viewers, CLAM or spreadsheets."""
    from slidelens.export import EXPORTERS, export_result
    from slidelens.maps.result import Result, find_results

    if to not in EXPORTERS:
        raise typer.BadParameter(f"no format {to!r}; there are {', '.join(EXPORTERS)}")
    folders = list(find_results(result)) or [result]
    if folders != [result]:
        _prepare(out, folders)
    for folder in folders:
        typer.echo(export_result(Result.load(folder), to, out))


def _prepare(out: Path, folders: list[Path]) -> None:
    """Make the folder that takes the files of several results, one per slide."""
    names = [folder.name for folder in folders]
    if len(set(names)) < len(names):
        models = sorted({folder.parent.name for folder in folders})
        raise typer.BadParameter(
            f"there are results of several models ({', '.join(models)}), whose files would "
            "overwrite each other; name the folder of one"
        )
    if out.exists() and not out.is_dir():
        raise typer.BadParameter(f"--out {out} is a file; several results need a folder")
    out.mkdir(parents=True, exist_ok=True)
