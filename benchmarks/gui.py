"""The desktop stays free while models run, and a slide of over a gigapixel moves at once.

Three things are measured in a real window (software OpenGL under Xvfb):

- While a model predicts, and while one is fine-tuned, both in a worker, a heartbeat of 20 ms is
  timed: how late it comes is how long the window's thread was held, by napari's draws or by us. The
  callbacks of ours that do the most are timed one by one. Where one adds a layer, what napari takes
  to make its controls and its picture (a tenth of a second and more) is not ours to shorten: it is
  taken off, and the longest with it is held against ``add_image`` in a window of napari alone.
- A slide of 65536 x 61440 px (4 gigapixels): time to the first image, then of moves and zooms to
  places not seen before, with three overlays on (two maps and outlines).
- A random walk over that slide for five minutes (``--quick``: 40 s): growth of the resident memory.

The window is the one of ``slidelens view``.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import psutil
from common import Claim, at_most, main
from view import Span, _draw

from slidelens.testing.display import virtual_display
from slidelens.testing.phantom import PhantomSpec, write_phantom

if TYPE_CHECKING:
    from collections.abc import Iterator

BLOCK, REPEAT = (4096, 4096), (16, 15)  # 65536 x 61440 px: 4.03 gigapixels
UM_PER_PIXEL = (4.0, 2.0, 1.0, 0.5)
BEAT_MS = 20


@contextmanager
def held() -> Iterator[list[Held]]:
    """Time every callback of ours that the window's thread runs."""
    from napari.components.layerlist import LayerList

    from slidelens.desktop import gently, workbench
    from slidelens.desktop.background import Background
    from slidelens.desktop.panels.compare import ComparePanel
    from slidelens.desktop.panels.maps import MapsPanel
    from slidelens.desktop.panels.navigator import NavigatorPanel
    from slidelens.desktop.panels.results import ResultsList
    from slidelens.desktop.panels.run import RunPanel
    from slidelens.desktop.panels.train import TrainPanel
    from slidelens.desktop.workbench import Workbench
    from slidelens.desktop.worker.client import WorkerClient

    watched: list[tuple[Any, str]] = [
        (WorkerClient, "_hear"),
        (RunPanel, "_hear"),
        (RunPanel, "_grow"),
        (RunPanel, "_update"),
        (gently, "put_gently"),
        (workbench, "put_gently"),
        (TrainPanel, "_hear"),
        (TrainPanel, "_ended"),
        (TrainPanel, "_planned"),
        (Background, "_deliver"),
        (MapsPanel, "_fill"),
        (MapsPanel, "_read"),
        (ResultsList, "_fill"),
        (NavigatorPanel, "_look"),
        (ComparePanel, "_show"),
        (Workbench, "_look"),
        (Workbench, "_listed"),
    ]
    seconds: list[Held] = []
    inserts = Inserts()
    plain = [(owner, name, getattr(owner, name)) for owner, name in watched]
    for owner, name, function in plain:
        setattr(owner, name, _timed(function, f"{owner.__name__}.{name}", seconds, inserts))
    plain.append((LayerList, "insert", LayerList.insert))
    LayerList.insert = inserts.timed(LayerList.insert)
    try:
        yield seconds
    finally:
        for owner, name, function in plain:
            setattr(owner, name, function)


class Held(NamedTuple):
    """A callback: ms without napari's insertions of layers, ms in all, its name."""

    own: float
    whole: float
    name: str


class Inserts:
    """What napari's insertions of layers have taken so far, in ms."""

    def __init__(self) -> None:
        self.ms = 0.0

    def timed(self, function: Any) -> Any:
        @wraps(function)
        def insert(*args: Any, **options: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*args, **options)
            finally:
                self.ms += 1e3 * (time.perf_counter() - start)

        return insert


def _timed(function: Any, name: str, seconds: list[Held], inserts: Inserts) -> Any:
    @wraps(function)
    def timed(*args: Any, **options: Any) -> Any:
        start, before = time.perf_counter(), inserts.ms
        try:
            return function(*args, **options)
        finally:
            whole = 1e3 * (time.perf_counter() - start)
            seconds.append(Held(whole - (inserts.ms - before), whole, name))

    return timed


