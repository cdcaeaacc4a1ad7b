"""Multiple-instance learning on slides cut into tiles: the tile network and what pools its output.

Method: Campanella et al. 2019 as described in streaming-prostate-2020, section IV.B: one tile's
probability is the slide's, and the tile is the one with the highest.
"""

from __future__ import annotations

from math import log
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from slidelens.nn.backbones import Features

__all__ = ["TileClassifier", "class_probabilities", "slide_loss", "soft_maximum"]


class TileClassifier(nn.Module):
    """A backbone and one linear layer: ``(N, 3, H, W)`` normalised tiles to ``(N, K)`` logits.

    K is 1 for two classes (the logit of the last, the positive one), else one per class. The paper
    is binary; with more classes a slide's logit of each class is the highest of its tiles, and the
    softmax is taken over these (our choice).
    """

    def __init__(self, features: Features, n_classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(features.dim, 1 if n_classes == 2 else n_classes)

    def forward(self, images: Tensor, *, vectors: bool = False) -> Tensor:
        """Return the logits of each tile, or with ``vectors`` what the head makes them of."""
        features: Tensor = self.features(images)
        return features if vectors else self.head(features)


def class_probabilities(logits: Tensor) -> Tensor:
    """Turn logits ``(N, K)`` into probabilities ``(N, C)``, float32; C = 2 if K = 1."""
    logits = logits.float()
    if logits.shape[-1] == 1:
        positive = torch.sigmoid(logits)
        return torch.cat((1 - positive, positive), -1)
    return torch.softmax(logits, -1)


def soft_maximum(logits: Tensor, sharpness: float) -> Tensor:
    """Pool logits ``(tiles, K)`` to ``(K,)``: from the mean (sharpness to 0) to the maximum.

    The log-mean-exp of Pinheiro & Collobert 2015. Unlike the maximum it has a gradient in every
    tile, so that a network that knows nothing yet does not settle on an arbitrary one.
    """
    return (torch.logsumexp(sharpness * logits, 0) - log(len(logits))) / sharpness


def slide_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of each slide: logits ``(N, K)``, labels ``(N,)`` to ``(N,)``.

    ``smoothing`` spreads that part of each label evenly over the classes.
    """
    logits = logits.float()
    if logits.shape[-1] == 1:
        target = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
