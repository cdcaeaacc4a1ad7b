"""Phantom slides: seeded synthetic H&E pyramids with exact truth.

A cartoon of glandular tissue (stroma, benign glands, fat, lymphocytes, tumour as small crowded
irregular glands, background, pen), for tests and demos. Every pixel is a pure function of
(spec, position), so any part of any size can be drawn alone, and a slide is written tile by tile.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from slidelens.geometry import Box, Mpp, Size
from slidelens.testing.cartoon import (
    BENIGN,
    TUMOR,
    Canvas,
    draw_fat,
    draw_glands,
    draw_stroma,
)
from slidelens.testing.fields import Blob, Window, grain, hash01, smoothstep
from slidelens.testing.pyramid import write_pyramid
from slidelens.tiling.annotations import Annotation, rasterize

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.testing.fields import Plane

__all__ = [
    "CLASSES",
    "PhantomSpec",
    "PhantomTruth",
    "draw",
    "truth",
    "write_cohort",
    "write_phantom",
]

CLASSES = ("normal", "tumor")
"""Slide labels, in label order."""

_HAEMATOXYLIN, _EOSIN = (0.62, 0.75, 0.30), (0.09, 0.85, 0.32)
"""Optical density of a unit of stain in R, G, B (after Ruifrok and Johnston 2001, warmed)."""

_PENS = {"blue": (28, 52, 160), "green": (20, 120, 60), "black": (32, 32, 36), "red": (190, 30, 45)}
_DRAW = 1024  # px drawn at once: bounds the memory of the planes


@dataclass(frozen=True)
class PhantomSpec:
    """One phantom slide.

    Attributes
    ----------
    size
        Width and height in level-0 px of what is drawn.
    mpp
        Resolution in µm/px.
    seed
        Everything random follows from it.
    lesions
        Number of tumour areas; 0 makes a normal slide.
    tumor_fraction
        Share of the tissue that the tumour areas take together (less where they do not fit).
    pen
        Colour of a pen stroke beside the tissue, or none.
    stain
        Strength of haematoxylin and of eosin; ``None`` draws them from the seed, as slides differ.
    quality
        JPEG quality of the tiles.
    repeat
        The drawn slide is laid out this many times along x and y, its encoded tiles reused: a slide
        of any number of gigapixels in seconds. ``size`` must then be a multiple of 4096 px.
    """

    size: tuple[int, int] = (2048, 2048)
    mpp: float = 0.5
    seed: int = 0
    lesions: int = 0
    tumor_fraction: float = 0.12
    pen: Literal["blue", "green", "black", "red"] | None = None
    stain: tuple[float, float] | None = None
    quality: int = 85
    repeat: tuple[int, int] = (1, 1)

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.repeat) < 1:
            raise ValueError(f"size {self.size} and repeat {self.repeat} must be at least 1")
        if not self.mpp > 0:
            raise ValueError(f"mpp must be above 0 µm/px, not {self.mpp}")
        if self.lesions < 0 or not 0 < self.tumor_fraction < 1:
            raise ValueError("lesions must be at least 0 and tumor_fraction between 0 and 1")

    @property
    def slide_size(self) -> Size:
        """Width and height in level-0 px of the slide, repeats included."""
        return Size(self.size[0] * self.repeat[0], self.size[1] * self.repeat[1])


@dataclass(frozen=True)
class PhantomTruth:
    """What is where on a phantom, exactly.

    Attributes
    ----------
    size, mpp
        Of the slide, as in the spec.
    label
        Index into :data:`CLASSES`.
    tumor, tissue, pen
        Polygons in level-0 px. The tumour's hold tumour glands and their stroma only, and no
        tumour gland lies outside.
    """

    size: Size
    mpp: Mpp
    label: int
    tumor: tuple[Annotation, ...]
    tissue: tuple[Annotation, ...]
    pen: tuple[Annotation, ...]

    def mask(
        self, box: Box, mpp: float, what: Literal["tumor", "tissue", "pen"] = "tumor"
    ) -> NDArray[np.bool_]:
        """Draw the truth exactly on ``slide.read(box, mpp)``: ``(H, W)`` bool."""
        return rasterize(getattr(self, what), box, self.mpp, mpp).astype(bool)


@dataclass(frozen=True)
class _Layout:
    """What the seed decides about a whole slide, in µm."""

    key: int
    pieces: tuple[Blob, ...]
    lesions: tuple[Blob, ...]
    pen: tuple[Blob, ...]
    stain: tuple[float, float]
    pale: float  # how light the tumour's nuclei are: mean colour must not tell


@lru_cache(maxsize=16)
def _layout(spec: PhantomSpec) -> _Layout:
    rng = np.random.default_rng([spec.seed, 20, 16])
    width, height = spec.size[0] * spec.mpp, spec.size[1] * spec.mpp
    count = int(rng.integers(1, 3)) if min(width, height) > 2500 else 1
    pieces = []
    for n in range(count):
        along = width >= height
        w, h = (width / count, height) if along else (width, height / count)
        centre = ((n + 0.5) * w, height / 2) if along else (width / 2, (n + 0.5) * h)
        radii = (w * rng.uniform(0.40, 0.46), h * rng.uniform(0.38, 0.46))
        pieces.append(Blob.random(rng, centre, radii, rough=0.22, orders=22))
    stain = spec.stain or (float(rng.uniform(0.85, 1.2)), float(rng.uniform(0.8, 1.2)))
    return _Layout(
        key=(spec.seed + 1) * 1_000_003,
        pieces=tuple(pieces),
        lesions=_place_lesions(rng, spec, pieces),
        pen=tuple(pieces[:1]) if spec.pen else (),
        stain=stain,
        pale=float(rng.uniform(0.72, 1.0)),
    )


def _place_lesions(
    rng: np.random.Generator, spec: PhantomSpec, pieces: list[Blob]
) -> tuple[Blob, ...]:
    """Put lesions inside tissue, apart from each other; they shrink until they fit."""
    areas = np.array([p.rx * p.ry for p in pieces])
    lesions: list[Blob] = []
    for _ in range(spec.lesions):
        radius = float(np.sqrt(areas.sum() * spec.tumor_fraction / spec.lesions))
        while True:
            home = pieces[rng.choice(len(pieces), p=areas / areas.sum())]
            turn, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform()) * 0.9
            x, y = home.x + home.rx * out * np.cos(turn), home.y + home.ry * out * np.sin(turn)
            ring = np.exp(2j * np.pi * np.arange(24) / 24) * radius * 1.15
            apart = all(np.hypot(x - b.x, y - b.y) > 1.2 * (radius + b.rx) for b in lesions)
            if apart and float(home.gap(x + ring.real, y + ring.imag).min()) > 0:
                break
            radius *= 0.97
        stretch = float(rng.uniform(0.8, 1.0))
        lesions.append(Blob.random(rng, (x, y), (radius, radius * stretch), rough=0.3, orders=6))
    return tuple(lesions)


def truth(spec: PhantomSpec) -> PhantomTruth:
    """Return the exact truth of a phantom without drawing it."""
    layout = _layout(spec)

    def areas(blobs: tuple[Blob, ...], name: str, ring: bool = False) -> tuple[Annotation, ...]:
        made = []
        for n, blob in enumerate(blobs):
            polygon = shapely.Polygon(blob.outline(720))
            if ring:
                polygon = _pen_area(spec, blob)
            polygon = shapely.transform(polygon, lambda xy: xy / spec.mpp)
            for row, column in np.ndindex(spec.repeat[1], spec.repeat[0]):
                shift = (column * spec.size[0], row * spec.size[1])
                moved = shapely.transform(polygon, lambda xy, s=shift: xy + s)
                made.append(
                    Annotation(
                        moved, label=name, name=f"{name} {n}", id=f"{name}-{n}-{row}-{column}"
                    )
                )
        return tuple(made)

    return PhantomTruth(
        size=spec.slide_size,
        mpp=Mpp.of(spec.mpp),
        label=int(spec.lesions > 0),
        tumor=areas(layout.lesions, "tumor"),
        tissue=areas(layout.pieces, "tissue"),
        pen=areas(layout.pen, "pen", ring=True),
    )


def _pen_band(spec: PhantomSpec) -> tuple[float, float]:
    """Offset from the tissue's outline and half width of the pen stroke, in µm."""
    scale = min(spec.size) * spec.mpp
    return 0.035 * scale, min(150.0, 0.012 * scale)


