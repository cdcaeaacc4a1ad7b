"""Pictures of the panels in napari: a phantom slide, two bundled models, a real window.

Made by ``python docs/make_pictures.py``, which starts the display.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["make"]

SIZE = (1400, 900)
_WAIT_S, _SETTLE_S = 120, 1.5


def make(images: Path, slide: Path, results: Path, home: Path) -> list[Path]:
    """Photograph each panel.

    Parameters
    ----------
    images
        Where the pictures go.
    slide, results
        A slide, and a folder with results of two models on it.
    home
        A folder for the settings, so that nobody's own are shown or changed.
    """
    os.environ.update(HOME=str(home), XDG_CONFIG_HOME=str(home))
    from slidelens.desktop.launch import view
    from slidelens.desktop.workbench import workbench_of

    viewer = view([slide], show=False)
    viewer.show()
    viewer.window.resize(*SIZE)
    bench = workbench_of(viewer)
    bench.use_results(results, remember=False)
    studio = _Studio(viewer, images)
    studio.wait(lambda: bench.slide is not None)
    navigator = bench.open_panel("navigator")
    run = bench.open_panel("run")
    studio.wait(lambda: len(bench.cards) > 1 and run.results.tree.topLevelItemCount() == 2)
    run.models.choose(*(card.name for card in bench.cards[:2]))
    shown: list[Any] = []
    bench.show_result(results / "demo-mil" / slide.stem, then=shown.append)
    studio.wait(lambda: bool(shown))
    navigator.parentWidget().hide()
    studio.shoot("desktop-run.jpg")
    navigator.parentWidget().show()
    maps = bench.open_panel("maps")
    studio.wait(lambda: bool(maps.share.text()))
    maps.threshold.setValue(0.3)
    navigator.magnify(5)
    navigator.go(1400, 600)
    navigator.add_bookmark()
    studio.shoot("desktop-maps.jpg")
    navigator.whole()
    compare = bench.open_panel("compare")
    studio.wait(lambda: compare.compared.comparison is not None)
    navigator.parentWidget().hide()
    compare.set_mode("four")
    studio.shoot("desktop-compare.jpg")
    compare.set_mode("off")
    panel = bench.open_panel("slide")
    studio.wait(lambda: panel.about is not None)
    studio.shoot("desktop-slide.jpg")
    viewer.close()
    return studio.made


class _Studio:
    """Waits until a window shows what it should, and keeps a picture of it."""

    def __init__(self, viewer: Any, images: Path) -> None:
        self._viewer, self._images = viewer, images
        self.made: list[Path] = []

    def wait(self, until: Callable[[], bool], seconds: float = _WAIT_S) -> None:
        from qtpy.QtWidgets import QApplication

        end = time.monotonic() + seconds
        while not until():
            if time.monotonic() > end:
                raise TimeoutError("the window does not show what its picture is of")
            QApplication.processEvents()
            time.sleep(0.01)

    def shoot(self, name: str) -> None:
        end = time.monotonic() + _SETTLE_S
        self.wait(lambda: time.monotonic() > end)
        pixels = self._viewer.screenshot(canvas_only=False, flash=False)
        path = self._images / name
        Image.fromarray(pixels[..., :3]).save(path, quality=82, optimize=True)
        self.made.append(path)
