"""A small cohort on disk: slides, results of two methods, labels that make some of them errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import tifffile
from known_slides import make_result, make_slide

from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.geometry import Mpp
from slidelens.maps.result import Result

if TYPE_CHECKING:
    from pathlib import Path

MPP = 0.5
SCORES = {
    "good": {"a": 0.1, "b": 0.7, "c": 0.4, "d": 0.9},
    "weak": {"a": 0.3, "b": 0.95, "c": 0.2, "d": 0.8},
}
"""At 0.5: good errs on b by 0.2 and c by 0.1, weak on b by 0.45 and c by 0.3."""
TRUTH = {"a": "normal", "b": "normal", "c": "tumor", "d": "tumor"}


def make_cohort(folder: Path) -> Path:
    """Write ``slides``, ``results``, ``labels.csv`` and ``eval``; return the last."""
    slides, results = folder / "slides", folder / "results"
    slides.mkdir(parents=True)
    for name in TRUTH:
        slide = make_slide(MPP, name)
        path = slides / f"{name}.tif"
        tifffile.imwrite(path, np.asarray(slide.pyramid()[0]), tile=(256, 256))
        for model, scores in SCORES.items():
            drawn = make_result(slide, Mpp(MPP, MPP), model)
            made = Result(
                drawn.slide.model_copy(update={"path": str(path)}),
                drawn.model,
                {"normal": 1 - scores[name], "tumor": scores[name]},
                maps=list(drawn.maps.values()),
                regions=drawn.regions,
            )
            made.save(results / model / name)
    rows = "".join(f"{name},{label}\n" for name, label in TRUTH.items())
    (folder / "labels.csv").write_text("slide_id,label\n" + rows)
    options = EvaluationOptions(resampling=Resampling(resamples=100))
    evaluate(results, folder / "labels.csv", folder / "eval", options)
    return folder / "eval"
