"""``slidelens export``: a result in another program's format."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from slidelens.files import names_folder

if TYPE_CHECKING:
    from slidelens.export import Exporter
    from slidelens.maps.result import Result

__all__ = ["register"]

_FILE = re.compile(r"\.[A-Za-z]\w{1,9}$")
"""Ends the name of a file, and not that of a folder such as v1.2."""


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "export",
        epilog="Example: slidelens export results/demo-mil/slide --to geojson --out .",
    )(export)


def export(
    result: Annotated[
        Path,
        typer.Argument(
            metavar="RESULT", help="Result folder of one slide, or a folder of results."
        ),
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Format: geojson, ome-zarr, clam-h5, wsinfer-csv, camelyon16-csv, lesions-csv, "
            "contact-sheet, or a plugin's.",
        ),
    ],
    out: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            help="File to write, or a folder to write into (an existing one, or PATH/).",
        ),
    ],
    overwrite: Annotated[bool, typer.Option(help="Replace existing files.")] = False,
) -> None:
    """Export results to QuPath, spreadsheets and other programs."""
    from slidelens.errors import ResultError
    from slidelens.export import EXPORTERS, export_result, export_target
    from slidelens.maps.result import Result, find_results

    if to not in EXPORTERS:
        raise typer.BadParameter(f"no format {to!r}; there are {', '.join(EXPORTERS)}")
    folders = list(find_results(result)) or [result]
    results, failed = [], []
    for folder in folders:
        try:
            results.append(Result.load(folder))
        except ResultError as error:
            if len(folders) == 1:
                raise
            failed.append(str(error))
    if folders != [result]:
        out = _folder(out, results, len(folders), EXPORTERS.get(to))
    for one in results:  # all or none, where a place is taken
        export_target(one, to, out, overwrite=overwrite)
    for one in results:
        try:
            typer.echo(export_result(one, to, out, overwrite=overwrite))
        except ResultError as error:
            if len(folders) == 1:
                raise
            failed.append(f"{one.path}: {error}")
    if failed:
        some = f"{len(failed)} of {len(folders)} results were not exported"
        raise ResultError("\n".join([f"{some}:", *failed]))


def _folder(out: str, results: list[Result], count: int, exporter: Exporter) -> str:
    """Return the folder that takes the files of several results, one per slide.

    Where there is only one result after all, it may be a file. The ``count`` is with those that
    cannot be read.
    """
    slides: dict[str, list[str]] = {}
    for result in results:
        slides.setdefault(result.slide.id, []).append(str(result.path))
    for slide, places in slides.items():
        if len(places) > 1:
            raise typer.BadParameter(
                f"there are several results of slide {slide} ({', '.join(places)}), whose files "
                "would overwrite each other; name the folder of one, or of one model"
            )
    place = Path(out)
    if place.exists() and not place.is_dir():
        raise typer.BadParameter(f"--out {out} is a file; several results need a folder")
    one = exporter.folder and place.name.endswith(exporter.suffix)
    if one or (_FILE.search(place.name) and not names_folder(out)):
        if count == 1:
            return out
        folder = place.with_name(place.name.split(".")[0] or "exports")
        raise typer.BadParameter(
            f"--out {out} names one file, but each of the {count} results gets its own "
            f"<slide>{exporter.suffix}; name a folder, such as {folder}/"
        )
    return f"{place}/"
