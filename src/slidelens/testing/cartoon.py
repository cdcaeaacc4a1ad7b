"""Draw synthetic H&E: haematoxylin and eosin planes, structure by structure.

Each layer draws into two planes of stain concentration (optical density), over the layers below:
stroma with fibres and cells, fat, glands, tumour. Sizes in µm are from textbooks; the cartoon is
ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.testing.fields import Window, cloud_at, grain, hash01, noise_at, smoothstep

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from slidelens.testing.fields import Plane

__all__ = ["BENIGN", "TUMOR", "Canvas", "GlandStyle", "draw_fat", "draw_glands", "draw_stroma"]


_SOFT, _SOFT_PX = 0.35, 0.4
"""Softness of a nucleus's edge (in squared radii): always, and more where pixels are large."""

_BEND_UM = 170.0
"""Scale on which collagen bundles bend."""


@dataclass
class Canvas:
    """Stain planes ``(h, w)`` of one window; ``h`` haematoxylin, ``e`` eosin, ``nuclei`` 0..1."""

    window: Window
    seed: int
    h: Plane
    e: Plane

    def cover(self, where: tuple[slice, slice], alpha: Plane, h: Any, e: Any) -> None:
        """Paint over the planes, by ``alpha`` 0..1."""
        for plane, value in ((self.h, h), (self.e, e)):
            part = plane[where]
            part += alpha * (value - part)


@dataclass(frozen=True)
class GlandStyle:
    """The properties of one kind of gland. Lengths in µm."""

    salt: int
    spacing: float
    radius: tuple[float, float]
    waves: tuple[float, float, float]
    epithelium: float
    cytoplasm: tuple[float, float]
    nucleus: tuple[float, float]
    nucleus_spread: float
    depth: tuple[float, float]
    pitch: float
    darkness: tuple[float, float]
    tilt: float
    goblets: float
    closed: float


BENIGN = GlandStyle(
    salt=11, spacing=100.0, radius=(31.0, 44.0), waves=(0.16, 0.05, 0.03), epithelium=23.0,
    cytoplasm=(0.16, 0.42), nucleus=(4.3, 2.3), nucleus_spread=0.15, depth=(5.2, 6.8), pitch=6.0,
    darkness=(0.6, 0.95), tilt=0.12, goblets=0.75, closed=0.0,
)  # fmt: skip
TUMOR = GlandStyle(
    salt=23, spacing=47.0, radius=(15.0, 24.0), waves=(0.2, 0.12, 0.08), epithelium=16.0,
    cytoplasm=(0.12, 0.5), nucleus=(4.9, 3.6), nucleus_spread=0.3, depth=(4.5, 9.0), pitch=6.6,
    darkness=(0.55, 0.95), tilt=1.2, goblets=0.0, closed=0.25,
)  # fmt: skip
NESTS = GlandStyle(
    salt=53, spacing=25.0, radius=(6.0, 9.0), waves=(0.25, 0.15, 0.0), epithelium=9.0,
    cytoplasm=(0.12, 0.5), nucleus=(4.4, 3.4), nucleus_spread=0.3, depth=(3.0, 6.5), pitch=8.5,
    darkness=(0.55, 0.95), tilt=1.5, goblets=0.0, closed=1.0,
)  # fmt: skip
"""Solid clusters of tumour cells between and around the tumour's glands."""


def draw_stroma(canvas: Canvas, density: Plane, cells: Callable[..., Any]) -> None:
    """Collagen in waves, clefts between its bundles, spindle cells along them, lymphocytes."""
    window, seed = canvas.window, canvas.seed
    phase = 23 * window.noise(seed + 1, _BEND_UM) + 4.5 * window.noise(seed + 2, 34.0)
    fibre = np.sin(phase)
    loose = window.noise(seed + 3, 60.0)
    canvas.e[:] = density * (0.52 + 0.10 * fibre + 0.10 * loose + 0.05 * grain(window, seed))
    canvas.h[:] = density * (0.07 + 0.015 * fibre)
    cleft = smoothstep(0.86, 1.0, np.sin(phase * np.float32(0.31) + 2 * loose))
    cleft *= smoothstep(0.1, 0.6, loose)
    canvas.cover((slice(None), slice(None)), 0.85 * cleft, 0.0, 0.05)
    _stroma_cells(canvas, cells)


