"""Options that several commands share: how their text is parsed, and JSON printed."""

from __future__ import annotations

import json
import re
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from slidelens.files import names_folder

if TYPE_CHECKING:
    from slidelens.geometry import Box
    from slidelens.tiling.tissue import TissueSettings

__all__ = [
    "DeviceOption",
    "JsonOption",
    "MppOption",
    "ResamplesOption",
    "SeedOption",
    "TissueOption",
    "parse_file",
    "parse_mpp",
    "parse_region",
    "parse_tissue",
    "print_json",
    "printable",
    "tissue_option",
]

_FINEST = 0.01
"""µm/px; a microscope's light resolves twenty times as much, and 0.0001 was meant in mm."""
MppOption = Annotated[
    str | None,
    typer.Option(
        "--mpp",
        metavar="X",
        help="The slide's resolution, overriding its file: µm/px, or a CSV file with columns "
        "slide,mpp. 'from-objective' derives it where the file states none.",
    ),
]


def tissue_option(*flags: str, more: str) -> Any:
    """Make an option for how tissue is found: its ``flags``, and ``more`` help."""
    told = (
        "How tissue is found: stain, otsu, intensity (fluorescence) or whole; or a field such as "
        "min_area=0 (µm²). May be repeated."
    )
    return typer.Option(*flags, metavar="METHOD|FIELD=VALUE", help=f"{told} {more}")


TissueOption = Annotated[
    list[str] | None,
    tissue_option("--tissue", more="What is not given is as when the model was trained."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ResamplesOption = Annotated[
    int,
    typer.Option(
        "--resamples",
        min=100,
        max=1_000_000,
        metavar="N",
        help="Bootstrap resamples for the intervals.",
    ),
]
SeedOption = Annotated[
    int, typer.Option("--seed", min=0, metavar="N", help="Seed of the bootstrap.")
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")
]


def printable(text: str) -> str:
    """Return text of others without control characters, which would rewrite the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def print_json(value: Any) -> None:
    """Print the answer to ``--json``."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def parse_mpp(
    text: str | None, option: str = "--mpp"
) -> float | tuple[float, float] | Path | Literal["from-objective"] | None:
    """Read a resolution: a number, ``X,Y`` for oblong pixels, ``from-objective`` or a CSV file.

    Raises
    ------
    typer.BadParameter
        Anything else.
    """
    if text is None:
        return None
    if text == "from-objective":
        return "from-objective"
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        if Path(text).is_file():
            return Path(text)
        raise typer.BadParameter(
            f"{option} {text!r} is neither a number of µm/px, 'from-objective', nor a CSV file"
        ) from None
    if re.fullmatch(r"\d+,\d+", text):
        raise typer.BadParameter(
            f"{option} {text!r}: write {text.replace(',', '.')} for a decimal number, and "
            f"{text.replace(',', '.0,')}.0 for different x and y"
        )
    if len(numbers) > 2 or not all(_FINEST <= n < 1000 for n in numbers):
        raise typer.BadParameter(
            f"{option} {text!r}: expected one or two numbers of µm/px, from {_FINEST} to 1000"
        )
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


def parse_file(text: str, name: str) -> Path:
    """Read where to write a file: ``name`` in a folder that exists, or in ``FOLDER/``."""
    return Path(text) / name if names_folder(text) else Path(text)


def parse_tissue(texts: list[str] | None) -> TissueSettings | None:
    """Read what :func:`tissue_option` was given; ``None`` if nothing was.

    Raises
    ------
    typer.BadParameter
        No such method or field, or a value that does not fit.
    """
    if not texts:
        return None
    from slidelens.engine.tissue_asked import tissue_asked
    from slidelens.errors import ModelError

    try:
        return tissue_asked(texts)
    except ModelError as error:
        raise typer.BadParameter(str(error), param_hint="--tissue") from error


def parse_region(text: str | None) -> Box | None:
    """Read ``--region x,y,w,h`` in level-0 pixels.

    Raises
    ------
    typer.BadParameter
        Not four numbers, or an empty region.
    """
    if text is None:
        return None
    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(
            f"--region {text!r}: expected x,y,w,h in level-0 pixels, such as 1000,2000,4096,4096"
        ) from None
    if not all(map(isfinite, (x, y, w, h))):
        raise typer.BadParameter(f"--region {text!r}: expected finite numbers")
    if w <= 0 or h <= 0:
        raise typer.BadParameter(f"--region {text!r}: width and height must be above 0")
    from slidelens.geometry import Box  # here: numpy comes with it, and --help does without

    return Box(x, y, w, h)
