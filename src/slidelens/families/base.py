"""What a model family is: one file that says how to configure, build, train and run it.

A family never opens a slide, writes a file or drives a loop. It *pulls* from a :class:`View` and
*yields* events; the engine reads, assembles, saves, reports progress and cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from slidelens.maps.trajectory import Trajectory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray
    from torch import nn

    from slidelens.geometry import Box, Mpp, Size
    from slidelens.tiling.grid import Grid, GridSpec
    from slidelens.tiling.tissue import TissueMask

__all__ = [
    "BAG_FIELDS",
    "Bag",
    "Batch",
    "Event",
    "Family",
    "FamilyConfig",
    "MapKind",
    "MapSpec",
    "Model",
    "Patch",
    "SlideScore",
    "Trajectory",
    "View",
    "bag_fields",
]

MapKind = Literal["probability", "attention", "saliency", "labels"]

BAG_FIELDS: Final = ("tile", "overlap", "mpp", "orientations", "stain_normalization")
"""Fields of a configuration that a bag's facts state too: how the tiles were read."""


class FamilyConfig(BaseModel):
    """Base of every family's frozen configuration.

    Its fields become command-line options, the desktop form and ``model.json``, so each has a
    default, bounds and a ``description``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be changed when a model is run (``predict --set field=value``): its weights
    do not depend on them."""

    stain_normalization: Literal["none", "macenko"] = Field(
        "none", description="bring the slide's stains to a reference, in training and after"
    )

    @classmethod
    def fine_tuned(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a model that starts from one with the fields ``base``."""
        return {**base, **given}

    def finest_mpp(self, extent_um: float) -> float | None:  # noqa: ARG002  # for those that zoom
        """Return the finest µm/px at which slides are read; ``None`` where that is not known.

        The engine refuses a slide that is far coarser. This is the field ``mpp``, for a family that
        has one; a family that reads in another way says it here. ``extent_um`` is the longer side
        of what is read of the slide, in µm.
        """
        mpp = getattr(self, "mpp", None)
        return float(mpp) if isinstance(mpp, (int, float)) else None


ConfigT = TypeVar("ConfigT", bound=FamilyConfig)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map that a family draws.

    ``name`` is its key. ``channels`` names the planes (class names for probabilities); ``mpp`` is
    the side of a map cell in µm. ``instances`` marks the map whose values per patch go to
    ``tiles.csv`` as ``prob_*``; a map of kind attention with one value for each of the same patches
    goes there as ``attention``.
    """

    name: str
    kind: MapKind
    channels: tuple[str, ...]
    mpp: float
    instances: bool = False
    threshold: float | None = None
    """Cells at or above it make regions; ``None``: the model's operating point (for slides)."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Values for boxes of one map.

    Attributes
    ----------
    map
        Name of the :class:`MapSpec`.
    boxes
        ``(N, 4)`` float64: x, y, w, h in level-0 px. One may reach outside the slide; one that lies
        wholly outside (a sign of other units) ends the run with a ``ModelError``. Without boxes,
        the patch only says that the run goes on: progress is shown, and it can be cancelled here.
    values
        ``(N, C)`` one value per box and channel, or ``(N, C, h, w)`` a raster that fills each box.
    """

    map: str
    boxes: NDArray[np.float64]
    values: NDArray[np.float32]

    @classmethod
    def empty(cls, map: str, channels: int) -> Patch:  # noqa: A002  # the field's name
        """Return the patch without boxes of a map with so many channels."""
        return cls(map, np.empty((0, 4)), np.empty((0, channels), np.float32))


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The last event of a run: ``probabilities``, one per class, in label order."""

    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bag:
    """Feature vectors of tiles of one slide.

    Attributes
    ----------
    boxes
        ``(N, 4)`` float64: x, y, w, h in level-0 px.
    vectors
        ``(N, D)`` float16 or float32; may be mapped from a file.
    facts
        What made them: ``tile``, ``overlap`` (px), ``mpp``, ``orientations``,
        ``stain_normalization``, ``backbone``, ``backbone_sha256``.
    """

    boxes: NDArray[np.float64]
    vectors: NDArray[np.float16] | NDArray[np.float32]
    facts: Mapping[str, str] = field(default_factory=dict)


def bag_fields(facts: Mapping[str, str]) -> dict[str, float | str]:
    """Return those of :data:`BAG_FIELDS` that a bag's ``facts`` state: numbers, and a name."""
    stated = {name: facts[name] for name in BAG_FIELDS if name in facts}
    return {k: v if k == "stain_normalization" else float(v) for k, v in stated.items()}


Event = Patch | Bag | Trajectory | SlideScore
"""What ``infer`` yields: patches, the vectors of the tiles that they show (in the same order), at
most one trajectory (where it looked), last the score."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles of one slide, on the model's device.

    ``boxes`` is ``(N, 4)`` float64 level-0 px; ``images`` is ``(N, 3, H, W)`` uint8 RGB.
    """

    boxes: NDArray[np.float64]
    images: torch.Tensor


class View(Protocol):
    """What a model may see of a slide. The engine makes it; reading ahead is its business.

    ``name`` is the slide's id, for messages. ``bag`` are feature vectors of its tiles that were
    made elsewhere, where the run was given some.
    """

    name: str
    bag: Bag | None
    size: Size
    mpp: Mpp
    region: Box

    @property
    def tissue(self) -> TissueMask:
        """Tissue of the whole slide, not only of the region."""

    def read(self, box: Box, mpp: float) -> NDArray[np.uint8]:
        """Read a box (level-0 px) at ``mpp`` µm/px: ``(H, W, 3)`` uint8 RGB, white outside."""

    def grid(self, spec: GridSpec) -> Grid:
        """Lay a grid over the region's tissue; the run records it."""

    def batches(self, grid: Grid, batch_size: int) -> Iterator[Batch]:
        """Read all tiles of a grid, ahead of the model, in order; reading begins with the call."""

    def total(self, steps: int) -> None:
        """Say how many tiles (or other steps) the run has in all, for progress."""

    def step(self, n: int = 1) -> None:
        """Say that ``n`` more of them are done."""


@dataclass(slots=True)
class Model(Generic[ConfigT]):
    """A family's network with what is needed to run it.

    Attributes
    ----------
    name, family, config, classes
        Of the model, of its family; the configuration; class names in label order.
    module
        The network, in eval mode on ``device``.
    mean, std
        Normalisation of RGB in 0..1; ImageNet's by default.
    device
        Where it runs; ``None``: nowhere yet.
    """

    name: str
    family: str
    config: ConfigT
    classes: tuple[str, ...]
    module: nn.Module
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    device: torch.device | None = None
    card: dict[str, Any] = field(default_factory=dict)
    """Everything else that ``model.json`` holds: training data, metrics, licence, intended use."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of ``config`` that were changed for a run, with the values they have now."""


@dataclass(frozen=True)
class Family(Generic[ConfigT]):
    """One method, complete.

    Attributes
    ----------
    name, title, about
        Key, human name, one sentence for lists and cards.
    config
        The frozen configuration class.
    build
        ``build(config, n_classes) -> nn.Module``; weights are loaded by the caller.
    infer
        ``infer(model, view)`` yields :class:`Patch` events and, last, one :class:`SlideScore`.
        The caller has set eval mode, inference mode and autocast.
    maps
        ``maps(config, classes)``: every map that ``infer`` may draw.
    trainer
        ``"module:Class"`` of the training steps (see ``slidelens.engine.train``), or ``None`` for a
        family that only runs; named, not imported, so that running a model needs no trainer.
    auto_bf16
        Whether precision ``auto`` may be bfloat16 when a model is trained or run. Not where scores
        choose what is looked at next: there a rounding leads elsewhere.
    """

    name: str
    title: str
    about: str
    config: type[ConfigT]
    build: Callable[[ConfigT, int], nn.Module]
    infer: Callable[[Model[ConfigT], View], Iterator[Event]]
    maps: Callable[[ConfigT, Sequence[str]], Sequence[MapSpec]]
    trainer: str | None = None
    auto_bf16: bool = True
