"""The networks behind a zoo folder: one by name, or a TorchScript program that is trusted."""

from __future__ import annotations

import io
import os
from hashlib import sha256
from typing import TYPE_CHECKING

import torch
from torch import nn

from slidelens.errors import ModelError
from slidelens.files import write_atomic
from slidelens.settings import config_dir

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Network", "Script", "TwoLogits", "is_trusted", "load_script", "trust"]


class Network(nn.Module):
    """``(N, 3, H, W)`` normalised RGB to ``(N, outputs)`` logits, by timm's or torchvision's name.

    Raises
    ------
    ModelError
        Neither library has it.
    """

    def __init__(self, architecture: str, outputs: int) -> None:
        super().__init__()
        self.network = _by_name(architecture, outputs)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify tiles."""
        logits: torch.Tensor = self.network(images)
        return logits


class TwoLogits(nn.Module):
    """Gives a network's one logit of two classes as two, whose softmax is the same."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify tiles."""
        logit: torch.Tensor = self.network(images)
        return torch.cat((torch.zeros_like(logit), logit), 1)


class Script(nn.Module):
    """A TorchScript program, kept as bytes; it is loaded when it first runs, if it is trusted."""

    program: torch.Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("program", torch.zeros(size, dtype=torch.uint8))
        self._running: list[torch.jit.ScriptModule] = []  # a list: not a part of the state

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify tiles.

        Raises
        ------
        ModelError
            Nobody on this machine said that the program may run.
        """
        if not self._running:
            content = self.program.cpu().numpy().tobytes()
            if not is_trusted(content):
                raise ModelError(
                    "this model is a TorchScript program, which can do anything that you can. If "
                    "you trust its maker: slidelens-wsinfer trust MODEL."
                )
            self._running.append(load_script(content).to(images.device))
        logits: torch.Tensor = self._running[0](images)
        return logits


def load_script(content: bytes) -> torch.jit.ScriptModule:
    """Load a trusted program.

    Raises
    ------
    ModelError
        It is none.
    """
    try:
        script: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(content), map_location="cpu")
    except RuntimeError as error:
        raise ModelError(f"not a TorchScript program: {error}") from error
    return script.eval()


def trust(content: bytes) -> None:
    """Let a program run on this machine, for this user.

    Raises
    ------
    ModelError
        Others may write to the list of trusted programs.
    """
    known = _trusted()
    known.add(sha256(content).hexdigest())
    path = _list()
    write_atomic(path, "\n".join(sorted(known)) + "\n")
    path.chmod(0o600)


def is_trusted(content: bytes) -> bool:
    """Whether :func:`trust` was called for a program.

    Raises
    ------
    ModelError
        Others may write to the list of trusted programs.
    """
    return sha256(content).hexdigest() in _trusted()


def _trusted() -> set[str]:
    path = _list()
    try:
        with path.open("rb") as file:
            stat, content = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return set()
    if hasattr(os, "getuid") and (stat.st_uid != os.getuid() or stat.st_mode & 0o022):
        raise ModelError(
            f"{path}, the list of programs that may run, is not yours alone: others can write to "
            "it. Delete it, and trust again what you trust: slidelens-wsinfer trust MODEL."
        )
    return set(content.decode(errors="replace").split())


def _list() -> Path:
    """Return where the list is: not in the cache, to which others may write."""
    return config_dir() / "wsinfer-trusted.txt"


def _by_name(architecture: str, outputs: int) -> nn.Module:
    try:
        import timm
    except ImportError:
        timm = None
    if timm is not None and timm.is_model(architecture):
        made: nn.Module = timm.create_model(architecture, num_classes=outputs)
        return made
    from torchvision import models

    try:
        network: nn.Module = models.get_model(architecture, weights=None, num_classes=outputs)
    except ValueError as error:
        hint = "" if timm else "; timm is not installed, which may have it: pip install timm"
        raise ModelError(f"no network is called {architecture!r}{hint}.") from error
    return network
