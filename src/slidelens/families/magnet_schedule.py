"""Schedule of a magnifying network: losses and their weights, phases, presets.

Source: magnifying-networks-2023, sections 3.3 and 4; what is ours is said in docs/magnet.md.
"""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from slidelens.families.training import Stage, TrainConfig, stages_of_length

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["MagNetTraining"]


class MagNetTraining(TrainConfig):
    """How a MagNet learns. The default preset is ours, for tens to hundreds of slides."""

    train_batch: int = Field(8, ge=1, le=256, description="slides per training step")
    flips: bool = Field(True, description="random mirroring and quarter turns of slides")
    stain: float = Field(0.0, ge=0, lt=1, description="stain jitter in optical density")
    auxiliary_weight: float = Field(1.0, ge=0, description="weight of the auxiliary classifiers")
    paradox_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the paradoxical loss: deeper classifiers must not do worse",
    )
    window_weight: float = Field(
        0.0, ge=0, description="weight of the loss of the most suspicious single window"
    )
    foresight_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the foresight loss: attention predicts what closer looks find",
    )
    probes: int = Field(
        0, ge=0, le=64, description="random windows classified in addition, per slide"
    )
    probe_scales: tuple[float, float] = Field(
        (0.05, 0.2), description="smallest and largest scale of a probe relative to the slide"
    )
    stray: float = Field(
        0.2, ge=0, le=1, description="fraction of the probes that may lie on glass"
    )
    warmup: int = Field(
        0, ge=0, description="epochs in which the classifier learns only from probes"
    )
    survey: int = Field(
        0,
        ge=0,
        le=1024,
        description="random windows per slide read once at the start, for frozen networks",
    )
    scouting: int = Field(
        0,
        ge=0,
        description="epochs after the warm-up in which attention learns only from foresight",
    )
    zoom_rate: float = Field(
        1.0,
        ge=0,
        le=1,
        description="learning rate of attention, relative to the head's, after scouting",
    )
    overview_px: int = Field(
        1024,
        ge=64,
        le=8192,
        description="side in px of the copy of each slide that is kept in memory",
    )

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (Stage(epochs=60, lr=3e-4, head_lr=1e-3, schedule="cosine"),),
            "clip_norm": 1.0,
            "patience": 0,
            "average": False,
            "window_weight": 1.0,
            "foresight_weight": 1.0,
            "probes": 4,
            "stain": 0.1,
        },
        "frozen": {
            "stages": (
                Stage(epochs=30, lr=1e-4, head_lr=3e-3, trains="head", schedule="cosine"),
                Stage(
                    epochs=18,
                    lr=1e-4,
                    head_lr=1e-2,
                    trains="head",
                    schedule="cosine",
                    start="last",
                ),
            ),
            "clip_norm": 1.0,
            "patience": 0,
            "average": False,
            "window": 3,
            "window_weight": 1.0,
            "foresight_weight": 1.0,
            "survey": 48,
            "warmup": 30,
            "scouting": 18,
            "stain": 0.1,
        },
        "paper": {
            "stages": (Stage(epochs=200, lr=3e-5, head_lr=3e-5, schedule="cosine"),),
            "weight_decay": 0.0,
            "train_batch": 16,
            "patience": 0,
        },
    }
    """``frozen`` is for a CPU and tens of slides: networks stay as they are, the classifier of
    single windows learns from a survey, attention by foresight, and nothing else; set ``evidence``,
    as no verdict learns. ``paper`` is the paper's schedule for 3 layers (for 4, its batch is 8)
    with its three losses, each of weight 1: the weights are not published. Its optimiser is Adam,
    which AdamW without weight decay is."""

    @model_validator(mode="after")
    def _scales(self) -> MagNetTraining:
        if self.warmup and not ((self.probes or self.survey) and self.window_weight):
            raise ValueError(
                f"warmup {self.warmup}: needs probes or a survey, and window_weight above 0"
            )
        if self.scouting and not ((self.probes or self.survey) and self.foresight_weight):
            raise ValueError(
                f"scouting {self.scouting}: needs probes or a survey, and foresight_weight above 0"
            )
        if self.patience and (self.warmup or self.scouting):
            # Both are counted in epochs of the run: a stage that ends early would shift them.
            raise ValueError(
                f"patience {self.patience}: stages that may end early leave unclear when warmup "
                "and scouting end; set patience to 0, or leave both out"
            )
        if self.survey and any(stage.trains != "head" for stage in self.stages):
            raise ValueError(
                f"survey {self.survey}: what windows show is kept while networks are frozen; set "
                'trains="head" in every stage, or use probes'
            )
        if self.zoom_rate != 1 and not self.scouted:
            raise ValueError(
                f"zoom_rate {self.zoom_rate}: is for the stages after scouting; let one begin "
                f"after {self.warmup + self.scouting} epochs (warmup and scouting)"
            )
        low, high = self.probe_scales
        if not 0 < low <= high <= 1:
            raise ValueError(f"probe_scales {self.probe_scales}: need 0 < smallest <= largest <= 1")
        return self

    def of_length(self, epochs: int) -> Mapping[str, Any]:
        """Return the fields of so many epochs; what learns first gets its share of them."""
        stages = stages_of_length(self.stages, epochs)
        full = sum(stage.epochs for stage in self.stages)
        # Stages that were left out are the first: their ends are at the start.
        left_out = len(self.stages) - len(stages)
        ends = dict(zip(_ends(self.stages), [0] * left_out + _ends(stages), strict=True))

        def moved(epoch: int) -> int:
            return ends.get(epoch, round(epoch * epochs / full))

        warmup = moved(self.warmup) if self.warmup else 0
        scouting = moved(self.warmup + self.scouting) - warmup if self.scouting else 0
        return {"stages": stages, "warmup": warmup, "scouting": scouting}

    @property
    def scouted(self) -> tuple[Stage, ...]:
        """The stages after scouting, in which all learns together; none without scouting."""
        begins = [sum(s.epochs for s in self.stages[:n]) for n in range(len(self.stages))]
        end = self.warmup + self.scouting if self.scouting else None
        first = begins.index(end) if end in begins else len(begins)
        return self.stages[first:]


def _ends(stages: Sequence[Stage]) -> list[int]:
    """Return the epochs at which stages end."""
    return list(accumulate(stage.epochs for stage in stages))
