"""Where results may go."""

from __future__ import annotations

from contextlib import suppress
from os.path import realpath
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.engine.packages.manifest import MANIFEST
from slidelens.errors import ResultError
from slidelens.maps.result import results_root

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["check_results_folder"]


def check_results_folder(out: Path, slides: Iterable[Path] = ()) -> None:
    """Refuse a folder where nobody would look for results, or where they would do harm.

    Parameters
    ----------
    out
        Of the results.
    slides
        Files and folders of the slides. Results beside them do no harm; in the folder of a DICOM or
        OME-Zarr slide they would be part of it.

    Raises
    ------
    ResultError
        The folder of one model, or of one result; a model package; a place in a slide.
    """
    with suppress(PermissionError):  # writing into it says so
        if (out / MANIFEST).is_file():
            raise ResultError(
                f"{out}: is a model package, and no place for results. Choose another --out."
            )
    root = results_root(out)
    if root != out:
        raise ResultError(
            f"{out}: holds the results of one model, or one result; expected the folder of all "
            f"results, as they go to OUT/<model>/<slide>/. Give --out {root}."
        )
    place = Path(realpath(out))  # of a link in a circle `resolve` raises
    for slide in slides:
        if place.is_relative_to(realpath(slide)):
            raise ResultError(
                f"{out}: is or lies in the slide {slide}, which results would change. Choose "
                "another --out."
            )
