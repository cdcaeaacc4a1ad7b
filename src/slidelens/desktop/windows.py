"""A trajectory's nested windows: layers, click targets, and a flight of the camera.

Pure functions and arithmetic; :mod:`slidelens.desktop.player` puts a few buttons on it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from math import asinh, cosh, hypot, log, sinh, tanh
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.desktop.layer_data import nothing_known
from slidelens.desktop.state.viewport import Look, fit
from slidelens.desktop.window import magnification
from slidelens.desktop.world import describe
from slidelens.maps.palette import depth_color

if TYPE_CHECKING:
    from slidelens.desktop.layer_data import LayerData
    from slidelens.desktop.world import World
    from slidelens.maps.result import Result
    from slidelens.maps.trajectory import Trajectory

__all__ = ["Flight", "Tour", "caption", "window_at", "window_layers"]

_RHO = 1.4
"""How far out a flight goes between two places: what test subjects liked (van Wijk and Nuij)."""
_SPEED = 1.6  # in their measure of length, per second
_STAY_S = (0.7, 1.4)  # at a window that leads on, and at one of the last layer
_LEAST_S = 0.3


def window_layers(result: Result, world: World, *, visible: bool = True) -> list[LayerData]:
    """Return the windows of a result's trajectory and the path through them; none if it has none.

    Windows are coloured by depth; their features state layer, magnification and probability.
    """
    trajectory = result.trajectory
    if trajectory is None or not trajectory.windows:
        return []
    name, slide = result.model.name, result.slide.id
    common = {"visible": visible, "opacity": 1.0, **world.place_outlines()}
    features = _features(trajectory)
    widest = max(max(w.box.w, w.box.h) for w in trajectory.windows)
    colors = np.array([(*depth_color(w.layer), 255) for w in trajectory.windows]) / 255
    windows = {
        "name": f"{name}: windows",
        "shape_type": "rectangle",
        "edge_color": colors,
        "face_color": "transparent",
        # In level-0 px: thinner in small windows, so that what is in them stays visible.
        "edge_width": [max(1.0, (widest * max(w.box.w, w.box.h)) ** 0.5 / 250)
                       for w in trajectory.windows],
        "features": features,
        "feature_defaults": nothing_known(features),
        "metadata": describe(world, "windows", slide, model=name),
        **common,
    }  # fmt: skip
    centres = np.array(
        [(w.box.y + w.box.h / 2, w.box.x + w.box.w / 2) for w in trajectory.windows if w.layer]
    )
    layers: list[LayerData] = []
    if len(centres) > 1:
        path = {
            "name": f"{name}: path",
            "shape_type": "path",
            "edge_color": "black",
            "face_color": "transparent",
            "edge_width": max(1.0, widest / 900),
            "metadata": describe(world, "path", slide, model=name),
            **common,
        }
        layers.append(([centres], path, "shapes"))
    layers.append(([_corners(w.box) for w in trajectory.windows], windows, "shapes"))
    return layers


def caption(trajectory: Trajectory, index: int) -> str:
    """Describe the window in one line: ``3/9 · layer 2 · 5x · 2 µm/px · tumor 0.87``."""
    window = trajectory.windows[index]
    parts = [f"{index + 1}/{len(trajectory.windows)}"]
    parts.append(f"layer {window.layer}" if window.layer else "whole slide")
    parts.append(magnification(window.mpp))
    if window.probabilities:
        parts.append(f"{trajectory.classes[-1]} {window.probabilities[-1]:.2f}")
    return " · ".join(parts)


def window_at(trajectory: Trajectory, x: float, y: float) -> int | None:
    """Return the smallest window that holds a point of level-0 px; ``None`` where there is none."""
    holding = [i for i, w in enumerate(trajectory.windows) if w.box.contains(x, y)]
    return min(holding, key=lambda i: trajectory.windows[i].box.area, default=None)


def _corners(box: Any) -> Any:
    return np.array(
        [(box.y, box.x), (box.y, box.right), (box.bottom, box.right), (box.bottom, box.x)]
    )


def _features(trajectory: Trajectory) -> dict[str, list[Any]]:
    windows = trajectory.windows
    features: dict[str, list[Any]] = {
        "window": list(range(len(windows))),
        "layer": [w.layer for w in windows],
        "magnification": [w.magnification for w in windows],
    }
    for number, name in enumerate(trajectory.classes):
        features[f"probability {name}"] = [
            w.probabilities[number] if w.probabilities else float("nan") for w in windows
        ]
    return features


@dataclass(frozen=True)
class Flight:
    """The smoothest path of a camera from one view to another: out, along, and in again.

    Source: van Wijk and Nuij 2003, "Smooth and efficient zooming and panning", equation 9.

    Attributes
    ----------
    start, end
        The two views.
    across
        Screen pixels along the canvas's shorter side.
    """

    start: Look
    end: Look
    across: float

    @cached_property
    def length(self) -> float:
        """Length of the path in their measure: 0 if nothing changes."""
        return self._course[0]

    @property
    def seconds(self) -> float:
        """How long the path takes at the usual speed."""
        return max(_LEAST_S, self.length / _SPEED)

    def eased(self, part: float) -> Look:
        """Return the view after a fraction of the time, from 0 to 1: it starts and stops gently."""
        return self.at(part * part * (3 - 2 * part))

    def at(self, part: float) -> Look:
        """Return the view after a fraction of the path, from 0 to 1."""
        if part <= 0:
            return self.start
        if part >= 1:
            return self.end
        length, first = self._course
        width, distance = self.across / self.start.zoom, self._distance
        way = part * length
        if not distance:
            ratio = self.end.zoom / self.start.zoom
            return self.start._replace(zoom=self.start.zoom * ratio**part)
        along = width / _RHO**2 * (cosh(first) * tanh(_RHO * way + first) - sinh(first))
        zoom = self.start.zoom * cosh(_RHO * way + first) / cosh(first)
        share = along / distance
        return Look(
            self.start.y + share * (self.end.y - self.start.y),
            self.start.x + share * (self.end.x - self.start.x),
            zoom,
        )

    @cached_property
    def _distance(self) -> float:
        far = hypot(self.end.x - self.start.x, self.end.y - self.start.y)
        return far if far * self.start.zoom > 1e-6 else 0.0

    @cached_property
    def _course(self) -> tuple[float, float]:
        """Length of the path, and where on the curve it begins."""
        before, after = self.across / self.start.zoom, self.across / self.end.zoom
        far = self._distance
        if not far:
            return abs(log(after / before)) / _RHO, 0.0
        square = after**2 - before**2
        ends = [
            -asinh((square + sign * _RHO**4 * far**2) / (2 * width * _RHO**2 * far))
            for sign, width in ((1, before), (-1, after))
        ]
        return (ends[1] - ends[0]) / _RHO, ends[0]


@dataclass(frozen=True)
class Tour:
    """A camera's path through all windows of a trajectory, as a function of time.

    Parameters
    ----------
    trajectory, world
        The windows, and where they are.
    canvas
        Height and width of the canvas in screen pixels.
    speed
        2 is twice as fast.
    """

    trajectory: Trajectory
    world: World
    canvas: tuple[float, float]
    speed: float = 1.0

    def __post_init__(self) -> None:
        if not self.trajectory.windows:
            raise ValueError("a tour needs a window or more")

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """The camera's view of each window."""
        # A canvas of a screen pixel or less, such as that of a hidden window, shows nothing anyway.
        canvas = (max(self.canvas[0], 2.0), max(self.canvas[1], 2.0))
        return tuple(fit(w.box, canvas, self.world) for w in self.trajectory.windows)

    @cached_property
    def starts(self) -> tuple[float, ...]:
        """Seconds after which the camera is at each window."""
        legs = [flight.seconds / self.speed for flight in self._flights]
        stays = [self._stay(i) for i in range(len(legs))]
        return (0.0, *accumulate(a + b for a, b in zip(stays, legs, strict=True)))

    @property
    def seconds(self) -> float:
        """How long it takes in total."""
        return self.starts[-1] + self._stay(len(self.starts) - 1)

    def at(self, seconds: float) -> tuple[int, Look]:
        """Return the window that the camera is at or flying to, and its view."""
        last = max(0, bisect_right(self.starts, seconds) - 1)
        flown = seconds - self.starts[last] - self._stay(last)
        if flown <= 0 or last + 1 == len(self.starts):
            return last, self.looks[last]
        leg = self.starts[last + 1] - self.starts[last] - self._stay(last)
        return last + 1, self._flights[last].eased(flown / leg)

    @cached_property
    def _flights(self) -> tuple[Flight, ...]:
        across = max(min(self.canvas), 2.0)
        return tuple(Flight(a, b, across) for a, b in pairwise(self.looks))

    def _stay(self, index: int) -> float:
        last = self.trajectory.windows[index].layer == self.trajectory.depth
        return _STAY_S[last] / self.speed
