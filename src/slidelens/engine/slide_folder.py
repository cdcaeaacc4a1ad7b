"""Which slides lie in a folder, and which of them a run is asked for."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.engine.labels import read_listed
from slidelens.errors import LabelError, SlideError, SlideNotFoundError, listed
from slidelens.slide.base import slide_id
from slidelens.slide.open import is_slide, why_absent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.engine.labels import Split

__all__ = ["contents", "find_slides", "slides_to_run"]

log = logging.getLogger(__name__)

_NO_SLIDES = {
    *(".csv", ".tsv", ".xls", ".xlsx", ".json", ".geojson", ".xml", ".ndpa", ".ini", ".yml"),
    *(".yaml", ".txt", ".md", ".log", ".html", ".pdf", ".doc", ".docx", ".jpg", ".jpeg", ".png"),
}
"""What is kept beside slides: tables, annotations, texts and pictures."""

_TOLD = 20
_LEVELS = 3
"""How far down slides are looked for: in GDC's downloads a folder for each holds the slide."""


def slides_to_run(
    given: Sequence[str | Path], labels: str | Path | None = None, split: Split | None = None
) -> list[Path]:
    """Return the slides that are given, or those of them that a table of labels names.

    Parameters
    ----------
    given
        Slides and folders of them.
    labels
        CSV with slide_id and optionally split, as for a training; its order is that of the slides
        then. What they are labelled, if at all, does not matter.
    split
        Only the slides of this split of the table.

    Raises
    ------
    SlideNotFoundError
        Paths where there is nothing, all at once.
    SlideError
        No slides, or two of one id.
    LabelError
        A folder without slides, or with two of one id; a table that cannot be used, has no slide of
        the split, or names slides that are not given.
    ValueError
        A split without a table.
    """
    if labels is None and split is not None:
        raise ValueError(f"split {split!r} needs the labels that say which slides are in it")
    _check_there([Path(one) for one in given])
    slides = _by_id([path for one in given for path in _slides_of(Path(one))])
    if labels is None:
        return list(slides.values())
    table = read_listed(Path(labels))
    table = table if split is None else table.only(split)
    return [slides[row.slide_id] for row in table.with_files(slides).rows]


def _check_there(given: Sequence[Path]) -> None:
    why = [text for path in given if (text := why_absent(path))]
    if len(why) == 1:
        raise SlideNotFoundError(why[0])
    if why:
        told = why if len(why) <= _TOLD else [*why[:_TOLD], f"and {len(why) - _TOLD} more"]
        raise SlideNotFoundError(
            "\n  ".join(
                [f"{len(why)} of {len(given)} paths lead nowhere, so nothing was run:", *told]
            )
        )


def _slides_of(path: Path) -> list[Path]:
    """Return the slides in a folder; a path that is one itself, or none, alone."""
    try:
        alone = not path.is_dir() or is_slide(path)
    except OSError:  # it may not be looked at; opening it says so
        alone = True
    return [path] if alone else list(find_slides(path).values())


def _by_id(paths: Sequence[Path]) -> dict[str, Path]:
    """Return slide id to path; what is given twice, in its folder and by itself, is one slide."""
    if not paths:
        raise SlideError("no slides given; expected one path or more.")
    by_id: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in paths:
        by_id[slide_id(path)].setdefault(os.path.realpath(path), path)
    double = [", ".join(map(str, same.values())) for same in by_id.values() if len(same) > 1]
    if double:
        raise SlideError(
            f"slides of the same id would overwrite each other's results: {'; '.join(double)}. "
            "Rename them, or run them with another --out."
        )
    return {name: next(iter(same.values())) for name, same in by_id.items()}


def find_slides(folder: Path) -> dict[str, Path]:
    """Return slide id (file name without extension) to path, of every candidate in a folder.

    Where a folder has none, the folders in it are looked into, up to three levels down: archives
    keep one for each patient or download. Beside slides, folders that are no slide are passed over
    with a warning. Tables, annotations, texts, pictures, results and hidden files are no
    candidates. Where a file and a folder share a name (MRXS, VSI), the file is the slide.

    Raises
    ------
    LabelError
        No such folder, nothing in it, two files of one name, or one that may not be looked into.
    """
    found: dict[str, list[Path]] = defaultdict(list)
    for path in _candidates(folder):
        found[slide_id(path)].append(path)
    if not found:
        raise LabelError(f"{folder}: no slide in this folder, nor in the folders in it.")
    files = {name: [p for p in paths if p.is_file()] or paths for name, paths in found.items()}
    double = [
        " and ".join(str(p.relative_to(folder)) for p in paths)
        for paths in files.values()
        if len(paths) > 1
    ]
    if double:
        raise LabelError(
            f"{folder}: slides of one name cannot be told apart: {listed(double)}; rename them."
        )
    return {name: paths[0] for name, paths in files.items()}


def _candidates(folder: Path, level: int = 0) -> list[Path]:
    """Return what may be a slide in a folder, or, if nothing may, in the folders in it.

    Further down, where anything may lie, a file has to look like a slide.
    """
    inside = [path for path in contents(folder, "slides") if not path.name.startswith(".")]
    files_of = {slide_id(path) for path in inside if path.is_file()}
    found: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    for path in inside:
        if path.is_dir() and not _may_be_slide(path):
            if slide_id(path).strip("_") not in files_of:  # not what belongs to an MRXS or VSI
                folders.append(path)
        elif path.suffix.lower() not in _NO_SLIDES:
            (found if level == 0 or _may_be_slide(path) else others).append(path)
    if not found and level < _LEVELS:
        deeper = [path for path in folders if not (path / "result.json").exists()]
        found = [path for inner in deeper for path in _candidates(inner, level + 1)]
        folders = []
    if passed := [path.name for path in (*folders, *others)]:
        log.warning(
            "%s: passed over, since they are no slides: %s. Folders are looked into where none "
            "lies beside them.",
            *(folder, listed(passed)),
        )
    return found


def contents(folder: Path, what: str) -> list[Path]:
    """Return what lies in a folder of ``what``, sorted.

    Raises
    ------
    LabelError
        No such folder, a file, or one that may not be looked into.
    """
    try:
        if not folder.is_dir():
            if folder.exists():
                raise LabelError(f"{folder}: is a file, expected the folder of {what}.")
            raise LabelError(f"{folder}: no such folder of {what}.")
        return sorted(folder.iterdir())
    except OSError as error:
        raise LabelError(
            f"{folder}: cannot be read ({error.strerror or error}); check that you may read it."
        ) from error


def _may_be_slide(folder: Path) -> bool:
    """Return whether a folder holds a slide, if only a damaged one."""
    if folder.suffix.lower() == ".zarr":
        return True
    try:
        return is_slide(folder)
    except OSError:  # it may not be looked at; opening it says so
        return True
