"""Encoders of timm for SlideLens: ``--backbone timm/<name>``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from tempfile import TemporaryDirectory
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
    from torch import nn

__all__ = ["SOURCE", "TimmEncoder"]

SLIDELENS_API = 1
_MPP = 0.5
_HUB = re.compile("hf[-_]hub:", re.IGNORECASE)
"""As timm reads it."""
_CONFIG = "config.json"
_NAMES = ("labels", "label_names", "label_descriptions")
_WEIGHTS = ("model.safetensors", "open_clip_model.safetensors")
"""Where weights lie in a repository, unless it states a file of another name."""


class TimmEncoder(Encoder):
    """``(N, 3, H, W)`` normalised RGB to ``(N, dim)`` pooled features of a timm network.

    A network of a hub is made from its ``description``: what its maker's ``config.json`` says.
    """

    def __init__(self, variant: str, description: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.description = _described(variant) if description is None else description
        if self.description is not None:
            self.network = _built(variant, self.description)
        else:
            try:
                self.network = timm.create_model(variant, pretrained=False, num_classes=0)
            except (RuntimeError, ValueError) as error:
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
            own = {"state_dict": load_file(_weights(variant)), "source": "", "custom_load": False}
            given = timm.create_model(
                variant, pretrained=True, pretrained_cfg_overlay=own, num_classes=0
            ).state_dict()
        except (OSError, RuntimeError, ValueError, SafetensorError) as error:
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
    """Return what timm knows of a variant's weights; of a hub model, what its maker says."""
    described = _described(variant)
    if described is not None:
        return dict(described.get("pretrained_cfg") or described)
    known = timm.get_pretrained_cfg(variant, allow_unregistered=True)
    return known.to_dict() if known is not None else {}


def _built(variant: str, description: Mapping[str, Any]) -> nn.Module:
    """Build a described network with random weights; nothing but a network of timm's comes of it.

    Raises
    ------
    ModelError
        timm makes none of the description.
    """
    with TemporaryDirectory() as folder:
        Path(folder, _CONFIG).write_text(json.dumps(dict(description)), encoding="utf-8")
        try:
            made = timm.create_model(f"local-dir:{folder}", pretrained=False, num_classes=0)
            int(made.num_features)  # which lists of maps lack
        except Exception as error:  # reason: whatever timm says to arguments that it does not know
            raise ModelError(
                f"timm/{variant}: timm {timm.__version__} makes no network of its description "
                f"({type(error).__name__}: {error}); update timm, or ask its maker."
            ) from error
    return made


def _described(variant: str) -> dict[str, Any] | None:
    """Return what a hub model's ``config.json`` says, but for names of classes; else ``None``.

    The hub is asked for it only if the user has named the encoder, not a package of others.

    Raises
    ------
    ModelError
        It is not on this machine and cannot be fetched, or cannot be read.
    """
    if not _HUB.match(variant):
        return None
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    repository, revision = _at_hub(variant)
    try:
        found = try_to_load_from_cache(repository, _CONFIG, revision=revision)
        if not isinstance(found, str) and may_ask_network():
            _ask_hub(repository, revision)
            found = hf_hub_download(repository, _CONFIG, revision=revision)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"timm/{variant}: its {_CONFIG} cannot be fetched ({error}); check name and network."
        ) from error
    if not isinstance(found, str):
        at = f" --revision {revision}" if revision else ""
        raise ModelError(
            f"timm/{variant}: what this network looks like is not known on this machine, its "
            "package does not say it, and the hub is not asked for the sake of a package. If you "
            f"trust its maker: hf download {repository} {_CONFIG}{at}"
        )
    try:
        return _nameless(json.loads(Path(found).read_bytes()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"timm/{variant}: its configuration cannot be read ({error}).") from error


def _nameless(config: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out the names of classes: there may be thousands."""
    parts = {k: _nameless(v) if isinstance(v, dict) else v for k, v in config.items()}
    return {k: v for k, v in parts.items() if k not in _NAMES}


def _at_hub(variant: str) -> tuple[str, str | None]:
    """Return the repository and the revision that a hub model's name states."""
    repository, _, revision = _HUB.sub("", variant, 1).partition("@")
    return repository, revision or None


def _weights(variant: str) -> str:
    """Return the file with a variant's own weights, fetched if need be: safetensors, or none.

    Raises
    ------
    OSError
        It cannot be fetched, or there are only pickled ones, which timm would read.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError

    known = _pretrained(variant)
    at = variant if _HUB.match(variant) else known.get("hf_hub_id") or ""
    repository, revision = _at_hub(at)
    stated = known.get("hf_hub_filename")
    names = (str(Path(stated).with_suffix(".safetensors")), *_WEIGHTS) if stated else _WEIGHTS
    for name in names if repository else ():
        kept = try_to_load_from_cache(repository, name, revision=revision)
        if isinstance(kept, str):
            return kept
    if repository:
        _ask_hub(repository, revision)
    for name in names if repository else ():
        try:
            return hf_hub_download(repository, name, revision=revision)
        except EntryNotFoundError:
            continue
    raise FileNotFoundError("no safetensors are published, and pickled weights are never read")


def _ask_hub(repository: str, revision: str | None) -> None:
    """Ask the hub once: its client asks six times, for 23 s, before it says that it is not there.

    Raises
    ------
    ConnectionError
        No answer.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import HfHubHTTPError

    try:
        get_hf_file_metadata(hf_hub_url(repository, _CONFIG, revision=revision))
    except HfHubHTTPError:
        pass  # an answer; the client words it
    except Exception as error:  # reason: those of the client's transport differ between versions
        raise ConnectionError(f"the hub does not answer: {error}") from error


SOURCE = EncoderSource(
    build=TimmEncoder, load=load, facts=facts, sample="test_vit", rebuild=TimmEncoder
)
