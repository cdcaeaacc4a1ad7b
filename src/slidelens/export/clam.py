"""Feature bags as CLAM and TRIDENT keep them: one HDF5 file per slide.

``features`` is ``(N, D)`` and ``coords`` ``(N, 2)``, the upper left corners of the tiles in level-0
px. What tools call ``patch_size`` differs, so the size in level-0 px and the resolution in µm are
always written too, and ``boxes`` ``(N, 4)`` keeps corners and sizes that are no whole numbers. A
bag of a region (``predict --region``) states it: it is not the whole slide's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError
from slidelens.export.base import Exporter
from slidelens.files import write_atomic
from slidelens.geometry import Box
from slidelens.maps.run_settings import region_text

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    from slidelens.maps.result import Result

__all__ = ["EXPORTER", "ClamBag", "read_clam", "write_clam"]

_TENFOLD = 10.0
"""µm/px at a magnification of 1: 20x is 0.5 µm/px."""


@dataclass(frozen=True, eq=False)
class ClamBag:
    """What such a file holds.

    Attributes
    ----------
    boxes
        ``(N, 4)`` float64 x, y, w, h in level-0 px. Where the file does not say how large tiles
        are, they are taken to touch: as large as the least step between them (0 of one alone).
    features
        ``(N, D)`` float16 or float32.
    facts
        ``tile``, ``overlap`` (px), ``mpp`` (µm/px), ``orientations``, ``stain_normalization``,
        ``backbone``, ``backbone_sha256``, ``region`` (x,y,w,h in level-0 px, where the bag is not
        of the whole slide) and other attributes of the file, as text.
    """

    boxes: NDArray[np.float64]
    features: NDArray[Any]
    facts: Mapping[str, str] = field(default_factory=dict)


def write_clam(path: Path, bag: ClamBag, name: str, size: tuple[int, int], mpp: float) -> None:
    """Write a file, whole or not at all.

    Parameters
    ----------
    path
        Of the file.
    bag
        Its ``facts`` should have ``tile``, ``overlap`` and ``mpp``.
    name
        Of the slide.
    size, mpp
        Width and height of the slide in level-0 px, and its resolution in µm/px (along x).

    Raises
    ------
    ResultError
        h5py is not installed.
    """
    import io

    h5py = _h5py()
    memory = io.BytesIO()
    with h5py.File(memory, "w") as file:
        features = np.asarray(bag.features, np.float32)
        file.create_dataset("features", data=features, chunks=True, compression="gzip")
        corners = np.rint(bag.boxes[:, :2]).astype(np.int64)
        coords = file.create_dataset("coords", data=corners)
        file.create_dataset("boxes", data=bag.boxes)
        coords.attrs.update(_attributes(bag, name, size, mpp))
        made_by = ("backbone", "backbone_sha256", "orientations", "stain_normalization")
        file["features"].attrs.update({k: bag.facts[k] for k in made_by if k in bag.facts})
    write_atomic(path, memory.getvalue())


def read_clam(path: Path) -> ClamBag:
    """Read a file, ours or of CLAM, TRIDENT and those who write alike.

    Raises
    ------
    ResultError
        h5py is not installed; no HDF5 file; datasets that are missing, do not fit, lie in other
        files or hold what is no finite number.
    """
    h5py = _h5py()
    try:
        with h5py.File(path, "r") as file:
            lacking = [name for name in ("features", "coords") if name not in file]
            if lacking:
                raise ResultError(
                    f"{path}: has no dataset {' and '.join(lacking)}; expected features (N, D) and "
                    f"coords (N, 2), found {', '.join(file) or 'nothing'}."
                )
            features, coords = (_values(path, file, name) for name in ("features", "coords"))
            attributes = {**file["features"].attrs, **file["coords"].attrs}
            boxes = _values(path, file, "boxes").astype(np.float64) if "boxes" in file else None
    except (OSError, MemoryError) as error:
        raise ResultError(f"{path}: cannot be read as HDF5 ({error}).") from error
    features = features[0] if features.ndim == 3 and len(features) == 1 else features
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if features.ndim != 2 or coords.shape != (len(features), 2) or len(features) == 0:
        raise ResultError(
            f"{path}: features {features.shape} and coords {coords.shape} are not a bag; expected "
            "(N, D) and (N, 2)."
        )
    if boxes is None or boxes.shape != (len(coords), 4):
        side = _stated_side(path, attributes) or _step(coords)
        boxes = np.concatenate([coords, np.full(coords.shape, side)], 1).astype(np.float64)
    if features.dtype not in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            features = features.astype(np.float32)
    for what, values in (("features", features), ("coords, or sides of tiles,", boxes)):
        if not np.isfinite(values).all():
            raise ResultError(
                f"{path}: its {what} are not all finite numbers, so they give no score; make "
                "the bag again, with vectors in single precision."
            )
    return ClamBag(boxes, features, _facts(path, attributes))


def _values(path: Path, file: Any, name: str) -> NDArray[Any]:
    """Read a dataset of numbers that lie in this very file.

    HDF5 can take the rest from any other file of this machine, which who sent a bag cannot mean.
    """
    h5py = _h5py()
    inside = isinstance(file.get(name, getlink=True), h5py.HardLink)
    found = file[name] if inside else None
    if not isinstance(found, h5py.Dataset) or found.external or found.is_virtual:
        raise ResultError(f"{path}: {name} is not a dataset in this file; copy it into the file.")
    if found.shape is None:  # HDF5 knows of datasets without a value
        raise ResultError(f"{path}: {name} is empty, expected real numbers.")
    if found.dtype.kind not in "biuf":
        raise ResultError(f"{path}: {name} is of type {found.dtype}, expected real numbers.")
    stated, written = found.nbytes, found.id.get_storage_size()
    if found.chunks:
        parts = (-(-n // part) for n, part in zip(found.shape, found.chunks, strict=True))
        stated, written = prod(parts), found.id.get_num_chunks()
    if written < stated:  # the rest would read as zeros, however much memory they take
        raise ResultError(
            f"{path}: {name} {found.shape} was written in part only; make the bag again."
        )
    return np.asarray(found)


def _stated(path: Path, attributes: Mapping[str, Any], name: str) -> float:
    """Return an attribute that is a number above zero; some programs write it as text."""
    stated = attributes[name]
    try:
        value = float(stated if isinstance(stated, str | bytes) else np.max(stated))
    except (TypeError, ValueError):
        value = 0.0
    if not value > 0:
        raise ResultError(f"{path}: its attribute {name} is {stated}, expected a number above 0.")
    return value


def _stated_side(path: Path, attributes: Mapping[str, Any]) -> float:
    """Return a tile's side in level-0 px as TRIDENT or CLAM state it; 0 where they do not."""
    if "patch_size_level0" in attributes:
        return _stated(path, attributes, "patch_size_level0")
    if "patch_size" in attributes and "downsample" in attributes:
        sides = [_stated(path, attributes, name) for name in ("patch_size", "downsample")]
        return sides[0] * sides[1]
    return 0.0


