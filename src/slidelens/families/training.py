"""How a family takes part in training: what an epoch works through, what a step computes.

The loop itself (seeds, optimiser, checkpoints, early stopping, devices) is one for all families:
:mod:`slidelens.engine.train`. It runs, for each epoch, every :class:`Work` of
:meth:`TrainTask.epoch` and then of :meth:`TrainTask.evaluation`, each by one
:meth:`TrainTask.step`. A checkpoint may fall between any two steps, so

- the works of an epoch depend on nothing but its number, its stage, the seed and the task's
  :meth:`~TrainTask.state`: on resuming, the loop counts past those already done;
- what a step leaves for later steps of its epoch goes into that state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol, Self
from zlib import crc32

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from slidelens.families.base import ConfigT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import torch
    from numpy.typing import NDArray

    from slidelens.families.base import Bag, FamilyConfig, Model, View
    from slidelens.tiling.annotations import Annotations
    from slidelens.tiling.grid import GridSpec

__all__ = [
    "Encoding",
    "Outcome",
    "Phase",
    "Sample",
    "Stage",
    "TrainConfig",
    "TrainData",
    "TrainTask",
    "Work",
    "balanced_order",
    "divided",
    "processes",
    "slide_key",
    "stages_of_length",
    "works_per_update",
]

Phase = Literal["scan", "train", "tune"]
"""``train`` steps get gradients; ``scan`` (on training slides) and ``tune`` run in eval mode."""

_TURNS = 1 << 20
"""More than the orders that any epoch draws."""


class Stage(BaseModel):
    """A part of the schedule with its own optimiser.

    The second and later stages start from the centre checkpoint of the best window of the one
    before (streaming-prostate-2020, section IV.A.1), except after a warm-up of the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, description="at most so many epochs")
    lr: float = Field(gt=0, description="learning rate of the backbone")
    head_lr: float = Field(gt=0, description="learning rate of the head")
    trains: Literal["all", "head"] = Field("all", description="what learns")
    schedule: Literal["constant", "cosine"] = Field("constant", description="per epoch")
    start: Literal["centre", "last"] = Field(
        "centre", description="which weights of the stage before to start from"
    )


class TrainConfig(BaseModel):
    """What every family's training can be told; a family adds its own fields and presets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = Field(min_length=1, description="the schedule")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="update rule")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(0.01, ge=0, description="of the optimiser")
    accumulate: int = Field(1, ge=1, description="training steps per optimiser step")
    clip_norm: float = Field(0, ge=0, description="largest norm of the gradients; 0 is no limit")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="auto is bf16 where the hardware multiplies it natively"
    )
    window: int = Field(5, ge=1, description="epochs in the moving average of the tuning loss")
    patience: int = Field(
        10, ge=0, description="stop after so many epochs without a better window; 0 is never"
    )
    average: bool = Field(True, description="average the weights of the best window")
    cache_mb: int = Field(2048, ge=0, description="decoded tiles kept in memory, in MB")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Preset name to field values; ``default`` is used when none is named."""

    @classmethod
    def preset(
        cls,
        name: str,
        config: FamilyConfig,  # noqa: ARG003  # reason: for families whose presets depend on it
        given: Mapping[str, Any],  # noqa: ARG003  # reason: as above
    ) -> Mapping[str, Any] | None:
        """Return the values of the preset ``name``, or ``None`` if there is none.

        ``config`` is the model's configuration, which a preset may depend on; ``given`` are the
        fields of the training that the user set.
        """
        return cls.presets.get(name)

    def suited(self, config: FamilyConfig) -> Self:  # noqa: ARG002  # reason: for families
        """Return the training of a model of this configuration.

        A family whose configuration says which parts there are leaves out the stages of the others.
        """
        return self

    def of_length(self, epochs: int) -> Mapping[str, Any]:
        """Return the fields that make it at most ``epochs`` epochs in all, parts shortened alike.

        A family whose own fields count epochs shortens these too.
        """
        return {"stages": stages_of_length(self.stages, epochs)}


