"""The weights of a package: read from its file, checked, and put into the network."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from slidelens.engine.packages.manifest import MANIFEST, WEIGHTS
from slidelens.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from slidelens.engine.packages.manifest import Manifest

__all__ = ["fill", "read_weights"]

_SHOWN = 3


def read_weights(folder: Path, manifest: Manifest) -> dict[str, torch.Tensor]:
    """Read the weights of a package, which are those that its manifest states.

    Raises
    ------
    ModelError
        A file that cannot be read, or another one than stated.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = folder / WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelError(
            f"cannot read {path}: {error.strerror or error}. Copy the package again."
        ) from error
    digest = sha256(content).hexdigest()
    if digest != manifest.weights_sha256:
        raise ModelError(
            f"{path} has sha256 {digest[:12]}…, {MANIFEST} states {manifest.weights_sha256[:12]}…:"
            " the weights were altered or cut short. Copy the package again."
        )
    try:
        return load(content)
    except SafetensorError as error:
        raise ModelError(f"{path} is not a safetensors file: {error}.") from error


def fill(module: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put weights from the file ``path`` into a network.

    Raises
    ------
    ModelError
        Tensors that are missing, unknown, of another shape or kind, or not finite.
    """
    expected = module.state_dict()
    both = sorted(expected.keys() & weights.keys())
    wrong = [f"{key} is missing" for key in sorted(expected.keys() - weights.keys())]
    wrong += [f"{key} is unknown" for key in sorted(weights.keys() - expected.keys())]
    wrong += [
        f"{key} is {tuple(weights[key].shape)}, expected {tuple(expected[key].shape)}"
        for key in both
        if weights[key].shape != expected[key].shape
    ]
    if wrong:
        raise ModelError(
            f"{path} does not fit the network that {MANIFEST} describes: {_few(wrong)}. Family and "
            "config must be those of the training run."
        )
    unlike = [
        f"{key} is {_kind(weights[key])}, expected {_kind(expected[key])}"
        for key in both
        if weights[key].is_complex()
        or weights[key].is_floating_point() != expected[key].is_floating_point()
    ]
    if unlike:
        raise ModelError(
            f"{path} holds numbers of another kind than its network computes with: {_few(unlike)}. "
            "It was quantised, or damaged when it was converted; convert it to floating point."
        )
    strange = [key for key in both if not bool(weights[key].isfinite().all())]
    if strange:
        raise ModelError(
            f"{path}: {len(strange)} of its tensors hold values that are not finite (NaN or "
            f"infinite; the first is {strange[0]}): its training diverged, or it was damaged when "
            "it was converted. No slide can be scored by it; use another package."
        )
    module.load_state_dict(weights)


def _kind(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _few(faults: list[str]) -> str:
    more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
