"""Torchvision's ImageNet networks as dense trunks and as feature extractors.

Parameter names inside a :class:`Features` are those of torchvision behind a ``trunk.`` (or, for
ConvNeXt's last norm, ``norm.``), so a weights file in torchvision's layout loads as it is.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.errors import ModelError
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "BACKBONES",
    "BackboneName",
    "Encoder",
    "Features",
    "LoadReport",
    "build_features",
    "freeze_norm_statistics",
    "load_weights",
]

BackboneName = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "squeezenet1_1",
    "mobilenet_v3_small",
    "mobilenet_v3_large",
    "efficientnet_b0",
    "convnext_tiny",
    "googlenet",
    "inception_v3",
]
BACKBONES: tuple[BackboneName, ...] = get_args(BackboneName)

_CONVNEXT_NORM = "classifier.0."


@dataclass(frozen=True)
class LoadReport:
    """How the tensors of a weights file were used."""

    source: str
    loaded: int
    ignored: tuple[str, ...]
    """Names of the ImageNet classifier's tensors, which a feature extractor does not have."""

    @property
    def card(self) -> dict[str, Any]:
        """The text for a model's card, without paths of the training machine."""
        return {"backbone_weights": Path(self.source).name, "ignored_tensors": list(self.ignored)}


class Encoder(nn.Module):
    """A network that turns tiles into feature vectors: ``(N, 3, H, W)`` to ``(N, dim)``.

    On a CPU it is called from several threads at once.

    Attributes
    ----------
    dim
        Length of the vectors.
    description
        What tells what the network looks like, if the variant's name does not: values that JSON
        has. Packages keep it (:attr:`~slidelens.nn.encoders.EncoderSource.rebuild`).
    """

    dim: int
    description: Mapping[str, Any] | None = None


class Features(Encoder):
    """A backbone without its ImageNet classifier.

    Attributes
    ----------
    trunk
        ``(N, 3, H, W)`` ImageNet-normalised RGB to ``(N, dim, H / 32, W / 32)``; fully
        convolutional (SqueezeNet's stride is 16).
    norm
        Layer for the pooled vector (ConvNeXt's LayerNorm), or the identity.
    dim
        Length of the feature vector.
    """

    def __init__(self, name: BackboneName, trunk: nn.Sequential, norm: nn.Module, dim: int) -> None:
        super().__init__()
        self.name = name
        self.trunk = trunk
        self.norm = norm
        self.dim = dim

    def forward(self, images: Tensor) -> Tensor:
        """Return one feature vector per image: ``(N, 3, H, W)`` to ``(N, dim)``."""
        pooled: Tensor = self.norm(self.trunk(images).mean((2, 3), keepdim=True))
        return pooled.flatten(1)


def build_features(name: BackboneName) -> Features:
    """Build a backbone with random weights (torch's global generator).

    Raises
    ------
    ModelError
        A name that is not in :data:`BACKBONES`.
    """
    if name not in BACKBONES:
        raise ModelError(f"no backbone {name!r}: choose one of {', '.join(BACKBONES)}.")
    network = _torchvision(name)
    if hasattr(network, "fc"):
        parts = OrderedDict((k, m) for k, m in network.named_children() if k not in _HEAD)
        dim = network.fc.in_features
    else:
        parts = OrderedDict(features=network.features)
        dim = _width(network)
    if name in _TRANSFORMED:
        parts = OrderedDict(transform=_TransformInput(), **parts)
    norm = network.classifier[0] if name == "convnext_tiny" else nn.Identity()
    return Features(name, nn.Sequential(parts), norm, int(dim))


def load_weights(features: Features, weights: str | Path) -> LoadReport:
    """Load ImageNet weights into a backbone, in place.

    Parameters
    ----------
    features
        From :func:`build_features`.
    weights
        A safetensors file in torchvision's layout (any float type), or ``"imagenet"`` for
        torchvision's own file (from its cache, else downloaded and checked by hash).

    Raises
    ------
    ModelError
        A file that is missing, unreadable or made for another backbone (which one, is said); no
        network for the download.
    """
    if str(weights) == "imagenet":
        source, tensors = f"torchvision {features.name}", _download(features.name)
    else:
        source, tensors = str(weights), _read(Path(weights))
    full = {k: tuple(v.shape) for k, v in _blueprint(features.name).items()}
    mine = features.state_dict()
    given = {_own_name(features.name, key): value for key, value in tensors.items()}
    missing = [k for k in mine if k not in given and not k.endswith("num_batches_tracked")]
    strange = [k for k in tensors if k not in full]
    wrong = [k for k in mine if k in given and given[k].shape != mine[k].shape]
    if missing or strange or wrong:
        raise ModelError(_mismatch(source, features.name, tensors, missing, strange, wrong))
    kept = {key: value.to(mine[key].dtype) for key, value in given.items() if key in mine}
    features.load_state_dict(kept, strict=False)
    ignored = tuple(k for k in tensors if _own_name(features.name, k) not in mine)
    return LoadReport(source, len(kept), ignored)