def _pen_area(spec: PhantomSpec, piece: Blob) -> Any:
    offset, half = _pen_band(spec)
    unit = min(piece.rx, piece.ry)
    outer = shapely.Polygon(piece.outline((offset + half) / unit))
    inner = shapely.Polygon(piece.outline((offset - half) / unit))
    above = shapely.box(-1e7, -1e7, 1e7, piece.y)
    slide = shapely.box(0, 0, spec.size[0] * spec.mpp, spec.size[1] * spec.mpp)
    return outer.difference(inner).intersection(above).intersection(slide)


def draw(spec: PhantomSpec, box: Box | None = None) -> NDArray[np.uint8]:
    """Draw any part of a phantom: ``(h, w, 3)`` uint8 RGB, the same pixels in every box.

    Parameters
    ----------
    spec
        The slide.
    box
        Whole level-0 px, inside the slide as drawn once (repeats are made by copying); all of it
        by default.

    Raises
    ------
    ValueError
        A box that is not of whole pixels or reaches outside.
    """
    x, y, w, h = (0, 0, *spec.size) if box is None else box
    if any(v != int(v) for v in (x, y, w, h)):
        raise ValueError(f"box {tuple(box or ())} is not of whole level-0 px")
    if x < 0 or y < 0 or x + w > spec.size[0] or y + h > spec.size[1]:
        raise ValueError(f"box {tuple(box or ())} reaches outside the {spec.size} px phantom")
    x, y, w, h = int(x), int(y), int(w), int(h)
    out = np.empty((h, w, 3), np.uint8)
    for top in range(0, h, _DRAW):
        for left in range(0, w, _DRAW):
            part = out[top : top + _DRAW, left : left + _DRAW]
            part[:] = _draw_window(
                spec, Window(x + left, y + top, part.shape[1], part.shape[0], spec.mpp)
            )
    return out


