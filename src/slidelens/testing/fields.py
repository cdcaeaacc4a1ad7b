"""Random fields as pure functions of seed and position: any part can be drawn alone.

Positions are whole pixels of the slide; lengths are µm. Values come from an integer hash of lattice
coordinates, so they depend neither on the order nor on the extent of what is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Plane = NDArray[np.float32]

__all__ = ["Blob", "Window", "cloud_at", "gap", "grain", "hash01", "noise_at", "smoothstep"]

_MIX = np.uint64(0x9E3779B97F4A7C15)
_MIX_A = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B = np.uint64(0x94D049BB133111EB)


def hash01(seed: int, i: Any, j: Any, k: int = 0) -> NDArray[np.float64]:
    """Hash integers to uniform floats in [0, 1) (SplitMix64 finaliser; Steele et al. 2014)."""
    key = np.uint64((seed * 0x632BE59BD9B4E019 + k * 0x9E3779B97F4A7C15 + 1) & (2**64 - 1))
    a = np.asarray(i, np.int64).astype(np.uint64)
    b = np.asarray(j, np.int64).astype(np.uint64)
    with np.errstate(over="ignore"):
        x = (a * _MIX_A) ^ (b * _MIX_B) ^ key
        for _ in range(2):
            x = x + _MIX
            x = (x ^ (x >> np.uint64(30))) * _MIX_A
            x = (x ^ (x >> np.uint64(27))) * _MIX_B
            x = x ^ (x >> np.uint64(31))
    return np.asarray((x >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def smoothstep(low: float, high: float, x: Plane) -> Plane:
    """Rise smoothly from 0 at ``low`` to 1 at ``high`` (falls where ``low > high``)."""
    t = np.clip((x - np.float32(low)) * np.float32(1 / (high - low)), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def noise_at(seed: int, x: NDArray[Any], y: NDArray[Any], scale: float) -> NDArray[np.float64]:
    """Value noise in -1..1 with features of ``scale`` µm, at points in µm."""
    u, v = x / scale, y / scale
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fx, fy = _fade(u - i), _fade(v - j)
    corner = [[2 * hash01(seed, i + a, j + b) - 1 for a in (0, 1)] for b in (0, 1)]
    top = corner[0][0] * (1 - fx) + corner[0][1] * fx
    bottom = corner[1][0] * (1 - fx) + corner[1][1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


def cloud_at(seed: int, x: NDArray[Any], y: NDArray[Any], scale: float) -> NDArray[np.float64]:
    """Two octaves of noise on lattices turned against each other, so that no axis shows."""
    wide = noise_at(seed, 0.8 * x - 0.6 * y, 0.6 * x + 0.8 * y, scale)
    fine = noise_at(seed + 17, 0.28 * x + 0.96 * y, 0.28 * y - 0.96 * x, 0.43 * scale)
    return np.asarray(0.8 * wide + 0.35 * fine)


def _fade(f: NDArray[Any]) -> NDArray[Any]:
    """Ease between lattice values with continuous curvature (Perlin 2002)."""
    return np.asarray(f * f * f * (f * (f * 6 - 15) + 10))


@lru_cache(maxsize=8)
def _grain_tile(seed: int) -> Plane:
    side = 509  # prime, so that its period matches no tile size
    rng = np.random.default_rng([seed, 509])
    fine = rng.standard_normal((side, side)).astype(np.float32)
    soft = sum(np.roll(fine, s, a) for a in (0, 1) for s in (-1, 1)) / 4
    return np.asarray((0.6 * fine + 0.9 * soft).clip(-2, 2), np.float32)


@dataclass(frozen=True)
class Window:
    """A rectangle of whole level-0 pixels, with their positions in µm."""

    x: int
    y: int
    w: int
    h: int
    mpp: float

    @cached_property
    def xs(self) -> NDArray[np.float64]:
        """``(w,)`` pixel centres in µm: from the absolute index, so equal in every window."""
        return np.arange(self.x + 0.5, self.x + self.w) * np.float64(self.mpp)

    @cached_property
    def ys(self) -> NDArray[np.float64]:
        """``(h,)`` pixel centres in µm."""
        return np.arange(self.y + 0.5, self.y + self.h) * np.float64(self.mpp)

    def interpolate(
        self,
        nodes: Callable[[NDArray[np.int64], NDArray[np.int64]], NDArray[Any]],
        spacing: float,
        smooth: bool = False,
    ) -> Plane:
        """Interpolate a function of lattice nodes to ``(h, w)`` pixels.

        ``nodes(i (1, n), j (m, 1))`` gives values at ``i * spacing, j * spacing`` µm.
        """
        ix, fx = _cell(self.xs, spacing, smooth)
        iy, fy = _cell(self.ys, spacing, smooth)
        across = np.arange(ix[0], ix[-1] + 2)[None]
        down = np.arange(iy[0], iy[-1] + 2)[:, None]
        values = np.asarray(nodes(across, down), np.float32)
        rows = values[iy - iy[0]] * (1 - fy)[:, None] + values[iy - iy[0] + 1] * fy[:, None]
        step = np.diff(rows, axis=1)
        column = ix - ix[0]
        return np.asarray(rows.take(column, 1) + step.take(column, 1) * fx)

    def noise(self, seed: int, scale: float) -> Plane:
        """Value noise in -1..1 with features of ``scale`` µm, ``(h, w)``."""
        return self.interpolate(lambda i, j: 2 * hash01(seed, i, j) - 1, scale, smooth=True)

    def cloud(self, seed: int, scale: float) -> Plane:
        """:func:`cloud_at` for slow fields (``scale`` of 40 µm and more), ``(h, w)``."""
        return self.interpolate(lambda i, j: cloud_at(seed, i * 8.0, j * 8.0, scale), 8.0)

    def cells(self, spacing: float, margin: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return i, j (flat, row by row) of lattice cells that may reach into the window."""
        low_x, high_x = self.xs[0] - margin, self.xs[-1] + margin
        low_y, high_y = self.ys[0] - margin, self.ys[-1] + margin
        i = np.arange(np.floor(low_x / spacing), np.floor(high_x / spacing) + 1, dtype=np.int64)
        j = np.arange(np.floor(low_y / spacing), np.floor(high_y / spacing) + 1, dtype=np.int64)
        return np.tile(i, len(j)), np.repeat(j, len(i))


