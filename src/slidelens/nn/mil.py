"""Multiple-instance learning on tiles: networks, losses and linear poolings.

A network has a backbone, which makes a feature vector of each tile, and a head, which makes an
answer of the vectors of one slide, its bag. Here the head is a linear layer; in
:mod:`slidelens.nn.mil_pooling` it learns how to pool.

Method: Campanella et al. 2019 as described in streaming-prostate-2020, section IV.B: one tile's
probability is the slide's, and the tile is the one with the highest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import log
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.nn.orientation import orient
from slidelens.nn.precision import without_autocast

if TYPE_CHECKING:
    from slidelens.nn.backbones import Encoder

__all__ = [
    "BagClassifier",
    "BagOutput",
    "BagPooling",
    "LinearPooling",
    "MilNetwork",
    "TileClassifier",
    "bag_loss",
    "class_probabilities",
    "encoded",
    "outputs",
    "slide_loss",
    "soft_maximum",
]

LinearPooling = Literal["top1", "topk", "mean", "max"]


class BagOutput(NamedTuple):
    """The output of a network for one bag.

    Attributes
    ----------
    logits
        ``(K,)`` of the slide; K = 1 is the logit of the last of two classes.
    attention
        ``(A, N)`` weights of the tiles, each row summing to 1; one row, or one per output. ``None``
        for a pooling without.
    loss
        The training loss, if a label was given.
    """

    logits: Tensor
    attention: Tensor | None = None
    loss: Tensor | None = None


class BagPooling(nn.Module, ABC):
    """Turns the vectors of a bag into its logits, and into those of each tile."""

    @abstractmethod
    def forward(
        self, vectors: Tensor, label: Tensor | None = None, smoothing: float = 0.0
    ) -> BagOutput:
        """Pool ``(N, D)`` float32, N at least 1.

        With ``label`` (0-dimensional, class index) the output has a loss; ``smoothing`` is the
        part of the label that is spread evenly over the classes.
        """

    @abstractmethod
    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)``: the logits of each tile alone."""


class MilNetwork(nn.Module, ABC):
    """A backbone and a head.

    Attributes
    ----------
    features
        Normalised tiles ``(N, 3, H, W)`` to vectors ``(N, D)``; ``None`` for a network on vectors
        computed elsewhere.
    head
        Vectors to logits: trained while the backbone is frozen.
    orientations
        Number of orientations of each tile (:mod:`slidelens.nn.orientation`) whose vectors are
        averaged. With 4, quarter turns of the slide do not change the result; with 8, nor does
        mirroring.
    """

    def __init__(self, features: Encoder | None, head: nn.Module) -> None:
        super().__init__()
        self.features = features
        self.head = head
        self.orientations = 1

    def forward(
        self,
        images: Tensor | None = None,
        *,
        vectors: bool = False,
        bag: Tensor | None = None,
        label: Tensor | None = None,
        smoothing: float = 0.0,
    ) -> Tensor | BagOutput:
        """Compute one of three outputs, in one method since a trainer wraps ``forward``.

        - ``images``: return the logits ``(N, K)`` of each tile alone;
        - ``images`` with ``vectors``: return their feature vectors ``(N, D)``;
        - ``bag`` ``(N, D)``: return the :class:`BagOutput` of a slide, in float32 also under
          autocast, with a loss if there is a ``label``.
        """
        if bag is not None:
            with without_autocast(bag.device):
                return self._pool(bag.float(), label, smoothing)
        assert images is not None
        assert self.features is not None
        found = encoded(self.features, images, self.orientations)
        return found if vectors else self.instances(found)

    def instances(self, vectors: Tensor) -> Tensor:
        """Return ``(N, K)`` float32, also under autocast: the logits of each tile alone."""
        with without_autocast(vectors.device):
            return self._instances(vectors.float())

    def essence(
        self,
        vectors: Tensor,
        logits: Tensor,  # noqa: ARG002  # reason: of the poolings that need fewer
    ) -> Tensor:
        """Return a subset of ``(N, D)`` with the same output; all, unless a pooling needs fewer.

        The subset of a slide's tiles so far, together with later tiles, has the same output as all
        of them: a slide of any size then takes the memory of a few tiles. ``logits`` is what
        :meth:`instances` makes of ``vectors``.
        """
        return vectors

    @abstractmethod
    def _instances(self, vectors: Tensor) -> Tensor: ...

    @abstractmethod
    def _pool(self, vectors: Tensor, label: Tensor | None, smoothing: float) -> BagOutput: ...


