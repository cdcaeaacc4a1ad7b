"""Device, precision and autocast of a run."""

from __future__ import annotations

import platform
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import torch

import slidelens
from slidelens.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Precision",
    "autocast_plugin",
    "evaluating",
    "pick_device",
    "software",
    "uses_bf16",
]

Precision = Literal["auto", "fp32", "bf16"]
"""``fp32`` computes in single precision. ``bf16`` runs convolutions and matrix products in bfloat16
(weights, sums and softmax stay fp32): a probability then differs from fp32's by at most about 0.03
(tested: 0.05). ``auto``, the default, is ``bf16`` where the hardware multiplies bfloat16 natively,
which makes it about twice as fast, and ``fp32`` elsewhere."""


def pick_device(name: str | torch.device = "auto") -> torch.device:
    """Return the device of a name: ``auto``, ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ModelError
        A name that torch does not know, or a device that this machine has not.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", torch.cuda.current_device())
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ModelError(
            f"device {str(name)!r} is not one of auto, cpu, cuda, cuda:N, mps."
        ) from error
    present = {
        "cpu": 1,
        "cuda": torch.cuda.device_count() if torch.cuda.is_available() else 0,
        "mps": int(torch.backends.mps.is_available()),
    }.get(device.type, 0)
    if (device.index or 0) >= present:
        raise ModelError(
            f"device {str(name)!r} is not on this machine (it has {present} of type "
            f"{device.type!r}). Use --device auto or cpu; `slidelens doctor` shows what is missing."
        )
    return device


def uses_bf16(device: torch.device, precision: Precision, *, auto: bool = True) -> bool:
    """Return whether a run on ``device`` at a ``precision`` computes in bfloat16.

    ``auto`` is the family's :attr:`~slidelens.families.base.Family.auto_bf16`.
    """
    if precision == "auto":
        return auto and _has_bf16(device)
    return precision == "bf16"


def software(device: torch.device, bf16: bool) -> dict[str, str]:
    """Return versions, device, and the precision in use."""
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "slidelens": slidelens.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": f"{device}: {where}",
        "precision": "bf16" if bf16 else "fp32",
    }


@cache
def _has_bf16(device: torch.device) -> bool:
    """Return whether the hardware has native bfloat16; emulated, it is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):  # torch >= 2.10
        flags = torch.cpu.get_capabilities()
        return any(flags.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return False


@contextmanager
def evaluating(device: torch.device, bf16: bool) -> Iterator[None]:
    """Inference mode and autocast, for the length of one step.

    A run is a generator: were these entered once, they would leak into whatever the caller does
    between two steps.
    """
    with (
        torch.inference_mode(),
        torch.autocast(device.type, torch.bfloat16, enabled=bf16),
    ):
        yield


def autocast_plugin(device: torch.device) -> Any:
    """Return Fabric's plugin for training in bf16 that leaves a module's inputs as they are.

    Fabric's own makes all of them bf16 first, which inference (:func:`evaluating`) does not.
    Autocast casts what is multiplied; coordinates, and pixels that are compared, need their digits.
    """
    from lightning.fabric.plugins.precision import MixedPrecision

    class Autocast(MixedPrecision):
        def convert_input(self, data: Any) -> Any:
            return data

    return Autocast("bf16-mixed", device.type)
