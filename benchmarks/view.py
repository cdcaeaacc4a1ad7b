"""napari on a 40000 x 30000 px JPEG pyramid: time and bytes to the first image, time per zoom.

The window is open and has drawn before, as a person's has. The clock of the first image runs from
the reader's return to the end of the canvas's drawing; bytes are those asked of the system while
the slide's levels are read in that time (napari's own icons and settings are not the slide's). A
zoom goes to a place and level that were not looked at before. ``cpu`` figures are the process's CPU
time of all threads in the same spans: on a busy machine they say more than the clock.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import Claim, at_most, main

from slidelens.slide.pyramid import LazyLevel
from slidelens.testing.display import virtual_display
from slidelens.testing.phantom import PhantomSpec, write_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

# 40960 x 28672 px: a drawn block of 4096 px, laid out 10 x 7 times; 70 is Aperio's JPEG quality.
BLOCK, REPEAT = (4096, 4096), (10, 7)
UM_PER_PIXEL = (4.0, 2.0, 1.0, 0.5, 0.25)


def bytes_read() -> int:
    """Bytes that this process has asked the system for, cached by it or not."""
    for line in Path("/proc/self/io").read_text().splitlines():
        if line.startswith("rchar:"):
            return int(line.split()[1])
    raise RuntimeError("this system does not count reads (/proc/self/io)")


@contextmanager
def counted() -> Iterator[list[int]]:
    """Collect the bytes that each read of a slide's level asks for."""
    plain = LazyLevel.__getitem__
    counts: list[int] = []

    def read(level: LazyLevel, key: Any) -> Any:
        before = bytes_read()
        pixels = plain(level, key)
        counts.append(bytes_read() - before)
        return pixels

    LazyLevel.__getitem__ = read  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        LazyLevel.__getitem__ = plain  # type: ignore[method-assign]


class Span:
    """Seconds by the clock and of the processor."""

    def __enter__(self) -> Span:
        self.wall, self.cpu = -time.perf_counter(), -time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Open and zoom in a real window."""
    with tempfile.TemporaryDirectory() as name, virtual_display():
        large, small = Path(name) / "large.tif", Path(name) / "small.tif"
        write_phantom(small, PhantomSpec(size=(1024, 1024)))
        write_phantom(
            large, PhantomSpec(size=BLOCK, repeat=REPEAT, lesions=2, mpp=0.25, quality=70)
        )
        return _measure(large, small, rounds=5 if quick else 15)


def _measure(large: Path, small: Path, rounds: int) -> tuple[list[Claim], dict[str, Any]]:
    import napari

    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    _open(viewer, small)
    firsts, read = zip(*(_open(viewer, large) for _ in range(rounds)), strict=True)
    zooms = _zoom(viewer, rounds)
    viewer.close()
    first, zoom = (1e3 * statistics.median(s.wall for s in spans) for spans in (firsts, zooms))
    claims = [
        at_most("first image after the reader returns, median", first, 300, "ms"),
        at_most("read for the first image, at most", max(read) / 1e6, 1.0, "MB"),
        at_most("zoom to a new level, median", zoom, 200, "ms"),
    ]
    figures = {
        "slide_px": [BLOCK[0] * REPEAT[0], BLOCK[1] * REPEAT[1]],
        "file_mb": round(large.stat().st_size / 1e6, 1),
        "first_image_ms": [round(1e3 * s.wall) for s in firsts],
        "first_image_cpu_ms": [round(1e3 * s.cpu) for s in firsts],
        "first_image_mb": [round(count / 1e6, 3) for count in read],
        "zoom_ms": [round(1e3 * s.wall) for s in zooms],
        "zoom_cpu_ms": [round(1e3 * s.cpu) for s in zooms],
    }
    return claims, figures


def _open(viewer: Any, path: Path) -> tuple[Span, int]:
    """Open a slide in the empty viewer; return time and bytes from the reader to the image."""
    from napari.layers import Layer

    from slidelens.desktop.reader import get_slide_reader

    viewer.layers.clear()
    _draw(viewer)
    read = get_slide_reader(str(path))
    assert read is not None
    layers = read(str(path))  # a slide opened anew: nothing of it is cached
    with counted() as counts, Span() as span:
        for layer in layers:
            viewer.add_layer(Layer.create(*layer))
        viewer.reset_view()
        _draw(viewer)
    return span, sum(counts)


def _zoom(viewer: Any, rounds: int) -> list[Span]:
    random = np.random.default_rng(0)
    (layer,) = viewer.layers
    low, high = layer.extent.world
    spans = []
    for _ in range(rounds):
        # Somewhere else each time, from coarse to fine, so that no tile was seen before.
        centre = random.uniform(low + 0.2 * (high - low), high - 0.2 * (high - low))
        for um in UM_PER_PIXEL:
            with Span() as span:
                viewer.scene.camera.center = tuple(centre)
                viewer.scene.camera.zoom = 1 / um
                _draw(viewer)
            spans.append(span)
    return spans


def _draw(viewer: Any) -> None:
    """Handle events until the canvas has drawn, and the pixels are there."""
    from qtpy.QtWidgets import QApplication
    from vispy.gloo import gl

    drawn: list[object] = []
    canvas = viewer.window._qt_viewer.canvas._scene_canvas
    canvas.events.draw.connect(drawn.append, position="last")
    canvas.update()
    while not drawn:
        QApplication.processEvents()
    canvas.events.draw.disconnect(drawn.append)
    canvas.set_current()
    gl.glFinish()


if __name__ == "__main__":
    main(__doc__, measure)
