"""Methods that separate tissue from background on an overview image.

The thresholds' bounds are our choice, set on H&E, IHC and DAPI slides of five scanners; Otsu (1979)
chooses between them. Densities are optical densities ``-ln(I / white)`` against the slide's own
white, so that a grey background has density 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar

import numpy as np
from scipy import ndimage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Plane = NDArray[np.float32]
    Mask = NDArray[np.bool_]

__all__ = ["classify", "clean"]

ScalarT = TypeVar("ScalarT", bound=np.generic)

_CHROMA = (0.045, 0.085)
_DENSITY = (0.06, 0.22)
_LIGHT = (6.0, 14.0)
_VOID = 24
"""Brightest channel where nothing was scanned (black filling) or lit (fluorescence)."""

_NUCLEI_UM = 24.0
"""Scale at which nuclei of a fluorescence slide blur into tissue."""

_ENOUGH = 1024  # px of an overview's shorter side that statistics are computed from, at least
_STRIP = 1 << 19
"""Cells of an overview that are processed at once: bounds memory on slides of gigapixels."""

_INK_GROW_UM = 20.0
_INK_MIN_UM2 = 6_000.0
_INK_SURE = 0.2


def classify(
    image: NDArray[np.uint8], method: str, pen: bool, cell: float
) -> tuple[Literal["stain", "otsu", "intensity"], Mask]:
    """Return which cells are tissue, before cleaning.

    Parameters
    ----------
    image
        ``(h, w, 3)`` uint8 overview.
    method
        ``"auto"``, ``"stain"``, ``"otsu"`` or ``"intensity"``.
    pen
        Leave out ink.
    cell
        Side of a pixel of ``image`` in µm.

    Returns
    -------
    The method that ran and ``(h, w)`` bool.
    """
    seen = _thinned(image)
    brightest, darkest = _highest(seen), _lowest(seen)
    if method == "intensity" or (method == "auto" and _is_dark(brightest, darkest)):
        return "intensity", _lit(image, cell)
    white = _white(seen, brightest, darkest)
    void = (brightest if len(seen) == len(image) else _highest(image)) <= _VOID
    del brightest, darkest
    measure = np.empty(void.shape, np.float32)
    sure, perhaps = np.zeros_like(void), np.zeros_like(void)
    for rows in _strips(image):  # whole, the densities of a large slide take gigabytes
        density = _density(image[rows], void[rows], white)
        if method == "otsu":
            measure[rows] = sum(_channels(density)) / np.float32(3)
        else:
            measure[rows] = _highest(density) - _lowest(density)
        if pen:
            sure[rows], perhaps[rows] = _looks_inky(density)
    measure[void] = np.nan  # which is neither counted nor above the threshold
    tissue = measure > _threshold(measure, _DENSITY if method == "otsu" else _CHROMA)
    del measure
    if pen:
        tissue &= ~_ink(sure, perhaps, cell)
    return ("otsu" if method == "otsu" else "stain"), tissue


def clean(mask: Mask, radius: float, min_cells: float, max_hole_cells: float) -> Mask:
    """Close gaps up to ``2 * radius`` cells, drop specks, fill holes (sizes in cells)."""
    grown = mask
    if radius > 0 and mask.any() and not mask.all():
        # Cells near the mask, minus those near its outside: closing by a true disc.
        # The border is mirrored, so that tissue is not eroded where the slide ends.
        margin = min(int(np.ceil(radius)) + 1, *mask.shape)
        padded = np.pad(mask, margin, mode="symmetric")
        closed = ~_near(~_near(padded, radius), radius)
        grown = (closed[margin:-margin, margin:-margin]) | mask
    kept = _drop_small(grown, min_cells)
    return ~_drop_small(~kept, max_hole_cells, touching=True)


def _near(mask: Mask, radius: float) -> Mask:
    """Cells at most ``radius`` cells from the mask (centre to centre): a disc of shifted copies.

    Row by row of the disc, the widest last: each is the mask widened by half that row's length.
    """
    height, width = mask.shape
    out, wide, widened = np.zeros_like(mask), mask.copy(), 0
    for dy in range(min(int(radius), height - 1), -1, -1):
        half = min(int((radius**2 - dy**2) ** 0.5), width - 1)
        for dx in range(widened + 1, half + 1):
            wide[:, dx:] |= mask[:, : width - dx]
            wide[:, : width - dx] |= mask[:, dx:]
        widened = max(widened, half)
        out[dy:] |= wide[: height - dy]
        out[: height - dy] |= wide[dy:]
    return out


def _strips(array: NDArray[np.generic]) -> list[slice]:
    rows, step = len(array), max(64, _STRIP // max(1, array.shape[1]))
    return [slice(top, min(top + step, rows)) for top in range(0, rows, step)]


def _drop_small(mask: Mask, least: float, touching: bool = False) -> Mask:
    """Drop connected parts of fewer than ``least`` cells (``touching``: not at the border)."""
    labels, count = ndimage.label(mask)
    if not count:
        return mask
    keep = _sizes(labels, count) >= least
    if touching:
        for edge in (labels[0], labels[-1], labels[:, 0], labels[:, -1]):
            keep[edge] = True
    keep[0] = False
    return _pick(keep, labels)


def _sizes(labels: NDArray[np.int32], count: int, among: Mask | None = None) -> NDArray[np.int64]:
    """Count the cells of each part, in strips: numpy makes copies of eight bytes per cell."""
    total = np.zeros(count + 1, np.int64)
    for rows in _strips(labels):
        part = labels[rows] if among is None else labels[rows][among[rows]]
        total += np.bincount(part.ravel(), minlength=count + 1)
    return total


def _pick(keep: Mask, labels: NDArray[np.int32]) -> Mask:
    """Return the cells of the parts that are kept."""
    out = np.empty(labels.shape, bool)
    for rows in _strips(labels):
        out[rows] = keep.take(labels[rows])  # half the time of indexing
    return out


def _thinned(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Leave out rows and columns of a large overview: the rest is enough for statistics."""
    step = max(1, min(image.shape[:2]) // _ENOUGH)
    return image[::step, ::step]


def _is_dark(brightest: NDArray[np.uint8], darkest: NDArray[np.uint8]) -> bool:
    """Return whether a slide is fluorescence: mostly dark, and the rest has no white."""
    if np.median(brightest) > 64:
        return False
    lit = brightest > _VOID
    # Brightfield on a black filling still has its glass or its pale tissue.
    return not lit.any() or float(np.percentile(darkest[lit], 90)) < 100


def _lit(image: NDArray[np.uint8], cell: float) -> Mask:
    """Cells brighter than the dark background, at the scale of tissue rather than of nuclei."""
    light = _highest(image).astype(np.float32)
    light = ndimage.gaussian_filter(light, _NUCLEI_UM / cell)
    light -= np.percentile(light, 1)
    return np.asarray(light > _threshold(light, _LIGHT))


def _density(image: NDArray[np.uint8], void: Mask, white: Plane) -> Plane:
    """Optical density ``(h, w, 3)`` against the slide's own white, 0 where nothing was scanned."""
    light = np.arange(256, dtype=np.float32).clip(1)[:, None]
    of_light = np.maximum(-np.log(light / white), 0)
    planes = np.empty((3, *void.shape), np.float32)  # each in one piece: strided, it takes longer
    for channel, plane in enumerate(planes):
        of_light[:, channel].take(image[..., channel], out=plane, mode="clip")
        plane[void] = 0
    return planes.transpose(1, 2, 0)


def _channels(image: NDArray[ScalarT]) -> list[NDArray[ScalarT]]:
    """Return the three channels, which are the last axis: numpy is ten times slower along it."""
    return [image[..., k] for k in range(3)]


def _highest(image: NDArray[ScalarT]) -> NDArray[ScalarT]:
    red, green, blue = _channels(image)
    return np.asarray(np.maximum(np.maximum(red, green), blue))


def _lowest(image: NDArray[ScalarT]) -> NDArray[ScalarT]:
    red, green, blue = _channels(image)
    return np.asarray(np.minimum(np.minimum(red, green), blue))


def _white(
    image: NDArray[np.uint8], brightest: NDArray[np.uint8], darkest: NDArray[np.uint8]
) -> Plane:
    """Colour of the empty glass: the commonest bright grey, or white if there is no glass."""
    grey = (brightest >= 150) & (brightest - darkest <= 14)
    if np.count_nonzero(grey) < 0.01 * max(1, int(np.count_nonzero(brightest > _VOID))):
        return np.full(3, 245, np.float32)
    commonest = int(np.bincount(darkest[grey], minlength=256).argmax())
    near = grey & (darkest >= commonest - 4) & (darkest <= commonest + 4)
    return np.array([channel[near].mean() for channel in _channels(image)], np.float32)


def _threshold(values: Plane, bounds: tuple[float, float]) -> float:
    """Otsu's threshold, kept between bounds; the lower bound if there is nothing to separate."""
    low, high = bounds
    least, most = np.fmin.reduce(values, axis=None), np.fmax.reduce(values, axis=None)
    if not least < most:
        return low
    from skimage.filters import threshold_otsu

    counts, edges = np.histogram(values, bins=256, range=(least, most))
    centres = (edges[1:] + edges[:-1]) / 2
    found = threshold_otsu(hist=(counts, centres))  # type: ignore[no-untyped-call]
    return float(np.clip(found, low, high))


def _looks_inky(density: Plane) -> tuple[Mask, Mask]:
    """Return the cells that surely have the colour of pen ink, and those that may if next to it.

    Blue and green ink pass less red than green light, which no tissue stain does at this size;
    black absorbs all equally; red is purer and denser than eosin or blood. A thin or pale stroke is
    purple at its edges and where it thins out, but denser than any mucin.
    """
    red, green, blue = _channels(density)
    total = red + green + blue
    cool = (red > green + 0.15) & (red > 0.35)
    black = (total > 3.0) & (_highest(density) - _lowest(density) < 0.15 * total)
    scarlet = (green > 1.1) & (blue > 0.75 * green) & (red < 0.3 * green)
    sure = cool | black | scarlet
    return np.asarray(sure), np.asarray(sure | ((red > green + 0.03) & (red > 0.6)))


def _ink(sure: Mask, perhaps: Mask, cell: float) -> Mask:
    """Keep parts large enough for a pen and surely ink in a fifth, grown over faint edges."""
    if not sure.any():
        return sure
    labels, count = ndimage.label(perhaps)
    size, certain = _sizes(labels, count), _sizes(labels, count, sure)
    keep = (size >= _INK_MIN_UM2 / cell**2) & (certain >= _INK_SURE * size)
    keep[0] = False
    return _near(_pick(keep, labels), _INK_GROW_UM / cell)
