"""Stain normalisation of haematoxylin and eosin to a reference.

Scanners and laboratories show the same tissue in different colours, and a model that is reliable on
one may fail on another. A slide's two stains are estimated once, from its tissue; every tile is
then unmixed and mixed again by one 3 x 3 matrix on optical densities.

Source: Macenko et al. 2009, *A method for normalizing histology slides for quantitative analysis*.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from slidelens.errors import SlideError
from slidelens.geometry import Box
from slidelens.tiling.grid import GridSpec, make_grid

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

    from slidelens.slide.base import Slide
    from slidelens.tiling.tissue import TissueMask

__all__ = ["StainMethod", "StainNormalizer", "Stains", "estimate_stains", "slide_stains"]

StainMethod = Literal["none", "macenko"]

_FAINT = 0.15
"""Mean optical density (natural logarithm) below which a pixel is background (Macenko: beta). The
mean, not every channel as in the paper: pure eosin absorbs next to no red."""
_EXTREME = 1.0
"""Per cent of directions, and of concentrations, treated as outliers (Macenko: alpha)."""
_LEAST = 1000
"""Stained pixels that an estimate needs."""
_DENSITY = -np.log((np.arange(256, dtype=np.float32) + 1) / 256)
"""Optical density of each pixel value; white has exactly none."""
_MPP, _SIDE, _BOXES = 2.0, 256, 48


@dataclass(frozen=True, slots=True)
class Stains:
    """Two stains of a slide.

    Attributes
    ----------
    colours
        ``(2, 3)`` optical densities in red, green, blue of haematoxylin and of eosin, unit length.
    strengths
        ``(2,)`` how much of each the most stained tissue contains (99th percentile).
    """

    colours: NDArray[np.float64]
    strengths: NDArray[np.float64]

    @classmethod
    def of(cls, colours: ArrayLike, strengths: ArrayLike) -> Stains:
        """Make stains from any numbers; the colours are scaled to unit length."""
        rows = np.asarray(colours, np.float64)
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return cls(rows, np.asarray(strengths, np.float64))


REFERENCE = Stains.of(
    [[0.5626, 0.7201, 0.4062], [0.2159, 0.8012, 0.5581]],
    [1.9705, 1.0308],
)
"""The reference of Macenko's own program, which most of the field normalises to."""


def estimate_stains(pixels: NDArray[np.uint8]) -> Stains:
    """Find the two stains of some tissue.

    Parameters
    ----------
    pixels
        ``(..., 3)`` uint8 RGB.

    Raises
    ------
    ValueError
        There are fewer than 1000 stained pixels, or all have one colour.
    """
    density = _DENSITY[pixels.reshape(-1, 3)]
    density = density[density.mean(axis=1) >= _FAINT].astype(np.float64)
    if len(density) < _LEAST:
        raise ValueError(f"only {len(density)} stained pixels, {_LEAST} are needed")
    _, vectors = np.linalg.eigh(np.cov(density.T))
    plane = vectors[:, 1:]  # of the two largest eigenvalues, which come last
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    along = density @ plane
    angles = np.arctan2(along[:, 0], along[:, 1])
    low, high = np.percentile(angles, [_EXTREME, 100 - _EXTREME])
    found = np.array([[np.sin(a), np.cos(a)] for a in (low, high)]) @ plane.T
    if np.linalg.svd(found, compute_uv=False)[-1] < 1e-3:
        raise ValueError("all stained pixels have one colour")
    eosin_last = found[np.argsort(-found[:, 0])]  # haematoxylin absorbs more red
    strengths = np.percentile(density @ np.linalg.pinv(eosin_last), 100 - _EXTREME, axis=0)
    if not (strengths > 0).all():
        raise ValueError("one of the two stains is absent")
    return Stains.of(eosin_last, strengths)


def slide_stains(slide: Slide, tissue: TissueMask) -> Stains:
    """Estimate a slide's stains from up to 48 patches of its tissue, evenly spread, at 2 µm/px.

    Raises
    ------
    SlideError
        The slide has too little stained tissue.
    """
    spec = GridSpec(_SIDE, _MPP, min_tissue=0.1)
    boxes = make_grid(slide.size, slide.require_mpp(), spec, tissue=tissue).boxes
    spread = np.linspace(0, max(len(boxes) - 1, 0), _BOXES).round().astype(int)
    some = boxes[np.unique(spread)] if len(boxes) else boxes
    pixels = [slide.read(Box(*box), _MPP).reshape(-1, 3) for box in some.tolist()]
    try:
        return estimate_stains(np.concatenate(pixels) if pixels else np.empty((0, 3), np.uint8))
    except ValueError as error:
        raise SlideError(
            f"{slide.path}: its stains cannot be estimated ({error}); use a model without stain "
            "normalisation for this slide."
        ) from error


@dataclass(frozen=True)
class StainNormalizer:
    """Changes the stains of pixels to those of the reference."""

    source: Stains
    target: Stains = REFERENCE

    @cached_property
    def matrix(self) -> NDArray[np.float32]:
        """``(3, 3)``: optical densities (as row vectors) times this are the normalised ones."""
        unmix = np.linalg.pinv(self.source.colours)
        scale = np.diag(self.target.strengths / self.source.strengths)
        matrix: NDArray[np.float32] = (unmix @ scale @ self.target.colours).astype(np.float32)
        return matrix

    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Normalise ``(..., 3)`` uint8 RGB; white stays white."""
        out = _DENSITY[pixels] @ self.matrix
        np.exp(np.negative(out, out=out), out=out)
        out *= 256
        out -= 0.5  # -1 of the densities' definition, +0.5 to round
        return np.clip(out, 0, 255, out=out).astype(np.uint8)
