"""The slide: one class for every backend, in level-0 pixels and micrometres."""

from __future__ import annotations

import re
from math import isfinite
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any, Self
from unicodedata import normalize

import numpy as np

from slidelens.errors import MissingMppError, SlideError
from slidelens.geometry import Box, Mpp, Size
from slidelens.slide.bounds import bounds_of, in_qupath
from slidelens.slide.pyramid import LazyLevel, make_pyramid
from slidelens.slide.reader import Facts, Level, Reader
from slidelens.slide.resample import ENLARGE_BELOW, WHITE, pixel_edges, sample

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

__all__ = ["Facts", "Level", "Reader", "Slide", "id_of_name", "slide_id"]

_WHOLE = 2.0**-18  # closer to a whole pixel than the resampler can resolve
_CLOSE_ENOUGH = 1.01
"""A level up to 1 % coarser than requested is used: downsamples such as 2.0003 mean 2."""
_EXTENSION = re.compile(r"\.[a-z][a-z0-9]{2,}$", re.IGNORECASE)
_DOUBLE = (".ome.zarr.zip", ".zarr.zip", ".ome.tiff", ".ome.tif", ".ome.zarr", ".ome.btf")


class Slide:
    """A whole-slide image that reads any box at any resolution.

    Safe to use from many threads. Pixels are decoded on demand; nothing is read ahead. A copied or
    unpickled slide, for example in a DataLoader's worker, is opened again.

    Parameters
    ----------
    reader
        The backend that holds the open file; the slide closes it.
    path
        The file or folder.
    mpp, mpp_source
        Resolution in µm per level-0 px, and its source; default: as the file states.
    colour
        Transform applied to native pixels, for example by an ICC profile; ``None``: none.

    See Also
    --------
    slidelens.slide.open.open_slide : opens a file with the right backend.
    """

    def __init__(
        self,
        reader: Reader,
        path: Path,
        *,
        mpp: Mpp | None = None,
        mpp_source: str | None = None,
        colour: Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
    ) -> None:
        facts = reader.facts
        self._reader = reader
        self._colour = colour
        self._closed = False
        self._pyramid: list[LazyLevel] | None = None
        self.path = path
        self.id = slide_id(path)
        self.backend = reader.backend
        self.levels: tuple[Level, ...] = facts.levels
        self.size: Size = facts.levels[0].size
        self.mpp: Mpp | None = mpp or facts.mpp
        self.mpp_source: str | None = mpp_source if mpp else facts.mpp_source
        self.objective_power: float | None = facts.objective_power
        self.properties: Mapping[str, str] = facts.properties
        self.associated_images: tuple[str, ...] = facts.associated_images
        self.channels: tuple[str, ...] = facts.channels
        self.open_seconds = 0.0
        """Seconds that opening took; 0 for a slide in memory."""
        self.without_row: Path | None = None
        """A resolution table that has no row for this slide."""
        self.reopen: Callable[[], Slide] | None = None
        """Opens the slide again, for a copy or another process; ``None`` if that is impossible."""

    def read(self, box: Box, mpp: float | None = None) -> NDArray[np.uint8]:
        """Read any box at any resolution.

        Positions are exact: a read equals the crop of any larger read on the same pixel grid.
        Downsampling averages over area; everything outside the slide is white.

        Parameters
        ----------
        box
            Box, tuple or row of ``Grid.boxes`` (x, y, w, h) in level-0 px; may reach outside the
            slide.
        mpp
            µm per output px; ``None`` reads level-0 pixels and needs no resolution.

        Returns
        -------
        ``(H, W, 3)`` uint8 RGB with ``H = round(box.h * slide.mpp.y / mpp)``, at least 1.

        Raises
        ------
        MissingMppError
            ``mpp`` is given and the slide has none.
        SlideError
            The file cannot be decoded, or the slide is closed.
        ValueError
            The box is empty or not finite, or the resolution is not above zero.
        """
        box = Box(*box)
        if not (box.w > 0 and box.h > 0 and all(map(isfinite, box))):
            raise ValueError(f"a box must be finite, wider and higher than 0 px, not {box}")
        step_x, step_y = self._steps(mpp)
        n_x, n_y = max(1, round(box.w / step_x)), max(1, round(box.h / step_y))
        index = self._level_for(step_x, step_y)
        size = self.levels[index].size
        scale_x, scale_y = self.size.width / size.width, self.size.height / size.height
        if (step_x, step_y) == (scale_x, scale_y):
            x, y = box.x / scale_x, box.y / scale_y
            left, top = round(x), round(y)
            if abs(x - left) < _WHOLE and abs(y - top) < _WHOLE:  # stored pixels, unchanged
                return self.read_level(index, left, top, n_x, n_y)

        def source(x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
            return self.read_level(index, x, y, w, h)

        return sample(
            source,
            size,
            pixel_edges(box.x, step_x, n_x, scale_x),
            pixel_edges(box.y, step_y, n_y, scale_y),
            enlarge=(step_x / scale_x < ENLARGE_BELOW, step_y / scale_y < ENLARGE_BELOW),
        )

    def read_level(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        """Read pixels of a stored level, ``(h, w, 3)`` uint8 RGB, white outside it.

        Parameters
        ----------
        level
            Index into :attr:`levels`.
        x, y, w, h
            Box in pixels of that level.

        Raises
        ------
        ValueError
            There is no such level, or the box is empty.
        """
        self._check_open()
        if not 0 <= level < len(self.levels):
            raise ValueError(f"no level {level}: {self.id} has levels 0 to {len(self.levels) - 1}")
        if w < 1 or h < 1:
            raise ValueError(f"a box must be wider and higher than 0 px, not {w} x {h}")
        width, height = self.levels[level].size
        x0, y0, x1, y1 = max(0, x), max(0, y), min(width, x + w), min(height, y + h)
        whole = (x0, y0, x1, y1) == (x, y, x + w, y + h)
        if whole:
            return self._native(level, x, y, w, h)
        out = np.full((h, w, 3), WHITE, np.uint8)
        if x0 < x1 and y0 < y1:
            out[y0 - y : y1 - y, x0 - x : x1 - x] = self._native(level, x0, y0, x1 - x0, y1 - y0)
        return out

    def thumbnail(self, max_size: int = 1024) -> NDArray[np.uint8]:
        """Read the whole slide, ``(H, W, 3)`` uint8 RGB, no side longer than ``max_size`` px.

        Raises
        ------
        ValueError
            ``max_size`` is below 1.
        """
        if not max_size >= 1:
            raise ValueError(f"max_size must be at least 1 px, not {max_size}")
        scale = max(1.0, max(self.size) / max_size)
        n_x, n_y = (max(1, round(side / scale)) for side in self.size)
        top = self.pyramid()
        level = next(
            (lv for lv in reversed(top) if lv.shape[1] >= n_x and lv.shape[0] >= n_y), top[0]
        )
        size = Size(level.shape[1], level.shape[0])
        return sample(
            level.read,
            size,
            pixel_edges(0, size.width / n_x, n_x, 1),
            pixel_edges(0, size.height / n_y, n_y, 1),
        )

    def pyramid(self) -> list[LazyLevel]:
        """Return lazy arrays ``(H, W, 3)``, finest first, the coarsest at most 2048 px long.

        For viewers. Making it reads no pixels; see :mod:`slidelens.slide.pyramid`.
        """
        self._check_open()
        if self._pyramid is None:
            self._pyramid = make_pyramid(self)
        return list(self._pyramid)

    def read_associated(self, name: str) -> NDArray[np.uint8]:
        """Read a label, macro or thumbnail image as ``(H, W, 3)`` uint8 RGB.

        Raises
        ------
        KeyError
            The name is not in :attr:`associated_images`.
        """
        self._check_open()
        if name not in self.associated_images:
            have = ", ".join(self.associated_images) or "none"
            raise KeyError(f"{self.path}: no associated image {name!r}; there are: {have}")
        return self._reader.read_associated(name)

    def other_files(self) -> list[Path]:
        """Return the files that the slide consists of besides :attr:`path`; of a folder, none.

        Raises
        ------
        OSError
            The folder that they lie in cannot be read.
        """
        return self._reader.other_files()

    def notes(self) -> list[str]:
        """Return notes on anything unusual about the file and how it is read, a sentence each.

        May read some pixels.

        Raises
        ------
        SlideError
            Pixels cannot be decoded, or the slide is closed.
        """
        self._check_open()
        bounds = [] if self.bounds is None else [in_qupath(self.bounds)]
        return [*self._reader.notes(), *bounds]

    @property
    def bounds(self) -> Box | None:
        """The part that was scanned, in level-0 px, where the file states one that is not all."""
        return bounds_of(self.properties, self.size)

    @property
    def color_managed(self) -> bool:
        """Whether the embedded ICC profile is applied to the pixels."""
        return self._colour is not None

    @property
    def icc_profile(self) -> bytes | None:
        """The embedded ICC profile; applied only with ``open_slide(..., icc=True)``."""
        self._check_open()
        return self._reader.icc_profile()

    def require_mpp(self) -> Mpp:
        """Return :attr:`mpp`, or raise a :class:`MissingMppError` that says how to set it."""
        if self.mpp is None:
            if self.without_row is not None:
                raise MissingMppError(
                    f"{self.path}: the file states no resolution (µm per pixel), and the table "
                    f"{self.without_row} has no row for it; add the row `{self.id},X`, or give "
                    "--mpp X."
                )
            raise MissingMppError(
                f"{self.path}: the file states no resolution (µm per pixel); give it with --mpp X, "
                "with a CSV of `slide,mpp` rows, or with --mpp from-objective where the file "
                "states an objective power."
            )
        return self.mpp

    def close(self) -> None:
        """Close the file; may be called more than once."""
        self._closed = True
        for level in self._pyramid or ():
            level.forget()
        self._pyramid = None
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Callable[[], Slide], tuple[()], dict[str, Any]]:
        self._check_open()
        if self.reopen is None:
            raise TypeError(
                f"{self.path}: neither open_slide nor from_array made this slide, so it cannot be "
                "copied or sent to another process; open it there."
            )
        kept = ("path", "id", "mpp", "mpp_source", "open_seconds", "without_row")
        return self.reopen, (), {name: getattr(self, name) for name in kept}

    def __repr__(self) -> str:
        mpp = "mpp unknown" if self.mpp is None else f"{self.mpp.mean:g} µm/px"
        w, h = self.size
        return f"<Slide {self.id}: {w} x {h} px, {mpp}, {len(self.levels)} levels, {self.backend}>"

    def _native(self, level: int, x: int, y: int, w: int, h: int) -> NDArray[np.uint8]:
        pixels = self._reader.read(level, x, y, w, h)
        if pixels.shape != (h, w, 3) or pixels.dtype != np.uint8:
            raise SlideError(
                f"{self.path}: backend {self.backend!r} gave {pixels.dtype} pixels of shape "
                f"{pixels.shape}, expected uint8 of {(h, w, 3)}: it breaks its contract. "
                "Update or uninstall the package that brings it."
            )
        return pixels if self._colour is None else self._colour(pixels)

    def _steps(self, mpp: float | None) -> tuple[float, float]:
        """Level-0 px per output px."""
        if mpp is None:
            return 1.0, 1.0
        want, have = Mpp.of(mpp), self.require_mpp()
        return want.x / have.x, want.y / have.y

    def _level_for(self, step_x: float, step_y: float) -> int:
        """Choose the coarsest level whose pixels are not larger than requested."""
        best = 0
        for index, (_, size) in enumerate(self.levels):
            x, y = self.size.width / size.width, self.size.height / size.height
            if x <= step_x * _CLOSE_ENOUGH and y <= step_y * _CLOSE_ENOUGH:
                best = index
        return best

    def _check_open(self) -> None:
        if self._closed:
            raise SlideError(f"{self.path}: the slide is closed; open it again to read from it.")


def id_of_name(name: str) -> str:
    """Return the slide id of a file name or path (see :func:`slide_id`); an id stays as it is.

    Paths may be those of another system, such as Windows in a table.
    """
    return slide_id(PurePosixPath(name.replace("\\", "/")))


def slide_id(path: PurePath) -> str:
    """Return a slide's id: its file name without extension (``.ome.tif`` counts as one).

    ``.zarr.zip`` counts as one extension, too. What follows a dot is one if it looks like one:
    ``a.svs`` gives ``a``, but ``P1.7``, ``case.HE`` and a UID stay as they are. A DICOM folder
    keeps its whole name; an image within a ``.zarr``, such as a field of a plate, includes the name
    of the ``.zarr``. Bytes that are not text are escaped, and accented letters are composed (NFC),
    since a Mac's file systems decompose them.
    """
    if isinstance(path, Path):  # one may work in the slide's own folder, or in a part of it
        path = path.resolve() if path.name in ("", "..") else path.absolute()
    name = path.name
    within = next((p for p in path.parents if p.name.lower().endswith(".zarr")), None)
    if within is not None:
        return "_".join([slide_id(within), *map(_as_text, path.relative_to(within).parts)])
    for double in _DOUBLE:
        if name.lower().endswith(double):
            return _as_text(name[: -len(double)])
    folder = not name.lower().endswith(".zarr") and _is_folder(path)
    whole = folder or not _EXTENSION.match(path.suffix)
    return _as_text(name if whole else path.stem)


def _as_text(name: str) -> str:
    return normalize("NFC", name.encode(errors="backslashreplace").decode())


def _is_folder(path: PurePath) -> bool:
    """Return whether there is such a folder; an inaccessible path counts as a file."""
    try:
        return isinstance(path, Path) and path.is_dir()
    except OSError:
        return False
