"""OpenSlide: SVS, NDPI, MRXS, SCN, BIF, DICOM WSI and tiled RGB TIFF.

OpenSlide reads the headers. If a level is plain TIFF tiles (SVS, generic TIFF), tifffile decodes
them: the same pixels, 1.1 to 3 times as fast (``benchmarks/read.py``), and at exact positions on
levels whose downsample is not a whole number, where OpenSlide interpolates.
"""

from __future__ import annotations

from ctypes import c_uint32
from functools import cache
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import openslide

from slidelens.errors import SlideError
from slidelens.geometry import Mpp, Size
from slidelens.settings import get_settings
from slidelens.slide.blocks import read_blocks
from slidelens.slide.cache import new_owner, tile_cache
from slidelens.slide.complete import check_complete
from slidelens.slide.dicom import dicom_files, files_of_series, series_in
from slidelens.slide.handle import Handle
from slidelens.slide.reader import Facts, Level, Reader, unreadable
from slidelens.slide.resolution import PRINT_MPP

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.slide.segments import TiffPixels

__all__ = ["OpenSlideReader"]

_BLOCK = 512
_SMALL = 1 << 20  # px
_OPAQUE = 0xFF000000
_PERSONAL = tuple(
    f"dicom.{name}"
    for name in ("PatientName", "PatientID", "PatientBirthDate", "OtherPatient", "PatientAddress")
)