class Heartbeat:
    """How late a timer of the window comes, in ms."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self.late: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)
        self._timer.start(BEAT_MS)

    def _beat(self) -> None:
        now = time.perf_counter()
        self.late.append(max(0.0, 1e3 * (now - self._last) - BEAT_MS))
        self._last = now

    def stop(self) -> None:
        self._timer.stop()


def wait(until: Any, seconds: float = 300) -> None:
    from qtpy.QtWidgets import QApplication

    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise TimeoutError("the window did not come to where it should")
        QApplication.processEvents()
        time.sleep(0.001)


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Predict, then look around, in one window."""
    with tempfile.TemporaryDirectory() as name, virtual_display():
        folder = Path(name)
        os.environ.update(HOME=name, XDG_CONFIG_HOME=name)
        small, large = folder / "small.tif", folder / "large.tif"
        write_phantom(small, PhantomSpec(size=(3072, 2304), mpp=0.5, lesions=2, seed=7))
        write_phantom(large, PhantomSpec(size=BLOCK, repeat=REPEAT, lesions=2, mpp=0.25))
        from slidelens.desktop.launch import view

        viewer = view(show=False)  # as ``slidelens view`` opens it
        viewer.show()
        viewer.window.resize(1280, 800)
        claims, figures = _predict(viewer, small)
        for more, rest in (_train(viewer, folder), _look_around(viewer, large, quick)):
            claims += more
            figures |= rest
        viewer.close()
        return claims, figures


def _predict(viewer: Any, slide: Path) -> tuple[list[Claim], dict[str, Any]]:
    from slidelens.desktop.workbench import workbench_of

    with held() as callbacks:
        bench = workbench_of(viewer)
        bench.open_panel("navigator")
        bench.open_panel("maps")
        panel = bench.open_panel("run")
        bench.open_slide(slide)
        wait(lambda: bool(bench.cards) and bench.slide is not None)
        panel.models.choose("demo-mil")
        panel.models.form.control("overlap").setValue(56)
        panel.models.form.control("batch_size").setValue(16)
        wait(lambda: panel.run_button.isEnabled())
        callbacks.clear()
        beat = Heartbeat()
        panel.run()
        wait(lambda: not panel.running)
        beat.stop()
    claims, figures = _judge("predicting", callbacks, beat)
    whole, plain = max(one.whole for one in callbacks), _plain_adds()
    figures["predicting"] |= {"longest_with_adding_ms": whole, "plain_add_image_ms": plain}
    name = "longest while predicting, with adding a layer, relative to napari's add_image alone"
    return [*claims, at_most(name, whole / statistics.median(plain), 1.5, "x")], figures


def _plain_adds() -> list[float]:
    """Return how long napari alone takes to add a small image to another, in ms, five times."""
    import napari

    viewer, spent = napari.Viewer(show=False), []
    viewer.show()
    viewer.window.resize(1280, 800)
    viewer.add_image(np.zeros((2304, 3072, 3), np.uint8))
    for _ in range(5):
        _draw(viewer)
        start = time.perf_counter()
        layer = viewer.add_image(np.zeros((96, 72), np.float32))
        spent.append(round(1e3 * (time.perf_counter() - start), 1))
        _draw(viewer)
        viewer.layers.remove(layer)
    viewer.close()
    return spent


def _train(viewer: Any, folder: Path) -> tuple[list[Claim], dict[str, Any]]:
    """Fine-tune the demo model on eight slides."""
    from slidelens.desktop.workbench import workbench_of

    (folder / "slides").mkdir()
    rows = "slide_id,label\n"
    for seed in range(8):
        lesions = seed % 2
        path = folder / "slides" / f"s{seed}.tif"
        write_phantom(path, PhantomSpec(size=(1024, 1024), mpp=0.5, lesions=lesions, seed=seed))
        rows += f"s{seed},{'tumor' if lesions else 'normal'}\n"
    (folder / "labels.csv").write_text(rows)
    with held() as callbacks:
        panel = workbench_of(viewer).open_panel("train")
        wait(lambda: panel.options.chosen is not None)
        panel.data.set_slides(folder / "slides")
        wait(lambda: panel.data.slides is not None)
        panel.data.set_labels(folder / "labels.csv")
        panel.options.choose("mil", "demo-mil")
        panel.options.epochs.setValue(3)
        wait(panel.start_button.isEnabled)
        callbacks.clear()
        beat = Heartbeat()
        panel.start()
        wait(lambda: not panel.running)
        beat.stop()
        if "is trained" not in panel.notice.text:
            raise RuntimeError(f"the training did not end well: {panel.notice.text}")
    return _judge("training", callbacks, beat)


