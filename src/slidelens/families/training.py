"""The interface between a family and the training loop.

The loop itself (seeds, optimiser, checkpoints, early stopping, devices) is the same for all
families: :mod:`slidelens.engine.train`. In each epoch it runs every :class:`Work` of
:meth:`TrainTask.epoch` and then of :meth:`TrainTask.evaluation`, one :meth:`TrainTask.step` each.
A checkpoint may be saved between any two steps, so

- the works of an epoch may depend only on its number, its stage, the seed and the task's
  :meth:`~TrainTask.state`: a resumed loop skips those already done;
- whatever a step leaves for later steps of its epoch belongs into that state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, Protocol
from zlib import crc32

import numpy as np

from slidelens.families.base import ConfigT
from slidelens.families.schedule import Stage, TrainConfig, stages_of_length

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch
    from numpy.typing import NDArray

    from slidelens.families.base import Bag, Model, View
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
    "renewed",
    "slide_key",
    "stages_of_length",
    "works_per_update",
]

Phase = Literal["scan", "train", "tune"]
"""``train`` steps compute gradients; ``scan`` (training slides) and ``tune`` run in eval mode."""

_TURNS = 1 << 20
"""More than the number of orders drawn in any epoch."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A slide, by its ``slide_id``, and its ``label``, the 0-based class index."""

    slide_id: str
    label: int


@dataclass(frozen=True, slots=True)
class Encoding:
    """How feature vectors of tiles are computed, for bags that are computed once and cached.

    Attributes
    ----------
    encode
        Tiles ``(N, 3, H, W)`` uint8 RGB to vectors ``(N, D)``; on a CPU from several threads.
    batch_size
        Tiles per call.
    facts
        JSON values for all else that determines the vectors, besides slide, grid and precision.
    precision, dtype
        Types in which vectors are computed and stored.
    place
        Folder of the cache; ``None`` is the user's.
    """

    encode: Callable[[torch.Tensor], torch.Tensor]
    batch_size: int
    facts: Mapping[str, Any]
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    dtype: Literal["fp16", "fp32"] = "fp16"
    place: str | None = None


class TrainData(Protocol):
    """The slides of a training run, already split. The engine makes it."""

    @property
    def train(self) -> Sequence[Sample]:
        """Training slides."""

    @property
    def tune(self) -> Sequence[Sample]:
        """Tuning slides, which decide when to stop."""

    def view(self, slide_id: str) -> View:
        """Return the view of a slide; tiles that were read before come from memory."""

    def bag(self, slide_id: str, spec: GridSpec, encoder: Encoding) -> Bag:
        """Return the feature vectors of a slide's tiles, computed once and cached in a file.

        ``spec`` describes the tile grid on slide ``slide_id``, ``encoder`` computes the vectors.
        The bag is empty if no tile holds enough tissue.
        """

    def given_bag(self, slide_id: str) -> Bag:
        """Read a precomputed bag, in a run that is given bags instead of slides."""

    def annotations(self, slide_id: str) -> Annotations:
        """Read the annotations of a slide; empty for a negative slide without a file.

        Raises ``LabelError`` for a file that cannot be read. For tasks that are
        :attr:`TrainTask.annotated`, every positive slide has a file.
        """


