"""Lymph nodes of patients: slides to classes by rule or by a forest, patients to pN stages.

Source: multi-stage-segmentation-2019, sections 4.1 and 4.2.3; CAMELYON17.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.engine.evaluation.scores import read_scores
from slidelens.engine.lost_zeros import zeros_hint
from slidelens.engine.metrics import confusion, kappa
from slidelens.engine.staging.forest import Forest, fit_forest
from slidelens.engine.staging.node_features import FEATURES, largest_lesion_mm, node_features
from slidelens.engine.staging.pn_stage import (
    NODE_CLASSES,
    STAGES,
    node_class,
    pn_stage,
    stage_kappa,
)
from slidelens.errors import LabelError, ModelError, ResultError, listed
from slidelens.export.camelyon17 import StageTable, read_stages, write_stages
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = ["StagedPatients", "fit_staging", "stage_patients"]

_NODE = "_node_"


@dataclass(frozen=True)
class StagedPatients:
    """Stages of patients, and how well they agree with known ones.

    ``metrics`` is empty where none are known.
    """

    table: StageTable
    metrics: Mapping[str, Any]


def fit_staging(
    results: str | Path, stages: str | Path, out: str | Path, *, seed: int = 0
) -> Forest:
    """Fit a forest that tells the class of a slide from its map, and write it.

    Parameters
    ----------
    results
        Results of one model (``RESULTS/<model>``).
    stages
        The classes of the slides, in the format of CAMELYON17 (``patient,stage``).
    out
        Folder of the forest.

    Raises
    ------
    LabelError
        A table that cannot be read; unknown classes; slides without a result or without a class.
    ResultError
        No results, or of several models; a result without a map of probabilities.
    ModelError
        scikit-learn is not installed.
    """
    truth = _checked(read_stages(Path(stages)), Path(stages))
    classes = {slide: found for nodes in truth.nodes.values() for slide, found in nodes.items()}
    folders = _of_one_model(Path(results))
    _same_slides(folders, classes, Path(stages))
    table = [node_features(Result.load(folders[slide])) for slide in classes]
    try:
        forest = fit_forest(table, list(classes.values()), NODE_CLASSES, seed=seed)
    except ModelError:  # of the installation, not of the table
        raise
    except ValueError as error:
        raise LabelError(f"{stages}: {error}.") from error
    forest.save(Path(out))
    return forest


def stage_patients(
    results: str | Path,
    out: str | Path,
    *,
    forest: str | Path | None = None,
    truth: str | Path | None = None,
) -> StagedPatients:
    """Find the class of every slide and the stage of every patient; write CAMELYON17's table.

    Parameters
    ----------
    results
        Results of one model.
    out
        The CSV file to write.
    forest
        From :func:`fit_staging`; without one, the largest lesion of a slide decides.
    truth
        Known stages, in the same format: they also say which slides are a patient's. Without them
        slides are named as in CAMELYON17, ``<patient>_node_<number>``.

    Raises
    ------
    LabelError
        A table that cannot be read or does not fit; slides whose patient is not known.
    ModelError
        A folder that holds no forest of this kind.
    ResultError
        No results, or of several models; a result without a map of probabilities.
    """
    folders = _of_one_model(Path(results))
    known = None if truth is None else _checked(read_stages(Path(truth)), Path(truth))
    if known is None:
        patients = _by_name(folders)
    else:
        patients = {patient: list(nodes) for patient, nodes in known.nodes.items()}
        _same_slides(folders, [s for nodes in patients.values() for s in nodes], Path(str(truth)))
    classes = _classes(folders, forest)
    nodes = {p: {slide: classes[slide] for slide in slides} for p, slides in patients.items()}
    table = StageTable(_stages(nodes, results), nodes)
    write_stages(Path(out), table)
    return StagedPatients(table, {} if known is None else _agreement(known, table))


def _stages(nodes: Mapping[str, Mapping[str, str]], results: str | Path) -> dict[str, str]:
    """Return the stage of each patient; all that have none are named at once."""
    stages, faults = {}, []
    for patient, its in nodes.items():
        try:
            stages[patient] = pn_stage(list(its.values()))
        except ValueError as error:
            faults.append(f"{patient} ({error})")
    if faults:
        raise LabelError(
            f"{results}: patients that cannot be staged: {listed(faults)}; take their slides out."
        )
    return stages


def _classes(folders: Mapping[str, Path], forest: str | Path | None) -> dict[str, str]:
    """Return the class of each slide: by its largest lesion, or by a forest."""
    if forest is None:
        return {s: node_class(largest_lesion_mm(Result.load(f))) for s, f in folders.items()}
    trees = Forest.load(Path(forest))
    if trees.classes != NODE_CLASSES or not set(trees.features) <= set(FEATURES):
        raise ModelError(
            f"{forest}: a forest of {', '.join(trees.classes)} on other figures; fit one with "
            "`slidelens stage fit`."
        )
    table = [node_features(Result.load(folder)) for folder in folders.values()]
    best = trees.probabilities(table).argmax(1)
    return {slide: NODE_CLASSES[k] for slide, k in zip(folders, best.tolist(), strict=True)}


def _agreement(truth: StageTable, found: StageTable) -> dict[str, Any]:
    pairs = [
        (NODE_CLASSES.index(truth.nodes[patient][slide]), NODE_CLASSES.index(one))
        for patient, nodes in found.nodes.items()
        for slide, one in nodes.items()
    ]
    slides = confusion([a for a, _ in pairs], [b for _, b in pairs], len(NODE_CLASSES))
    return {
        "patients": len(found.stages),
        "slides": len(pairs),
        "stage_kappa": stage_kappa(truth.stages, found.stages),
        "stage_accuracy": sum(truth.stages[p] == s for p, s in found.stages.items())
        / len(found.stages),
        "slide_kappa": kappa(slides, quadratic=True),
        "slide_accuracy": float(slides.trace() / slides.sum()),
        "slide_confusion": slides.tolist(),
        "slide_classes": list(NODE_CLASSES),
    }


def _of_one_model(results: Path) -> dict[str, Path]:
    """Return slide id to result folder."""
    found = read_scores(results)
    if len(found) != 1:
        raise ResultError(
            f"{results}: results of {', '.join(found)}; expected those of one model, as "
            "RESULTS/<model>."
        )
    (one,) = found.values()
    return dict(one.folders)


def _by_name(slides: Iterable[str]) -> dict[str, list[str]]:
    patients: dict[str, list[str]] = defaultdict(list)
    for slide in sorted(slides):
        patients[slide.rpartition(_NODE)[0]].append(slide)
    if "" in patients:
        raise LabelError(
            f"which patient are these slides of: {listed(patients[''])}? Name slides "
            f"<patient>{_NODE}<number>, or give a table of stages (patient,stage) with --truth."
        )
    return dict(patients)


def _checked(table: StageTable, path: Path) -> StageTable:
    """Refuse classes and stages that CAMELYON17 does not have."""
    slides = [
        f"{slide} ({found})"
        for nodes in table.nodes.values()
        for slide, found in nodes.items()
        if found not in NODE_CLASSES
    ]
    patients = [f"{p} ({stage})" for p, stage in table.stages.items() if stage not in STAGES]
    empty = [patient for patient, nodes in table.nodes.items() if not nodes]
    for found, what in (
        (slides, f"slides of classes other than {', '.join(NODE_CLASSES)}"),
        (patients, f"stages other than {', '.join(STAGES)}"),
        (empty, "patients without a slide"),
    ):
        if found:
            raise LabelError(f"{path}: {what}: {listed(found)}.")
    return table


def _same_slides(folders: Mapping[str, Path], wanted: Iterable[str], path: Path) -> None:
    names = set(wanted)
    lacking, spare = sorted(names - folders.keys()), sorted(folders.keys() - names)
    hint = zeros_hint(lacking, spare)
    for found, what in (
        (lacking, "slides without a result"),
        (spare, "results of slides that it does not name"),
    ):
        if found:
            raise LabelError(f"{path}: {what}: {listed(found)}.{hint}")
