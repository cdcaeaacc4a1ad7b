"""A result: all output of one model for one slide, in memory and as a folder.

::

    <folder>/result.json          what, by which model, with which settings (see schema)
             maps.ome.zarr/       every map and the tissue mask (see ngff)
             tiles.csv            the table of tiles (see tiles)
             features.safetensors their feature vectors, of models that make some (see features)
             regions.geojson      positive regions, for QuPath (see geojson)
             trajectory.json      where the network looked, if it chose that itself (see trajectory)
"""

from __future__ import annotations

import logging
import re
from functools import partial
from itertools import chain
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from slidelens.errors import ResultError
from slidelens.files import is_folder, is_temporary, staged_folder
from slidelens.maps.features import TileFeatures
from slidelens.maps.folder import (
    FEATURES,
    FILE,
    MAPS,
    REGIONS,
    TILES,
    TRAJECTORY,
    cannot_write,
    carry_over,
    check_place,
    check_same,
    key_of,
    sizes,
)
from slidelens.maps.map import Map
from slidelens.maps.schema import MapEntry, ModelInfo, ResultFile, SlideInfo, read_result_file
from slidelens.maps.tiles import Tiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from slidelens.maps.regions import Region
    from slidelens.maps.run_settings import RunSettings
    from slidelens.maps.trajectory import Trajectory

__all__ = [
    "Map",
    "ModelInfo",
    "Result",
    "SlideInfo",
    "TileFeatures",
    "Tiles",
    "find_results",
    "holds_results",
    "names_a_map",
    "results_root",
]

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
_RESERVED = frozenset({"OME", "labels", "zarr.json"})


def names_a_map(name: str) -> bool:
    """Return whether ``name`` can name a map, and thus its folder in a result."""
    return bool(_NAME.fullmatch(name)) and name not in _RESERVED