def _stroma_cells(canvas: Canvas, inflamed: Callable[..., Any]) -> None:
    """Spindle nuclei on a jittered lattice; where it is inflamed, lymphocytes in crowds."""
    window, seed = canvas.window, canvas.seed
    for salt, spacing, lymph in ((31, 17.0, False), (37, 8.6, True)):
        i, j = window.cells(spacing, 10.0 + window.mpp)
        x = (i + 0.1 + 0.8 * hash01(seed, i, j, salt)) * spacing
        y = (j + 0.1 + 0.8 * hash01(seed, i, j, salt + 1)) * spacing
        chance = hash01(seed, i, j, salt + 2)
        amount = inflamed(x, y)
        keep = chance < (amount if lymph else 0.75)
        i, j, x, y = i[keep], j[keep], x[keep], y[keep]
        size = hash01(seed, i, j, salt + 3)
        angle = _along_fibres(seed, x, y) + 0.9 * (hash01(seed, i, j, salt + 4) - 0.5)
        long = 2.6 + 0.7 * size if lymph else 4.2 + 2.4 * size
        short = long * 0.92 if lymph else 1.1 + 0.5 * size
        dark = 0.65 + 0.35 * hash01(seed, i, j, salt + 5)
        stamp_nuclei(canvas, x, y, long, short, angle, dark)