class OpenSlideReader(Reader):
    """A slide opened by OpenSlide."""

    backend = "openslide"

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.is_file():
            check_complete(path)
        try:
            slide = openslide.OpenSlide(_instance(path) if path.is_dir() else path)
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise SlideError(f"{path}: OpenSlide does not know this format.") from error
        except openslide.OpenSlideError as error:
            raise unreadable(path, error, "cannot be opened") from error
        self._handle = Handle(path, slide)
        try:
            vendor = slide.properties[openslide.PROPERTY_NAME_VENDOR]
            self._may_be_fast = vendor in ("aperio", "generic-tiff")
            self.facts = _facts(slide)
            if not self._may_be_fast:
                slide.set_cache(_shared_cache())
        except BaseException:
            self._handle.close()
            raise
        self._owner = new_owner()
        self._background = _background(self.facts.properties)
        self._lock = Lock()
        self._first = True
        self._fast: TiffPixels | None = None

    @classmethod
    def sniff(cls, path: Path, head: bytes) -> bool:  # noqa: ARG003  # OpenSlide looks itself
        """Accept what OpenSlide recognises by content, and folders of one DICOM series."""
        if path.is_dir():
            return bool(dicom_files(path))
        vendor = openslide.OpenSlide.detect_format(path)
        if vendor == "generic-tiff":
            from slidelens.slide.tiff import is_plain_rgb

            return is_plain_rgb(path)
        return vendor is not None

    def read(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read ``(h, w, 3)`` RGB of one level."""
        downsample = self.facts.levels[level].downsample
        whole = abs(downsample - round(downsample)) < 1e-9
        fast = self._tiles(small=whole and w * h <= _SMALL)
        if fast is not None and fast.has(level):
            return fast.read(level, x, y, w, h)
        if whole:
            return self._region(level, x, y, w, h)

        # OpenSlide takes whole level-0 positions: except on a fixed grid of blocks, a pixel would
        # differ between two reads.
        return read_blocks(
            tile_cache(),
            (self._owner, level),
            lambda row, column: self._block(level, row, column),
            (_BLOCK, _BLOCK),
            (x, y, w, h),
        )

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read one associated image."""
        from PIL import Image

        try:
            with self._handle.reading() as slide:
                image = slide.associated_images[name]
        except openslide.OpenSlideError as error:
            raise unreadable(self.path, error, f"its {name} image cannot be read") from error
        ground = Image.new("RGBA", image.size, self._background)
        return np.array(Image.alpha_composite(ground, image).convert("RGB"))

    def other_files(self) -> list[Path]:
        """Return the files of an MRXS or VMS slide, or a DICOM series, besides the one given."""
        properties = self.facts.properties
        vendor = properties[openslide.PROPERTY_NAME_VENDOR]
        found: list[Path] = []
        if self.path.is_dir():
            return found
        if vendor == "mirax":
            found = [file for file in self.path.with_suffix("").iterdir() if file.is_file()]
        elif vendor == "hamamatsu":  # VMS and VMU name them; NDPI is one file
            named = (self.path.with_name(v) for k, v in properties.items() if "File" in k and v)
            found = [file for file in named if file.is_file()]
        elif vendor == "dicom":
            found = files_of_series(self.path)
        return sorted({*found} - {self.path})

    def notes(self) -> list[str]:
        """Return the headers that name a patient, without their values."""
        named = [k for k, v in self.facts.properties.items() if k.startswith(_PERSONAL) and v]
        note = (
            f"its header names the patient ({', '.join(named)}): these are among the properties "
            "that --json prints; results, reports and exports do not hold them"
        )
        return [note] if named else []

    def icc_profile(self) -> bytes | None:
        """Return the embedded ICC profile, if there is one."""
        from PIL import ImageCms

        try:
            with self._handle.reading() as slide:
                profile = slide.color_profile
        except ImageCms.PyCMSError as error:
            raise unreadable(self.path, error, "its ICC profile cannot be used") from error
        return None if profile is None else bytes(profile.tobytes())

    def close(self) -> None:
        """Close the file and forget its tiles; harmless when called twice.

        Reads in other threads are completed before the file is freed.
        """
        self._handle.close()
        with self._lock:
            if self._fast is not None:
                self._fast.close()
        tile_cache().drop(self._owner)

    def _tiles(self, *, small: bool) -> TiffPixels | None:
        """Return the TIFF tile decoder, opened at the second read, or at a large one.

        A small first read goes through OpenSlide: a program that only checks a slide, as
        ``slidelens info`` does, need not import tifffile (0.15 s). Where OpenSlide interpolates, no
        read counts as small: all of a level must come from the same decoder.
        """
        if not self._may_be_fast or self._fast is not None:
            return self._fast
        with self._lock:
            first, self._first = self._first, False
            if (first and small) or self._fast is not None or not self._may_be_fast:
                return self._fast
            from slidelens.slide.segments import TiffPixels

            levels = self.facts.levels
            with self._handle.reading() as slide:  # open, so close() will find the decoder too
                self._fast = TiffPixels.matching(self.path, levels)
                self._may_be_fast = self._fast is not None
                if self._fast is None or not all(map(self._fast.has, range(len(levels)))):
                    # Only now: OpenSlide never releases what it has put in a cache.
                    slide.set_cache(_shared_cache())
            return self._fast

    def _block(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        width, height = self.facts.levels[level].size
        x, y = column * _BLOCK, row * _BLOCK
        return self._region(level, x, y, min(_BLOCK, width - x), min(_BLOCK, height - y))

    def _region(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        downsample = self.facts.levels[level].downsample
        argb = (c_uint32 * (w * h))()
        try:
            # Not read_region: that makes a PIL image and holds the interpreter's lock meanwhile,
            # for as long as decoding takes; with two threads this is 1.2 times as fast.
            with self._handle.reading() as slide:
                openslide.lowlevel._read_region(
                    slide._osr, argb, round(x * downsample), round(y * downsample), level, w, h
                )
        except openslide.OpenSlideError as error:
            raise unreadable(self.path, error, "its pixels cannot be decoded") from error
        pixels = np.frombuffer(memoryview(argb), np.uint32).reshape(h, w)
        return _on_ground(pixels, self._background)


def _facts(slide: openslide.OpenSlide) -> Facts:
    properties = {name: str(slide.properties[name]) for name in sorted(slide.properties)}
    vendor = properties[openslide.PROPERTY_NAME_VENDOR]
    x, y = (_number(properties.get(f"openslide.mpp-{axis}")) for axis in "xy")
    mpp, source = (Mpp(x, y), f"{vendor} header") if x and y else (None, None)
    if mpp is not None and vendor == "generic-tiff":
        mpp, source = (mpp, "TIFF resolution tags") if max(mpp) < PRINT_MPP else (None, None)
    levels = zip(slide.level_downsamples, slide.level_dimensions, strict=True)
    return Facts(
        levels=tuple(Level(float(scale), Size(*size)) for scale, size in levels),
        mpp=mpp,
        mpp_source=source,
        objective_power=_number(properties.get(openslide.PROPERTY_NAME_OBJECTIVE_POWER)),
        properties=MappingProxyType(properties),
        associated_images=tuple(sorted(slide.associated_images)),
    )


def _number(text: str | None) -> float | None:
    """Return a header's number above zero."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if np.isfinite(value) and value > 0 else None


def _background(properties: Any) -> tuple[int, int, int]:
    colour = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR, "FFFFFF")
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


def _on_ground(argb: NDArray[np.uint32], ground: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Blend pixels with premultiplied alpha with a colour: ``(h, w)`` to ``(h, w, 3)`` RGB."""
    samples = argb.astype("<u4", copy=False).view(np.uint8).reshape(*argb.shape, 4)
    out = np.empty((*argb.shape, 3), np.uint8)
    clear = None if argb.min() >= _OPAQUE else 255 - samples[..., 3].astype(np.uint16)
    for channel, colour in enumerate(ground):  # three strided copies are the fastest way
        out[..., channel] = samples[..., 2 - channel]
        if clear is not None:
            out[..., channel] += ((clear * colour + 127) // 255).astype(np.uint8)
    return out


def _instance(folder: Path) -> Path:
    """Return one instance of the only DICOM series in a folder; OpenSlide finds the others."""
    series = series_in(folder)
    if len(series) != 1:
        names = ", ".join(file.name for file in series.values())
        raise SlideError(
            f"{folder}: holds {len(series)} DICOM series; open one of its files instead ({names})."
        )
    return next(iter(series.values()))


@cache
def _shared_cache() -> openslide.OpenSlideCache:
    """Return the one cache of decoded tiles that all slides opened by OpenSlide share."""
    return openslide.OpenSlideCache(get_settings().cache_mb << 20)
