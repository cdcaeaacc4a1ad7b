"""Find the annotation file of each slide."""

from __future__ import annotations

from collections import defaultdict
from pathlib import PurePath
from typing import TYPE_CHECKING

from slidelens.engine.slide_folder import contents
from slidelens.errors import LabelError, listed
from slidelens.slide.base import slide_id
from slidelens.slide.open import SLIDE_SUFFIXES

if TYPE_CHECKING:
    from pathlib import Path

    from slidelens.engine.labels import LabelTable

__all__ = ["ANNOTATION_SUFFIXES", "annotation_files", "find_annotations", "slides_named"]

ANNOTATION_SUFFIXES = (".geojson", ".json", ".xml")


def slides_named(path: Path) -> tuple[str, ...]:
    """Return the ids of slides that an annotation file may be of, by its name.

    It is the name without extension, composed. The slide's own extension may stand in it, as other
    programs write it: ``a.svs.geojson`` is of slide ``a``, or of ``a.svs``, should that be an id.
    """
    name = slide_id(PurePath(path.name))
    if name.lower().endswith(SLIDE_SUFFIXES):
        return name, slide_id(PurePath(name))
    return (name,)


def annotation_files(folder: Path) -> dict[str, Path]:
    """Return slide id to annotation file, by their names (:func:`slides_named`).

    Raises
    ------
    LabelError
        No such folder, one that may not be looked into, or two files for one slide.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in contents(folder, "annotations"):
        if path.suffix.lower() in ANNOTATION_SUFFIXES and not path.name.startswith("."):
            for name in slides_named(path):
                found[name].append(path)
    double = [" and ".join(p.name for p in paths) for paths in found.values() if len(paths) > 1]
    if double:
        raise LabelError(
            f"{folder}: two annotation files for one slide: {listed(double)}; keep the one that "
            "counts."
        )
    return {name: paths[0] for name, paths in found.items()}


def find_annotations(folder: Path, table: LabelTable) -> dict[str, Path]:
    """Return slide id to annotation file, of the table's slides that have one.

    A file is named as its slide, with ``.geojson``, ``.json`` or ``.xml`` in place of the slide's
    extension, or behind it. Slides of the first (negative) class need none.

    Raises
    ------
    LabelError
        Positive slides without a file, all at once; see also :func:`annotation_files`.
    """
    files = annotation_files(folder)
    lacking = [row.slide_id for row in table.rows if row.label and row.slide_id not in files]
    if lacking:
        raise LabelError(
            f"{folder}: no annotations for {len(lacking)} positive slides: {listed(lacking)}. "
            f"Expected files of these names with {', '.join(ANNOTATION_SUFFIXES)}; slides of class "
            f"{table.classes[0]!r} need none."
        )
    return {row.slide_id: files[row.slide_id] for row in table.rows if row.slide_id in files}
