"""The table of stages of CAMELYON17: patients (``.zip``) with a stage, their nodes with a class."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from slidelens.errors import LabelError
from slidelens.files import write_atomic
from slidelens.tables import read_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["StageTable", "read_stages", "write_stages"]

_PATIENT, _SLIDE = ".zip", ".tif"


@dataclass(frozen=True)
class StageTable:
    """Patients and their nodes.

    Attributes
    ----------
    stages
        Patient to pN stage.
    nodes
        Patient to slide id to class of the slide.
    """

    stages: Mapping[str, str]
    nodes: Mapping[str, Mapping[str, str]]


def write_stages(path: Path, table: StageTable) -> None:
    """Write ``patient,stage`` rows: each patient, then the nodes, in the order given."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["patient", "stage"])
    for patient, stage in table.stages.items():
        rows.writerow([patient + _PATIENT, stage])
        rows.writerows([slide + _SLIDE, found] for slide, found in table.nodes[patient].items())
    write_atomic(path, text.getvalue())


def read_stages(path: Path) -> StageTable:
    """Read a table of stages; the rows of slides behind a patient's are that patient's nodes.

    Raises
    ------
    LabelError
        No such file, other columns, a slide before any patient, or something twice.
    """
    lines = read_text(path, LabelError).splitlines()
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines) if row]
    if not rows or rows[0] != ["patient", "stage"]:
        raise LabelError(
            f"{path}: expected the header patient,stage, as in CAMELYON17, found "
            f"{','.join(rows[0]) if rows else 'nothing'}."
        )
    stages: dict[str, str] = {}
    nodes: dict[str, dict[str, str]] = {}
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != 2 or not all(row):
            raise LabelError(f"{path}: row {number} is not a pair of name and stage.")
        name, found = row[0].rpartition(".")[0] or row[0], row[1]
        seen = {*stages, *(slide for of in nodes.values() for slide in of)}
        if name in seen:
            raise LabelError(f"{path}: row {number}: {name} is there twice.")
        if row[0].endswith(_PATIENT):
            stages[name], nodes[name] = found, {}
        elif not stages:
            raise LabelError(
                f"{path}: row {number}: slide {name} stands before any patient; expected "
                f"<patient>{_PATIENT} above its slides."
            )
        else:
            nodes[next(reversed(nodes))][name] = found
    return StageTable(stages, nodes)
