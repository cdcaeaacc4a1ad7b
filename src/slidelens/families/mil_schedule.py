"""How a multiple-instance model learns: what of it, from what, and presets.

Source: streaming-prostate-2020, section IV.B; what is ours is said in the docstrings.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from slidelens.errors import ModelError
from slidelens.families.mil import MilConfig
from slidelens.families.training import Stage, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.families.base import FamilyConfig

__all__ = ["MilTraining", "finds_top_tiles"]

log = logging.getLogger(__name__)

_HEAD_LR = {
    "top1": 3e-3,
    "topk": 3e-3,
    "mean": 3e-3,
    "max": 3e-3,
    "rnn": 1e-3,
    "dsmil": 1e-3,
}
"""Learning rate of heads on whole bags, where 2e-4 is too low: one layer from zero; two streams."""

_UNCHANGED: Mapping[str, Any] = {"flips": False, "stain": 0.0, "colour": 0.0}
"""Fields of the augmentation, with the values that leave tiles as they are."""


class MilTraining(TrainConfig):
    """How a MIL model learns. The default presets are ours, for tens to hundreds of slides."""

    features: Literal["auto", "cached", "end-to-end"] = Field(
        "auto",
        description="cached: learn from feature vectors that a frozen backbone computes once; "
        "end-to-end: train the backbone too; auto: end-to-end for top1 and topk, else cached",
    )
    bags: str | None = Field(
        None, description="folder of CLAM-style h5 files to learn from instead of slides"
    )
    copies: int = Field(
        0, ge=0, le=64, description="augmented copies of each training slide in the feature cache"
    )
    bag_cache: str | None = Field(
        None, description="folder of the feature cache; default: the user's cache"
    )
    bag_dtype: Literal["fp16", "fp32"] = Field("fp16", description="type of cached feature vectors")
    train_batch: int = Field(16, ge=1, le=4096, description="slides per training step")
    warm_steps: int = Field(
        100,
        ge=1,
        description="updates per epoch of a stage that trains only the head (top1, topk)",
    )
    flips: bool = Field(True, description="random flips and quarter turns of tiles")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {
            "stages": (
                Stage(epochs=1, lr=1e-4, head_lr=1e-3, trains="head"),
                Stage(epochs=14, lr=1e-4, head_lr=1e-4, schedule="cosine", start="last"),
            ),
            "patience": 6,
        },
        "paper": {
            "stages": (
                Stage(epochs=100, lr=1e-5, head_lr=1e-5),
                Stage(epochs=100, lr=3e-6, head_lr=3e-6, start="centre"),
            ),
            "optimizer": "sgd",
            "momentum": 0.9,
            "weight_decay": 0.0,
            "train_batch": 16,
            "window": 5,
            "average": True,
            "patience": 0,
        },
    }
    """``paper`` is the schedule of streaming-prostate-2020 for top-1; its elastic deformation and
    turns by any angle are not applied to tiles, and its optimiser's weight decay is not stated (we
    take none)."""

    @classmethod
    def preset(
        cls, name: str, config: FamilyConfig, given: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return a preset: ``default`` depends on the pooling and on what learns."""
        assert isinstance(config, MilConfig)
        features = _features(given.get("features", "auto"), config, given.get("bags"))
        if finds_top_tiles(config, features):
            return super().preset(name, config, given)
        if name != "default":
            return None
        return _bag_preset(config.pooling, features)

    def suited(self, config: FamilyConfig) -> Self:
        """Return the training with ``features`` decided, and without augmentation it cannot do.

        Raises
        ------
        ModelError
            ``bag_dim`` without bags; augmentation of vectors that are made once.
        """
        assert isinstance(config, MilConfig)
        if config.bag_dim and not self.bags:
            raise ModelError(
                "bag_dim is the length of feature vectors made elsewhere: say where they are, with "
                "--bags DIR, or leave bag_dim out."
            )
        features = _features(self.features, config, self.bags)
        whole = not finds_top_tiles(config, features)
        if whole and features == "end-to-end" and all(s.trains == "head" for s in self.stages):
            log.warning(
                "features end-to-end: no stage trains the backbone, so only the head learns; set "
                "--preset default, or stages of which one trains all"
            )
        made_once = features == "cached" and not self.copies
        plain = self._unaugmented() if made_once else {}
        return self.model_copy(update={"features": features, **plain})

    def _unaugmented(self) -> Mapping[str, Any]:
        """Return the augmentation of vectors that are made once: none, and none may be asked."""
        asked = [k for k in _UNCHANGED if k in self.model_fields_set and getattr(self, k)]
        if not asked:
            return _UNCHANGED
        names = ", ".join(asked)
        if self.bags:
            raise ModelError(f"bags cannot be augmented: leave {names} out.")
        raise ModelError(
            f"{names}: cached feature vectors are made once, of tiles as they are; learn from "
            f"augmented copies too (--copies 4), train end to end, or leave {names} out."
        )

    @model_validator(mode="after")
    def _fields_agree(self) -> MilTraining:
        if self.bags and self.features == "end-to-end":
            raise ValueError("bags hold feature vectors: there is no tile to train end to end")
        if self.bags and self.copies:
            raise ValueError("bags cannot be augmented: leave copies out")
        return self


def finds_top_tiles(config: MilConfig, features: str) -> bool:
    """Return whether training finds each slide's top tiles, instead of learning from whole bags."""
    return config.pooling in ("top1", "topk") and features != "cached"


def _bag_preset(pooling: str, features: str) -> Mapping[str, Any]:
    """Return the default preset of whole bags: short, since a bag is small beside its slide.

    End to end, the backbone joins in when the head has learnt on frozen vectors.
    """
    rate = _HEAD_LR.get(pooling, 2e-4)
    head = Stage(epochs=30, lr=rate, head_lr=rate, trains="head", schedule="cosine")
    both = Stage(epochs=10, lr=2e-5, head_lr=rate / 4, schedule="cosine", start="last")
    stages = (head,) if features == "cached" else (head, both)
    return {"stages": stages, "train_batch": 4, "patience": 0}


def _features(asked: str, config: MilConfig, bags: str | None) -> str:
    """Decide ``auto``."""
    if asked != "auto":
        return asked
    whole = bags is not None or config.pooling not in ("top1", "topk")
    return "cached" if whole else "end-to-end"