def stages_of_length(stages: Sequence[Stage], epochs: int) -> tuple[Stage, ...]:
    """Share ``epochs`` among stages as they are shared now, each at least one.

    Where there are fewer epochs than stages, the first stages are left out.
    """
    stages = stages[max(0, len(stages) - epochs) :]
    full, shares, left = sum(s.epochs for s in stages), [], epochs
    for rest, stage in zip(range(len(stages) - 1, -1, -1), stages, strict=True):
        share = min(max(1, round(epochs * stage.epochs / full)), left - rest)
        shares.append(share if rest else left)
        left -= share
    return tuple(
        stage.model_copy(update={"epochs": n}) for stage, n in zip(stages, shares, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Sample:
    """The slide ``slide_id``, and its ``label``: the 0-based class index."""

    slide_id: str
    label: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """What makes feature vectors of tiles, for bags that are made once and kept.

    Attributes
    ----------
    encode
        Tiles ``(N, 3, H, W)`` uint8 RGB to vectors ``(N, D)``.
    batch_size
        Tiles per call.
    facts
        JSON values: whatever, beside slide, grid and precision, decides the vectors.
    precision, dtype
        In which they are computed, and kept.
    place
        Folder to keep bags in; ``None`` is the user's cache.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int
    facts: Mapping[str, Any]
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    dtype: Literal["fp16", "fp32"] = "fp16"
    place: str | None = None


class TrainData(Protocol):
    """The slides of a training run, split; the engine makes it."""

    @property
    def train(self) -> Sequence[Sample]:
        """Slides to learn from."""

    @property
    def tune(self) -> Sequence[Sample]:
        """Slides that say when to stop."""

    def view(self, slide_id: str) -> View:
        """Return the view of a slide; its tiles come from memory when they were read before."""

    def bag(self, slide_id: str, spec: GridSpec, encoder: Encoding) -> Bag:
        """Return the vectors of a slide's tiles, mapped from a file that is made at first.

        ``spec`` lays the grid of tiles on the slide ``slide_id``, ``encoder`` turns them into
        vectors. The bag is empty where no tile holds enough tissue.
        """

    def given_bag(self, slide_id: str) -> Bag:
        """Read a bag that was made elsewhere, where the run's files are bags and not slides."""

    def annotations(self, slide_id: str) -> Annotations:
        """Read what is drawn on a slide; empty for a negative slide that has no file.

        Raises ``LabelError`` for a file that cannot be read. For a task that is
        :attr:`TrainTask.annotated` every positive slide has a file.
        """


@dataclass(frozen=True, slots=True)
class Work:
    """One step to do: ``slides`` are those it reads; ``labels`` are theirs.

    ``phase`` says what for: to learn, to tune, or to scan without learning. ``detail`` is whatever
    else the family's step must know.
    """

    phase: Phase
    slides: tuple[str, ...]
    labels: tuple[int, ...]
    detail: Any = None

    @classmethod
    def of(cls, phase: Phase, samples: Sequence[Sample], detail: Any = None) -> Work:
        """Make the work of ``samples``; ``phase`` and ``detail`` as above."""
        slides, labels = (tuple(s.slide_id for s in samples), tuple(s.label for s in samples))
        return cls(phase, slides, labels, detail)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computed: per slide ``losses`` and, in tuning, class ``probabilities``.

    ``seen`` is what a scan saw of its slide, tensors on the host: see :meth:`TrainTask.keep`.
    """

    losses: tuple[float, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = ()
    seen: Any = None


class TrainTask(ABC, Generic[ConfigT]):
    """A family's training.

    Parameters
    ----------
    model
        What is trained; ``model.module`` holds the weights, on its device.
    network
        ``model.module`` as the engine wraps it (autocast, several devices): call this one.
    data
        The slides.
    config
        Of the class that :attr:`training` names.
    seed
        All random choices of the task follow from it.
    """

    training: ClassVar[type[TrainConfig]]
    annotated: ClassVar[bool] = False
    """Whether it learns from annotations: the user must then say where they are."""

    def __init__(
        self,
        model: Model[ConfigT],
        network: Callable[..., torch.Tensor],
        data: TrainData,
        config: TrainConfig,
        seed: int,
    ) -> None:
        self.model = model
        self.network = network
        self.data = data
        self.config = config
        self.seed = seed
        self.stage = config.stages[0]
        """The stage that runs; the loop sets it, on resuming too."""
        self.setup()

    def setup(self) -> None:
        """Prepare what the steps need; called once, when everything above is set."""

    @classmethod
    @abstractmethod
    def initialize(cls, model: Model[ConfigT], weights: str) -> Mapping[str, Any]:
        """Give a new model its first weights; return what the card should say of them.

        ``weights`` is ``"imagenet"``, ``"none"`` or a file.
        """

    @classmethod
    def inherit(cls, model: Model[ConfigT], base: Model[ConfigT]) -> None:
        """Give a new model the weights of one to start from.

        Raises ``RuntimeError`` where they do not fit.
        """
        model.module.load_state_dict(base.module.state_dict())

    @abstractmethod
    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return what learns in a stage: pairs of learning rate and parameters."""

    def check(self, slide_id: str) -> None:
        """Raise ``SlideError`` or ``LabelError`` for a slide that cannot be learnt from.

        Done for every slide before all else.
        """
        self.data.view(slide_id)

    @abstractmethod
    def epoch(self, epoch: int, stage: Stage) -> Iterator[Work]:
        """Yield the scan and train works of an epoch (0-based, counted over all stages)."""

    @abstractmethod
    def length(self, stage: Stage) -> int:
        """Return the number of works that :meth:`epoch` yields in a stage."""

    def evaluation(self) -> Iterator[Work]:
        """Yield one tune work per slide of the tuning split."""
        for sample in self.data.tune:
            yield Work.of("tune", [sample])

    @abstractmethod
    def step(self, work: Work, epoch: int, backward: Callable[[torch.Tensor], None]) -> Outcome:
        """Do one work of the epoch (counted from 0, for what is drawn by chance).

        ``backward`` adds the gradients of a loss; a step may call it many times (modules with
        losses of their own, parts of a slide). Pass it the *sum* over the work's slides: the engine
        divides by the number of slides since the last optimiser step.
        """

    def keep(self, work: Work, epoch: int, seen: Any) -> None:
        """Keep what a scan saw, of this process or of another that scanned the slide for all.

        ``work`` is the scan, ``epoch`` that of :meth:`step`, ``seen`` what its outcome held. It is
        not saved: a run that is resumed sees again what it needs.
        """

    def state(self) -> dict[str, Any]:
        """Return what later steps of the same epoch need: by name, a mapping from slide id to JSON.

        Where several processes train, each entry is taken from the one that scanned the slide.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""


def balanced_order(
    samples: Sequence[Sample], seed: int, epoch: int, turn: int | None = None
) -> NDArray[np.int64]:
    """Return positions ``(n,)`` of ``samples`` in random order, rare classes repeated to be equal.

    The order depends on ``seed``, ``epoch`` and, where an epoch draws several, ``turn`` alone.
    Every sample is drawn at least once (Buda et al. 2018: oversampling to full balance).
    """
    random = np.random.default_rng([seed, epoch if turn is None else epoch * _TURNS + turn])
    labels = np.array([s.label for s in samples])
    most = int(np.bincount(labels).max())
    drawn = [
        np.resize(random.permutation(np.flatnonzero(labels == label)), most)
        for label in np.unique(labels)
    ]
    return random.permutation(np.concatenate(drawn))


def divided(order: NDArray[np.int64], config: TrainConfig) -> list[NDArray[np.int64]]:
    """Divide the slides of one update into the works that make one, of all processes.

    For stages whose works are light: their number of updates is then what was asked for, whatever
    ``config.accumulate`` and the number of processes. ``order`` ``(n,)`` begins again where it has
    fewer slides than there are works.
    """
    works = works_per_update(config)
    return np.array_split(np.resize(order, max(len(order), works)), works)


def works_per_update(config: TrainConfig) -> int:
    """Return how many works make an update of a training ``config``, of all processes."""
    return config.accumulate * processes()


def slide_key(slide_id: str) -> int:
    """Return the number that stands for a slide in the key of a random choice."""
    return crc32(slide_id.encode())


def processes() -> int:
    """Return how many processes train, each on every so many-th work."""
    from torch import distributed

    on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if on else 1
