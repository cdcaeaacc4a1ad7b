"""Phantom slides: seeded synthetic H&E pyramids with exact truth.

A cartoon of glandular tissue (stroma, benign glands, fat, lymphocytes, tumour as small crowded
irregular glands, background, pen), for tests and demos. Every pixel is a pure function of (spec,
position), so any part of any size can be drawn alone, and a slide is written tile by tile.
"""

from __future__ import annotations

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from slidelens.geometry import Box, Mpp, Size
from slidelens.testing.cartoon import (
    BENIGN,
    NESTS,
    TUMOR,
    Canvas,
    draw_fat,
    draw_glands,
    draw_stroma,
)
from slidelens.testing.fields import Blob, Window, cloud_at, gap, grain, smoothstep
from slidelens.testing.layout import (
    CLASSES,
    Layout,
    PhantomSpec,
    PhantomTruth,
    layout_of,
    truth,
)
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

_HAEMATOXYLIN, _EOSIN = (0.62, 0.75, 0.30), (0.09, 0.85, 0.32)
"""Optical density of a unit of stain in R, G, B (after Ruifrok and Johnston 2001, warmed)."""

_PENS = {"blue": (28, 52, 160), "green": (20, 120, 60), "black": (32, 32, 36), "red": (190, 30, 45)}
_DRAW = 512  # px drawn at once: bounds the memory of the planes, and they stay in the cache


_CROWD = 0.75
"""Share of the places where lymphocytes can be that are taken in a follicle."""

_EDGE_UM = 1.0
"""Half the width over which tissue fades into the glass."""


