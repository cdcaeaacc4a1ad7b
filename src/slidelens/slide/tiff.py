"""Slides read by tifffile: OME-TIFF, QPTIFF and other fluorescence, striped, grey, BigTIFF."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from slidelens.errors import SlideError, UnsupportedSlideError
from slidelens.slide.channels import Alpha, Composer, spread
from slidelens.slide.complete import TIFF_MAGIC, check_complete
from slidelens.slide.reader import Facts, Reader, unreadable
from slidelens.slide.segments import TiffPixels, main_series, open_tiff, stored_levels
from slidelens.slide.tiff_facts import channel_count, resolution_unit, stated_bits, tiff_facts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TiffReader", "is_plain_rgb"]

_OPENSLIDE_DECODES = {1, 5, 7, 8, 32773, 32946}
_OPENSLIDE_UNITS = 3  # none, inch and cm; some writers state mm and µm, too
_AS_STORED = {1, 5, 8, 32773, 32946, 34925, 50000}  # compressions that do not define colours
_ORIENTATIONS = {  # TIFF 6.0, page 36: what would have to be done to the stored image
    2: "mirrored left to right",
    3: "turned by 180°",
    4: "mirrored top to bottom",
    5: "mirrored along its diagonal",
    6: "turned by 90° clockwise",
    7: "mirrored along its other diagonal",
    8: "turned by 90° anticlockwise",
}
_ALPHA: dict[int, Alpha] = {1: "associated", 2: "unassociated"}  # by ExtraSamples

# tifffile logs whatever it finds odd; without a handler Python prints that to stderr, on top of our
# own error, which is one sentence.
logging.getLogger("tifffile").addHandler(logging.NullHandler())


class TiffReader(Reader):
    """A TIFF that tifffile reads."""

    backend = "tifffile"

    def __init__(self, path: Path) -> None:
        self.path = path
        _refuse_vsi(path)
        check_complete(path)
        with open_tiff(path) as file:
            series = main_series(file)
            self._others = _names(file, series)
            self._icc = series.keyframe.tags.valueof(34675)
            self._turned = _turned(series.keyframe)
            self._image = _Image(path, file, series, tuple(self._others))
        self.facts = self._image.facts

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:  # noqa: ARG003  # the content is enough
        """Accept TIFF and BigTIFF of either byte order."""
        return head.startswith(TIFF_MAGIC)

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level, channels composed."""
        return self._image.read(level, x, y, w, h)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read one of the file's other images."""
        with open_tiff(self.path) as file:
            image = _Image(self.path, file, file.series[self._others[name]])
        try:
            return image.read(0, 0, 0, *image.facts.levels[0].size)
        finally:
            image.close()

    def other_files(self) -> list[Path]:
        """Return the files that hold other channels of an OME-TIFF."""
        return self._image.other_files

    def notes(self) -> list[str]:
        """Return notes on the image's orientation, and which of its samples are drawn."""
        if self._turned is None:
            return self._image.notes()
        turned = (
            f"its Orientation tag, by which it would be {self._turned}, is not applied: it is "
            "drawn, and its coordinates are counted, as it is stored"
        )
        return [turned, *self._image.notes()]

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if there is one."""
        return None if self._icc is None else bytes(self._icc)

    def close(self) -> None:
        """Close the file and forget its tiles."""
        self._image.close()


class _Image:
    """One image of a TIFF: its facts, and its levels as RGB.

    Parameters
    ----------
    path, file
        The open file; it may be closed afterwards.
    series
        tifffile's series of it.
    others
        Names of the file's other images.
    """

    def __init__(
        self, path: Path, file: tifffile.TiffFile, series: Any, others: tuple[str, ...] = ()
    ) -> None:
        page = series.keyframe
        _check_kind(path, page)
        try:
            levels = stored_levels(file, series)
            self.facts = tiff_facts(file, series, levels, others)
            rgb = _has_colours(series, self.facts)
            bits = stated_bits(file, series)
            white = rgb and page.photometric != 3
            self._pixels = TiffPixels(path, file, levels, white=white)
            self.other_files = sorted(self._pixels.files - {path})
        except SlideError:
            raise
        except Exception as error:  # reason: damaged headers make parsers raise anything
            raise unreadable(path, error, "its TIFF header cannot be understood") from error
        self._planes = rgb and channel_count(series) == 3
        self._map = _palette(page) if page.photometric == 3 else None
        self._faded = rgb and page.samplesperpixel == 2
        if rgb and page.dtype not in (np.uint8, np.uint16):
            raise UnsupportedSlideError(
                f"{path}: its colours are of type {page.dtype}; slidelens reads RGB of 8 or 16 "
                "bits per colour (grey and fluorescence channels of any type). Convert it."
            )
        channels = len(self.facts.channels) or (3 if rgb else page.samplesperpixel)
        inverted = page.photometric == 0
        dtype = page.dtype if self._map is None else self._map.dtype
        self._compose = Composer(
            channels, dtype, rgb, self._overview, _alpha(page), white_is_zero=inverted, bits=bits
        )

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level."""
        return self._compose(self._stored(level, x, y, w, h))

    def notes(self) -> list[str]:
        planes = "its three channels are drawn as red, green and blue: nothing says they are stains"
        return [*([planes] if self._planes else []), *self._compose.notes()]

    def close(self) -> None:
        self._pixels.close()

    def _stored(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        samples = self._pixels.read(level, x, y, w, h)
        if self._map is not None:
            coloured: NDArray[np.uint8] = self._map[samples[..., 0]]
            return coloured
        return samples[..., [0, 0, 0, 1]] if self._faded else samples

    def _overview(self) -> NDArray[Any]:
        level = len(self.facts.levels) - 1
        return spread(partial(self._stored, level), *self.facts.levels[level].size)


def _names(file: tifffile.TiffFile, main: Any) -> dict[str, int]:
    """Name the images beside the main one, and state which series each is."""
    found: dict[str, int] = {}
    for number, series in enumerate(file.series):
        name = series.name.lower()
        if series is main or series.keyframe.parent is not file or not name:
            continue
        alike = sum(other == name or other.startswith(f"{name} (") for other in found)
        found[f"{name} ({alike + 1})" if alike else name] = number
    return found


def _has_colours(series: Any, facts: Facts) -> bool:
    """Return whether samples are red, green and blue, or become so by a palette."""
    page = series.keyframe
    if page.photometric in (2, 6) and page.samplesperpixel >= 3:
        return True
    if page.photometric == 1 and page.samplesperpixel == 2 and _alpha(page):  # grey with alpha
        return page.dtype in (np.uint8, np.uint16)
    return bool(page.photometric == 3 or (channel_count(series) == 3 and not facts.channels))


def is_plain_rgb(path: Path) -> bool:
    """Return whether a TIFF is tiled 8-bit RGB without a vendor header: OpenSlide's generic TIFF.

    A file that tifffile cannot parse is left to OpenSlide, whose error is as good.
    """
    try:
        file = open_tiff(path)
    except SlideError:
        return True
    with file:
        series = main_series(file)
        page = series.keyframe
        return bool(
            not (file.is_ome or file.is_qpi or file.is_imagej)
            and page.is_tiled
            and int(page.compression) in _OPENSLIDE_DECODES
            and page.dtype == np.uint8
            and page.samplesperpixel == 3
            and page.photometric in (2, 6)
            # OpenSlide's libtiff says of other uncompressed tiles "invalid tile byte count".
            and (page.compression != 1 or page.tilewidth * page.tilelength * 3 % 1024 == 0)
            and resolution_unit(page) <= _OPENSLIDE_UNITS
            # OpenSlide turns each tile of a rotated image in its place, or not, depending on
            # compression.
            and _turned(page) is None
            # OpenSlide does not look for levels in SubIFDs.
            and not any(level.keyframe.is_subifd for level in stored_levels(file, series))
        )


def _turned(page: Any) -> str | None:
    """Describe a page's Orientation tag; ``None`` if the page is drawn as stored."""
    stated = page.tags.valueof("Orientation")
    return _ORIENTATIONS.get(stated) if isinstance(stated, int) else None


def _palette(page: Any) -> NDArray[np.uint8]:
    """Return the colours of a page's values, ``(N, 3)``; some writers state them in 8 bits."""
    stated: NDArray[np.uint16] = np.moveaxis(page.colormap, 0, -1)
    return (stated if stated.max() < 256 else stated >> 8).astype(np.uint8)


def _alpha(page: Any) -> Alpha | None:
    """Return the meaning of the first sample beyond a page's colours; often it is not stated."""
    return _ALPHA.get(int(page.extrasamples[0])) if page.extrasamples else None


def _refuse_vsi(path: Path) -> None:
    """Olympus: a TIFF with a preview; the slide is in ``_<name>_/stack*/frame_t_*.ets``."""
    folder = path.with_name(f"_{path.stem}_")
    if path.suffix.lower() == ".vsi" or any(folder.glob("stack*/*.ets")):
        raise UnsupportedSlideError(
            f"{path}: an Olympus VSI keeps its pixels in .ets files beside it, which no backend "
            "reads; convert it to OME-TIFF with Bio-Formats' bfconvert."
        )


def _check_kind(path: Path, page: Any) -> None:
    if page.compression not in tifffile.TIFF.DECOMPRESSORS:
        raise UnsupportedSlideError(
            f"{path}: its pixels are compressed by TIFF method {int(page.compression)}, which no "
            "backend decodes; convert it to OME-TIFF or another tiled TIFF."
        )
    kind = page.dtype
    if kind is None or kind.kind not in "buif" or page.photometric not in (0, 1, 2, 3, 6):
        raise UnsupportedSlideError(
            f"{path}: its pixels are {page.photometric.name} of type {kind}; slidelens reads grey, "
            "RGB, YCbCr and palette TIFF of integers or floats."
        )
    if page.photometric == 3 and np.shape(page.colormap) != (3, 2**page.bitspersample):
        raise SlideError(
            f"{path}: its pixels are numbers of colours, but the palette that says which is "
            "missing or too short; convert it again from its source."
        )
    if page.photometric == 6 and int(page.compression) in _AS_STORED:
        raise UnsupportedSlideError(
            f"{path}: its pixels are YCbCr without JPEG, which no backend turns into colours; "
            "convert it to RGB."
        )