@dataclass(frozen=True, slots=True)
class Work:
    """One step to do on ``slides`` with their ``labels``.

    ``phase`` is its purpose: train, tune, or scan without learning. ``detail`` is anything else
    that the family's step needs.
    """

    phase: Phase
    slides: tuple[str, ...]
    labels: tuple[int, ...]
    detail: Any = None

    @classmethod
    def of(cls, phase: Phase, samples: Sequence[Sample], detail: Any = None) -> Work:
        """Make the work of ``samples``; ``phase`` and ``detail`` as for the class."""
        slides, labels = (tuple(s.slide_id for s in samples), tuple(s.label for s in samples))
        return cls(phase, slides, labels, detail)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step computed: ``losses`` per slide and, in tuning, class ``probabilities``.

    ``seen`` is what a scan computed of its slide, as host tensors: see :meth:`TrainTask.keep`.
    """

    losses: tuple[float, ...] = ()
    probabilities: tuple[tuple[float, ...], ...] = ()
    seen: Any = None


class TrainTask(ABC, Generic[ConfigT]):
    """A family's training.

    Parameters
    ----------
    model
        The model to train; ``model.module`` holds the weights, on its device.
    network
        ``model.module`` wrapped by the engine (autocast, several devices): call this one.
    data
        The slides.
    config
        An instance of :attr:`training`.
    seed
        Seed of all random choices of the task.
    """

    training: ClassVar[type[TrainConfig]]
    annotated: ClassVar[bool] = False
    """Whether the task learns from annotations, which the user must then provide."""
    per_class: ClassVar[tuple[str, ...]] = ("head.*",)
    """Patterns of the weights (names in ``state_dict``) that mean nothing for other classes."""

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
        """The current stage, set by the loop."""
        self.setup()

    def setup(self) -> None:
        """Prepare what the steps need; called once, when the attributes above are set."""

    @classmethod
    @abstractmethod
    def initialize(cls, model: Model[ConfigT], weights: str) -> Mapping[str, Any]:
        """Set a new model's initial weights; return what the card should say about them.

        ``weights`` is ``"imagenet"``, ``"none"`` or a file.
        """

    @classmethod
    def inherit(cls, model: Model[ConfigT], base: Model[ConfigT]) -> None:
        """Set a new model's weights to those of the model to fine-tune.

        For other classes, the weights that :attr:`per_class` names begin as in any new model.
        Raises ``RuntimeError`` if the weights do not fit.
        """
        kept = base.module.state_dict()
        if model.classes != base.classes:
            cls.initialize(model, "none")
            kept = renewed(kept, model.module.state_dict(), cls.per_class)
        model.module.load_state_dict(kept)

    @abstractmethod
    def groups(self, stage: Stage) -> list[tuple[float, list[torch.nn.Parameter]]]:
        """Return the parameters to train in a stage, as pairs of learning rate and parameters."""

    def check(self, slide_id: str) -> None:
        """Raise ``SlideError`` or ``LabelError`` for a slide that cannot be used.

        Called for every slide before anything else.
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
        """Do one work of the epoch (counted from 0, for random choices).

        ``backward`` adds the gradients of a loss; a step may call it several times (modules with
        their own losses, parts of a slide). Pass it the *sum* over the work's slides: the engine
        divides by the number of slides since the last optimiser step.
        """

    def keep(self, work: Work, epoch: int, seen: Any) -> None:
        """Keep what a scan computed, in this process or in another that scanned the slide.

        ``work`` is the scan, ``epoch`` that of :meth:`step`, ``seen`` comes from its outcome. It is
        not saved: a resumed run computes again what it needs.
        """

    def state(self) -> dict[str, Any]:
        """Return what later steps of the epoch need: by name, a mapping from slide id to JSON.

        With several processes, each entry is taken from the process that scanned the slide.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""


def balanced_order(
    samples: Sequence[Sample], seed: int, epoch: int, turn: int | None = None
) -> NDArray[np.int64]:
    """Return positions ``(n,)`` of ``samples`` in random order, with rare classes oversampled.

    The order depends only on ``seed``, ``epoch`` and, if an epoch draws several, ``turn``. Every
    sample is drawn at least once (Buda et al. 2018: oversampling to full balance).
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
    """Divide the slides of one update into its works, over all processes.

    For stages of cheap works: the number of updates then does not depend on ``config.accumulate``
    or the number of processes. ``order`` ``(n,)`` is repeated if it has fewer slides than works.
    """
    works = works_per_update(config)
    return np.array_split(np.resize(order, max(len(order), works)), works)


def works_per_update(config: TrainConfig) -> int:
    """Return how many works make one update, over all processes."""
    return config.accumulate * processes()


def slide_key(slide_id: str) -> int:
    """Return a number that identifies a slide in the key of a random choice."""
    return crc32(slide_id.encode())


def processes() -> int:
    """Return how many processes train; they share the works in turn."""
    from torch import distributed

    on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if on else 1


def renewed(
    kept: Mapping[str, torch.Tensor], fresh: Mapping[str, torch.Tensor], patterns: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Return the weights ``kept``, but those of ``fresh`` whose names match a pattern.

    Parameters
    ----------
    kept, fresh
        Weights of any shape, by name.
    patterns
        As for :func:`fnmatch.fnmatchcase`.

    Raises
    ------
    RuntimeError
        No name matches.
    """

    def anew(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in patterns)

    taken = {name: value for name, value in fresh.items() if anew(name)}
    if not taken:
        raise RuntimeError(f"none of its weights is named {' or '.join(patterns)}")
    return {name: value for name, value in kept.items() if not anew(name)} | taken