def _draw_window(spec: PhantomSpec, window: Window) -> NDArray[np.uint8]:
    layout = _layout(spec)
    shape = (window.h, window.w)
    zero = np.zeros(shape, np.float32)
    canvas = Canvas(window, layout.key, zero, zero.copy())
    tissue = _inside(window, layout.pieces)
    if (tissue > 0).any():
        _draw_tissue(canvas, layout, tissue)
    shading = 0.035 + 0.012 * window.noise(layout.key + 90, 900.0) + 0.004 * grain(window, 7)
    rgb = _to_rgb(canvas, shading, layout.stain)
    if spec.pen:
        _draw_pen(rgb, spec, window, layout)
    return rgb


def _inside(window: Window, blobs: tuple[Blob, ...]) -> Plane:
    """Distance in µm to the nearest outline, positive inside any blob."""
    best = np.full((window.h, window.w), np.float32(-1e9))
    for blob in blobs:
        np.maximum(
            best, window.interpolate(lambda i, j, b=blob: b.gap(i * 8.0, j * 8.0), 8.0), out=best
        )
    return best


def _gap(blobs: tuple[Blob, ...], x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
    best = np.full(np.broadcast(x, y).shape, -1e9)
    for blob in blobs:
        np.maximum(best, blob.gap(x, y), out=best)
    return best


def _smooth_at(key: int, x: NDArray[Any], y: NDArray[Any], scale: float) -> NDArray[np.float64]:
    """Value noise in -1..1 at points in µm."""
    u, v = x / scale, y / scale
    i, j = np.floor(u).astype(np.int64), np.floor(v).astype(np.int64)
    fx, fy = (f * f * (3 - 2 * f) for f in (u - i, v - j))
    corner = [[2 * hash01(key, i + a, j + b) - 1 for a in (0, 1)] for b in (0, 1)]
    top = corner[0][0] * (1 - fx) + corner[0][1] * fx
    bottom = corner[1][0] * (1 - fx) + corner[1][1] * fx
    return np.asarray(top * (1 - fy) + bottom * fy)


def _draw_tissue(canvas: Canvas, layout: _Layout, tissue: Plane) -> None:
    window, key = canvas.window, layout.key

    def fat(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        inner = np.minimum(1, _gap(layout.pieces, x, y) / 60 - 1)
        away = np.minimum(1, -_gap(layout.lesions, x, y) / 60 - 1)
        return np.minimum(np.minimum(inner, away), _smooth_at(key + 60, x, y, 520.0) - 0.42)

    def inflamed(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        patches = _smooth_at(key + 70, x, y, 260.0) + 0.3 * _smooth_at(key + 71, x, y, 60.0)
        return np.clip(0.06 + 2.2 * (patches - 0.42), 0.04, 0.92)

    def benign(x: NDArray[Any], y: NDArray[Any], reach: float) -> NDArray[np.bool_]:
        here = (_gap(layout.pieces, x, y) > reach) & (_gap(layout.lesions, x, y) < -1.15 * reach)
        return here & (fat(x, y) < -0.1) & (_smooth_at(key + 80, x, y, 420.0) > -0.35)

    def tumor(x: NDArray[Any], y: NDArray[Any], reach: float) -> NDArray[np.bool_]:
        return _gap(layout.lesions, x, y) > 1.15 * reach

    def shade(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        return 1.0 + 0.35 * _smooth_at(key + 85, x, y, 300.0)

    edge = smoothstep(-1.0, 1.0, tissue)
    draw_stroma(canvas, edge, inflamed)
    draw_fat(canvas, window.interpolate(lambda i, j: fat(i * 8.0, j * 8.0), 8.0))
    draw_glands(canvas, BENIGN, benign, shade)
    pale = replace(TUMOR, darkness=tuple(layout.pale * d for d in TUMOR.darkness))
    draw_glands(canvas, pale, tumor, shade)
    local = 1 + 0.16 * window.noise(key + 95, 240.0)
    canvas.h *= edge * local
    canvas.e *= edge * (1 + 0.16 * window.noise(key + 96, 300.0))


def _to_rgb(canvas: Canvas, shading: Plane, stain: tuple[float, float]) -> NDArray[np.uint8]:
    """Beer-Lambert: light that passes falls exponentially with the stains' density."""
    rgb = np.empty((*canvas.h.shape, 3), np.uint8)
    h, e = canvas.h * np.float32(stain[0]), canvas.e * np.float32(stain[1])
    for k, (a, b) in enumerate(zip(_HAEMATOXYLIN, _EOSIN, strict=True)):
        density = np.float32(a * 2.3) * h + np.float32(b) * e + shading
        rgb[..., k] = np.clip(255 * np.exp(-density), 0, 255) + np.float32(0.5)
    return rgb


def _draw_pen(rgb: NDArray[np.uint8], spec: PhantomSpec, window: Window, layout: _Layout) -> None:
    polygons = [a.polygon for a in truth(replace(spec, repeat=(1, 1))).pen]
    box = Box(window.x, window.y, window.w, window.h)
    area = [Annotation(p) for p in polygons]
    stroke = rasterize(area, box, Mpp.of(spec.mpp), spec.mpp).astype(bool)
    if stroke.any():
        ink = np.array(_PENS[str(spec.pen)], np.float32) / 255
        thick = 0.85 + 0.15 * window.noise(layout.key + 99, 40.0)[stroke][:, None]
        rgb[stroke] = rgb[stroke] * (1 - thick * (1 - ink))


def write_phantom(path: str | Path, spec: PhantomSpec) -> PhantomTruth:
    """Write a phantom as a tiled JPEG pyramid (TIFF) that OpenSlide opens, with its resolution.

    Level 0 is never whole in memory.

    Raises
    ------
    ValueError
        A size that cannot be repeated, see :class:`PhantomSpec`.
    """
    write_pyramid(
        Path(path),
        Size(*spec.size),
        Mpp.of(spec.mpp),
        lambda box: draw(spec, box),
        quality=spec.quality,
        repeat=spec.repeat,
    )
    return truth(spec)


def write_cohort(
    folder: str | Path,
    n_slides: int = 8,
    seed: int = 0,
    *,
    size: tuple[int, int] = (2048, 2048),
    mpp: float = 0.5,
    tune: float = 0.25,
) -> list[PhantomTruth]:
    """Write a labelled cohort: ``slides/*.tif``, ``labels.csv``, ``annotations/*.geojson``.

    Every second slide has tumour, so both labels occur in both splits.

    Parameters
    ----------
    folder
        Made where it does not exist.
    n_slides, seed, size, mpp
        Of the slides.
    tune
        Share of the slides in split ``tune``; the others are in ``train``.
    """
    folder = Path(folder)
    for name in ("slides", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, n_slides])
    truths, rows = [], []
    # Slides come in pairs, so that both splits have both labels.
    first_tune = n_slides // 2 - math.ceil(n_slides // 2 * tune)
    for n in range(n_slides):
        spec = PhantomSpec(
            size=size,
            mpp=mpp,
            seed=seed * 100_003 + n,
            lesions=int(rng.integers(1, 4)) if n % 2 else 0,
            tumor_fraction=float(rng.uniform(0.06, 0.25)),
            pen=(None, None, None, "blue", "green")[int(rng.integers(5))],  # type: ignore[arg-type]
        )
        name = f"phantom_{n:03d}"
        made = write_phantom(folder / "slides" / f"{name}.tif", spec)
        _write_geojson(folder / "annotations" / f"{name}.geojson", made)
        truths.append(made)
        rows.append([name, CLASSES[made.label], "tune" if n // 2 >= first_tune else "train"])
    with (folder / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["slide_id", "label", "split"], *rows])
    return truths


def _write_geojson(path: Path, made: PhantomTruth) -> None:
    features = [
        {
            "type": "Feature",
            "id": a.id,
            "geometry": json.loads(shapely.to_geojson(a.polygon)),
            "properties": {
                "objectType": "annotation",
                "name": a.name,
                "classification": {"name": a.label, "color": [213, 94, 0]},
            },
        }
        for a in made.tumor
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}), "utf-8")
