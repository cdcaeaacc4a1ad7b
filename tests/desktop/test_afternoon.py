"""An afternoon of a pathologist who has never typed a command, in one window, with real events.

Open two slides, run two models on each, compare them, outline a gland, fine-tune a model for one
epoch, review two errors, export the report. A picture of every panel is kept in tests/_pictures.
"""

from __future__ import annotations

import pytest
from hands import canvas_of, click, double_click, press
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QApplication

from slidelens.desktop.shown import layers_of
from slidelens.geometry import Size
from slidelens.maps.result import Result
from slidelens.review.store import STORE_FILE, ReviewStore
from slidelens.review.taxonomy import read_taxonomy
from slidelens.slide.open import open_slide
from slidelens.testing.pyramid import write_pyramid
from slidelens.tiling.annotations import read_annotations

pytestmark = [pytest.mark.gui, pytest.mark.realdata]

WAIT, LONG = 40_000, 180_000
CMU, MOSAIC = "CMU-1-Small-Region", "train_001"
MODELS = ("demo-mil", "demo-multistage")
PART = 1024  # px
LEARN = {"train_000": "normal", "train_002": "normal", "train_001": "tumor", "train_003": "tumor"}


class Afternoon:
    """What the person does, and looks at."""

    def __init__(self, bench, qtbot, pictures) -> None:
        self.bench, self.qtbot, self.pictures = bench, qtbot, pictures
        window = bench.viewer.window._qt_window  # not kept: napari's tests look for leaked windows
        window.activateWindow()
        self.wait(window.isActiveWindow)

    def wait(self, until, timeout: int = WAIT) -> None:
        self.qtbot.waitUntil(until, timeout=timeout)

    def press(self, button) -> None:
        press(self.qtbot, button)

    def key(self, widget, key) -> None:
        widget.setFocus()
        self.qtbot.keyClick(widget, key)

    def look(self, name: str) -> None:
        """Keep a picture of the whole window."""
        self.wait(lambda: not self.bench.flight.flying)
        for _ in range(3):
            QApplication.processEvents()
        path = self.pictures / f"{name}.png"
        self.bench.viewer.screenshot(str(path), canvas_only=False, flash=False)
        assert path.stat().st_size > 30_000

    def run(self, slide) -> None:
        """Open a slide and run both models."""
        panel = self.bench.open_panel("run")
        self.bench.open_slide(slide)
        self.wait(lambda: self.bench.slide is not None and self.bench.slide.id == slide.stem)
        panel.models.choose(*MODELS)
        self.press(panel.run_button)
        self.wait(lambda: not panel.running, LONG)
        for model in MODELS:
            assert Result.load(self.bench.results / model / slide.stem).classes[-1] == "tumor"
            self.wait(lambda m=model: any(layers_of(self.bench.viewer, "map", model=m)))
        assert panel.notice.text.startswith("demo-mil: tumor")


@pytest.fixture
def afternoon(bench, qtbot, request):
    pictures = request.config.rootpath / "tests" / "_pictures"
    pictures.mkdir(exist_ok=True)
    return Afternoon(bench, qtbot, pictures)


def test_afternoon(afternoon, data, tmp_path):
    mosaic = data / "crc_mosaic" / "slides"
    bench = afternoon.bench
    run = bench.open_panel("run")
    afternoon.wait(lambda: bool(bench.cards), LONG)
    afternoon.run(data / "wsi" / f"{CMU}.svs")
    afternoon.run(mosaic / f"{MOSAIC}.tif")
    afternoon.look("afternoon-run")
    bench.open_panel("maps")
    afternoon.look("afternoon-maps")
    compare(afternoon)
    slides = tmp_path / "slides"
    slides.mkdir()
    for name in LEARN:
        cut_out(mosaic / f"{name}.tif", slides / f"{name}.tif")
    outline(afternoon, tmp_path / "outlines")
    fine_tune(afternoon, slides, tmp_path / "labels.csv")
    afternoon.press(bench.open_panel("train").notice._action)  # "Run it"
    assert [card.name for card, _ in run.models.chosen()] == ["my-model"]
    review(afternoon, tmp_path)


def cut_out(slide, path) -> None:
    """Write the upper left part of a slide: an epoch on the whole slides takes half a minute."""
    with open_slide(slide) as whole:
        write_pyramid(path, Size(PART, PART), whole.mpp, whole.read)


def compare(afternoon) -> None:
    panel = afternoon.bench.open_panel("compare")
    afternoon.wait(lambda: panel.methods.topLevelItemCount() == 2)
    panel.choose(*MODELS)
    afternoon.wait(lambda: panel.compared.comparison is not None)
    panel.set_mode("two")
    afternoon.wait(lambda: len(panel.canvases.cells) == 2)
    afternoon.look("afternoon-compare")
    panel.set_mode("off")


