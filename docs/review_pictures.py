"""Pictures of the review's report: pages of the HTML file and of the PDF.

The slides are phantoms, and the results are made (``slidelens.testing.results``), so that the page
shows every kind of evidence and no real tissue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from slidelens.testing.results import Method

__all__ = ["make"]

DECODED = """one => {
    one.style.contentVisibility = 'visible';
    return Promise.all([...one.querySelectorAll('img')].map(image => {
        image.loading = 'eager';
        return image.decode();
    }));
}"""
"""Pictures and pages wait until they are looked at; a photograph must not."""
METHODS: dict[Method, float] = {
    "mil": 0.3,
    "streaming": 0.35,
    "segmentation": 0.45,
    "magnet": 0.4,
}
"""How far each method's scores scatter, so that each errs."""


def make(images: Path) -> list[Path]:
    """Write the pictures and return where they are."""
    from slidelens.review.report import write_report

    made = [images / f"review-{name}" for name in ("case.jpg", "sources.png", "pdf.jpg")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        evaluation = cohort(folder)
        decide(evaluation)
        done = write_report(evaluation, folder / "report.html", pdf=folder / "report.pdf")
        assert done.pdf is not None
        photograph(done.html, made[0], made[1])
        render(done.pdf, made[2])
    return made


def cohort(folder: Path, slides: int = 14) -> Path:
    """Write phantoms, results and their evaluation."""
    from slidelens.engine.evaluate import EvaluationOptions, evaluate
    from slidelens.testing.phantom import CLASSES, write_cohort
    from slidelens.testing.results import make_result

    rng = np.random.default_rng(20)
    truths = write_cohort(folder, slides, seed=21, size=(4096, 3072))
    for number, truth in enumerate(truths):
        slide_id = f"phantom_{number:03d}"
        path = folder / "slides" / f"{slide_id}.tif"
        for method, scatter in METHODS.items():
            score = float(np.clip(0.2 + 0.6 * truth.label + rng.normal(0, scatter), 0.02, 0.98))
            result = make_result(truth, slide_id, method, score, path=path, seed=number)
            result.save(folder / "results" / method / slide_id)
    rows = [f"phantom_{n:03d},{CLASSES[t.label]}\n" for n, t in enumerate(truths)]
    (folder / "labels.csv").write_text("slide_id,label\n" + "".join(rows))  # without splits
    options = EvaluationOptions(annotations=folder / "annotations")
    evaluate(folder / "results", folder / "labels.csv", folder / "eval", options)
    return folder / "eval"


def decide(evaluation: Path) -> None:
    """Decide on all errors but the last, as two reviewers would."""
    from slidelens.review.errors import list_errors
    from slidelens.review.store import STORE_FILE, ReviewStore
    from slidelens.review.taxonomy import TAXONOMY

    store = ReviewStore(evaluation / STORE_FILE)
    note = "Discussed at the microscope."
    for number, case in enumerate(list_errors(evaluation)[:-1]):
        categories = TAXONOMY[case.kind]
        first = categories[number % 3]
        store.set(case.key, reviewer="a", category=first, note=note if number < 2 else "")
        second = first if number % 3 else categories[3]
        if number % 2:
            store.set(case.key, reviewer="b", category=second)
    suspects = [case for case in list_errors(evaluation) if case.suspect]
    for case in suspects:
        store.set(case.key, reviewer="a", true_label=case.predicted)


def photograph(html: Path, case: Path, sources: Path) -> None:
    """Photograph a slide's page and the table of sources."""
    from slidelens.testing.browser import browser

    with browser() as chromium:
        page = chromium.new_page(viewport={"width": 1240, "height": 1180})
        page.goto(html.as_uri())
        missed = page.locator("article.case", has=page.locator(".kind.fn")).first
        missed.evaluate(DECODED)
        missed.screenshot(path=case, type="jpeg", quality=85)
        page.locator("#sources").screenshot(path=sources)


def render(pdf: Path, out: Path) -> None:
    """Put three pages of the PDF beside each other."""
    import pypdfium2
    from PIL import Image

    with pypdfium2.PdfDocument(pdf) as document:
        texts = [page.get_textpage().get_text_range() for page in document]
        first = next(i for i, text in enumerate(texts) if text.startswith("S-"))
        chosen = [0, 1, first]
        pages = [document[i].render(scale=1.3).to_pil() for i in chosen]
    gap = 12
    width = sum(page.width + gap for page in pages) + gap
    sheet = Image.new("RGB", (width, pages[0].height + 2 * gap), (150, 150, 150))
    for number, page in enumerate(pages):
        sheet.paste(page, (gap + number * (page.width + gap), gap))
    sheet.save(out, quality=85)