def _along_fibres(seed: int, x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    """Direction of the fibres: along the contours of the noise that makes their waves."""
    here = noise_at(seed + 1, x, y, _BEND_UM)
    across = noise_at(seed + 1, x + 2, y, _BEND_UM) - here
    down = noise_at(seed + 1, x, y + 2, _BEND_UM) - here
    return np.asarray(np.arctan2(across, -down))


def draw_fat(canvas: Canvas, amount: Plane) -> None:
    """Empty fat cells, 60 µm wide, separated by thin walls between the two nearest centres."""
    where = amount > 0
    if not where.any():
        return
    window, spacing = canvas.window, 62.0
    i, j = window.cells(spacing, 1.5 * spacing)
    x = (i + 0.5 * (j & 1) + 0.25 * (hash01(canvas.seed, i, j, 41) - 0.5)) * spacing
    y = (j + 0.25 * (hash01(canvas.seed, i, j, 42) - 0.5)) * spacing
    first = np.full(amount.shape, np.float32(1e9))
    second = first.copy()
    for cx, cy in zip(x, y, strict=True):
        part, dx, dy = _around(window, cx, cy, 1.3 * spacing)
        if part is None or not where[part].any():
            continue
        d = np.hypot(dx, dy)
        second[part] = np.minimum(second[part], np.maximum(first[part], d))
        first[part] = np.minimum(first[part], d)
    wall = smoothstep(3.4, 1.2, second - first)
    canvas.cover(
        (slice(None), slice(None)), smoothstep(0.0, 0.06, amount), 0.05 * wall, 0.02 + 0.4 * wall
    )


def draw_glands(
    canvas: Canvas, style: GlandStyle, allowed: Callable[..., Any], shade: Callable[..., Any]
) -> None:
    """Glands of one kind on a staggered lattice, wherever ``allowed(x, y, reach)`` says so."""
    window, seed = canvas.window, canvas.seed
    sway = 0.7 * style.spacing  # bends the lattice's rows, which tissue does not have
    farthest = style.radius[1] * (1 + sum(style.waves)) + 6 + window.mpp
    i, j = window.cells(style.spacing, farthest + 1.25 * sway + style.spacing)
    x = (i + 0.5 * (j & 1) + 0.22 * (hash01(seed, i, j, style.salt) - 0.5)) * style.spacing
    y = (j + 0.22 * (hash01(seed, i, j, style.salt + 1) - 0.5)) * style.spacing
    scale = 5 * style.spacing
    x, y = (
        x + sway * cloud_at(seed + style.salt, x, y, scale),
        y + sway * cloud_at(seed + style.salt + 1, x, y, scale),
    )
    low, high = style.radius
    r0 = low + (high - low) * hash01(seed, i, j, style.salt + 2)
    waves = np.stack(
        [
            size
            * np.sqrt(hash01(seed, i, j, style.salt + 3 + k))
            * np.exp(2j * np.pi * hash01(seed, i, j, style.salt + 6 + k))
            for k, size in enumerate(style.waves)
        ],
        axis=1,
    )
    keep = allowed(x, y, r0 * (1 + np.abs(waves).sum(axis=1)) + 3)
    i, j, x, y, r0, waves = i[keep], j[keep], x[keep], y[keep], r0[keep], waves[keep]
    if not len(x):
        return
    closed = hash01(seed, i, j, style.salt + 9) < style.closed
    tint = shade(x, y)
    for n in range(len(x)):
        _gland(canvas, style, (x[n], y[n], r0[n]), waves[n], bool(closed[n]), float(tint[n]))
    _lining(canvas, style, np.stack([i, j, x, y, r0], axis=1), waves)


def _gland(
    canvas: Canvas, style: GlandStyle, place: tuple[float, float, float],
    waves: NDArray[np.complex128], closed: bool, tint: float,
) -> None:  # fmt: skip
    x, y, r0 = place
    part, dx, dy = _around(canvas.window, x, y, r0 * (1 + float(np.abs(waves).sum())) + 3)
    if part is None:
        return
    d = np.maximum(np.hypot(dx, dy), np.float32(1e-3))
    z = (dx + 1j * dy) / d
    radius = np.full(d.shape, np.float32(1))
    power = z
    for wave in waves.astype(np.complex64):
        power = power * z
        radius += (wave * power).real
    depth = radius * np.float32(r0) - d  # µm inside the basement membrane
    h, e = style.cytoplasm
    apex = smoothstep(0.0, style.epithelium, depth)
    canvas.cover(part, smoothstep(-2.2, -0.2, depth), 0.12, 0.55)
    canvas.cover(part, smoothstep(-0.4, 0.6, depth), tint * (h - 0.08 * apex), e - 0.1 * apex)
    thickness = style.epithelium * min(1.0, r0 / (style.epithelium * 1.45))
    if not closed:
        edge = thickness * (1 + 0.12 * np.sin(9 * np.float32(r0) + 5 * z.real * z.imag))
        canvas.cover(part, smoothstep(-0.8, 0.8, np.asarray(depth - edge, np.float32)), 0.03, 0.04)


def _lining(
    canvas: Canvas, style: GlandStyle, glands: NDArray[Any], waves: NDArray[np.complex128]
) -> None:
    """Nuclei (and goblet vacuoles) along the inside of each gland's outline."""
    count = np.maximum(5, 2 * np.pi * glands[:, 4] / style.pitch).astype(np.int64)
    owner = np.repeat(np.arange(len(glands)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    i, j, x, y, r0 = glands[owner].T
    key = (i.astype(np.int64) * 1009 + place, j.astype(np.int64))
    seed = canvas.seed
    turn = 2 * np.pi * (place + 0.5 * hash01(seed, *key, style.salt + 20)) / count[owner]
    z = np.exp(1j * turn)
    r = r0 * (1 + sum((waves[owner, k] * z ** (k + 2)).real for k in range(waves.shape[1])))
    if style.goblets:
        some = hash01(seed, *key, style.salt + 26) < style.goblets * 0.5
        at = np.maximum(r - 14.0, 0) * z
        size = 3.4 + 1.6 * hash01(seed, *key, style.salt + 27)
        vacuoles = _stamp(
            canvas.window, (x + at.real)[some], (y + at.imag)[some], 1.35 * size[some],
            size[some], turn[some], np.ones(some.sum()),
        )  # fmt: skip
        canvas.cover((slice(None), slice(None)), 0.85 * vacuoles, 0.1, 0.06)
    low, high = style.depth
    deep = low + (high - low) * hash01(seed, *key, style.salt + 21)
    at = np.maximum(r - deep, 0.2 * r) * z
    spread = 1 + style.nucleus_spread * (2 * hash01(seed, *key, style.salt + 22) - 1)
    round_ = 1 + style.nucleus_spread * (hash01(seed, *key, style.salt + 23) - 0.5)
    tilt = turn + style.tilt * (2 * hash01(seed, *key, style.salt + 24) - 1)
    low, high = style.darkness
    dark = low + (high - low) * hash01(seed, *key, style.salt + 25)
    stamp_nuclei(
        canvas, x + at.real, y + at.imag, style.nucleus[0] * spread,
        style.nucleus[1] * spread * round_, tilt, dark,
    )  # fmt: skip


def stamp_nuclei(
    canvas: Canvas, x: NDArray[Any], y: NDArray[Any], long: Any, short: Any, angle: NDArray[Any],
    dark: NDArray[Any],
) -> None:  # fmt: skip
    """Draw elliptic nuclei (half axes in µm) with a darker rim and mottled chromatin."""
    inside = _stamp(canvas.window, x, y, long, short, angle, dark)
    if not inside.any():
        return
    mottled = inside * (1 + 0.1 * grain(canvas.window, canvas.seed + 5))
    canvas.h *= 1 - np.minimum(inside, 1)
    canvas.h += mottled
    canvas.e *= 1 - 0.55 * np.minimum(inside, 1)


def _stamp(
    window: Window, x: NDArray[Any], y: NDArray[Any], long: Any, short: Any, angle: NDArray[Any],
    weight: NDArray[Any],
) -> Plane:  # fmt: skip
    """Draw many soft ellipses at once; where they overlap, the stronger one shows (order-free)."""
    long, short = np.broadcast_to(long, x.shape), np.broadcast_to(short, x.shape)
    # The soft edge ends at q = 1 + soft; a smaller window would cut it at the drawing's borders.
    reach = long * np.sqrt(1 + _SOFT + _SOFT_PX * window.mpp / short)
    padded_side = int(np.ceil(np.max(reach, initial=1.0) / window.mpp)) + 1
    plane = np.zeros((window.h + 4 * padded_side, window.w + 4 * padded_side), np.float32)
    side = np.arange(-padded_side, padded_side + 1)
    column = np.floor(x / window.mpp).astype(np.int64)
    row = np.floor(y / window.mpp).astype(np.int64)
    near = (
        (column >= window.x - padded_side) & (column < window.x + window.w + padded_side)
        & (row >= window.y - padded_side) & (row < window.y + window.h + padded_side)
    )  # fmt: skip
    chosen = np.flatnonzero(near)
    for start in range(0, len(chosen), 1024):
        n = chosen[start : start + 1024]
        dx = ((column[n, None] + side + 0.5) * window.mpp - x[n, None]).astype(np.float32)
        dy = ((row[n, None] + side + 0.5) * window.mpp - y[n, None]).astype(np.float32)
        c, s = (f(angle[n]).astype(np.float32)[:, None] for f in (np.cos, np.sin))
        a, b = (np.float32(1) / v[n].astype(np.float32)[:, None] for v in (long, short))
        u = (c * a * dx)[:, None, :] + (s * a * dy)[:, :, None]
        v = (-s * b * dx)[:, None, :] + (c * b * dy)[:, :, None]
        q = u * u + v * v
        soft = np.float32(_SOFT) + np.float32(window.mpp * _SOFT_PX) * b[:, :, None]
        value = np.clip((1 + soft - q) / (2 * soft), 0, 1)
        value *= (0.68 + 0.36 * np.minimum(q, 1)) * weight[n].astype(np.float32)[:, None, None]
        rows = (row[n] - window.y + 2 * padded_side)[:, None] + side
        columns = (column[n] - window.x + 2 * padded_side)[:, None] + side
        flat = rows[:, :, None] * plane.shape[1] + columns[:, None, :]
        hit = value > 0
        np.maximum.at(plane.reshape(-1), flat[hit], value[hit])
    inner = slice(2 * padded_side, -2 * padded_side)
    return plane[inner, inner]


def _around(
    window: Window, x: float, y: float, reach: float
) -> tuple[tuple[slice, slice], Plane, Plane] | tuple[None, Plane, Plane]:
    """Return the part of the window within ``reach`` of a point, and offsets from it in µm."""
    left = max(0, int(np.floor((x - reach) / window.mpp)) - window.x)
    right = min(window.w, int(np.ceil((x + reach) / window.mpp)) - window.x)
    top = max(0, int(np.floor((y - reach) / window.mpp)) - window.y)
    bottom = min(window.h, int(np.ceil((y + reach) / window.mpp)) - window.y)
    if left >= right or top >= bottom:
        return None, np.empty(0, np.float32), np.empty(0, np.float32)
    dx = (window.xs[left:right] - x).astype(np.float32)[None]
    dy = (window.ys[top:bottom] - y).astype(np.float32)[:, None]
    return (slice(top, bottom), slice(left, right)), dx, dy