def freeze_norm_statistics(module: nn.Module) -> None:
    """Put every batch norm in eval mode, so that its running mean and variance do not change.

    Call it after each ``module.train()``. Scale and shift stay trainable (streaming-prostate-2020,
    section IV.B: "we froze the BatchNormalization mean and variance").
    """
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()


_HEAD = ("avgpool", "dropout", "fc", "aux1", "aux2", "AuxLogits")
_TRANSFORMED = ("googlenet", "inception_v3")
_OPTIONS: Mapping[str, Mapping[str, bool]] = {
    # As in the weights files.
    "googlenet": {"init_weights": False, "aux_logits": True},
    "inception_v3": {"init_weights": False, "aux_logits": True},
}


class _TransformInput(nn.Module):
    """Convert ImageNet's normalisation to -1..1, with which torchvision trained Inceptions."""

    scale: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        scale = torch.tensor(IMAGENET_STD).view(3, 1, 1, 1) / 0.5
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", (torch.tensor(IMAGENET_MEAN) - 0.5) / 0.5, persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.scale, self.shift, groups=3)


def _torchvision(name: BackboneName) -> Any:  # reason: parts differ by network
    with torch.device("cpu"):  # PyTorch 2.6 computes as it loads: no caller's meta device there
        from torchvision import models  # a second to import: only who builds a network pays

    return models.get_model(name, weights=None, **_OPTIONS.get(name, {}))


@cache
def _blueprint(name: BackboneName) -> Mapping[str, Tensor]:
    """Return the state dict of torchvision's whole network, without memory for it."""
    with torch.device("meta"):
        tensors: dict[str, Tensor] = _torchvision(name).state_dict()
    return tensors


def _width(network: Any) -> int:
    """Return the number of channels of the trunk's output."""
    for layer in network.classifier.modules():
        if isinstance(layer, nn.Linear):
            return layer.in_features
        if isinstance(layer, nn.Conv2d):  # SqueezeNet classifies by a 1 x 1 convolution
            return layer.in_channels
    raise ModelError(f"{type(network).__name__} has no classifier to take the width from.")


def _own_name(backbone: BackboneName, key: str) -> str:
    if backbone == "convnext_tiny" and key.startswith(_CONVNEXT_NORM):
        return "norm." + key.removeprefix(_CONVNEXT_NORM)
    return "trunk." + key


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path}: no such weights file; give a safetensors file, or none.")
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{path}: not a safetensors file ({error}); expected ImageNet weights in "
            "torchvision's layout, saved by safetensors."
        ) from error
    return tensors


def _download(name: BackboneName) -> dict[str, Tensor]:
    from torchvision import models

    url = models.get_model_weights(name).DEFAULT.url
    try:
        tensors: dict[str, Tensor] = torch.hub.load_state_dict_from_url(
            url, map_location="cpu", progress=False, check_hash=True, weights_only=True
        )
    except (OSError, RuntimeError) as error:  # no network; a file that fails its hash
        raise ModelError(
            f"ImageNet weights of {name} could not be downloaded ({error}); give --weights FILE "
            "(safetensors in torchvision's layout) or --weights none for random ones."
        ) from error
    return tensors


def _mismatch(
    source: str,
    name: BackboneName,
    tensors: Mapping[str, Tensor],
    missing: list[str],
    strange: list[str],
    wrong: list[str],
) -> str:
    faults = [
        f"{len(keys)} {what} (first: {keys[0]})"
        for keys, what in ((missing, "missing"), (strange, "unknown"), (wrong, "of another shape"))
        if keys
    ]
    other = _looks_like(tensors)
    advice = (
        f"it looks like {other}: use --backbone {other}"
        if other and other != name
        else "give weights in torchvision's layout, or none"
    )
    return f"{source}: not the weights of {name}: tensors {', '.join(faults)}; {advice}."


def _looks_like(tensors: Mapping[str, Tensor]) -> BackboneName | None:
    """Return the backbone that fits a file's tensors best, if more than half of them fit."""
    shapes = {(k, tuple(v.shape)) for k, v in tensors.items()}

    def agreement(name: BackboneName) -> float:
        full = {(k, tuple(v.shape)) for k, v in _blueprint(name).items()}
        return len(full & shapes) / max(len(full | shapes), 1)

    best = max(BACKBONES, key=agreement)
    return best if agreement(best) > 0.5 else None
