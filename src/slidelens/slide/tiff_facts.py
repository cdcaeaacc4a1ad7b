"""Facts from TIFF headers: OME-XML, PerkinElmer QPI, and plain resolution tags."""

from __future__ import annotations

import re
from math import inf
from types import MappingProxyType
from typing import Any

import numpy as np
from defusedxml import ElementTree

from slidelens.geometry import Mpp
from slidelens.slide.channels import depth_of
from slidelens.slide.reader import Facts, levels_of
from slidelens.slide.resolution import PRINT_MPP
from slidelens.slide.units import micrometres

__all__ = ["channel_count", "resolution_unit", "stated_bits", "tiff_facts"]

_TAGS = ("Make", "Model", "Software", "DateTime", "ImageDescription")
_RGB_NAMES = (["R", "G", "B"], ["RED", "GREEN", "BLUE"])
_OF_STAINS = ("EmissionWavelength", "ExcitationWavelength", "Fluor")
_RGB, _WHITE = ["-16776961", "16711935", "65535"], "-1"  # OME-XML's colours; white says nothing
_PER_UNIT = {2: 25_400.0, 3: 10_000.0, 4: 1000.0, 5: 1.0}  # ResolutionUnit: inch, cm, mm, µm
_MAX_VALUE = 281  # MaxSampleValue


def tiff_facts(file: Any, series: Any, levels: list[Any], associated: tuple[str, ...]) -> Facts:
    """Collect the facts of a TIFF.

    Parameters
    ----------
    file, series
        tifffile's file and the series that holds the slide.
    levels
        The series of its levels, finest first.
    associated
        Names of the other images.
    """
    page = series.keyframe
    channels = channel_count(series)
    properties = {f"tiff.{tag}": str(page.tags.valueof(tag)) for tag in _TAGS if tag in page.tags}
    mpp, source = _tags_mpp(page, PRINT_MPP)
    power: float | None = None
    names: tuple[str, ...] = ()
    if file.is_ome:
        stated, power, names, colours = _ome(file, series)
        channels = 1 if channels == 3 and colours and page.dtype == np.uint8 else channels
        mpp, source = (stated, "OME-XML PhysicalSize") if stated else (mpp, source)
    elif file.is_imagej and (unit := _imagej_unit(file)):
        mpp, _ = _tags_mpp(page, None, unit)
        source = "ImageJ unit and resolution tags" if mpp else None
    elif file.is_qpi:
        mpp, _ = _tags_mpp(page, None)  # its writer means µm of the specimen, at any size
        source = "PerkinElmer resolution tags" if mpp else None
        power, names = _qpi(series, channels)
    if channels > 1 and len(names) != channels:
        names = tuple(f"channel {i}" for i in range(channels))
    sizes = [(lv.keyframe.imagewidth, lv.keyframe.imagelength) for lv in levels]
    return Facts(
        levels_of(sizes),
        mpp,
        source,
        power,
        MappingProxyType(properties),
        associated,
        names if channels > 1 else (),
    )


def channel_count(series: Any) -> int:
    """Count the channels stored in separate planes; 1 if a pixel holds all of its samples."""
    axes = dict(zip(series.axes, series.shape, strict=True))
    return int(axes.get("C", 1)) if "S" not in axes else 1


def stated_bits(file: Any, series: Any) -> int | None:
    """Return how many bits of a sample are used; ``None`` if the file leaves that open.

    16 of 16 means nothing: writers state that for the cameras' 12 bits, too.
    """
    page = series.keyframe
    full = 8 * page.dtype.itemsize
    found = [page.bitspersample] if isinstance(page.bitspersample, int) else [*page.bitspersample]
    if full == 16:
        given = page.tags.valueof(_MAX_VALUE)
        values = given if isinstance(given, tuple) else (given,)
        known = all(isinstance(value, int | float) and value > 0 for value in values)
        found += [depth_of(max(values))] if known else []
        if file.is_ome:
            pixels = _ome_pixels(file, series)[2]
            text = pixels.get("SignificantBits", "") if pixels is not None else ""
            found += [int(text)] if re.fullmatch("[0-9]{1,2}", text) else []
    bits = min((n for n in found if n >= (8 if full == 16 else 1)), default=full)
    return bits if bits < full else None


def resolution_unit(page: Any) -> int:
    """Return the number of a page's ResolutionUnit, inches by default; a damaged one is none: 1."""
    unit = page.tags.valueof("ResolutionUnit") or 2
    return int(unit) if isinstance(unit, int) else 1


