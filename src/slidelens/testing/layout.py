"""Layout of a phantom slide, determined by its seed: tissue, lesions, stain, and the truth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import shapely

from slidelens.geometry import Box, Mpp, Size
from slidelens.testing.fields import Blob
from slidelens.tiling.annotations import Annotation, rasterize

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["CLASSES", "Layout", "Pen", "PhantomSpec", "PhantomTruth", "layout_of", "truth"]

CLASSES = ("normal", "tumor")
"""Slide labels, in label order."""

_AREA_TONE = 1.35
"""How much more haematoxylin lesions have if there are follicles: seen from afar."""

_FOLLICLE_TONE = (0.895 * _AREA_TONE, 0.805)
"""Brings a follicle's mean haematoxylin and eosin to those of such lesions."""

_LESION_UM = 140.0
"""Lesions are not planned smaller than this radius: a few tumour glands must fit."""

Pen = Literal["blue", "green", "black", "red"]


@dataclass(frozen=True)
class PhantomSpec:
    """One phantom slide.

    Attributes
    ----------
    size
        Width and height in level-0 px of the drawn part.
    mpp
        Resolution in µm/px.
    seed
        All randomness follows from it.
    lesions
        Number of tumour areas; 0 makes a normal slide.
    tumor_fraction
        Share of the tissue that the tumour areas take together (less if they do not fit).
    follicles
        Number of lymphoid follicles: benign clusters of lymphocytes, as large and as dark as tumour
        areas. From afar the two look alike; only glands and nuclei tell them apart.
    section
        Width and height of the tissue as a share of what fits; below 1 its position is random.
    pen
        Colour of a pen stroke beside the tissue, or none.
    stain
        Strength of haematoxylin and of eosin; ``None`` draws them from the seed, as slides differ.
    quality
        JPEG quality of the tiles.
    repeat
        The drawn slide is laid out this many times along x and y, its encoded tiles reused: a slide
        of any number of gigapixels in seconds. ``size`` must then be a multiple of 4096 px.
    place
        Column and row of the only repeat that is drawn, the others being bare glass: a small
        section on a large slide. ``None`` has all of them.
    """

    size: tuple[int, int] = (2048, 2048)
    mpp: float = 0.5
    seed: int = 0
    lesions: int = 0
    tumor_fraction: float = 0.12
    follicles: int = 0
    section: float = 1.0
    pen: Pen | None = None
    stain: tuple[float, float] | None = None
    quality: int = 85
    repeat: tuple[int, int] = (1, 1)
    place: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self.repeat) < 1:
            raise ValueError(f"size {self.size} and repeat {self.repeat} must be at least 1")
        if self.place is not None and self.place not in np.ndindex(*self.repeat):
            raise ValueError(f"place {self.place} is not among the {self.repeat} repeats")
        if not self.mpp > 0:
            raise ValueError(f"mpp must be above 0 µm/px, not {self.mpp}")
        if self.lesions < 0 or not 0 < self.tumor_fraction < 1:
            raise ValueError("lesions must be at least 0 and tumor_fraction between 0 and 1")
        if self.follicles < 0 or not 0 < self.section <= 1:
            raise ValueError("follicles must be at least 0 and section above 0, at most 1")

    @property
    def slide_size(self) -> Size:
        """Width and height in level-0 px of the slide, repeats included."""
        return Size(self.size[0] * self.repeat[0], self.size[1] * self.repeat[1])