def _step(coords: NDArray[Any]) -> float:
    """Return the most frequent distance from a tile to the next in its row or column.

    Not the least: CLAM lays a grid of its own into each piece of tissue. 0 where no two tiles lie
    in one row or column.
    """
    steps = []
    for along, across in ((0, 1), (1, 0)):
        ordered = coords[np.lexsort((coords[:, along], coords[:, across]))]
        gaps = np.diff(ordered, axis=0)
        steps.append(gaps[(gaps[:, across] == 0) & (gaps[:, along] > 0), along])
    sides, counts = np.unique(np.concatenate(steps), return_counts=True)
    return float(sides[counts.argmax()]) if len(sides) else 0.0


def _attributes(
    bag: ClamBag, name: str, size: tuple[int, int], mpp: float
) -> dict[str, str | int | float]:
    side = round(float(bag.boxes[0, 2])) if len(bag.boxes) else 0
    tile_mpp = float(bag.facts.get("mpp", mpp))
    tile = int(bag.facts.get("tile", side))
    # CLAM reads patch_size pixels of patch_level, TRIDENT patch_size pixels at spacing_um_px.
    level: dict[str, str | int | float] = {"patch_level": 0} if tile == side else {}
    return level | {
        "name": name,
        "patch_size": tile,
        "patch_size_level0": side,
        "overlap": int(bag.facts.get("overlap", 0)),
        "spacing_um_px": tile_mpp,
        "level0_mpp": mpp,
        "level0_magnification": _TENFOLD / mpp,
        "target_magnification": _TENFOLD / tile_mpp,
        "level0_width": size[0],
        "level0_height": size[1],
        **({"region": bag.facts["region"]} if "region" in bag.facts else {}),
    }


def _facts(path: Path, attributes: Mapping[str, Any]) -> dict[str, str]:
    """Name the attributes as :class:`~slidelens.families.base.Bag` does."""
    facts = {key: str(value) for key, value in attributes.items()}
    for ours, theirs in (("tile", "patch_size"), ("mpp", "spacing_um_px")):
        if theirs in attributes:
            facts[ours] = str(attributes[theirs])
    if "mpp" not in facts and "target_magnification" in attributes:
        facts["mpp"] = str(_TENFOLD / _stated(path, attributes, "target_magnification"))
    return facts


def _h5py() -> Any:
    try:
        import h5py
    except ImportError as error:
        raise ResultError(
            "feature bags in HDF5 need h5py, which is not installed: pip install 'slidelens[bags]'."
        ) from error
    return h5py


def _write(result: Result, path: Path) -> None:
    slide, tiles, features = result.slide, result.tiles, result.features
    if tiles is None or features is None or len(tiles) != len(features):
        raise ResultError(
            f"{slide.id}: the result has no feature vectors to export; they are written by MIL "
            "models, unless run with --set keep_features=false."
        )
    if slide.size is None or slide.resolution is None:
        raise ResultError(f"{slide.id}: the result does not say how large the slide is.")
    bag = ClamBag(tiles.boxes, features.vectors, {**features.facts, **_part(result, slide.size)})
    write_clam(path, bag, slide.id, slide.size, slide.resolution.x)


def _part(result: Result, size: tuple[int, int]) -> dict[str, str]:
    """Return the region that a result is of, unless that is the whole slide."""
    run = result.settings
    if run is None or run.region is None:
        return {}
    whole = Box.of_size(size)
    return {} if Box(*run.region).intersect(whole) == whole else {"region": region_text(run)}


EXPORTER = Exporter(
    "clam-h5",
    "Tiles and their feature vectors, for CLAM, TRIDENT and `slidelens train mil --bags`.",
    ".h5",
    _write,
)
