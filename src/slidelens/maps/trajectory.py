"""Trajectories: nested windows in the order in which they were looked at, and ``trajectory.json``.

::

    {"schema_version": 1, "classes": ["normal", "tumor"], "slide_mpp": [0.5, 0.5],
     "windows": [{"layer": 0, "parent": null, "box": [x, y, w, h], "box_um": [x, y, w, h],
                  "mpp": 92.0, "magnification": 0.109, "probabilities": null}, ...]}
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from slidelens.errors import ResultError
from slidelens.faults import first_fault
from slidelens.files import write_atomic
from slidelens.geometry import Box, Mpp

__all__ = ["Trajectory", "Window", "read_trajectory", "window_features", "write_trajectory"]

_OBJECTIVE = 10.0
"""µm/px of an objective of 1x: 0.5 µm/px is 20x."""


@dataclass(frozen=True, slots=True)
class Window:
    """One window that a network looked through.

    Attributes
    ----------
    layer
        0 for the whole slide or region, the first layer's input; 1 for the windows chosen by the
        first layer, and so on.
    parent
        Index of the window that it was chosen in; ``None`` for layer 0.
    box
        In level-0 px; it may reach outside the slide.
    mpp
        µm per pixel of its picture as read by the network.
    probabilities
        The network's probabilities for the slide after this window, per class in label order;
        ``None`` before the first window of the last layer.
    """

    layer: int
    parent: int | None
    box: Box
    mpp: float
    probabilities: tuple[float, ...] | None = None

    @property
    def magnification(self) -> float:
        """The objective with the same resolution, at 10 µm/px for 1x."""
        return _OBJECTIVE / self.mpp


@dataclass(frozen=True)
class Trajectory:
    """All windows of one slide in reading order: each after its parent, depth first.

    Attributes
    ----------
    windows
        The first is the whole slide or region.
    classes
        Names of the probabilities, in label order.
    mpp
        The slide's µm per level-0 px.

    Raises
    ------
    ValueError
        A window comes before its parent, or is not in the layer below its parent's.
    """

    windows: tuple[Window, ...]
    classes: tuple[str, ...]
    mpp: Mpp

    def __post_init__(self) -> None:
        for index, window in enumerate(self.windows):
            above = -1
            if window.parent is not None:
                if not 0 <= window.parent < index:
                    raise ValueError(f"window {index} comes before its parent {window.parent}")
                above = self.windows[window.parent].layer
            if window.layer != above + 1:
                raise ValueError(f"window {index} of layer {window.layer} is in layer {above}")
            if window.probabilities and len(window.probabilities) != len(self.classes):
                raise ValueError(f"window {index}: probabilities are not one per class")

    @cached_property
    def depth(self) -> int:
        """Number of the last layer."""
        return max((window.layer for window in self.windows), default=0)

    @property
    def last(self) -> tuple[Window, ...]:
        """The windows of the last layer, the classifier's input."""
        return tuple(window for window in self.windows if window.layer == self.depth)

    def children(self, index: int) -> list[int]:
        """Return the windows that were chosen in one window."""
        return [i for i, window in enumerate(self.windows) if window.parent == index]

    def box_um(self, index: int) -> Box:
        """Return a window's box in µm."""
        return self.windows[index].box.scaled(*self.mpp)


_Finite = Annotated[float, Field(allow_inf_nan=False)]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
_Rectangle = tuple[_Finite, _Finite, _Positive, _Positive]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class _WindowEntry(_Part):
    layer: int = Field(ge=0)
    parent: int | None = None
    box: _Rectangle
    box_um: _Rectangle | None = None  # for other programs; follows from box
    mpp: _Positive
    magnification: _Positive | None = None  # the same
    probabilities: tuple[_Probability, ...] | None = None


class _File(_Part):
    schema_version: Literal[1] = 1
    classes: tuple[str, ...]
    slide_mpp: tuple[_Positive, _Positive]
    windows: tuple[_WindowEntry, ...]


def write_trajectory(path: str | Path, trajectory: Trajectory) -> None:
    """Write ``trajectory.json``."""
    content = _File(
        classes=trajectory.classes,
        slide_mpp=tuple(trajectory.mpp),
        windows=tuple(
            _WindowEntry(
                layer=window.layer,
                parent=window.parent,
                box=tuple(window.box),
                box_um=tuple(trajectory.box_um(index)),
                mpp=window.mpp,
                magnification=window.magnification,
                probabilities=window.probabilities,
            )
            for index, window in enumerate(trajectory.windows)
        ),
    )
    write_atomic(Path(path), content.model_dump_json(indent=1) + "\n")


def read_trajectory(path: str | Path) -> Trajectory:
    """Read ``trajectory.json``.

    Raises
    ------
    ResultError
        The file cannot be read or is not of this layout; names the file and the key.
    """
    try:
        content = _File.model_validate(json.loads(Path(path).read_text(encoding="utf-8")))
        return Trajectory(
            tuple(
                Window(entry.layer, entry.parent, Box(*entry.box), entry.mpp, entry.probabilities)
                for entry in content.windows
            ),
            content.classes,
            Mpp(*content.slide_mpp),
        )
    except ValidationError as error:
        fault = first_fault(error)
        raise ResultError(f"{path}: key {fault.where!r}: {fault.why}.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ResultError(f"{path}: no trajectory ({error}). Run the prediction again.") from error


def window_features(trajectory: Trajectory) -> list[dict[str, Any]]:
    """Return the windows as GeoJSON detections in level-0 px, classed and coloured by layer."""
    import shapely

    from slidelens.maps.geojson import feature
    from slidelens.maps.palette import depth_color

    features = []
    for index, window in enumerate(trajectory.windows):
        x, y, w, h = window.box
        measured = {"Window": index, "Layer": window.layer, "Magnification": window.magnification}
        if window.parent is not None:
            measured["Parent"] = window.parent
        for name, value in zip(trajectory.classes, window.probabilities or (), strict=False):
            measured[f"Probability {name}"] = value
        features.append(
            feature(
                shapely.box(x, y, x + w, y + h),
                f"Window of layer {window.layer}",
                depth_color(window.layer),
                kind="detection",
                name=f"window {index}",
                measurements=measured,
            )
        )
    return features