@dataclass(frozen=True)
class PhantomTruth:
    """Exactly what is where on a phantom.

    Attributes
    ----------
    size, mpp
        Of the slide, as in the spec.
    label
        Index into :data:`CLASSES`.
    tumor, tissue, pen
        Polygons in level-0 px. The tumour's contain only tumour glands and their stroma, and no
        tumour gland is outside.
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
class Layout:
    """What the seed determines for a whole slide, in µm."""

    key: int
    pieces: tuple[Blob, ...]
    lesions: tuple[Blob, ...]
    follicles: tuple[Blob, ...]
    pen: tuple[Any, ...]  # shapely polygons
    stain: tuple[float, float]
    hue: tuple[float, float, float]  # density of stain in R, G, B, about 1
    pale: float  # how light the tumour's nuclei are: mean colour must not tell
    tones: tuple[tuple[float, float], ...]  # density of stains in each lesion, then each follicle


@lru_cache(maxsize=16)
def layout_of(spec: PhantomSpec) -> Layout:
    """Lay a slide out; a pure function of the spec."""
    rng = np.random.default_rng([spec.seed, 20, 16])
    width, height = spec.size[0] * spec.mpp, spec.size[1] * spec.mpp
    count = int(rng.integers(1, 3)) if min(width, height) > 2500 else 1
    pieces = []
    for n in range(count):
        along = width >= height
        w, h = (width / count, height) if along else (width, height / count)
        centre = ((n + 0.5) * w, height / 2) if along else (width / 2, (n + 0.5) * h)
        radii = (w * rng.uniform(0.40, 0.46), h * rng.uniform(0.38, 0.46))
        pieces.append(Blob.random(rng, centre, radii, rough=0.22, orders=40))
    if spec.section < 1:
        pieces = _shrunk(pieces, spec, (width, height))
    # Staining has its own stream: slides with and without lesions differ only by the lesions.
    dye = np.random.default_rng([spec.seed, 7])
    stain = (float(dye.uniform(0.8, 1.25)), float(dye.uniform(0.75, 1.25)))
    lesions = _place_areas(rng, spec, pieces, spec.lesions)
    # Follicles have their own stream too: without any, a slide stays what it was.
    other = np.random.default_rng([spec.seed, 8])
    follicles = _place_areas(other, spec, pieces, spec.follicles, lesions)
    return Layout(
        key=(spec.seed + 1) * 1_000_003,
        pieces=tuple(pieces),
        lesions=lesions,
        follicles=follicles,
        pen=(_pen_area(spec, pieces[0]),) if spec.pen else (),
        stain=spec.stain or stain,
        hue=(float(dye.uniform(0.92, 1.08)), 1.0, float(dye.uniform(0.9, 1.1))),
        pale=float(dye.uniform(0.55, 1.1)),
        tones=_tones(other, len(lesions), len(follicles)),
    )


def _tones(
    rng: np.random.Generator, lesions: int, follicles: int
) -> tuple[tuple[float, float], ...]:
    """Draw how dark areas are; without follicles, lesions need not differ from anything."""
    if not follicles:
        return ((1.0, 1.0),) * lesions
    means = [(_AREA_TONE, 1.0)] * lesions + [_FOLLICLE_TONE] * follicles
    return tuple((h * rng.uniform(0.88, 1.12), e * rng.uniform(0.88, 1.12)) for h, e in means)


def _shrunk(pieces: list[Blob], spec: PhantomSpec, extent: tuple[float, float]) -> list[Blob]:
    """Make the tissue smaller and put it anywhere on the slide."""
    rng = np.random.default_rng([spec.seed, 9])
    part = spec.section
    shift = [float(rng.uniform(0, (1 - part) * length)) for length in extent]
    return [
        replace(
            piece,
            x=piece.x * part + shift[0],
            y=piece.y * part + shift[1],
            rx=piece.rx * part,
            ry=piece.ry * part,
        )
        for piece in pieces
    ]


def _place_areas(
    rng: np.random.Generator,
    spec: PhantomSpec,
    pieces: list[Blob],
    count: int,
    taken: tuple[Blob, ...] = (),
) -> tuple[Blob, ...]:
    """Place lesions or follicles inside tissue, apart from each other; they shrink to fit."""
    areas = np.array([p.rx * p.ry for p in pieces])
    placed: list[Blob] = []
    for _ in range(count):
        radius = float(np.sqrt(areas.sum() * spec.tumor_fraction / max(spec.lesions, 1)))
        radius = max(radius, _LESION_UM)
        while True:
            home = pieces[rng.choice(len(pieces), p=areas / areas.sum())]
            turn, out = rng.uniform(0, 2 * np.pi), np.sqrt(rng.uniform()) * 0.9
            x, y = home.x + home.rx * out * np.cos(turn), home.y + home.ry * out * np.sin(turn)
            ring = np.exp(2j * np.pi * np.arange(24) / 24) * radius * 1.25
            others = (*taken, *placed)
            apart = all(np.hypot(x - b.x, y - b.y) > 1.3 * (radius + b.rx) for b in others)
            if apart and float(home.gap(x + ring.real, y + ring.imag).min()) > 0:
                break
            radius *= 0.97
        stretch = float(rng.uniform(0.8, 1.0))
        placed.append(
            Blob.random(rng, (x, y), (radius, radius * stretch), rough=0.3, orders=6, within=False)
        )
    return tuple(placed)


def truth(spec: PhantomSpec) -> PhantomTruth:
    """Return the exact truth of a phantom without drawing it."""
    layout = layout_of(spec)
    return PhantomTruth(
        size=spec.slide_size,
        mpp=Mpp.of(spec.mpp),
        label=int(spec.lesions > 0),
        tumor=_areas(spec, "tumor", [shapely.Polygon(b.outline()) for b in layout.lesions]),
        tissue=_areas(spec, "tissue", [shapely.Polygon(b.outline()) for b in layout.pieces]),
        pen=_areas(spec, "pen", list(layout.pen)),
    )


def _areas(spec: PhantomSpec, name: str, polygons: list[Any]) -> tuple[Annotation, ...]:
    """Turn polygons in µm into annotations in level-0 px, once per repeat."""
    made = []
    for n, polygon in enumerate(polygons):
        places = [spec.place[::-1]] if spec.place else np.ndindex(*spec.repeat[::-1])
        for row, column in places:
            shift = np.array([column * spec.size[0], row * spec.size[1]])
            moved = shapely.transform(polygon, lambda xy, s=shift: xy / spec.mpp + s)
            identity = f"{name}-{n}-{row}-{column}"
            made.append(Annotation(moved, label=name, name=f"{name} {n}", id=identity))
    return tuple(made)


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
