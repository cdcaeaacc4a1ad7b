"""Lymph nodes: from lesions to the class of a slide, and from a patient's slides to the pN stage.

Source: the simplified pN system of CAMELYON17 (Bándi et al. 2019; camelyon17.grand-challenge.org,
"Evaluation"), to which multi-stage-segmentation-2019, section 4.1, refers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.engine.metrics import confusion, kappa

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "NODE_CLASSES",
    "STAGES",
    "node_class",
    "pn_stage",
    "stage_kappa",
]

NODE_CLASSES = ("negative", "itc", "micro", "macro")
"""Classes of a slide (one node each), in order of severity."""

STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
"""Stages of a patient, in order of severity."""

_MACRO_MM, _MICRO_MM = 2.0, 0.2
_MOST = 9  # positive nodes in pN2; CAMELYON17 knows no pN3


def node_class(largest_diameter_mm: float | None) -> str:
    """Return the class of a slide by its largest lesion; ``None`` is a slide without one.

    Macro-metastases are greater than 2.0 mm, micro-metastases greater than 0.2 mm; smaller groups
    of cells are isolated tumour cells. (The rule's other limit, 200 cells, needs a cell count.)
    """
    if largest_diameter_mm is None:
        return "negative"
    if largest_diameter_mm > _MACRO_MM:
        return "macro"
    return "micro" if largest_diameter_mm > _MICRO_MM else "itc"


def pn_stage(nodes: Sequence[str]) -> str:
    """Return the pN stage of a patient from the classes of all their nodes.

    =========  =====================================================================
    pN0        no metastases and no isolated tumour cells
    pN0(i+)    isolated tumour cells only
    pN1mi      micro-metastases, no macro-metastases
    pN1        metastases in 1 to 3 nodes, at least one of them a macro-metastasis
    pN2        metastases in 4 to 9 nodes, at least one of them a macro-metastasis
    =========  =====================================================================

    Nodes with isolated tumour cells alone are not counted.

    Raises
    ------
    ValueError
        No node, an unknown class, or more than nine nodes with metastases.
    """
    unknown = sorted(set(nodes) - set(NODE_CLASSES))
    if unknown or not nodes:
        raise ValueError(
            f"a patient's nodes are of the classes {', '.join(NODE_CLASSES)}, not "
            f"{', '.join(unknown) or 'none at all'}"
        )
    macro, micro = (sum(node == name for node in nodes) for name in ("macro", "micro"))
    if macro + micro > _MOST:
        raise ValueError(
            f"{macro + micro} nodes with metastases: the CAMELYON17 system ends at {_MOST}"
        )
    if macro:
        return "pN1" if macro + micro <= 3 else "pN2"
    if micro:
        return "pN1mi"
    return "pN0(i+)" if "itc" in nodes else "pN0"


def stage_kappa(truth: Mapping[str, str], found: Mapping[str, str]) -> float:
    """Return the quadratic weighted kappa of stages by patient, as CAMELYON17 evaluates them.

    Raises
    ------
    ValueError
        A patient without a found stage, or an unknown stage.
    """
    missing = sorted(truth.keys() - found.keys())
    if missing:
        raise ValueError(f"no stage was found for {', '.join(missing)}")
    unknown = sorted({*truth.values(), *(found[p] for p in truth)} - set(STAGES))
    if unknown:
        raise ValueError(f"stages are {', '.join(STAGES)}, not {', '.join(unknown)}")
    pairs = np.array([(STAGES.index(truth[p]), STAGES.index(found[p])) for p in truth])
    return kappa(confusion(pairs[:, 0], pairs[:, 1], len(STAGES)), quadratic=True)
