"""Evaluate tile scores (``tiles.csv``) against annotations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slidelens.engine import metrics
from slidelens.engine.annotations import ANNOTATION_SUFFIXES, annotation_files
from slidelens.engine.intervals import delong
from slidelens.errors import LabelError, SlideLensError
from slidelens.maps.tiles import Tiles
from slidelens.tiling.annotations import fraction, read_annotations
from slidelens.tiling.class_names import is_named, warn_of_spellings
from slidelens.tiling.patch_labels import within

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.engine.evaluation.scores import Cases
    from slidelens.tiling.annotations import Annotation

__all__ = ["AnnotatedSlides", "isolated", "measure_tiles", "read_annotated"]


class AnnotatedSlides(NamedTuple):
    """Annotations by slide, and which of them count.

    Attributes
    ----------
    folder
        Where they were read.
    of_slide
        Slide id to annotations.
    by_label
        Whether any annotation is labelled with the name of a class other than the first, the
        negative one, however it is spelled. If so, annotations labelled with a class count for it,
        and others not at all. If not, all annotations are of the positive class, unless they have
        the negative one's name.
    ignored
        Labels of annotations that do not count because they name no class.
    """

    folder: Path
    of_slide: Mapping[str, list[Annotation]]
    by_label: bool
    ignored: tuple[str, ...] = ()


class _Truth(NamedTuple):
    """Tiles of all slides of one class: truth, scores and groups, each ``(T,)``.

    ``group`` is the number of the patient, or of the slide if it names none.
    """

    positive: NDArray[np.bool_]
    scores: NDArray[np.float64]
    group: NDArray[np.int64]


def read_annotated(folder: Path, ids: Iterable[str], classes: tuple[str, ...]) -> AnnotatedSlides:
    """Read ``<slide_id>.geojson``, ``.json`` or ``.xml`` of the slides that have one.

    Raises
    ------
    LabelError
        No file for any slide; files that cannot be read, all at once; see also
        :func:`~slidelens.engine.annotations.annotation_files`.
    """
    files = annotation_files(folder)
    of_slide: dict[str, list[Annotation]] = {}
    faults = []
    for slide_id in ids:
        if slide_id in files:
            try:
                of_slide[slide_id] = list(read_annotations(files[slide_id]))
            except SlideLensError as error:
                faults.append(str(error))
    if faults:
        raise LabelError(
            f"{folder}: {len(faults)} annotations cannot be read:\n" + "\n".join(faults)
        )
    if not of_slide:
        raise LabelError(
            f"{folder}: no annotations of the evaluated slides; expected <slide_id>"
            f"{' or '.join(ANNOTATION_SUFFIXES)}."
        )
    drawn = {slide_id: {a.label for a in found} for slide_id, found in of_slide.items()}
    warn_of_spellings(drawn)
    labels = set().union(*drawn.values())
    by_label = any(is_named(label, classes[1:]) for label in labels)
    others = sorted(label for label in labels if not is_named(label, classes))
    return AnnotatedSlides(folder, of_slide, by_label, tuple(others) if by_label else ())


def measure_tiles(
    cases: Cases, annotated: AnnotatedSlides, overlap: float, level: float
) -> dict[str, Any]:
    """Measure one model's tile scores.

    A tile is positive if annotations cover at least ``overlap`` of it. Slides of the first class
    need no annotations: all their tiles are negative. Slides of other classes without annotations
    that count, and results without tile probabilities, are left out and named. Of a tile at the
    border, what lies in the slide counts. The interval counts tiles of one patient (or slide, where
    no patient is named) as dependent
    (:func:`slidelens.engine.intervals.delong`).
    """
    classes = cases.scored.classes
    multiclass = len(classes) > 2
    columns = range(1, len(classes))  # the first class is what is not annotated
    if multiclass and not annotated.by_label:
        return {"auc": None, "undefined": {"auc": "annotations are not labelled by class"}}
    tables, left_out = _tables(cases, annotated)
    figures: dict[str, Any] = {
        "overlap": overlap,
        "slides": len(tables),
        "annotations": "of the class they are labelled with"
        if annotated.by_label
        else "all of the positive class",
        "left_out": left_out,
    }
    if annotated.ignored:
        figures["ignored_labels"] = list(annotated.ignored)
    if not tables:
        return {**figures, "auc": None, "undefined": {"auc": "no slide with tiles and annotations"}}
    per_class = {
        classes[k]: _figures(_truth(cases, tables, annotated, k, overlap), level) for k in columns
    }
    return {**figures, "per_class": per_class} if multiclass else figures | per_class[classes[1]]


def isolated(
    boxes: NDArray[np.float64], wanted: NDArray[np.bool_], neighbours: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Find tiles that stand alone.

    With the falsely positive tiles as ``wanted`` and those that are tumour or are called so as
    ``neighbours``, these are the "tumour points" of multi-stage-segmentation-2019, section 4.2.1:
    each costs a pathologist a look.

    Parameters
    ----------
    boxes
        ``(N, 4)`` x, y, w, h in level-0 px, all of one size.
    wanted
        ``(N,)`` which tiles count.
    neighbours
        ``(N,)`` which tiles are company.

    Returns
    -------
    ``(N,)``: wanted, and no other tile that is company touches it, not even at a corner.
    """
    from scipy.spatial import cKDTree

    alone = np.zeros(len(boxes), bool)
    at, others = np.flatnonzero(wanted), np.flatnonzero(neighbours)
    if len(at):
        corners = boxes[:, :2] / boxes[0, 2:]
        tree = cKDTree(corners[others])
        near = tree.query_ball_point(corners[at], 1 + 1e-6, p=np.inf)
        alone[at] = [not set(others[found]) - {tile} for tile, found in zip(at, near, strict=True)]
    return alone