class Result:
    """The output of one model for one slide.

    Parameters
    ----------
    slide, model
        The slide and the model.
    probabilities
        Class to probability in 0..1, in label order; of two classes the second is positive.
    maps
        The maps; the one named "tissue" (kind labels) is the tissue mask.
    tiles, regions
        The tile table (``None`` if there is none) and the positive regions.
    features
        Feature vectors of the tiles, one row each; ``None`` for models without.
    trajectory
        The windows that the network looked at; ``None`` for models that look everywhere.
    timings
        Seconds by stage.
    settings
        How the model was run; ``None`` if unknown.
    settings_sha256
        Digest of all settings that the result depends on.
    software
        Name to version of the software that made it.

    Attributes
    ----------
    path
        The folder that the result was loaded from or last saved to.
    """

    def __init__(
        self,
        slide: SlideInfo,
        model: ModelInfo,
        probabilities: Mapping[str, float],
        *,
        maps: Sequence[Map] = (),
        tiles: Tiles | None = None,
        regions: Sequence[Region] | None = None,
        features: TileFeatures | None = None,
        trajectory: Trajectory | None = None,
        timings: Mapping[str, float] | None = None,
        settings: RunSettings | None = None,
        settings_sha256: str | None = None,
        software: Mapping[str, str] | None = None,
    ) -> None:
        self.slide = slide
        self.model = model
        self.probabilities = dict(probabilities)
        self.maps = {one.name: one for one in maps}
        self.timings = dict(timings or {})
        self.settings = settings
        self.settings_sha256 = settings_sha256
        self.software = dict(software or {})
        self.path: Path | None = None
        self._key = ""
        self._tiles = tiles
        self._regions = None if regions is None else tuple(regions)
        self._features = features
        self._trajectory = trajectory
        bad = [n for n in self.maps if not names_a_map(n)]
        if bad:
            raise ValueError(f"map names {bad}: use letters, digits, '_', '-' and '.'")

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in label order."""
        return tuple(self.probabilities)

    @property
    def tiles(self) -> Tiles | None:
        """The table of tiles; read from the folder on first access."""
        path = self._part(TILES) if self._tiles is None else None
        if path is not None:
            self._tiles = Tiles.read(path)
        return self._tiles

    @property
    def regions(self) -> tuple[Region, ...]:
        """The positive regions; read from the folder on first access."""
        if self._regions is None:
            path = self._part(REGIONS)
            if path is None:
                self._regions = ()
            else:
                from slidelens.maps.geojson import read_regions

                self._regions = tuple(read_regions(path))
        return self._regions

    @property
    def features(self) -> TileFeatures | None:
        """Feature vectors of the tiles; read from the folder on each access, and not kept."""
        path = self._part(FEATURES) if self._features is None else None
        return self._features if path is None else TileFeatures.read(path)

    @property
    def trajectory(self) -> Trajectory | None:
        """Where the network looked; read from the folder on first access."""
        path = self._part(TRAJECTORY) if self._trajectory is None else None
        if path is not None:
            from slidelens.maps.trajectory import read_trajectory

            self._trajectory = read_trajectory(path)
        return self._trajectory

    def _part(self, name: str) -> Path | None:
        """Return where a part lies that was not read yet, if the folder has one."""
        if self.path is None or not (self.path / name).exists():
            return None
        check_same(self.path, self._key)
        return self.path / name

    def map_of(self, *labels: str) -> Map:
        """Return the first probability map that has all these classes.

        Raises
        ------
        ResultError
            There is none.
        """
        for one in self.maps.values():
            if one.kind == "probability" and {*labels} <= {*one.channels}:
                return one
        raise ResultError(
            f"{self.slide.id}: the result of model {self.model.name!r} has no probability map of "
            f"class {', '.join(labels)}, in which lesions are found; take a model that draws one."
        )

    @classmethod
    def load(cls, folder: str | Path) -> Result:
        """Open a result folder; its parts are read when they are first needed.

        Raises
        ------
        ResultError
            No result folder, or a malformed ``result.json``; names the file and the key. (A map,
            table or region file raises it when it is first read, where it is damaged, or where the
            folder was replaced by another result since.)
        """
        path = Path(folder)
        content = read_result_file(path / FILE)
        result = cls(
            content.slide,
            content.model,
            content.probabilities,
            timings=content.timings,
            settings=content.settings,
            settings_sha256=content.settings_sha256,
            software=content.software,
        )
        result._attach(path, content)
        return result

    def save(self, folder: str | Path) -> None:
        """Write the folder, whole or not at all, replacing an existing one.

        What people put into that, such as their own GeoJSON, is carried over.

        Afterwards maps are read from the folder, and the memory of canvases is free.

        Raises
        ------
        ResultError
            A full disk, a folder that cannot be written, or values that are not numbers.
        """
        path = Path(folder)
        check_place(path)
        start = perf_counter()
        try:
            with staged_folder(path, None) as staging:
                content = self._write(staging, start)
                carry_over(path, staging)
        except OSError as error:
            raise cannot_write(path, error) from error
        self._attach(path, content)
        self._features = None

    def _attach(self, path: Path, content: ResultFile) -> None:
        from slidelens.maps.ngff import open_map

        self.path, self._key = path, key_of(content)
        mpp, check = self.slide.resolution, partial(check_same, path, self._key)
        self.maps = {
            e.name: open_map(path / e.path, e.name, e.kind, mpp, check) for e in content.maps
        }

    def _write(self, staging: Path, start: float) -> ResultFile:
        from slidelens.maps.geojson import region_features, write_features
        from slidelens.maps.ngff import write_maps
        from slidelens.maps.trajectory import write_trajectory

        # Read it before a folder that is replaced goes.
        tiles, regions, trajectory = self.tiles, self.regions, self.trajectory
        features = self.features
        entries: list[MapEntry] = []
        if self.maps:
            places = write_maps(staging / MAPS, self.maps.values())
            entries = [
                MapEntry(name=m.name, kind=m.kind, path=f"{MAPS}/{places[m.name]}", mpp=m.mpp)
                for m in self.maps.values()
            ]
        if tiles is not None:
            tiles.write(staging / TILES)
        if features is not None:
            features.write(staging / FEATURES)
        write_features(staging / REGIONS, region_features(regions, self.classes))
        if trajectory is not None:
            write_trajectory(staging / TRAJECTORY, trajectory)
        self.timings.setdefault("write", perf_counter() - start)
        try:
            content = ResultFile(
                slide=self.slide,
                model=self.model,
                probabilities=self.probabilities,
                maps=tuple(entries),
                timings=self.timings,
                software=self.software,
                settings=self.settings,
                settings_sha256=self.settings_sha256,
                files=sizes(staging),
            )
        except ValueError as error:
            raise ResultError(f"{self.slide.id}: the result cannot be saved: {error}") from error
        text = content.model_dump_json(indent=2, exclude_none=True)
        (staging / FILE).write_text(text + "\n", encoding="utf-8")
        return read_result_file(staging / FILE)

    def __repr__(self) -> str:
        return f"Result({self.slide.id!r}, {self.model.name!r}, {self.probabilities})"


def find_results(folder: str | Path) -> Iterator[Path]:
    """Yield the finished result folders in a folder (or itself), at any depth, sorted.

    A folder that cannot be read is skipped with a warning. A link to a folder beside or above it is
    skipped without one, since its results are found there.

    Raises
    ------
    ResultError
        There is no such folder, or it cannot be read.
    """
    root = Path(folder)
    try:
        if not is_folder(root):
            raise ResultError(f"{root}: no such folder; expected results of `slidelens predict`.")
        whole = is_folder(root / FILE) is False
        children = [] if whole else sorted(root.iterdir())
    except OSError as error:
        raise ResultError(
            f"{root}: cannot be read ({error.strerror or error}); results in it are not found "
            "until you may read it."
        ) from error
    if whole:
        yield root
    for child in children:
        try:
            if is_folder(child) and _may_hold_results(child) and not _leads_back(child):
                yield from find_results(child)
        except (OSError, ResultError) as error:
            log.warning("%s", error)


def _may_hold_results(path: Path) -> bool:
    """Return whether a folder is looked into; of hidden ones, results of slides of such names."""
    if not path.name.startswith("."):
        return True
    return is_folder(path / FILE) is False and not is_temporary(path.name)


def _leads_back(path: Path) -> bool:
    """Return whether a folder is a link to one beside it or above it, such as ``latest``."""
    if not path.is_symlink():
        return False
    here, there = path.parent.resolve(), path.resolve()
    if here.is_relative_to(there):
        return True
    within = there.relative_to(here).parts if there.is_relative_to(here) else (".",)
    return not any(part.startswith(".") for part in within)  # those are not searched


def holds_results(folder: str | Path) -> bool:
    """Return whether a folder is that of one result, of one model's, or of all results.

    Raises
    ------
    OSError
        It may not be looked into.
    """
    depths = (FILE, f"*/{FILE}", f"*/*/{FILE}")
    return any(True for _ in chain.from_iterable(map(Path(folder).glob, depths)))


def results_root(folder: str | Path) -> Path:
    """Return the results folder that contains ``folder``, if that is of one model or is one result.

    Any other folder, existing or not, is returned unchanged.
    """
    path = Path(folder)
    try:
        if (path / FILE).is_file():
            read_result_file(path / FILE)  # otherwise it belongs to another program
            return path.absolute().parent.parent
        files = (child / FILE for child in path.iterdir())
        first = next((file for file in files if file.is_file()), None)
        of_one = first is not None and read_result_file(first).model.name == path.resolve().name
    except (OSError, ResultError):  # it does not exist yet, or cannot be read: using it will say so
        return path
    return path.absolute().parent if of_one else path
