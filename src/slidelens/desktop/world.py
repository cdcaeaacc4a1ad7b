"""Where a slide's pixels are in napari's world, in µm, and what a layer's metadata state.

napari puts the *centre* of an array's first pixel at 0, so the slide's corner is half a pixel
before the origin. Every layer states its unit, otherwise napari's scale bar drops it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slidelens.geometry import Affine, Mpp

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import ArrayLike, NDArray

    from slidelens.desktop.layer_data import LayerData

__all__ = ["KEY", "World", "describe", "described", "is_stated", "lie_on", "world_of"]

KEY = "slidelens"
"""Key of what a layer's metadata state about it: layer, slide, mpp, path, model, map, ..."""


class World(NamedTuple):
    """World coordinates of a slide: µm, or pixels if no resolution is known."""

    mpp: Mpp
    unit: str

    @classmethod
    def of(cls, mpp: Mpp | None) -> World:
        """Make a world of a resolution, or of pixels."""
        return cls(Mpp(1.0, 1.0), "pixel") if mpp is None else cls(mpp, "um")

    def place(self, affine: Affine) -> dict[str, Any]:
        """Return the layer keywords that put the cells of an array exactly on the slide."""
        scale, translate = affine.centred(self.mpp)
        return {"scale": scale, "translate": translate, "units": (self.unit, self.unit)}

    def place_outlines(self) -> dict[str, Any]:
        """Return the layer keywords for vertices in level-0 px, which are corners, not centres."""
        mpp = self.mpp
        return {
            "scale": (mpp.y, mpp.x),
            "translate": (-mpp.y / 2, -mpp.x / 2),
            "units": (self.unit, self.unit),
        }

    def to_level0(self, yx: ArrayLike) -> NDArray[np.float64]:
        """Map world coordinates ``(..., 2)`` as y, x to level-0 px as x, y."""
        return np.asarray(yx, np.float64)[..., ::-1] / self.mpp + 0.5


def describe(world: World, layer: str, slide_id: str, **facts: Any) -> dict[str, Any]:
    """Return a layer's metadata: what it shows, its slide and its resolution (or ``None``)."""
    mpp = None if world.unit == "pixel" else tuple(world.mpp)
    return {KEY: {"layer": layer, "slide": slide_id, "mpp": mpp, **facts}}


def described(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what :func:`describe` wrote; empty for layers that others made."""
    mine = metadata.get(KEY)
    return mine if isinstance(mine, dict) else {}


def lie_on(layers: list[LayerData], path: Path | str | None) -> list[LayerData]:
    """Have layers state the file of the slide that they lie on: another may have its name.

    Parameters
    ----------
    layers
        Their metadata are changed in place.
    path
        Of the slide; ``None`` for one in memory, or if the maps are shown without it.

    Returns
    -------
    The same layers.
    """
    for _, options, _ in layers:
        options["metadata"][KEY]["on"] = None if path is None else str(path)
    return layers


def is_stated(mpp_source: str | None) -> bool:
    """Return whether a slide's file itself states the resolution, judging by its source."""
    elsewhere = ("given", "table ", "objective power")
    return mpp_source is not None and not mpp_source.startswith(elsewhere)


def world_of(metadata: Mapping[str, Any]) -> World | None:
    """Return the world that a layer's metadata state, if any."""
    mine = described(metadata)
    if "mpp" not in mine:
        return None
    return World.of(None if mine["mpp"] is None else Mpp.of(tuple(mine["mpp"])))
