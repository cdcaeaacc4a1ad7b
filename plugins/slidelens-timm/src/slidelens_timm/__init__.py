"""Encoders of timm for SlideLens: ``--backbone timm/<name>``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file

from slidelens.errors import ModelError
from slidelens.nn.encoders import Encoder, EncoderFacts, EncoderSource, LoadReport
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import torch

__all__ = ["SOURCE", "TimmEncoder"]

SLIDELENS_API = 1
_MPP = 0.5


class TimmEncoder(Encoder):
    """``(N, 3, H, W)`` normalised RGB to ``(N, dim)`` pooled features of a timm network."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        try:
            self.network = timm.create_model(variant, pretrained=False, num_classes=0)
        except RuntimeError as error:
            close = timm.list_models(f"*{variant.split('.')[0][:8]}*")[:5]
            hint = f"; similar: {', '.join(close)}" if close else ""
            raise ModelError(f"timm has no model {variant!r} ({error}){hint}.") from error
        self.dim = int(self.network.num_features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode tiles."""
        vectors: torch.Tensor = self.network(images)
        return vectors


def facts(variant: str) -> EncoderFacts:
    """Return the variant's normalisation, input side and resolution, without building it."""
    known = _pretrained(variant)
    side = (known.get("fixed_input_size") and known.get("input_size", (3, 224, 224))[-1]) or None
    return EncoderFacts(
        mean=tuple(known.get("mean") or IMAGENET_MEAN),
        std=tuple(known.get("std") or IMAGENET_STD),
        tile=side,
        mpp=float(known.get("mpp") or _MPP),
    )


def load(module: TimmEncoder, variant: str, weights: str | Path) -> LoadReport:
    """Fill an encoder: ``imagenet`` fetches the variant's own weights, else a safetensors file.

    Raises
    ------
    ModelError
        No network, or weights of another network.
    """
    if str(weights) == "imagenet":
        source = f"timm {variant}"
        try:
            given = timm.create_model(variant, pretrained=True, num_classes=0).state_dict()
        except (OSError, RuntimeError, ValueError) as error:
            raise ModelError(
                f"the weights of timm/{variant} could not be fetched ({error}); give --weights "
                "FILE (safetensors), or --weights none for random ones."
            ) from error
    else:
        source = str(weights)
        try:
            given = load_file(weights)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{weights}: not a safetensors file ({error}).") from error
    mine = module.network.state_dict()
    wrong = [k for k in mine if k not in given or given[k].shape != mine[k].shape]
    if wrong:
        raise ModelError(
            f"{source}: not the weights of timm/{variant}: {len(wrong)} tensors are missing or of "
            f"another shape (first: {wrong[0]})."
        )
    module.network.load_state_dict({k: given[k] for k in mine})
    return LoadReport(source, len(mine), tuple(k for k in given if k not in mine))


def _pretrained(variant: str) -> Mapping[str, Any]:
    """Return what timm knows of a variant's weights; of a hub model, what its files say."""
    if variant.startswith("hf-hub:"):
        from timm.models import load_model_config_from_hf

        try:
            return dict(load_model_config_from_hf(variant.removeprefix("hf-hub:"))[0])
        except (OSError, ValueError) as error:
            raise ModelError(
                f"timm/{variant}: its configuration cannot be read ({error})."
            ) from error
    known = timm.get_pretrained_cfg(variant, allow_unregistered=True)
    return known.to_dict() if known is not None else {}


SOURCE = EncoderSource(build=TimmEncoder, load=load, facts=facts, sample="test_vit")
