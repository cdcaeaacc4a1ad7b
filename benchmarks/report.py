"""Time, size and memory of ``report`` on 500 slides with 60 errors, HTML and PDF.

The slides are phantoms of 33 megapixels under three methods (tiles, saliency, lesions) whose
results are made, not predicted (``slidelens.testing.results``). Results of slides with errors hold
maps; the others hold their scores, which is all that a report reads of them. Memory is that of a
process of its own above what it holds once every library is imported, for few errors and for all:
it is flat if the two hardly differ. ``--quick`` takes fewer slides and errors.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import common
import numpy as np
from memory import memory

if TYPE_CHECKING:
    from slidelens.testing.layout import PhantomTruth
    from slidelens.testing.results import Method

METHODS: tuple[Method, ...] = ("mil", "streaming", "segmentation")
SLIDES, ERRORS = 500, 60
QUICK_SLIDES, QUICK_ERRORS = 100, 12
FEW = 12
FILES = 6
"""Different phantoms; slides share their files, as reading them is what takes time."""

LIBRARIES = [
    "imagecodecs",
    "jinja2",
    "matplotlib.figure",
    "openslide",
    "scipy.ndimage",
    "shapely",
    "slidelens.engine.evaluation.pictures",
    "slidelens.maps.ngff",
    "slidelens.review.report",
    "tifffile",
    "weasyprint",
    "zarr",
]


def cohort(folder: Path, slides: int, errors: int) -> Path:
    """Write slides, results and the evaluation of a cohort."""
    from slidelens.engine.evaluate import evaluate
    from slidelens.testing.phantom import PhantomSpec, write_phantom
    from slidelens.testing.results import make_result

    files = []
    for number in range(FILES):
        path = folder / f"{number}.tif"
        lesions = 2 * (number % 2)
        spec = PhantomSpec(size=(6400, 5120), seed=number, lesions=lesions, follicles=3)
        files.append((path, write_phantom(path, spec)))
    rng = np.random.default_rng(0)
    wrong = set(rng.choice(slides, errors, replace=False).tolist())
    rows = []
    for number in range(slides):
        slide_id = f"slide_{number:04d}"
        path, truth = files[number % FILES]
        rows.append(f"{slide_id},{truth.label}\n")
        failing = METHODS[number % len(METHODS)] if number in wrong else None
        for method in METHODS:
            score = float(rng.uniform(0.55, 0.95))
            score = score if truth.label != (method == failing) else 1 - score
            place = folder / "results" / method / slide_id
            if number in wrong:
                made = make_result(truth, slide_id, method, score, path=path, seed=number)
                made.save(place)
            else:
                bare(place, slide_id, method, score, truth, path)
    (folder / "labels.csv").write_text("slide_id,label\n" + "".join(rows))
    evaluate(folder / "results", folder / "labels.csv", folder / "eval")
    return folder / "eval"


def bare(
    place: Path, slide_id: str, method: Method, score: float, truth: PhantomTruth, path: Path
) -> None:
    """Write a result that holds its scores only."""
    place.mkdir(parents=True)
    content = {
        "slide": {"id": slide_id, "path": str(path), "width": truth.size.width},
        "model": {"name": method, "family": method, "threshold": 0.5},
        "probabilities": {"normal": 1 - score, "tumor": score},
    }
    (place / "result.json").write_text(json.dumps(content))


def child(evaluation: str, out: str, pdf: str) -> None:
    """Write one report in this process and print what it took."""
    for name in LIBRARIES:
        import_module(name)
    from slidelens.review.report import write_report

    before = memory("VmRSS")
    start, used = time.perf_counter(), time.process_time()
    done = write_report(evaluation, out, pdf=pdf or None)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - used,
        "libraries_mb": before,
        "peak_mb": memory("VmHWM"),
        "errors": done.errors,
        "slides_with_errors": done.slides,
        "html_mb": done.html.stat().st_size / 1e6,
        "pdf_mb": 0.0 if done.pdf is None else done.pdf.stat().st_size / 1e6,
    }
    print(json.dumps(figures))


def run(evaluation: Path, *, pdf: bool) -> dict[str, float]:
    """Write one report in a process of its own."""
    out = evaluation.parent / "report.html"
    command = [sys.executable, __file__, "--child", str(evaluation), str(out)]
    command.append(str(out.with_suffix(".pdf")) if pdf else "")
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return {**figures, "above_mb": figures["peak_mb"] - figures["libraries_mb"]}


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    """Make the cohorts and report on them."""
    slides, errors = (QUICK_SLIDES, QUICK_ERRORS) if quick else (SLIDES, ERRORS)
    few = 3 if quick else FEW
    with tempfile.TemporaryDirectory(prefix="slidelens-bench-") as name:
        folder = Path(name)
        for part in ("few", "all"):
            (folder / part).mkdir()
        small = run(cohort(folder / "few", slides, few), pdf=False)
        evaluation = cohort(folder / "all", slides, errors)
        html = run(evaluation, pdf=False)
        both = run(evaluation, pdf=True)
    what = f"{slides} slides, {errors} errors"
    claims = [
        common.at_most(f"HTML report, {what}", html["seconds"], 120, "s"),
        common.at_most(f"HTML and PDF, {what}", both["seconds"], 120, "s"),
        common.at_most(f"size of the HTML file, {what}", both["html_mb"], 30, "MB"),
        common.at_most(f"size of the PDF file, {what}", both["pdf_mb"], 30, "MB"),
        common.at_most(
            f"peak memory of the HTML report, {errors} errors relative to {few}",
            html["peak_mb"] / small["peak_mb"],
            1.15,
            "x",
        ),
    ]
    return claims, {"few_errors": small, "html": html, "html_and_pdf": both}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        common.main(__doc__, measure)