def draw(spec: PhantomSpec, box: Box | None = None) -> NDArray[np.uint8]:
    """Draw any part of a phantom: ``(h, w, 3)`` uint8 RGB, the same pixels in every box.

    Parameters
    ----------
    spec
        The slide.
    box
        Whole level-0 px, inside the slide as drawn once (repeats are made by copying); default: all
        of it.

    Raises
    ------
    ValueError
        The box is not of whole pixels, or reaches outside.
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
    layout = layout_of(spec)
    shape = (window.h, window.w)
    zero = np.zeros(shape, np.float32)
    canvas = Canvas(window, layout.key, zero, zero.copy())
    tissue = _inside(window, layout.pieces)
    if (tissue > -_EDGE_UM).any():
        _draw_tissue(canvas, layout, tissue)
    shading = 0.035 + 0.012 * window.noise(layout.key + 90, 900.0) + 0.004 * grain(window, 7)
    rgb = _to_rgb(canvas, shading, layout)
    if spec.pen:
        _draw_pen(rgb, spec, window, layout)
    return rgb


def _inside(window: Window, blobs: tuple[Blob, ...]) -> Plane:
    """Distance in µm to the nearest outline, positive inside any blob."""
    best = np.full((window.h, window.w), np.float32(-1e9))
    for blob in blobs:

        def nodes(i: NDArray[Any], j: NDArray[Any], blob: Blob = blob) -> NDArray[np.float64]:
            return blob.gap(i * 8.0, j * 8.0)

        np.maximum(best, window.interpolate(nodes, 8.0), out=best)
    return best


def _draw_tissue(canvas: Canvas, layout: Layout, tissue: Plane) -> None:
    window, key = canvas.window, layout.key
    areas = layout.lesions + layout.follicles

    def fat(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        inner = np.minimum(1, gap(layout.pieces, x, y) / 60 - 1)
        away = np.minimum(1, -gap(areas, x, y) / 60 - 1)
        return np.minimum(np.minimum(inner, away), cloud_at(key + 60, x, y, 520.0) - 0.55)

    def inflamed(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        patches = cloud_at(key + 70, x, y, 260.0) + 0.3 * cloud_at(key + 71, x, y, 60.0)
        amount = np.clip(0.06 + 2.2 * (patches - 0.2), 0.04, 0.95)
        crowd = np.clip(gap(layout.follicles, x, y) / 40, 0, _CROWD)
        return np.maximum(amount, crowd)

    def benign(x: NDArray[Any], y: NDArray[Any], reach: NDArray[Any]) -> NDArray[np.bool_]:
        here = (gap(layout.pieces, x, y) > reach) & (gap(areas, x, y) < -1.15 * reach)
        return here & (fat(x, y) < -0.1) & (cloud_at(key + 80, x, y, 420.0) > -0.45)

    def tumor(x: NDArray[Any], y: NDArray[Any], reach: NDArray[Any]) -> NDArray[np.bool_]:
        return gap(layout.lesions, x, y) > 0.95 * reach

    def shade(x: NDArray[Any], y: NDArray[Any]) -> NDArray[np.float64]:
        return 1.1 + 0.7 * cloud_at(key + 85, x, y, 300.0)

    edge = smoothstep(-_EDGE_UM, _EDGE_UM, tissue)
    draw_stroma(canvas, edge, inflamed)
    draw_fat(canvas, window.interpolate(lambda i, j: fat(i * 8.0, j * 8.0), 8.0))
    draw_glands(canvas, BENIGN, benign, shade)
    for style in (NESTS, TUMOR):
        low, high = style.darkness
        pale = replace(style, darkness=(layout.pale * low, layout.pale * high))
        draw_glands(canvas, pale, tumor, shade)
    # Staining varies more over a section than between tissues, and a tumour's loose, swollen stroma
    # is pale: mean colour must not give the tumour away, only its architecture.
    lesion = smoothstep(0.0, 40.0, _inside(window, layout.lesions))
    _tone(canvas, layout)
    canvas.h *= edge * (1 - 0.30 * lesion) * (1 + 0.3 * window.cloud(key + 95, 240.0))
    canvas.e *= edge * (1 - 0.17 * lesion) * (1 + 0.25 * window.cloud(key + 96, 300.0))


def _tone(canvas: Canvas, layout: Layout) -> None:
    """Stain lesions and follicles so that neither is darker than the other on average."""
    areas = layout.lesions + layout.follicles
    for area, (h, e) in zip(areas, layout.tones, strict=True):
        if (h, e) != (1.0, 1.0):
            inside = smoothstep(0.0, 40.0, _inside(canvas.window, (area,)))
            canvas.h *= 1 + np.float32(h - 1) * inside
            canvas.e *= 1 + np.float32(e - 1) * inside


def _to_rgb(canvas: Canvas, shading: Plane, layout: Layout) -> NDArray[np.uint8]:
    """Beer-Lambert: light that passes falls exponentially with the stains' density.

    Hue drifts from slide to slide and over a section, as dyes and thickness do.
    """
    rgb = np.empty((*canvas.h.shape, 3), np.uint8)
    h, e = (
        plane * np.float32(s) for plane, s in zip((canvas.h, canvas.e), layout.stain, strict=False)
    )
    for k, (a, b) in enumerate(zip(_HAEMATOXYLIN, _EOSIN, strict=True)):
        density = np.float32(a * 2.3) * h + np.float32(b) * e
        density *= layout.hue[k] + 0.1 * canvas.window.cloud(layout.key + 110 + k, 200.0)
        rgb[..., k] = np.clip(255 * np.exp(-density - shading), 0, 255) + np.float32(0.5)
    return rgb


def _draw_pen(rgb: NDArray[np.uint8], spec: PhantomSpec, window: Window, layout: Layout) -> None:
    one = Mpp(1.0, 1.0)  # the layout is in µm, which are the "pixels" of this world
    box = Box(window.x, window.y, window.w, window.h).scaled(spec.mpp)
    stroke = rasterize([Annotation(p) for p in layout.pen], box, one, spec.mpp).astype(bool)
    if stroke.any():
        ink = np.array(_PENS[str(spec.pen)], np.float32) / 255
        thick = 0.9 + 0.08 * window.cloud(layout.key + 99, 120.0)[stroke][:, None]
        rgb[stroke] = rgb[stroke] * (1 - thick * (1 - ink))


def write_phantom(path: str | Path, spec: PhantomSpec) -> PhantomTruth:
    """Write a phantom as a tiled JPEG pyramid (TIFF) that OpenSlide opens, with its resolution.

    Level 0 is never whole in memory.

    Raises
    ------
    ValueError
        The size cannot be repeated, see :class:`PhantomSpec`.
    """
    write_pyramid(
        Path(path),
        Size(*spec.size),
        Mpp.of(spec.mpp),
        lambda box: draw(spec, box),
        quality=spec.quality,
        repeat=spec.repeat,
        place=spec.place,
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
    test: float = 0.0,
) -> list[PhantomTruth]:
    """Write a labelled cohort: ``slides/*.tif``, ``labels.csv``, ``annotations/*.geojson``.

    Every second slide has tumour, so both labels occur in every split.

    Parameters
    ----------
    folder
        Created if it does not exist.
    n_slides, seed, size, mpp
        Number of slides; seed of their drawing; their width and height in px; their resolution in
        µm/px.
    tune, test
        Shares of the slides in these splits; the others are in ``train``.
    """
    folder = Path(folder)
    for name in ("slides", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, n_slides])
    truths, rows = [], []
    # Slides come in pairs, so that every split has both labels.
    pairs = n_slides // 2
    tested = math.ceil(pairs * test)
    first_tune = pairs - tested - math.ceil(pairs * tune)
    for n in range(n_slides):
        spec = PhantomSpec(
            size=size,
            mpp=mpp,
            seed=seed * 100_003 + n,
            lesions=int(rng.integers(1, 4)) if n % 2 else 0,
            tumor_fraction=float(rng.uniform(0.06, 0.25)),
            pen=(None, None, None, "blue", "green")[int(rng.integers(5))],
        )
        name = f"phantom_{n:03d}"
        made = write_phantom(folder / "slides" / f"{name}.tif", spec)
        _write_geojson(folder / "annotations" / f"{name}.geojson", made)
        truths.append(made)
        split = "tune" if n // 2 >= first_tune else "train"
        if tested and n // 2 >= pairs - tested:
            split = "test"
        rows.append([name, CLASSES[made.label], split])
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
