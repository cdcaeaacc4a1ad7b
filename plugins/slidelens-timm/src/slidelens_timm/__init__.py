"""Encoders of timm for SlideLens: ``--backbone timm/<name>``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm
from safetensors import SafetensorError
from safetensors.torch import load_file

from slidelens.errors import ModelError
from slidelens.nn.encoders import (
    Encoder,
    EncoderFacts,
    EncoderSource,
    LoadReport,
    may_ask_network,
)
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["SOURCE", "TimmEncoder"]

SLIDELENS_API = 1
_MPP = 0.5
_HUB, _CONFIG = "hf-hub:", "config.json"


class TimmEncoder(Encoder):
    """``(N, 3, H, W)`` normalised RGB to ``(N, dim)`` pooled features of a timm network."""

    def __init__(self, variant: str) -> None:
        super().__init__()
        try:
            self.network = timm.create_model(_local(variant), pretrained=False, num_classes=0)
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
    if variant.startswith(_HUB):
        folder = _description(variant)
        try:
            described = json.loads((folder / _CONFIG).read_bytes())
            return dict(described.get("pretrained_cfg", described))
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise ModelError(
                f"timm/{variant}: its configuration cannot be read ({error})."
            ) from error
    known = timm.get_pretrained_cfg(variant, allow_unregistered=True)
    return known.to_dict() if known is not None else {}


def _local(variant: str) -> str:
    """Return the name by which timm builds a variant without asking the network."""
    return f"local-dir:{_description(variant)}" if variant.startswith(_HUB) else variant


def _description(variant: str) -> Path:
    """Return the folder of this machine that holds a hub model's ``config.json``.

    The hub is asked for it only if the user has named the encoder, not a package of others.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repository, _, revision = variant.removeprefix(_HUB).partition("@")
    try:
        found = try_to_load_from_cache(repository, _CONFIG, revision=revision or None)
        if not isinstance(found, str) and may_ask_network():
            found = hf_hub_download(repository, _CONFIG, revision=revision or None)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"timm/{variant}: its {_CONFIG} cannot be fetched ({error}); check name and network."
        ) from error
    if not isinstance(found, str):
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"timm/{variant}: what this network looks like is not known on this machine, and the "
            "hub is not asked for the sake of a package. If you trust its maker: "
            f"hf download {repository} {_CONFIG}{at}"
        )
    return Path(found).parent


SOURCE = EncoderSource(build=TimmEncoder, load=load, facts=facts, sample="test_vit")
