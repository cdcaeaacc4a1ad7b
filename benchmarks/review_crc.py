"""Review and report of three methods on the tuning split of ``crc_mosaic``, one of them weak.

Trains gated-attention MIL, multi-stage segmentation (Separate Learning, as the quick form of
``multistage_crc.py`` does) and, so that there are errors to review, the mean of what a random
backbone sees, for one epoch; predicts the tuning slides; runs ``slidelens evaluate`` and
``slidelens report`` one after the other; decides on every error of the weak method; and reports
again. Judged are the time of the two commands, the sizes, and whether table III of the report adds
up to the decisions in the store. Trainings and results are kept in ``$SLIDELENS_BENCH_WORK``
(default: the system's temporary folder). ``--quick`` is the same: all schedules are short.
"""

from __future__ import annotations

import csv
import json
import re
from typing import TYPE_CHECKING, Any

from common import Claim, at_least, at_most, main, slidelens
from multistage_crc import COHORT, WEIGHTS, WORK, one_method

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = WORK.parent / "review_crc"
SEPARATE = ("classifier only", "Separate")

SQUEEZENET = ["--backbone", "squeezenet1_1", "--weights", WEIGHTS]
MIL: dict[str, list[object]] = {
    "attention": ["--pooling", "gated-abmil", "--epochs", 12, *SQUEEZENET],
    "weak": ["--pooling", "mean", "--epochs", 1, *SQUEEZENET[:2], "--weights", "none"],
}


def measure(_quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Train, predict, evaluate, report, decide, report."""
    labels, evaluation = COHORT / "labels.csv", FOLDER / "eval"
    for name, options in MIL.items():
        if not (FOLDER / name / "model.json").exists():
            words = [*options, "--slides", COHORT / "slides", "--labels", labels, "--resume"]
            slidelens("train", "mil", *words, "--out", FOLDER / name, "--device", "cpu")
    separate = [one_method(WORK / "quick" / "0", method, 0, quick=True) for method in SEPARATE][-1]
    paths = [*(FOLDER / name for name in MIL), separate]
    models = [word for path in paths for word in ("--model", path)]
    slides = [COHORT / "slides" / f"{slide_id}.tif" for slide_id in tuning()]
    slidelens("predict", *slides, *models, "--out", FOLDER / "results", "--device", "cpu")
    found = ["--labels", labels, "--split", "tune", "--annotations", COHORT / "annotations"]
    spent, _ = slidelens("evaluate", FOLDER / "results", *found, "--out", evaluation)
    html, pdf = FOLDER / "report.html", FOLDER / "report.pdf"
    spent += slidelens("report", evaluation, "--out", html, "--pdf", pdf, *models)[0]
    decided = decide(evaluation)
    slidelens("report", evaluation, "--out", html, "--pdf", pdf, *models)
    photograph(html)
    counted = sum(sources(html).values())
    figures = json.loads((evaluation / "metrics.json").read_text())["models"]
    errors = {name: one["fp"] + one["fn"] for name, one in figures.items()}
    claims = [
        at_least("errors of the weak method", errors["weak"], 1),
        at_most("evaluate and report (HTML and PDF) of 20 slides, 3 methods", spent, 120, "s"),
        at_most("size of the HTML file", html.stat().st_size / 1e6, 30, "MB"),
        at_most("size of the PDF file", pdf.stat().st_size / 1e6, 30, "MB"),
        at_most("decisions in table III beside those in the store", abs(counted - decided), 0),
    ]
    shown = ("auc", "auc_ci", "accuracy", "sensitivity", "specificity", "fp", "fn")
    return claims, {
        "errors": errors,
        "decided": decided,
        "sources": sources(html),
        "figures": {name: {key: one[key] for key in shown} for name, one in figures.items()},
    }


def tuning() -> list[str]:
    """Return the ids of the tuning slides."""
    with (COHORT / "labels.csv").open() as file:
        return [row["slide_id"] for row in csv.DictReader(file) if row["split"] == "tune"]


def decide(evaluation: Path) -> int:
    """Decide on the errors of the weak method by ``review set``; return how many are decided."""
    from slidelens.review.errors import list_errors
    from slidelens.review.store import STORE_FILE, ReviewStore
    from slidelens.review.taxonomy import TAXONOMY

    for number, case in enumerate(e for e in list_errors(evaluation) if e.model == "weak"):
        for reviewer, step in (("first", 2), ("second", 3)):
            category = TAXONOMY[case.kind][number % step]  # they do not always agree
            words = ["set", case.slide_id, "--model", "weak", "--category", category]
            slidelens("review", evaluation, *words, "--reviewer", reviewer)
    return len({d.key for d in ReviewStore(evaluation / STORE_FILE).decisions() if d.decided})


def photograph(html: Path) -> None:
    """Photograph the sections without tissue, which may be shown to anyone."""
    from slidelens.testing.browser import browser

    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1240, "height": 1000})
        page.goto(html.as_uri())
        for section in ("performance", "sources", "errors"):
            page.locator(f"#{section}").screenshot(path=FOLDER / f"{section}.png")


def sources(html: Path) -> dict[str, int]:
    """Read the counts of decided errors in table III, all methods together, out of the report."""
    found: dict[str, int] = {}
    text = re.sub(r"data:image/[^\"]+", "", html.read_text())
    for table in re.findall(r'<table class="sources".*?</table>', text, re.DOTALL):
        for name, cells in re.findall(r'<th scope="row">([^<]+)</th>(.*)</tr>', table):
            if name != "Not reviewed":
                numbers = re.findall(r">(\d+)<", cells)
                found[name] = found.get(name, 0) + sum(map(int, numbers))
    return found


if __name__ == "__main__":
    main(__doc__, measure, [COHORT, WEIGHTS])