def _cell(u: NDArray[np.float64], spacing: float, smooth: bool) -> tuple[NDArray[np.int64], Plane]:
    position = u / spacing
    cell = np.floor(position).astype(np.int64)
    f = (position - cell).astype(np.float32)
    return cell, _fade(f) if smooth else f


def grain(window: Window, seed: int) -> Plane:
    """Pixel-fine noise of about unit variance: a periodic tile, cut at the window's position."""
    tile = _grain_tile(seed)
    side = len(tile)
    rows = np.arange(window.y, window.y + window.h) % side
    columns = np.arange(window.x, window.x + window.w) % side
    return np.asarray(tile.take(rows, 0).take(columns, 1))


@dataclass(frozen=True)
class Blob:
    """A star-shaped outline: radius ``1 + sum Re(c_k z^k)``, ``z`` the unit direction.

    ``x, y`` is the centre and ``rx, ry`` the half axes in µm; ``waves`` holds ``c_2, c_3, ...``.
    """

    x: float
    y: float
    rx: float
    ry: float
    waves: tuple[complex, ...]

    @classmethod
    def random(
        cls,
        rng: np.random.Generator,
        at: tuple[float, float],
        radii: tuple[float, float],
        rough: float,
        orders: int,
        within: bool = True,
    ) -> Blob:
        """Draw an outline whose waves fall with their order.

        ``within`` keeps it near the ellipse of ``radii``; otherwise that ellipse is its mean.
        """
        order = np.arange(2, 2 + orders)
        size = rough * rng.uniform(0.4, 1.0, orders) / order**1.15
        waves = size * np.exp(2j * np.pi * rng.uniform(size=orders))
        shrink = 1 + float(np.abs(waves).sum()) * 0.45 if within else 1.0
        return cls(*at, radii[0] / shrink, radii[1] / shrink, tuple(complex(w) for w in waves))

    def radius(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """Radius, in units of the half axes, in the directions ``z`` (complex, unit length)."""
        total = np.zeros(z.shape)
        power = z
        for wave in self.waves:
            power = power * z
            total += (wave * power).real
        return 1 + total

    def gap(self, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        """Distance to the outline along the ray from the centre, in µm; positive inside."""
        u, v = (x - self.x) / self.rx, (y - self.y) / self.ry
        length = np.maximum(np.hypot(u, v), 1e-9)
        return np.asarray((self.radius((u + 1j * v) / length) - length) * min(self.rx, self.ry))

    def outline(self, grow: float = 0.0, vertices: int = 720) -> NDArray[np.float64]:
        """``(vertices, 2)`` x, y in µm along the outline, grown by a share of the half axes."""
        z = np.exp(2j * np.pi * np.arange(vertices) / vertices)
        r = self.radius(z) + grow
        return np.stack([self.x + self.rx * r * z.real, self.y + self.ry * r * z.imag], axis=1)


def gap(blobs: tuple[Blob, ...], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Distance in µm to the nearest outline at points, positive inside any blob."""
    best = np.full(np.broadcast(x, y).shape, -1e9)
    for blob in blobs:
        np.maximum(best, blob.gap(x, y), out=best)
    return best
