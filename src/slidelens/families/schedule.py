"""The schedule of a training: its stages and their lengths, the optimiser, presets."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.families.base import FamilyConfig

__all__ = ["Stage", "TrainConfig", "stages_of_length"]


class Stage(BaseModel):
    """A part of the schedule with its own optimiser.

    Later stages start from the centre checkpoint of the previous stage's best window
    (streaming-prostate-2020, section IV.A.1), except after a warm-up of the head.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(ge=1, description="largest number of epochs")
    lr: float = Field(gt=0, le=1e30, description="learning rate of the backbone")
    head_lr: float = Field(gt=0, le=1e30, description="learning rate of the head")
    trains: Literal["all", "head"] = Field(default="all", description="part that learns")
    schedule: Literal["constant", "cosine"] = Field(
        default="constant", description="learning rate schedule, stepped per epoch"
    )
    start: Literal["centre", "last"] = Field(
        default="centre", description="weights of the previous stage to start from"
    )


class TrainConfig(BaseModel):
    """Training options of every family; each family adds its own fields and presets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stages: tuple[Stage, ...] = Field(min_length=1, description="the training schedule")
    optimizer: Literal["adamw", "sgd"] = Field(default="adamw", description="optimiser")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(
        default=0.01, ge=0, le=1e6, description="weight decay of the optimiser"
    )
    accumulate: int = Field(default=1, ge=1, description="training steps per optimiser step")
    clip_norm: float = Field(default=0, ge=0, description="largest gradient norm; 0: no clipping")
    precision: Literal["auto", "fp32", "bf16"] = Field(
        default="auto", description="auto: bf16 where the hardware supports it natively, else fp32"
    )
    window: int = Field(default=5, ge=1, description="epochs averaged for the moving tuning loss")
    patience: int = Field(
        default=10, ge=0, description="stop after this many epochs without improvement; 0: never"
    )
    average: bool = Field(default=True, description="average the weights over the best epochs")
    cache_mb: int = Field(default=2048, ge=0, description="memory for decoded tiles, in MB")

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

        ``config`` is the model's configuration, on which a preset may depend; ``given`` holds the
        training fields that the user has set.
        """
        return cls.presets.get(name)

    def suited(self, config: FamilyConfig) -> Self:  # noqa: ARG002  # reason: for families
        """Return the training adapted to a model's configuration.

        A family whose configuration decides which parts exist leaves out stages of missing parts.
        """
        return self

    def of_length(self, epochs: int) -> Mapping[str, Any]:
        """Return the fields that scale the schedule to at most ``epochs`` epochs in total.

        A family whose own fields count epochs scales these too.
        """
        return {"stages": stages_of_length(self.stages, epochs)}


def stages_of_length(stages: Sequence[Stage], epochs: int) -> tuple[Stage, ...]:
    """Scale stages to ``epochs`` epochs in total, in proportion, each to at least one.

    With fewer epochs than stages, the first stages are left out.
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
