"""A picture of every window that a magnifying network looked through."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.export.base import Exporter
from slidelens.files import write_atomic
from slidelens.maps.contact_sheet import contact_sheet, trajectory_of
from slidelens.slide.open import open_slide

if TYPE_CHECKING:
    from slidelens.maps.result import Result

__all__ = ["EXPORTER"]


def _write(result: Result, path: Path) -> None:
    trajectory_of(result)  # before the slide is looked for
    if result.slide.path is None or not Path(result.slide.path).exists():
        raise ResultError(
            f"{result.slide.id}: its slide {result.slide.path or ''} is not there; its pixels are "
            "needed for the pictures."
        )
    with open_slide(result.slide.path, mpp=result.slide.resolution) as slide:
        page = contact_sheet(result, slide.read)
    data = BytesIO()
    page.save(data, "PNG")
    write_atomic(path, data.getvalue())


EXPORTER = Exporter(
    "contact-sheet",
    "A PNG of every window that a magnifying network looked through, in order.",
    ".png",
    _write,
)
