"""What a model family is: one file that says how to configure, build, train and run it.

A family never opens a slide, writes a file or drives a loop. It *pulls* from a :class:`View` and
*yields* events; the engine reads, assembles, saves, reports progress and cancels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, Literal, Protocol, TypeVar

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from slidelens.errors import SlideError
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
    "in_short",
    "no_tissue",
]

MapKind = Literal["probability", "attention", "saliency", "labels"]

BAG_FIELDS: Final = ("tile", "overlap", "mpp", "orientations", "stain_normalization")
"""Configuration fields that say how tiles are read; a bag's facts state them too."""


class FamilyConfig(BaseModel):
    """Base class of every family's frozen configuration.

    Its fields become command-line options, a form in the desktop and part of ``model.json``, so
    each needs a default, bounds and a ``description``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_fields: ClassVar[frozenset[str]] = frozenset()
    """Fields that may be changed for a run (``predict --set field=value``), because the weights do
    not depend on them."""

    stain_normalization: Literal["none", "macenko"] = Field(
        default="none",
        description="normalise the slide's stains to a reference, in training and prediction",
    )

    @classmethod
    def fine_tuned(cls, base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a model that is fine-tuned from one with the fields ``base``."""
        return {**base, **given}

    def finest_mpp(self, extent_um: float) -> float | None:  # noqa: ARG002  # for those that zoom
        """Return the finest µm/px at which slides are read; ``None`` if that is unknown.

        The engine refuses slides that are far coarser. By default it is the field ``mpp``; families
        that read differently override this. ``extent_um`` is the longer side of the area that is
        read, in µm.
        """
        mpp = getattr(self, "mpp", None)
        return float(mpp) if isinstance(mpp, (int, float)) else None


ConfigT = TypeVar("ConfigT", bound=FamilyConfig)


@dataclass(frozen=True, slots=True)
class MapSpec:
    """Declares one map that a family draws.

    ``name`` is its key, ``kind`` what its values mean. ``channels`` names the planes (class names
    for probabilities); ``mpp`` is the side of a cell in µm. ``instances`` marks the map whose
    values per patch become the columns ``prob_*`` of ``tiles.csv``; an attention map with one value
    for each of the same patches becomes its column ``attention``.
    """

    name: str
    kind: MapKind
    channels: tuple[str, ...]
    mpp: float
    instances: bool = False
    threshold: float | None = None
    """Cells at or above it form regions; ``None``: the model's operating point for slides."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Values for some boxes of one map.

    Attributes
    ----------
    map
        Name of the :class:`MapSpec`.
    boxes
        ``(N, 4)`` float64: x, y, w, h in level-0 px. A box may reach outside the slide; one that
        lies wholly outside (a sign of wrong units) ends the run with a ``ModelError``. A patch
        without boxes only lets progress be shown and the run be cancelled at this point.
    values
        ``(N, C)`` one value per box and channel, or ``(N, C, h, w)`` a raster that fills each box.
        For a map of labels C is 1: 0 is none, k + 1 the channel k.
    """

    map: str
    boxes: NDArray[np.float64]
    values: NDArray[np.float32]

    @classmethod
    def empty(cls, map: str, channels: int) -> Patch:  # noqa: A002  # the field's name
        """Return a patch without boxes, for a map with ``channels`` planes."""
        return cls(map, np.empty((0, 4)), np.empty((0, channels), np.float32))


@dataclass(frozen=True, slots=True)
class SlideScore:
    """The last event of a run: ``probabilities``, one per class, in label order."""

    probabilities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Bag:
    """Feature vectors of a slide's tiles.

    Attributes
    ----------
    boxes
        ``(N, 4)`` float64: x, y, w, h in level-0 px.
    vectors
        ``(N, D)`` float16 or float32; may be memory-mapped.
    facts
        How they were made: ``tile``, ``overlap`` (px), ``mpp``, ``orientations``,
        ``stain_normalization``, ``backbone``, ``backbone_sha256``; of one that was read from a
        file, also what that states of its slide.
    """

    boxes: NDArray[np.float64]
    vectors: NDArray[np.float16] | NDArray[np.float32]
    facts: Mapping[str, str] = field(default_factory=dict)