def _judge(what: str, callbacks: list[Held], beat: Heartbeat) -> tuple[list[Claim], dict[str, Any]]:
    slowest = sorted(callbacks, reverse=True)[:5]
    p99 = float(np.percentile(beat.late, 99))
    claims = [
        at_most(f"longest callback of ours while {what}", slowest[0].own, 100, "ms"),
        at_most(f"heartbeat's delay while {what}, 99th percentile", p99, 300, "ms"),
    ]
    figures = {
        "slowest_callbacks_ms": [[round(one.own, 1), one.name] for one in slowest],
        "heartbeats": len(beat.late),
        "heartbeat_late_ms": {
            str(q): round(float(np.percentile(beat.late, q)), 1) for q in (50, 90, 99, 100)
        },
    }
    return claims, {what: figures}


def _look_around(viewer: Any, path: Path, quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    from napari.layers import Layer

    from slidelens.desktop.layers import slide_layer
    from slidelens.slide.open import open_slide

    firsts = []
    for _ in range(3 if quick else 7):
        viewer.layers.clear()
        _draw(viewer)
        layer = slide_layer(open_slide(path))
        with Span() as span:
            viewer.add_layer(Layer.create(*layer))
            viewer.reset_view()
            _draw(viewer)
        firsts.append(span)
    _add_overlays(viewer)
    moves = _walk(viewer, steps=30 if quick else 80)
    process = psutil.Process()
    _walk(viewer, steps=20)  # caches fill to where they may
    before, end = process.memory_info().rss, time.monotonic() + (40 if quick else 300)
    steps = 0
    most = before
    while time.monotonic() < end:
        steps += len(_walk(viewer, steps=10, seed=1000 + steps))
        most = max(most, process.memory_info().rss)
    first, move = (1e3 * statistics.median(s.wall for s in spans) for spans in (firsts, moves))
    claims = [
        at_most("first image of 4 gigapixels, median", first, 500, "ms"),
        at_most("pan or zoom with three overlays, median", move, 200, "ms"),
        at_most("growth of memory in the random walk", (most - before) / 1e6, 500, "MB"),
    ]
    figures = {
        "slide_px": [BLOCK[0] * REPEAT[0], BLOCK[1] * REPEAT[1]],
        "first_image_ms": [round(1e3 * s.wall) for s in firsts],
        "move_ms": [round(1e3 * s.wall) for s in moves],
        "move_cpu_ms": [round(1e3 * s.cpu) for s in moves],
        "walk_s": 40 if quick else 300,
        "walk_steps": steps,
        "memory_mb": {"before": round(before / 1e6), "most": round(most / 1e6)},
    }
    return claims, figures


def _add_overlays(viewer: Any) -> None:
    """Lay two maps of 1920 x 2048 cells and outlines of a thousand regions on the slide."""
    from napari.layers import Layer

    from slidelens.desktop.layers import annotation_layers, map_layers
    from slidelens.desktop.world import World
    from slidelens.geometry import Affine, Mpp
    from slidelens.maps.map import Map
    from slidelens.tiling.annotations import Annotation

    import shapely  # isort: skip

    mpp = Mpp(0.25, 0.25)
    world, random = World.of(mpp), np.random.default_rng(0)
    layers = []
    for name, kind in (("probability", "probability"), ("attention", "attention")):
        values = random.random((1920, 2048), np.float32)
        source = Map.from_array(name, kind, ["tumor"], values, Affine(32, 32), mpp)
        layers += map_layers(source, world, slide_id="large", model="walk")
    corners = random.uniform(0, 60_000, (1000, 2))
    areas = [Annotation(shapely.box(x, y, x + 900, y + 700), "tumor") for x, y in corners]
    layers += annotation_layers(areas, world, name="outlines", slide_id="large")
    for data in layers:
        viewer.add_layer(Layer.create(*data))
    _draw(viewer)


def _walk(viewer: Any, steps: int, seed: int = 0) -> list[Span]:
    """Go somewhere else at some magnification, again and again."""
    from slidelens.desktop.window import camera

    random = np.random.default_rng(seed)
    low, high = viewer.layers[0].extent.world
    own = camera(viewer)
    spans = []
    for step in range(steps):
        centre = random.uniform(low + 0.1 * (high - low), high - 0.1 * (high - low))
        with Span() as span:
            own.center = tuple(centre)
            own.zoom = 1 / UM_PER_PIXEL[step % len(UM_PER_PIXEL)]
            _draw(viewer)
        spans.append(span)
    return spans


if __name__ == "__main__":
    main(__doc__, measure)
