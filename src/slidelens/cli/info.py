"""``slidelens info``: what a slide file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from slidelens.cli.options import JsonOption, MppOption, parse_mpp, print_json

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command("info", epilog="Example: slidelens info slide.svs --json")(info)


def info(
    slide: Annotated[Path, typer.Argument(metavar="SLIDE", help="Slide file or folder.")],
    mpp: MppOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a slide file holds, and check that it can be read.

    Shows size, levels, resolution and backend, and decodes one tile.
    """
    from slidelens.slide.describe import describe
    from slidelens.slide.open import open_slide

    with open_slide(slide, mpp=parse_mpp(mpp)) as opened:
        facts, notes = describe(opened), opened.notes()
    if as_json:
        print_json(facts)
        for note in notes:
            typer.echo(f"note: {note}", err=True)
    else:
        typer.echo(_text(facts, notes))


def _text(facts: dict[str, Any], notes: list[str]) -> str:
    mpp = facts["mpp"]
    if mpp is None:
        resolution = "not stated (give --mpp X to commands that need it)"
    else:
        pair = mpp if isinstance(mpp, list) else [mpp, mpp]
        sides = pair if pair[0] != pair[1] else pair[:1]
        resolution = " x ".join(f"{side:g}" for side in sides)
        resolution += f" µm/px (from {facts['mpp_source']})"
        size = [facts["width"] * pair[0] / 1000, facts["height"] * pair[1] / 1000]
        resolution += f", {size[0]:.1f} x {size[1]:.1f} mm"
    power = facts["objective_power"]
    rows = [
        ("path", facts["path"]),
        ("backend", facts["backend"]),
        ("size", f"{facts['width']} x {facts['height']} px"),
        ("resolution", resolution),
        ("objective", f"{power:g}x" if power else "not stated"),
        *(
            (f"level {i}", f"{v['width']} x {v['height']} px, downsample {v['downsample']:g}")
            for i, v in enumerate(facts["levels"])
        ),
        ("associated", ", ".join(facts["associated_images"]) or "none"),
        ("properties", f"{len(facts['properties'])} (all with --json)"),
        *(("note", note) for note in notes),
    ]
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
