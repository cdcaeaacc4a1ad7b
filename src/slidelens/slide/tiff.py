"""tifffile: OME-TIFF, QPTIFF and other fluorescence, striped, grey and deep TIFF, BigTIFF."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import tifffile

from slidelens.errors import SlideError, UnsupportedSlideError
from slidelens.slide.channels import Alpha, Composer
from slidelens.slide.complete import TIFF_MAGIC, check_complete
from slidelens.slide.reader import Reader, unreadable
from slidelens.slide.segments import TiffPixels, main_series, open_tiff
from slidelens.slide.tiff_facts import tiff_facts

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["TiffReader", "is_plain_rgb"]

_OVERVIEW = 2048
_OPENSLIDE_DECODES = {1, 5, 7, 8, 32773, 32946}
_AS_STORED = {1, 5, 8, 32773, 32946, 34925, 50000}  # compressions that know of no colours
_ALPHA: dict[int, Alpha] = {1: "associated", 2: "unassociated"}  # by ExtraSamples

# tifffile logs what it finds odd; without a handler Python prints that to stderr, on top of the one
# sentence that our own error is.
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
            page = series.keyframe
            _check_kind(path, page)
            own = [s for s in file.series if s is not series and s.keyframe.parent is file]
            others = {s.name.lower(): s.keyframe.index for s in own}
            self._others = {name: index for name, index in others.items() if name}
            try:
                self.facts = tiff_facts(file, series, tuple(self._others))
                self._pixels = TiffPixels(path, file, list(series.levels))
            except SlideError:
                raise
            except Exception as error:  # reason: damaged headers make parsers raise anything
                raise unreadable(path, error, "its TIFF header cannot be understood") from error
            self._icc = page.tags.valueof(34675)
            self._map = page.colormap if page.photometric == 3 else None
            self._inverted = page.photometric == 0
            samples = page.samplesperpixel
            rgb = page.photometric in (2, 3, 6) and (samples >= 3 or page.photometric == 3)
            if rgb and page.dtype not in (np.uint8, np.uint16):
                raise UnsupportedSlideError(
                    f"{path}: its colours are of type {page.dtype}; slidelens reads RGB of 8 or 16 "
                    "bits per colour (grey and fluorescence channels of any type). Convert it."
                )
            channels = len(self.facts.channels) or (3 if self._map is not None else samples)
        self._compose = Composer(
            channels, page.dtype, rgb, self._overview, _alpha(page), white_is_zero=self._inverted
        )

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:  # noqa: ARG003  # the content is enough
        """Accept TIFF and BigTIFF of either byte order."""
        return head.startswith(TIFF_MAGIC)

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level, channels composed."""
        return self._compose(self._stored(level, x, y, w, h))

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read one of the file's other images."""
        with open_tiff(self.path) as file:
            page: Any = file.pages[self._others[name]]
            try:
                samples = page.asarray()
            except Exception as error:  # reason: decoders raise their own kinds
                raise unreadable(self.path, error, f"its {name} image cannot be read") from error
            rgb, alpha = int(page.keyframe.photometric) in (2, 6), _alpha(page.keyframe)
        samples = samples if samples.ndim == 3 else samples[..., None]
        return Composer(samples.shape[2], samples.dtype, rgb, lambda: samples, alpha)(samples)

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if there is one."""
        return None if self._icc is None else bytes(self._icc)

    def close(self) -> None:
        """Close the file and forget its tiles."""
        self._pixels.close()

    def _stored(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[Any]:
        samples = self._pixels.read(level, x, y, w, h)
        if self._map is not None:
            coloured: NDArray[np.uint16] = np.moveaxis(self._map, 0, -1)[samples[..., 0]]
            return (coloured >> 8).astype(np.uint8)
        return samples

    def _overview(self) -> NDArray[Any]:
        """Read samples of the coarsest level; of its middle where that is large."""
        level = len(self.facts.levels) - 1
        width, height = self.facts.levels[level].size
        w, h = min(width, _OVERVIEW), min(height, _OVERVIEW)
        return self._stored(level, (width - w) // 2, (height - h) // 2, w, h)


def is_plain_rgb(path: Path) -> bool:
    """Say whether a TIFF is tiled 8-bit RGB without a header of its own: OpenSlide's generic TIFF.

    A file that tifffile cannot parse is left to OpenSlide, whose error is as good.
    """
    try:
        file = open_tiff(path)
    except SlideError:
        return True
    with file:
        page = main_series(file).keyframe
        return bool(
            not (file.is_ome or file.is_qpi or file.is_imagej)
            and page.is_tiled
            and int(page.compression) in _OPENSLIDE_DECODES
            and page.dtype == np.uint8
            and page.samplesperpixel == 3
            and page.photometric in (2, 6)
        )


def _alpha(page: Any) -> Alpha | None:
    """Say what the first sample beyond a page's colours is; often it states nothing, or none."""
    return _ALPHA.get(int(page.extrasamples[0])) if page.extrasamples else None


def _refuse_vsi(path: Path) -> None:
    """Olympus: a TIFF with a preview; the slide lies in ``_<name>_/stack*/frame_t_*.ets``."""
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
    if page.photometric == 6 and int(page.compression) in _AS_STORED:
        raise UnsupportedSlideError(
            f"{path}: its pixels are YCbCr without JPEG, which no backend turns into colours; "
            "convert it to RGB."
        )
