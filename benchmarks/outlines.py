"""Outlines of many regions come into a window without holding it up for long.

A model's regions are added as the window adds a result's layers, in a real window (software OpenGL
under Xvfb), while a heartbeat of 20 ms is timed: how late it comes at most is how long the window's
thread was held, by napari's controls and picture of the layer or by its shapes. A layer of ten
outlines is what any layer costs. More than ``MAX_POLYGONS`` are drawn as a picture.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import shapely
from common import Claim, at_most, main
from gui import Heartbeat, wait

from slidelens.testing.display import virtual_display

FEW, COUNTS = 10, (10, 1000, 3000, 10_000)
EXTENT = 60_000  # level-0 px


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Add layers of each size in turn, several times."""
    with tempfile.TemporaryDirectory() as name, virtual_display():
        os.environ.update(HOME=name, XDG_CONFIG_HOME=name)
        from slidelens.desktop.launch import view

        viewer = view(show=False)
        viewer.show()
        viewer.window.resize(1280, 800)
        _add(viewer, FEW)  # what napari does once
        held: dict[int, list[float]] = {count: [] for count in COUNTS}
        took: dict[int, list[float]] = {count: [] for count in COUNTS}
        for _ in range(3 if quick else 7):
            for count in COUNTS:
                late, seconds = _add(viewer, count)
                held[count].append(round(late))
                took[count].append(round(seconds, 2))
        viewer.close()
    median = {count: statistics.median(found) for count, found in held.items()}
    claims = [
        at_most(
            f"window held by {count} outlines, relative to {FEW}",
            median[count] / median[FEW],
            3,
            "x",
        )
        for count in COUNTS[1:]
    ]
    return claims, {"held_ms": held, "until_shown_s": took}


def _add(viewer: Any, count: int) -> tuple[float, float]:
    """Return how late the window was at most, in ms, and seconds until the layer was there."""
    from slidelens.desktop.gently import put_gently
    from slidelens.desktop.layers import annotation_layers
    from slidelens.desktop.world import KEY, World
    from slidelens.geometry import Mpp
    from slidelens.tiling.annotations import Annotation

    viewer.layers.clear()
    turn = np.linspace(0, 2 * np.pi, 25)[:-1]
    ring = np.stack([20 * np.cos(turn), 15 * np.sin(turn)], 1)
    centres = np.random.default_rng(0).uniform(200, EXTENT, (count, 2))
    areas = [Annotation(shapely.Polygon(centre + ring), "tumor") for centre in centres]
    world = World.of(Mpp(0.25, 0.25))
    (data,) = annotation_layers(areas, world, name="regions", slide_id="s")
    data[1]["metadata"][KEY]["model"] = "m"
    done: list[float] = []
    _rest()
    beat, start = Heartbeat(), time.perf_counter()
    with redirect_stdout(sys.stderr):  # napari says there that outlines are shown as a picture
        put_gently(
            viewer, [data], [], lambda: True, lambda: done.append(time.perf_counter() - start)
        )
        wait(lambda: bool(done))
    _rest()  # until it is drawn
    beat.stop()
    return max(beat.late), done[0]


def _rest() -> None:
    end = time.monotonic() + 0.5
    wait(lambda: time.monotonic() > end)


if __name__ == "__main__":
    main(__doc__, measure)
