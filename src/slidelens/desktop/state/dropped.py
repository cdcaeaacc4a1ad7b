"""Recognise what a dropped file or folder is."""

from __future__ import annotations

import csv
import re
from itertools import islice
from typing import TYPE_CHECKING, Literal

from slidelens.maps.result import find_results
from slidelens.slide.open import is_slide
from slidelens.tables import read_text

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Kind", "holds_annotations", "kind_of"]

Kind = Literal[
    "slide", "result", "results", "evaluation", "model", "labels", "annotations", "folder", "other"
]

_SUFFIXES = {".geojson", ".json", ".xml"}
_ANNOTATIONS = re.compile(
    rb'"(FeatureCollection|Feature|Polygon|MultiPolygon|GeometryCollection|positive|negative)"'
    rb"|<ASAP_Annotations|<Annotations"
)
_HEAD = 1 << 16


def kind_of(path: Path) -> Kind:
    """Return what a path is: by its name or, if that is not enough, by a little of its content.

    ``result`` is one result or the ``result.json`` in it, ``results`` a folder of several,
    ``folder`` any other folder.
    """
    if path.name == "result.json":
        return "result"
    if path.is_dir():
        return _folder(path)
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return "labels" if _is_labels(path) else "other"
    if suffix in _SUFFIXES:
        return "annotations" if holds_annotations(path) else "other"
    return "slide" if path.is_file() and is_slide(path) else "other"


def holds_annotations(path: Path) -> bool:
    """Return whether the beginning of a file looks like annotations."""
    try:
        with path.open("rb") as file:
            return _ANNOTATIONS.search(file.read(_HEAD)) is not None
    except OSError:
        return False


def _folder(path: Path) -> Kind:
    files: dict[str, Kind] = {
        "result.json": "result",
        "model.json": "model",
        "evaluation.json": "evaluation",
    }
    for name, kind in files.items():
        if (path / name).is_file():
            return kind
    if is_slide(path):
        return "slide"
    return "results" if list(islice(find_results(path), 1)) else "folder"


def _is_labels(path: Path) -> bool:
    try:
        header = next(csv.reader(read_text(path, ValueError).splitlines()), [])
    except (ValueError, csv.Error):
        return False
    return {"slide_id", "label"} <= {name.strip().lower() for name in header}