def bag_fields(facts: Mapping[str, str]) -> dict[str, float | str]:
    """Return the :data:`BAG_FIELDS` that a bag's ``facts`` state, as numbers and names."""
    stated = {name: facts[name] for name in BAG_FIELDS if name in facts}
    return {k: v if k == "stain_normalization" else float(v) for k, v in stated.items()}


def in_short(value: float | str) -> str:
    """Return a fact of a bag in short form for a message."""
    return value[:12] if isinstance(value, str) else f"{value:.12g}"


def no_tissue(spec: GridSpec) -> SlideError:
    """Return the error of a slide on which a grid has no tile."""
    return SlideError(
        f"no tile of {spec.tile} px at {spec.mpp} µm/px holds {spec.min_tissue:.0%} tissue; "
        "where there is tissue, --tissue otsu (or whole) finds it in another way, --set "
        "min_tissue=0.1 takes tiles with less of it, and a larger --region, or none, more of the "
        "slide."
    )


Event = Patch | Bag | Trajectory | SlideScore
"""What ``infer`` yields: patches, the feature vectors of their tiles (in the same order), at most
one trajectory (where the network looked) and, last, the score."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Tiles of one slide, on the model's device.

    ``boxes`` is ``(N, 4)`` float64 level-0 px; ``images`` is ``(N, 3, H, W)`` uint8 RGB.
    """

    boxes: NDArray[np.float64]
    images: torch.Tensor


class View(Protocol):
    """What a model may see of a slide. The engine makes it, and reads ahead.

    ``name`` is the slide's id, for messages. ``bag`` holds precomputed feature vectors of its
    tiles, if the run was given some.
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
        """Lay a grid over the tissue of the region; the run records it."""

    def batches(self, grid: Grid, batch_size: int) -> Iterator[Batch]:
        """Read the tiles of a grid in order, ahead of the model; reading starts with the call."""

    def total(self, steps: int) -> None:
        """Set the total number of tiles (or other steps) of the run, for progress."""

    def step(self, n: int = 1) -> None:
        """Report that ``n`` more steps are done."""


@dataclass(slots=True)
class Model(Generic[ConfigT]):
    """A network with everything needed to run it.

    Attributes
    ----------
    name, family, config, classes
        Names of the model and its family; the configuration; class names in label order.
    module
        The network, in eval mode on ``device``.
    mean, std
        Normalisation of RGB in 0..1; ImageNet's by default.
    device
        Where the network is; ``None`` if not decided yet.
    """

    name: str
    family: str
    config: ConfigT
    classes: tuple[str, ...]
    module: nn.Module = field(repr=False)
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    device: torch.device | None = None
    card: dict[str, Any] = field(default_factory=dict, repr=False)
    """The rest of ``model.json``: training data, metrics, licence, intended use."""
    options: dict[str, Any] = field(default_factory=dict)
    """Fields of ``config`` that were changed for this run, with their values."""


@dataclass(frozen=True)
class Family(Generic[ConfigT]):
    """A complete method.

    Attributes
    ----------
    name, title, about
        Key, display name, and a sentence for lists and cards.
    config
        The configuration class.
    build
        ``build(config, n_classes) -> nn.Module``; the caller loads the weights.
    infer
        ``infer(model, view)`` yields :class:`Patch` events and, last, one :class:`SlideScore`.
        The caller sets eval mode, inference mode and autocast.
    maps
        ``maps(config, classes)`` declares every map that ``infer`` may draw.
    trainer
        ``"module:Class"`` of the training task (:class:`~slidelens.families.training.TrainTask`),
        or ``None`` for a family that cannot be trained. It is named, not imported, so that running
        a model does not load the trainer.
    auto_bf16
        Whether precision ``auto`` may choose bfloat16. Not for families whose scores choose what is
        looked at next, where rounding leads elsewhere.
    version
        Version of what ``infer`` computes. Raise it when the same weights and settings give other
        results: older results are then computed again.
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
    version: int = 1
