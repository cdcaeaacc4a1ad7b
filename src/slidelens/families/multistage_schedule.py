"""Schedule of a multi-stage model: stages, patch labels, sampling, augmentation.

Source: multi-stage-segmentation-2019, sections 3.2 and 4.1.
"""

from __future__ import annotations

import logging
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from pydantic import Field, field_validator

from slidelens.errors import ModelError
from slidelens.families.multistage import MultistageConfig
from slidelens.families.training import Stage, TrainConfig

if TYPE_CHECKING:
    from collections.abc import Mapping

    from slidelens.families.base import FamilyConfig

__all__ = ["MapStage", "MultistageTraining"]

log = logging.getLogger(__name__)


class MapStage(Stage):
    """A stage of the schedule.

    ======== ======== ==========================================================================
    on       trains   what learns
    ======== ======== ==========================================================================
    patches  head     the layers behind the backbone, from labelled patches (ours: a warm-up)
    patches  all      the patch classifier, from labelled patches (Separate Learning, section 3.2.1)
    map      head     the U-Net, on the maps of vectors of the classifier as it is (the same)
    map      all      U-Net and what makes the vectors, together (End-to-End, section 3.2.2)
    ======== ======== ==========================================================================

    The head's learning rate is that of the layers behind the backbone, or of the U-Net.
    """

    on: Literal["patches", "map"] = Field(
        "patches", description="whether patches or maps are classified"
    )

    @property
    def learns_vectors(self) -> bool:
        """Whether the layers that compute the vectors are trained."""
        return self.on == "patches" or self.trains == "all"


_WARM = MapStage(on="patches", trains="head", epochs=2, lr=1e-4, head_lr=1e-3)
_PATCHES = MapStage(on="patches", epochs=12, lr=1e-4, head_lr=3e-4, schedule="cosine", start="last")
_MAP = MapStage(on="map", trains="head", epochs=40, lr=1e-4, head_lr=1e-3, schedule="cosine")
_BOTH = MapStage(on="map", epochs=4, lr=1e-5, head_lr=1e-4, schedule="cosine")


class MultistageTraining(TrainConfig):
    """How a multi-stage model learns. The default preset is ours, for tens to hundreds of slides.

    Presets ``separate`` and ``end-to-end`` are its parts: train a model with the first, then start
    from it (``--from``) with the second. Stages that a method has no part for are left out.
    """

    stages: tuple[MapStage, ...] = Field(min_length=1, description="the training schedule")
    train_batch: int = Field(32, ge=1, le=4096, description="patches per step on patches")
    map_batch: int = Field(8, ge=1, le=4096, description="slides per step on maps")
    tumour: tuple[str, ...] = Field(
        (),
        description="annotation classes that are tumour; default: the one named like the positive "
        "class, or the only one in all files",
    )
    normal: tuple[str, ...] = Field(
        (), description="annotation classes that are normal; default: everything not annotated"
    )
    tumour_share: float = Field(
        0.2, ge=0, lt=1, description="a patch is labelled tumour above this tumour fraction"
    )
    normal_share: float = Field(
        0.8, ge=0, lt=1, description="else normal above this normal fraction; else it has no label"
    )
    balanced: bool = Field(True, description="draw as many normal as tumour patches per epoch")
    patches: int = Field(
        0, ge=0, description="balanced patches per epoch; 0: every tumour patch once"
    )
    variants: int = Field(
        4, ge=1, le=100, description="augmented copies of a slide's vectors for the U-Net"
    )
    crop: float = Field(
        0.875, gt=0, le=1, description="side of the random crop, as a fraction of the patch"
    )
    flips: bool = Field(True, description="random flips and quarter turns of patches and maps")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")
    contrast: float = Field(0.1, ge=0, lt=1, description="contrast jitter")
    sharpness: float = Field(0.1, ge=0, lt=1, description="sharpness jitter")

    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "default": {"stages": (_WARM, _PATCHES, _MAP, _BOTH)},
        "separate": {"stages": (_WARM, _PATCHES, _MAP)},
        "map": {"stages": (_MAP,)},
        "end-to-end": {"stages": (_BOTH,)},
        "paper": {
            "stages": (
                MapStage(on="patches", epochs=30, lr=1e-4, head_lr=1e-4),
                MapStage(on="map", trains="head", epochs=50, lr=1e-4, head_lr=1e-4),
                MapStage(on="map", epochs=10, lr=1e-9, head_lr=1e-7),
            ),
            "weight_decay": 0.0,
            "train_batch": 128,
            "map_batch": 32,
            "patience": 0,
            "variants": 1,
            "stain": 0.0,
            "colour": 0.25,
            "contrast": 0.25,
            "sharpness": 0.25,
        },
    }
    """``paper`` is the paper's schedule; ``map`` continues a classifier (``--from``)."""

    @field_validator("tumour", "normal", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        """Take one name for a list of one; a number, as JSON and YAML read it, for its name."""
        one = isinstance(value, str | int) and value != ""
        names = (value,) if one else value or ()
        if not isinstance(names, list | tuple):
            return names
        return [str(n) if isinstance(n, int) and not isinstance(n, bool) else n for n in names]

    def suited(self, config: FamilyConfig) -> Self:
        """Return the training without the stages that the method has no part for.

        Raises
        ------
        ModelError
            No stage is left.
        """
        assert isinstance(config, MultistageConfig)
        stages = tuple(stage for stage in self.stages if _applies(stage, config.method))
        if not stages:
            raise ModelError(
                f"no stage of this schedule teaches method {config.method!r} anything; "
                "use another preset, or other stages."
            )
        return self.model_copy(update={"stages": stages})

    def of_length(self, epochs: int) -> Mapping[str, Any]:
        """Return the stages of at most ``epochs`` epochs in all; those on maps are left last."""
        fields = super().of_length(epochs)
        on_maps = len(list(takewhile(lambda s: s.on == "map", reversed(self.stages))))
        if on_maps < len(self.stages) and len(fields["stages"]) <= on_maps:
            log.warning(
                "epochs %d: too few for the stages on patches, so the U-Net learns from vectors "
                "that nothing has taught; give %d or more, unless --from names a model that has "
                "learnt patches",
                *(epochs, on_maps + 1),
            )
        return fields


def _applies(stage: MapStage, method: str) -> bool:
    if method == "multistage":
        return True
    if method == "classifier":
        return stage.on == "patches"
    return stage.on == "map" and stage.trains == "head"  # the U-Net is all that learns