def outline(afternoon, folder) -> None:
    """Outline a gland on the open slide, for the families that learn from outlines."""
    panel = afternoon.bench.open_panel("train")
    afternoon.wait(lambda: panel.options.chosen is not None)
    panel.options.choose("multistage")
    panel.data.set_annotations(folder)
    panel.data.outline_class.setText("tumor")
    afternoon.press(panel.data.draw_button)
    canvas = canvas_of(afternoon.bench.viewer)
    middle = QPoint(canvas.width() // 2, canvas.height() // 2)
    for dx, dy in ((-80, -50), (70, -60), (90, 60)):
        click(canvas, middle + QPoint(dx, dy))
    double_click(canvas, middle + QPoint(-60, 70))
    file = folder / f"{MOSAIC}.geojson"
    afternoon.wait(lambda: file.is_file() and len(read_annotations(file)) == 1)
    (drawn,) = read_annotations(file)
    assert drawn.label == "tumor"
    afternoon.look("afternoon-outline")


def fine_tune(afternoon, slides, labels) -> None:
    """Label four slides by clicking and fine-tune the demo model for one epoch."""
    panel = afternoon.bench.open_panel("train")
    panel.options.choose("mil", "demo-mil")
    panel.data.set_slides(slides)
    afternoon.wait(lambda: panel.data.slides == slides)
    panel.data.set_labels(labels)
    panel.data.by_click.expand(animate=False)
    labelling = panel.data.labelling
    for name, label in LEARN.items():
        panel.scrolled.ensureWidgetVisible(labelling.buttons[label])
        afternoon.wait(lambda b=labelling.buttons[label]: not b.visibleRegion().isEmpty())
        labelling.tree.clearSelection()
        labelling.choose(name)
        afternoon.press(labelling.buttons[label])
    assert labelling.counts.text() == "2 normal, 2 tumor"
    panel.options.epochs.setValue(1)
    afternoon.wait(lambda: panel.start_button.isEnabled() or not planning(panel), LONG)
    assert panel.start_button.isEnabled(), panel.why.text()
    assert sum(panel.split.train) == sum(panel.split.tune) == 2
    afternoon.press(panel.start_button)
    afternoon.wait(lambda: not panel.running, LONG)
    assert panel.notice.text.startswith("my-model is trained.")
    assert len(panel.losses.curves[0].values) == 1
    afternoon.look("afternoon-train")
    afternoon.wait(lambda: "my-model" in [c.name for c in afternoon.bench.cards], LONG)


def planning(panel) -> bool:
    """Whether the panel is still waiting for the split, or has said why there is none."""
    return panel.why.text().startswith("Checking") or not panel.why.text()


def contradicting(bench) -> list[tuple[str, str]]:
    """Label a slide of each class so that two of the four calls, or more, are errors."""
    ways = [((MOSAIC, "normal"), (CMU, "tumor")), ((MOSAIC, "tumor"), (CMU, "normal"))]

    def errors(way) -> int:
        found = [(Result.load(bench.results / m / s), k) for m in MODELS for s, k in way]
        called = [(r.probabilities["tumor"] >= r.model.threshold, k) for r, k in found]
        return sum(positive != (label == "tumor") for positive, label in called)

    return list(max(ways, key=errors))


def review(afternoon, folder) -> None:
    """Evaluate against labels that contradict the models, decide on two errors, export."""
    bench, labels = afternoon.bench, folder / "truth.csv"
    labels.write_text("slide_id,label\n" + "".join(f"{s},{k}\n" for s, k in contradicting(bench)))
    panel = bench.open_panel("review")
    panel.reviewer.setText("ann")
    panel.evaluate(labels)
    afternoon.wait(lambda: panel.review is not None, LONG)
    assert len(panel.review.cases) >= 2
    store = ReviewStore(panel.review.saved.folder / STORE_FILE)
    for number in range(2):
        case = panel.review.case
        afternoon.wait(lambda: panel.case.place.text().startswith("Place 1"), LONG)
        afternoon.wait(lambda c=case: bench.slide is not None and bench.slide.id == c.slide_id)
        afternoon.key(panel.errors.tree, Qt.Key.Key_2)
        panel.case.note.setFocus()
        afternoon.qtbot.keyClicks(panel.case.note, f"error {number + 1}")
        if number == 0:
            afternoon.look("afternoon-review")
            afternoon.key(panel.errors.tree, Qt.Key.Key_Right)
        panel.case.flush()
        kept = store.get(case.key, "ann")
        assert kept.category == read_taxonomy(panel.review.saved.folder)[case.kind][1]
        assert kept.note == f"error {number + 1}"
    assert panel.errors.bar.value() == 2
    panel.export.write_report(folder / "report.html")
    afternoon.wait(lambda: not panel.export.busy, LONG)
    assert "The report was written" in panel.notice.text
    assert "error 2" in (folder / "report.html").read_text()