class TileClassifier(MilNetwork):
    """One linear layer on each tile's vector, and a fixed rule that pools.

    K, the number of logits, is 1 for two classes (the logit of the last, the positive one), else
    one per class; each is pooled on its own and the softmax taken over these (our choice: the paper
    is binary).

    Parameters
    ----------
    features
        The backbone, or the length of vectors that were made elsewhere.
    n_classes
        Number of classes.
    pooling
        ``top1`` and ``topk`` average the 1 or ``top`` highest logits; ``mean`` averages the
        vectors, ``max`` takes each of their numbers where it is highest.
    top
        For ``topk``.
    """

    def __init__(
        self,
        features: Encoder | int,
        n_classes: int,
        pooling: LinearPooling = "top1",
        top: int = 1,
    ) -> None:
        backbone = None if isinstance(features, int) else features
        dim = features if isinstance(features, int) else features.dim
        super().__init__(backbone, nn.Linear(dim, outputs(n_classes)))
        self.pooling = pooling
        self.top = top if pooling == "topk" else 1

    def essence(self, vectors: Tensor, logits: Tensor) -> Tensor:
        """Return the highest tiles of each output, or the highest values; for ``mean``, all."""
        if self.pooling == "mean":
            return vectors
        if self.pooling == "max":
            return vectors.amax(0, keepdim=True)
        highest = self.highest(logits).indices
        return vectors[highest.unique()]  # type: ignore[no-untyped-call]

    def _instances(self, vectors: Tensor) -> Tensor:
        logits: Tensor = self.head(vectors)
        return logits

    def _pool(self, vectors: Tensor, label: Tensor | None, smoothing: float) -> BagOutput:
        if self.pooling == "mean":
            logits = self.head(vectors.mean(0))
        elif self.pooling == "max":
            logits = self.head(vectors.amax(0))
        else:
            logits = self.highest(self.head(vectors))[0].mean(0)
        return BagOutput(logits, None, bag_loss(logits, label, smoothing))

    def highest(self, logits: Tensor) -> torch.return_types.topk:
        """Return values and positions ``(min(top, N), K)`` of the highest logits of each output."""
        return logits.topk(min(self.top, len(logits)), 0)


class BagClassifier(MilNetwork):
    """A trained pooling after a backbone, or for vectors computed elsewhere."""

    head: BagPooling

    def __init__(self, features: Encoder | None, head: BagPooling) -> None:
        super().__init__(features, head)

    def _instances(self, vectors: Tensor) -> Tensor:
        return self.head.instances(vectors)

    def _pool(self, vectors: Tensor, label: Tensor | None, smoothing: float) -> BagOutput:
        output: BagOutput = self.head(vectors, label, smoothing)
        return output


def encoded(features: nn.Module, images: Tensor, orientations: int) -> Tensor:
    """Return the vectors ``(N, D)`` of tiles, the means over a number of their orientations."""
    total: Tensor = features(images)
    for number in range(1, orientations):
        total = total + features(orient(images, number))
    return total / orientations


def outputs(n_classes: int) -> int:
    """Return the number of logits for so many classes: one for two."""
    return 1 if n_classes == 2 else n_classes


def class_probabilities(logits: Tensor) -> Tensor:
    """Turn logits ``(N, K)`` into probabilities ``(N, C)``, float32; C = 2 if K = 1."""
    logits = logits.float()
    if logits.shape[-1] == 1:
        positive = torch.sigmoid(logits)
        return torch.cat((1 - positive, positive), -1)
    return torch.softmax(logits, -1)


def soft_maximum(logits: Tensor, sharpness: float, dim: int = 0) -> Tensor:
    """Pool logits over ``dim``, ``(tiles, K)`` to ``(K,)``: from mean (sharpness 0) to maximum.

    The log-mean-exp of Pinheiro & Collobert 2015. Unlike the maximum it has a gradient for every
    tile, so that an untrained network does not settle on an arbitrary one.
    """
    return (torch.logsumexp(sharpness * logits, dim) - log(logits.shape[dim])) / sharpness


def slide_loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """Return the cross entropy of each slide: logits ``(N, K)``, labels ``(N,)`` to ``(N,)``.

    ``smoothing`` is the part of each label that is spread evenly over the classes.
    """
    logits = logits.float()
    if logits.shape[-1] == 1:
        target = labels.to(logits.dtype) * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits[:, 0], target, reduction="none")
    return F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def bag_loss(logits: Tensor, label: Tensor | None, smoothing: float) -> Tensor | None:
    """Return the cross entropy of one slide's logits ``(K,)``, if there is a label."""
    return None if label is None else slide_loss(logits[None], label[None], smoothing)[0]
