"""Pictures of the Review and Train panels at work: real clicks' worth of a session, on phantoms."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import review_pictures

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from slidelens.desktop.workbench import Workbench

__all__ = ["make"]

SIZE = (1280, 860)
EPOCHS = 6


def make(images: Path) -> list[Path]:
    """Write the pictures and return where they are; a display must be there."""
    made = [images / f"panel-{name}.jpg" for name in ("review", "train")]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with home(folder / "home"):
            draw(folder, made)
    return made


@contextmanager
def home(folder: Path) -> Iterator[None]:
    """Live somewhere else: what the workbench remembers and trains is not the person's."""
    folder.mkdir()
    names = ("HOME", "XDG_CONFIG_HOME", "APPDATA")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(folder)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def draw(folder: Path, made: list[Path]) -> None:
    """Open a window, use the panels, photograph them."""
    import napari

    from slidelens.desktop.workbench import workbench_of

    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    bench = workbench_of(viewer)
    try:
        review(bench, folder, made[0])
        train(bench, folder, made[1])
    finally:
        viewer.close()


def review(bench: Workbench, folder: Path, out: Path) -> None:
    """Open an evaluation, decide on an error, stand at its strongest evidence."""
    evaluation = review_pictures.cohort(folder, 8)
    panel = bench.open_panel("review")
    panel.reviewer.setText("Reviewer A")
    panel.open(evaluation)
    wait(lambda: panel.review is not None)
    wait(lambda: panel.case.place.text().startswith("Place 1"))
    panel.case.choose_category(1)
    wait(lambda: not bench.flight.flying)
    photograph(bench, out)


def train(bench: Workbench, folder: Path, out: Path) -> None:
    """Fine-tune the demo model on a few slides."""
    from slidelens.testing.phantom import write_cohort

    write_cohort(folder / "small", 12, seed=4, size=(1024, 1024))
    panel = bench.open_panel("train")
    wait(lambda: panel.options.chosen is not None)
    panel.options.choose("mil", "demo-mil")
    panel.options.epochs.setValue(EPOCHS)
    panel.data.set_slides(folder / "small" / "slides")
    wait(lambda: panel.data.slides is not None)
    panel.data.set_labels(folder / "small" / "labels.csv")
    wait(panel.start_button.isEnabled)
    panel.start()
    wait(lambda: len(panel.state.rows) >= EPOCHS - 1 or not panel.running)
    photograph(bench, out)
    panel.cancel()
    wait(lambda: not panel.running)
    bench.trash.empty()


def photograph(bench: Workbench, out: Path) -> None:
    """Keep a picture of the window as JPEG."""
    from PIL import Image

    settle(0.5)
    pixels: Any = bench.viewer.screenshot(canvas_only=False, flash=False)
    Image.fromarray(pixels[..., :3]).save(out, quality=85)


def wait(until: Callable[[], bool], seconds: float = 600) -> None:
    """Let the window live until something holds."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("the window did not get there")
        settle(0.05)


def settle(seconds: float) -> None:
    """Let the window live for a while."""
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while time.monotonic() < end:
        QApplication.processEvents()
        time.sleep(0.01)
