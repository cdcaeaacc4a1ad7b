"""The classification layer of a magnifying network: windows to features to class scores.

Source: magnifying-networks-2023, sections 3.2 and 3.3; what is ours is said in the docstrings.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.nn.precision import without_autocast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Judge", "SmallFeatures", "WindowClassifier", "most_suspicious"]

_SHARPNESS = 4.0
"""Of the soft maximum over windows."""
_LEAST_SPREAD = 1e-3
"""A feature that hardly varies is not blown up."""


class SmallFeatures(nn.Module):
    """Four strided convolutions with group norm: enough for textures, and fast on a CPU."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.dim = 4 * width
        layers: list[nn.Module] = []
        for number in range(4):
            before = 3 if number == 0 else number * width
            after = (number + 1) * width
            size = 5 if number == 0 else 3
            layers += [
                nn.Conv2d(before, after, size, 2, size // 2),
                nn.GroupNorm(4, after),
                nn.ReLU(),
            ]
        self.trunk = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> Tensor:
        """Return one feature vector per image: ``(N, 3, H, W)`` to ``(N, dim)``."""
        vectors: Tensor = self.trunk(images).mean((2, 3))
        return vectors


class WindowClassifier(nn.Module):
    """An auxiliary classifier: ``(N, 3, H, W)`` windows to ``(N, K)`` logits (section 3.3)."""

    def __init__(self, features: nn.Module, dim: int, outputs: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(dim, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Judge windows one by one."""
        logits: Tensor = self.head(self.features(images))
        return logits


def most_suspicious(alone: Tensor) -> Tensor:
    """Return a soft maximum over the windows so far: ``(B, T, K)`` logits to ``(B, T, K)``."""
    count = torch.arange(1, alone.shape[1] + 1, device=alone.device, dtype=alone.dtype)
    return ((_SHARPNESS * alone).logcumsumexp(1) - count.log()[:, None]) / _SHARPNESS


class Judge(nn.Module):
    """The classification layer: a GRU over the windows, with a verdict after each.

    Its hidden layers have 512 and 256 units as in section 3.2; the size of the state is not
    published. The linear layer that classifies each window alone is not in the paper.

    Parameters
    ----------
    features, dim
        Network that turns a window into a vector of length ``dim``.
    outputs, state, hidden
        Number of logits, size of the GRU's state, hidden layers of the verdict.
    dropout
        Share of a window's features that is dropped in training.
    evidence
        Whether the verdict is that of the most suspicious window so far plus a term from the GRU,
        initially zero.
    """

    shift: Tensor
    spread: Tensor

    def __init__(
        self,
        features: nn.Module,
        dim: int,
        outputs: int,
        state: int,
        hidden: Sequence[int] = (512, 256),
        *,
        dropout: float = 0.0,
        evidence: bool = False,
    ) -> None:
        super().__init__()
        self.features = features
        self.dropout, self.evidence = dropout, evidence
        self.register_buffer("shift", torch.zeros(dim))
        self.register_buffer("spread", torch.ones(dim))
        self.single = nn.Linear(dim, outputs)
        self.memory = nn.GRU(dim, state, batch_first=True)
        sizes = (state, *hidden)
        layers: list[nn.Module] = []
        for before, after in zip(sizes, hidden, strict=False):
            layers += [nn.Linear(before, after), nn.ReLU()]
        last = nn.Linear(sizes[-1], outputs)
        if evidence:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.verdict = nn.Sequential(*layers, last)

    @property
    def standardized(self) -> bool:
        """Whether :meth:`standardize` was called."""
        return not bool((self.spread == 1).all())

    def standardize(self, vectors: Tensor) -> None:
        """Standardise features by the mean and spread of these, ``(N, dim)``, from now on.

        Features of a trained network differ widely in mean and range, which would slow down
        learning.
        """
        self.shift.copy_(vectors.mean(0))
        self.spread.copy_(vectors.std(0) + _LEAST_SPREAD)

    def standard(self, vectors: Tensor) -> Tensor:
        """Standardise features ``(..., dim)`` and, in training, drop some."""
        vectors = (vectors - self.shift) / self.spread
        return F.dropout(vectors, self.dropout, self.training and self.dropout > 0)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Judge windows ``(B, T, 3, h, w)``.

        Returns
        -------
        ``(B, T, K)`` logits after each window, and of each window alone.
        """
        vectors = self.features(images.flatten(0, 1)).view(*images.shape[:2], -1)
        vectors = self.standard(vectors)
        with without_autocast(images.device):  # little work, and it adds up
            states, _ = self.memory(vectors)
            verdict, alone = self.verdict(states), self.single(vectors)
            return (verdict + most_suspicious(alone) if self.evidence else verdict), alone

    def alone(self, vectors: Tensor) -> Tensor:
        """Classify each window alone by its features ``(..., dim)``: ``(..., K)`` logits."""
        logits: Tensor = self.single(self.standard(vectors))
        return logits
