"""Which slides lie in a folder, and which of them a run is asked for."""

from __future__ import annotations

import logging
import os
import re
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from slidelens.engine.labels import read_listed
from slidelens.errors import LabelError, SlideError, SlideNotFoundError, listed
from slidelens.files import is_folder
from slidelens.maps.result import results_root
from slidelens.slide.base import slide_id
from slidelens.slide.dicom import INDEX, series_in, series_of
from slidelens.slide.open import is_slide, why_absent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from slidelens.engine.labels import Split

__all__ = ["contents", "find_slides", "one_per_series", "slides_to_run"]

log = logging.getLogger(__name__)

_NO_SLIDES = {
    *(".csv", ".tsv", ".xls", ".xlsx", ".json", ".geojson", ".xml", ".ndpa", ".ini", ".yml"),
    *(".yaml", ".txt", ".md", ".log", ".html", ".pdf", ".doc", ".docx", ".jpg", ".jpeg", ".png"),
    *(".db", ".sqlite"),
}
"""What is kept beside slides: tables, annotations, texts, pictures and databases (Thumbs.db)."""
_DICOM = re.compile(r"\.(dcm|dicom|\d+)$|^[^.]+$", re.IGNORECASE)
"""Names of DICOM files, which may be their ids: others, maybe thousands on a share, stay shut."""
_IN_TWO = {".mrxs", ".vsi"}
"""Formats of a file and a folder of its name."""

_TOLD = 20
_LEVELS = 3
"""How far down slides are looked for: in GDC's downloads a folder for each holds the slide."""


def slides_to_run(
    given: Sequence[str | Path], labels: str | Path | None = None, split: Split | None = None
) -> list[Path]:
    """Return the slides that are given, or those of them that a table of labels names.

    Of a DICOM series several files may be given, as a shell's ``*`` gives them: they are one slide,
    and if nothing but it is in their folder, that is the slide, as if it had been given. A folder
    of several series, and of nothing else, is as many slides.

    Parameters
    ----------
    given
        Slides and folders of them. What a shell's ``*`` gives besides, and a folder of them would
        not, is skipped with a warning: tables, texts, pictures, folders without slides, such as
        those of results, and the folder of an MRXS or VSI slide.
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
        Folders without any slide, or one with two of one id; a table that cannot be used, has no
        slide of the split, or names slides that are not given.
    ValueError
        A split without a table.
    """
    if labels is None and split is not None:
        raise ValueError(f"split {split!r} needs the labels that say which slides are in it")
    paths = [Path(one) for one in given]
    _check_there(paths)
    slides = _by_id(one_per_series(_slides_among(paths)))
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


def _slides_among(given: Sequence[Path]) -> list[Path]:
    """Return the slides among paths and in folders, without what lies beside them."""
    in_two = _in_two(given)
    slides: list[Path] = []
    others: list[Path] = []
    bare: list[Path] = []
    for path in given:
        if not _is_folder_of_slides(path):
            other = _is_beside(path) and not is_slide(path)
            (others if other else slides).append(path)
        elif _shared(path) in in_two:
            others.append(path)
        elif found := _candidates(path):
            slides += _by_name(path, found).values()
        else:
            others.append(path)
            bare.append(path)
    if slides and others:
        passed = listed([str(path) for path in others])
        log.warning("skipped, since they are not slides: %s", passed)
    if bare and not slides:
        raise _without_slides(bare[0])
    return slides or others  # opening them says what they are


def one_per_series(paths: Iterable[Path]) -> list[Path]:
    """Return slides with each DICOM series once; a folder of several series is taken apart."""
    files: dict[object, list[Path]] = defaultdict(list)
    for path in paths:
        for series, file in _series_at(path).items():
            files[series].append(file)
    return [_slide_of(parts) for parts in files.values()]


def _series_at(path: Path) -> dict[object, Path]:
    """Return the DICOM series of a file or a folder of several; any other slide is one itself."""
    with suppress(OSError):  # one that may not be read; opening it says so
        if path.is_dir():
            several = series_in(path)
            if len(several) > 1:
                return {(path, series): file for series, file in several.items()}
        elif _DICOM.search(path.name) and (series := series_of(path)):
            return {(path.parent, series): path}
    return {path: path}