def _tags_mpp(
    page: Any, coarsest: float | None, unit: float | None = None
) -> tuple[Mpp | None, str | None]:
    """µm per pixel by XResolution and YResolution, if they can mean that.

    ``unit`` is the unit of their pixel counts in µm; by default ResolutionUnit's.
    """
    unit = unit or _PER_UNIT.get(resolution_unit(page))
    per_unit = [page.tags.valueof(tag) for tag in ("XResolution", "YResolution")]
    if unit is None or not all(v and v[0] > 0 and v[1] > 0 for v in per_unit):
        return None, None
    x, y = (unit * v[1] / v[0] for v in per_unit)
    if coarsest is not None and max(x, y) >= coarsest:
        return None, None
    return Mpp(x, y), "TIFF resolution tags"


def _imagej_unit(file: Any) -> float | None:
    """µm in the unit that ImageJ's description names; it writes inches and cm as others do."""
    name = str((file.imagej_metadata or {}).get("unit", "")).replace("\\u00B5", "µ")
    return None if name in ("inch", "cm") else micrometres(1.0, name)


def _ome(file: Any, series: Any) -> tuple[Mpp | None, float | None, tuple[str, ...], bool]:
    """Pixel size, objective and channels of the ``Image`` that a series was made of.

    For channels: their names, and whether they may be red, green and blue.
    """
    root, image, pixels, space = _ome_pixels(file, series)
    if image is None or pixels is None:
        return None, None, (), True
    sides = []
    for axis in "XY":
        size = _positive(pixels.get(f"PhysicalSize{axis}"))
        unit = pixels.get(f"PhysicalSize{axis}Unit", "µm")
        sides.append(micrometres(size, unit) if size else None)
    mpp = Mpp(sides[0], sides[1]) if sides[0] and sides[1] else None
    channels = pixels.findall(f"{space}Channel")
    names = tuple(c.get("Name") or f"channel {i}" for i, c in enumerate(channels))
    wanted = image.find(f"{space}ObjectiveSettings")
    power = None
    for objective in root.iter(f"{space}Objective"):
        if wanted is not None and objective.get("ID") == wanted.get("ID"):
            power = _positive(objective.get("NominalMagnification"))
    return mpp, power, names, _may_be_colours(channels)


def _ome_pixels(file: Any, series: Any) -> tuple[Any, Any | None, Any | None, str]:
    """Return the root of OME-XML, the ``Image`` of a series, its ``Pixels``, and the namespace."""
    root = ElementTree.fromstring(file.ome_metadata)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    image = _ome_image(root.findall(f"{space}Image"), space, file, series)
    return root, image, image.find(f"{space}Pixels") if image is not None else None, space


def _may_be_colours(channels: list[Any]) -> bool:
    """Return whether channels are named or drawn red, green and blue, or nothing is stated."""
    names = [(channel.get("Name") or "").upper() for channel in channels]
    shades = [channel.get("Color") or _WHITE for channel in channels]
    fluorescent = any(
        channel.get("ContrastMethod") == "Fluorescence" or any(map(channel.get, _OF_STAINS))
        for channel in channels
    )
    plain = not any(names) or names in _RGB_NAMES
    return not fluorescent and plain and ({*shades} <= {_WHITE} or shades == _RGB)


def _ome_image(images: list[Any], space: str, file: Any, series: Any) -> Any | None:
    """Return the ``Image`` of a series: the one at its position, unless only another has its size.

    tifffile makes no series for images whose file is missing, or that are stored differently than
    stated: those after them have other positions.
    """
    size = (str(series.keyframe.imagewidth), str(series.keyframe.imagelength))
    fit = [
        image
        for image in images
        if (pixels := image.find(f"{space}Pixels")) is not None
        and (pixels.get("SizeX"), pixels.get("SizeY")) == size
    ]
    fit = [image for image in fit if (image.get("Name") or "") == series.name] or fit
    number = next(i for i, other in enumerate(file.series) if other is series)
    placed = images[number] if number < len(images) else None
    return fit[0] if fit and placed not in fit else placed


def _qpi(series: Any, channels: int) -> tuple[float | None, tuple[str, ...]]:
    """Objective power and channel names (one XML description per page)."""
    names: list[str] = []
    power = None
    for page in series.levels[0].pages[:channels]:
        root = ElementTree.fromstring(page.description)
        names.append(root.findtext("Name") or f"channel {len(names)}")
        number = re.match(r"\s*([0-9.]+)\s*x", root.findtext("Objective") or "", re.IGNORECASE)
        power = power or (_positive(number[1]) if number else None)
    return power, tuple(names)


def _positive(text: str | None) -> float | None:
    """Return a number above zero, also with a decimal comma, or with an x after it."""
    try:
        value = float((text or "").strip().rstrip("xX").replace(",", "."))
    except ValueError:  # a damaged header field costs itself, not the slide
        return None
    return value if 0 < value < inf else None