def _tables(
    cases: Cases, annotated: AnnotatedSlides
) -> tuple[dict[str, Tiles], dict[str, list[str]]]:
    """Read the tables that can be measured; name the slides of the others by reason."""
    tables: dict[str, Tiles] = {}
    left_out: dict[str, list[str]] = {"no annotations": [], "no tile probabilities": []}
    for row in cases.rows:
        path = cases.scored.folders[row.slide_id] / "tiles.csv"
        if row.label and not _counting(annotated, row.slide_id, cases.scored.classes):
            left_out["no annotations"].append(row.slide_id)
            continue
        table = Tiles.read(path) if path.is_file() else None
        if table is None or not set(cases.scored.classes) <= set(table.classes):
            left_out["no tile probabilities"].append(row.slide_id)
        else:
            tables[row.slide_id] = table
    return tables, {reason: ids for reason, ids in left_out.items() if ids}


def _counting(
    annotated: AnnotatedSlides, slide_id: str, classes: Sequence[str]
) -> list[Annotation]:
    """Return the annotations of a slide that are of any of these classes but the first."""
    by_label = annotated.by_label
    names = classes[1:] if by_label else classes[:1]
    drawn = annotated.of_slide.get(slide_id, [])
    return [a for a in drawn if is_named(a.label, names) == by_label]


def _truth(
    cases: Cases, tables: Mapping[str, Tiles], annotated: AnnotatedSlides, k: int, overlap: float
) -> _Truth:
    name = cases.scored.classes[k]
    positive, scores, group = [], [], []
    of_slide = dict(zip(cases.ids, cases.groups.tolist(), strict=True))
    for slide_id, table in tables.items():
        found = _counting(annotated, slide_id, cases.scored.classes)
        if annotated.by_label:
            found = [a for a in found if is_named(a.label, [name])]
        values = table.probabilities[:, table.classes.index(name)].astype(np.float64)
        scored = np.isfinite(values)
        boxes, size = table.boxes[scored], cases.scored.sizes.get(slide_id)
        covered = fraction(found, boxes if size is None else within(boxes, size))
        # Areas are exact to rounding: a tile that is half covered must not fall by 1e-16.
        positive.append(covered >= overlap - 1e-9)
        scores.append(values[scored])
        group.append(np.full(len(covered), of_slide[slide_id]))
    return _Truth(np.concatenate(positive), np.concatenate(scores), np.concatenate(group))


def _figures(truth: _Truth, level: float) -> dict[str, Any]:
    n, n_positive = len(truth.positive), int(truth.positive.sum())
    counts: dict[str, Any] = {"n": n, "n_positive": n_positive}
    if not 0 < n_positive < n:
        reason = {"auc": "no positive tile" if not n_positive else "no negative tile"}
        return {**counts, "auc": None, "auc_ci": None, "pr_auc": None, "undefined": reason}
    area = delong(truth.positive, truth.scores, groups=truth.group)
    figures = {
        **counts,
        "auc": float(area.auc[0]),
        "auc_ci": list(area.interval(0, level)),
        "pr_auc": metrics.pr_auc(truth.positive, truth.scores),
    }
    if np.isnan(area.covariance).any():
        why = "a class is of fewer than two patients or slides"
        figures |= {"auc_ci": None, "undefined": {"auc_ci": why}}
    return figures
