"""Turn a family's events into a :class:`~slidelens.maps.result.Result`."""

from __future__ import annotations

import logging
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.engine.contract import (
    check_patch,
    checked_maps,
    family_error,
    fitting_patch,
    plugins_of,
)
from slidelens.engine.device import software
from slidelens.engine.learnt import learnt_from
from slidelens.engine.provenance import fingerprint, weights_sha256
from slidelens.errors import ModelError
from slidelens.families.base import Bag, Patch, SlideScore, Trajectory
from slidelens.maps.canvas import Canvas
from slidelens.maps.features import VectorSpool
from slidelens.maps.regions import Region, positive_regions
from slidelens.maps.result import Map, ModelInfo, Result, SlideInfo
from slidelens.maps.tiles import Tiles
from slidelens.slide.array import in_memory
from slidelens.tiling.grid import DEFAULT_GRID, make_grid

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from slidelens.engine.loader import SlideView
    from slidelens.families.base import Family, MapKind, MapSpec, Model
    from slidelens.maps.run_settings import RunSettings

__all__ = ["Assembly"]

log = logging.getLogger(__name__)

_THRESHOLD = 0.5
_AT_ONCE = 64
"""Patches that are drawn together: of a few at a time, each would take as long as all of these."""


class Assembly:
    """The maps, tiles and score of one run, under construction.

    Parameters
    ----------
    family, model
        Whose events come.
    view
        Of which slide.
    """

    def __init__(self, family: Family[Any], model: Model[Any], view: SlideView) -> None:
        self._model, self._view = model, view
        self._specs = checked_maps(family, model, view.size, view.mpp)
        self._canvases = {
            name: Canvas.create(None, spec, view.size, view.mpp)
            for name, spec in self._specs.items()
        }
        self._lock = Lock()
        self._waiting: dict[str, list[Patch]] = {}
        self._drawn: set[str] = set()
        self._instances: list[Patch] = []
        self._attention: list[Patch] = []
        self._vectors: VectorSpool | None = None
        self._score: SlideScore | None = None
        self._trajectory: Trajectory | None = None

    def add(self, event: object) -> None:
        """Take the next event of the family; patches are drawn when there are some.

        Raises
        ------
        ModelError
            Something else, an event after the score, a map that the family did not declare, boxes
            or values that cannot be, in this event or in one before.
        """
        if self._score is not None:
            kind = type(event).__name__
            raise family_error(
                self._model, f"infer gave a {kind} after the SlideScore, which is the last."
            )
        if isinstance(event, SlideScore):
            self._score = event
        elif isinstance(event, Trajectory):
            self._trajectory = event
        elif isinstance(event, Bag):
            if self._vectors is None:
                self._vectors = VectorSpool(event.facts)
            self._vectors.add(event.vectors)
        else:
            patch = fitting_patch(event, self._specs, self._model)
            with self._lock:
                waiting = self._waiting.setdefault(patch.map, [])
                waiting.append(patch)
            if patch.values.ndim > 2 or sum(len(p.boxes) for p in waiting) >= _AT_ONCE:
                self._draw()

    def peek(self) -> dict[str, Map]:
        """Return the maps as they are now; NaN where nothing was predicted yet."""
        with suppress(ModelError):  # the run raises it, and so ends
            self._draw()
        return {name: canvas.peek() for name, canvas in self._canvases.items()}

    def _draw(self) -> None:
        """Draw the patches that wait."""
        with self._lock:
            for name, patches in self._waiting.items():
                for patch in _joined(patches):
                    self._draw_patch(self._specs[name], patch)
            self._waiting = {}  # now: what is refused is so again, whoever asked first

    def _draw_patch(self, spec: MapSpec, patch: Patch) -> None:
        check_patch(patch, self._specs, self._model, self._view.size)
        self._canvases[spec.name].add(patch.boxes, patch.values)
        if np.isfinite(patch.values).any():
            self._drawn.add(spec.name)
        if spec.instances:
            self._instances.append(patch)
        elif spec.kind == "attention" and patch.values.ndim == 2:
            self._attention.append(patch)

    def finish(self, *, settings: RunSettings, digest: str, bf16: bool) -> Result:
        """Make the result, which keeps how it was run: ``settings`` as asked, precision as used.

        Raises
        ------
        ModelError
            The family gave no slide score, or one that is no probability; or as in :meth:`add`.
        """
        self._draw()
        probabilities = self._probabilities()
        empty = [repr(name) for name in self._specs if name not in self._drawn]
        if empty and self._view.tissue.fraction(np.array([self._view.region])).any():
            fault = f"declared maps in which it drew nothing: {', '.join(empty)}."
            log.warning("%s: %s", self._view.slide.id, family_error(self._model, fault))
        maps = {name: canvas.finish() for name, canvas in self._canvases.items()}
        return Result(
            _slide_info(self._view),
            ModelInfo(
                name=self._model.name,
                family=self._model.family,
                sha256=weights_sha256(self._model),
                threshold=self._model.card.get("threshold"),
                learnt_from=learnt_from(self._model.card, self._view.slide.id),
            ),
            probabilities,
            maps=[*maps.values(), _tissue_map(self._view)],
            tiles=self._tiles(maps),
            features=None if self._vectors is None else self._vectors.finish(),
            regions=self._regions(maps),
            trajectory=self._trajectory,
            settings=settings,
            settings_sha256=digest,
            software=software(self._view.device, bf16)
            | plugins_of(self._model.family, self._model.config),
        )

    def close(self) -> None:
        """Delete the temporary file of vectors; the result of :meth:`finish` stays valid."""
        if self._vectors is not None:
            self._vectors.close()

    def _probabilities(self) -> dict[str, float]:
        classes, given = self._model.classes, getattr(self._score, "probabilities", ())
        try:
            found = tuple(map(float, given))
        except (TypeError, ValueError):  # no sequence, or not of numbers
            found = ()
        if len(found) != len(classes) or not all(-1e-4 <= p <= 1 + 1e-4 for p in found):
            raise family_error(
                self._model,
                f"infer ended with {self._score}; expected a SlideScore of {len(classes)} "
                "probabilities in 0..1.",
            )
        return {name: min(max(p, 0.0), 1.0) for name, p in zip(classes, found, strict=True)}

    def _tiles(self, maps: dict[str, Map]) -> Tiles | None:
        """Make the table: of the family's patches, else the means of its maps over a grid."""
        if not self._instances:
            return self._averaged(maps)
        boxes = np.concatenate([patch.boxes for patch in self._instances])
        return Tiles(
            boxes,
            self._specs[self._instances[0].map].channels,
            np.concatenate([patch.values for patch in self._instances]),
            self._tile_attention(boxes),
        )

    def _tile_attention(self, boxes: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """Return the tiles' attention, where the first such map has a value for each of them.

        Of one per class it is that of the positive class; with more than two, of the likeliest.
        """
        patches = [patch for patch in self._attention if patch.map == self._attention[0].map]
        if not patches or not np.array_equal(np.concatenate([p.boxes for p in patches]), boxes):
            return None
        values = np.concatenate([patch.values for patch in patches])
        scores = list(self._probabilities().values())
        one = -1 if len(scores) == 2 else int(np.argmax(scores))
        return np.ascontiguousarray(values[:, 0 if values.shape[1] == 1 else one])

    def _averaged(self, maps: dict[str, Map]) -> Tiles | None:
        drawn = self._first_map(maps, "probability")
        if drawn is None or any(spec.instances for spec in self._specs.values()):
            return None
        view = self._view
        boxes = make_grid(
            view.size, view.mpp, DEFAULT_GRID, tissue=view.tissue, region=view.region
        ).boxes
        looked = self._first_map(maps, "attention")
        attention = None
        if looked is not None and len(looked.channels) == 1:
            attention = np.ascontiguousarray(looked.mean(boxes)[:, 0])
        return Tiles(boxes, drawn.channels, drawn.mean(boxes), attention)

    def _regions(self, maps: dict[str, Map]) -> list[Region]:
        """Outline what is at or above the operating point in the first map of probabilities."""
        drawn = self._first_map(maps, "probability")
        if drawn is None:
            return []
        threshold = self._specs[drawn.name].threshold
        if threshold is None:
            threshold = self._model.card.get("threshold")
        return positive_regions(
            drawn,
            threshold=_THRESHOLD if threshold is None else threshold,
            within=self._view.slide.size,
        )

    def _first_map(self, maps: dict[str, Map], kind: MapKind) -> Map | None:
        """Return the first map of a kind that the family declares."""
        names = (s.name for s in self._specs.values() if s.kind == kind)
        name = next(names, None)
        return None if name is None else maps[name]


def _joined(patches: list[Patch]) -> list[Patch]:
    """Join patches of one map that have a value for each box; those of rasters stay."""
    if any(patch.values.ndim > 2 for patch in patches):
        return patches
    boxes = np.concatenate([patch.boxes for patch in patches])
    return [Patch(patches[0].map, boxes, np.concatenate([patch.values for patch in patches]))]


def _slide_info(view: SlideView) -> SlideInfo:
    slide, (x, y) = view.slide, view.mpp
    return SlideInfo(
        id=slide.id,
        path=None if in_memory(slide) else str(slide.path.absolute()),
        width=view.size.width,
        height=view.size.height,
        mpp=x if x == y else (x, y),
        mpp_source=slide.mpp_source,
        fingerprint=fingerprint(slide),
        bounds=slide.bounds,
    )


def _tissue_map(view: SlideView) -> Map:
    mask = view.tissue
    return Map.from_array("tissue", "labels", ("tissue",), mask.array, mask.affine, view.mpp)
