"""``slidelens view``: show slides and results in napari."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slidelens.cli.options import MppOption, parse_mpp
from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["find_viewer", "register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "view", epilog="Example: slidelens view slide.svs --results results --task compare"
    )(view)


def view(
    slides: Annotated[
        list[Path] | None, typer.Argument(metavar="SLIDE", help="Slide files.")
    ] = None,
    results: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Results folder, to show what every model saw on these slides."
        ),
    ] = None,
    mpp: MppOption = None,
    task: Annotated[
        Literal["look", "run", "compare", "train", "review"],
        typer.Option(help="Open the panels for this task."),
    ] = "look",
) -> None:
    """Open slides and their results in napari."""
    launch = find_viewer()
    launch(slides or [], results=results, mpp=parse_mpp(mpp), task=task)


def find_viewer() -> Callable[..., object]:
    """Return what opens slides in a window, :func:`slidelens.desktop.launch.view`.

    Raises
    ------
    SlideLensError
        It cannot: napari or Qt is not installed, or there is no display.
    """
    try:
        from slidelens.desktop.launch import check_display
        from slidelens.desktop.launch import view as launch
    except ImportError as error:
        raise SlideLensError(
            f"the viewer needs napari and Qt ({error}). Run: pip install 'slidelens[desktop]'"
        ) from error
    check_display()
    return launch