def _slide_of(files: Sequence[Path]) -> Path:
    """Return what files of one series are: their folder, if it holds nothing else."""
    folder = files[0].parent
    with suppress(OSError):  # it may not be looked into
        if len(set(files)) > 1 and len(series_in(folder)) == 1:
            return folder
    return files[0]


def _in_two(paths: Iterable[Path]) -> set[tuple[Path, str]]:
    """Return what :func:`_shared` is of the slides among paths that are a file and a folder."""
    return {_shared(path) for path in paths if path.suffix.lower() in _IN_TWO}


def _shared(path: Path) -> tuple[Path, str]:
    """Return what file and folder of one slide share, such as x.vsi and _x_: place and name."""
    return path.parent, slide_id(path).strip("_")


def _is_folder_of_slides(path: Path) -> bool:
    try:
        return path.is_dir() and not is_slide(path)
    except OSError:  # it may not be looked at; opening it says so
        return False


def _is_of_one_model(folder: Path) -> bool:
    """Return whether a folder is that of one result, if only a damaged one, or of one model's."""
    try:
        return (folder / "result.json").exists() or results_root(folder) != folder
    except OSError:  # it may not be looked into; looking for slides in it says so
        return False


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
    keep one for each patient or download. Beside slides, folders that are no slide are skipped
    with a warning. Tables, annotations, texts, pictures, results and hidden files are no
    candidates. Where a file and a folder share a name (MRXS, VSI), the file is the slide. A folder
    may be a slide itself, and DICOM files are grouped as for a run (:func:`slides_to_run`).

    Raises
    ------
    LabelError
        No such folder, nothing in it, two files of one name, or one that may not be looked into.
    """
    with suppress(OSError):  # one that may not be looked at; looking into it says so
        if folder.is_dir() and is_slide(folder):
            return _by_name(folder, [folder])
    return _by_name(folder, _candidates(folder))


def _by_name(folder: Path, candidates: Iterable[Path]) -> dict[str, Path]:
    """Return slide id to path of what may be a slide in a folder; see :func:`find_slides`."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in one_per_series(candidates):
        found[slide_id(path)].append(path)
    if not found:
        raise _without_slides(folder)
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


def _without_slides(folder: Path) -> LabelError:
    return LabelError(f"{folder}: no slide in this folder, nor in the folders in it.")


def _candidates(folder: Path, level: int = 0) -> list[Path]:
    """Return what may be a slide in a folder, or, if nothing may, in the folders in it.

    Further down, where anything may lie, a file has to look like a slide.
    """
    inside = [path for path in contents(folder, "slides") if not path.name.startswith(".")]
    in_two = _in_two(inside)
    found: list[Path] = []
    folders: list[Path] = []
    others: list[Path] = []
    for path in inside:
        if path.is_dir() and not _may_be_slide(path):
            # What belongs to an MRXS or VSI is not looked into, nor are results.
            if _shared(path) not in in_two and not _is_of_one_model(path):
                folders.append(path)
        elif not _is_beside(path):
            (found if level == 0 or _may_be_slide(path) else others).append(path)
    if not found and level < _LEVELS:
        found = [path for inner in folders for path in _candidates(inner, level + 1)]
        folders = []
    if passed := [path.name for path in (*folders, *others)]:
        log.warning(
            "%s: skipped, since they are not slides: %s. Subfolders are searched only "
            "if there is no slide beside them.",
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
        there = is_folder(folder)
        if there is None:
            raise LabelError(f"{folder}: no such folder of {what}.")
        if not there:
            raise LabelError(f"{folder}: is a file, expected the folder of {what}.")
        return sorted(folder.iterdir())
    except OSError as error:
        raise LabelError(
            f"{folder}: cannot be read ({error.strerror or error}); check that you may read it."
        ) from error


def _is_beside(path: Path) -> bool:
    return path.suffix.lower() in _NO_SLIDES or path.name == INDEX


def _may_be_slide(folder: Path) -> bool:
    """Return whether a folder holds a slide, if only a damaged one."""
    if folder.suffix.lower() == ".zarr":
        return True
    try:
        return is_slide(folder)
    except OSError:  # it may not be looked at; opening it says so
        return True
