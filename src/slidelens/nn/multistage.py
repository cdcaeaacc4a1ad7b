"""Multi-stage segmentation: a patch network, and a U-Net on the map of its vectors.

Source: multi-stage-segmentation-2019, section 3. The paper's methods for comparison are the same
network with parts left out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import nn

from slidelens.nn.backbones import build_features
from slidelens.nn.precision import ExactLinear
from slidelens.nn.unet import UNet

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from slidelens.nn.backbones import BackboneName

__all__ = [
    "Method",
    "MultiStage",
    "Part",
    "arrange",
    "backward_by_parts",
]

Method = Literal["multistage", "classifier", "segmentation", "imagenet"]
"""``multistage`` is the paper's; ``classifier`` judges each patch alone, ``segmentation`` is a
U-Net on a reduced picture, ``imagenet`` a U-Net on the vectors of an untrained backbone."""

Part = Literal["vectors", "classify", "segment"]

_MARGIN = 2
"""Empty cells around a feature map: its border is then background, as in the paper's fixed map,
and not the end of the world."""


class MultiStage(nn.Module):
    """The networks of all methods; which of them exist depends on the method.

    Attributes
    ----------
    features, vector
        Backbone and the fully connected layer after it. The paper does not mention a nonlinearity
        after that layer; we use a ReLU. ``imagenet`` has no such layer.
    final
        The classifier of single patches: for ``classifier``, and to train ``vector`` for
        ``multistage`` (End-to-End Learning does not train it; section 3.2.2).
    unet
        The segmentation model.

    gain
        Factor for vectors before the U-Net. Training sets it once, so that they have the size that
        the U-Net's initial weights expect; 1 until then. (Not in the paper: a fully connected layer
        gives vectors of any size; at a root mean square of 15 the U-Net learnt much worse.)

    Logits are one per patch or cell: that of tumour (the paper's two outputs under a softmax are
    the same function).
    """

    gain: Tensor

    def __init__(
        self, method: Method, backbone: BackboneName, length: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.method = method
        if method != "segmentation":
            self.features = build_features(backbone)
            channels = self.features.dim if method == "imagenet" else length
        else:
            channels = 3
        if method in ("multistage", "classifier"):
            self.vector = nn.Linear(self.features.dim, length)
            self.final = ExactLinear(length, 1)
        if method != "classifier":
            self.unet = UNet(channels, 1, width, depth)
            self.register_buffer("gain", torch.ones(()))

    def forward(self, inputs: Tensor, part: Part) -> Tensor:
        """Run one part.

        Parameters
        ----------
        inputs
            ``(N, 3, h, w)`` normalised patches; for ``segment`` ``(N, D, H, W)`` maps of vectors
            (of the method ``segmentation``: normalised pictures).
        part
            ``vectors``: ``(N, D)``; ``classify``: ``(N, 1)`` logits; ``segment``: ``(N, 1, H, W)``
            logits.
        """
        if part == "segment":
            segmented: Tensor = self.unet(inputs * self.gain)
            return segmented
        vectors: Tensor = self.features(inputs)
        if self.method != "imagenet":
            vectors = F.relu(self.vector(vectors))
        return self.final(vectors) if part == "classify" else vectors

    def extractor(self) -> list[nn.Parameter]:
        """Return the parameters that a patch's vector depends on."""
        parts = [m for m in (getattr(self, "features", None), getattr(self, "vector", None)) if m]
        return [p for part in parts for p in part.parameters()]


def arrange(vectors: Tensor, index: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """Arrange vectors as a map (section 3.1, feature map construction).

    Parameters
    ----------
    vectors
        ``(N, D)``.
    index
        ``(N, 2)`` column, row of each; no two alike.

    Returns
    -------
    The map ``(1, D, H, W)``, zero where no patch is, as large as the patches and a margin need; and
    where the patches are in it, ``(N,)`` counted along its rows. Gradients flow to ``vectors``.
    """
    place = index - index.min(0) + _MARGIN
    width, height = (place.max(0) + 1 + _MARGIN).tolist()
    cells = torch.from_numpy(place[:, 1] * width + place[:, 0]).to(vectors.device)
    empty = vectors.new_zeros(vectors.shape[1], height * width)
    return empty.index_copy(1, cells, vectors.T).view(1, -1, height, width), cells


def backward_by_parts(
    extract: Callable[[Tensor], Tensor],
    batches: Callable[[], Iterable[Tensor]],
    loss_of: Callable[[Tensor], Tensor],
    backward: Callable[[Tensor], None],
) -> Tensor:
    """Add the gradients of a loss over all patches, with one mini-batch of them in memory.

    End-to-End Learning by retained gradients (section 3.2.2, steps 1 to 5): compute all vectors
    without a graph; then the loss of the vectors, forward and backward; then each mini-batch again,
    with the loss ``<dL/dx, x>``. The gradients equal those of the undivided computation, up to
    rounding.

    Parameters
    ----------
    extract
        A mini-batch of patches to their vectors ``(n, D)``; it must give the same both times.
    batches
        Returns the mini-batches, in the same order both times.
    loss_of
        All vectors ``(N, D)`` to the loss, and so the rest of the network.
    backward
        Adds the gradients of a loss.

    Returns
    -------
    The loss, without a graph.
    """
    with torch.no_grad():
        vectors = torch.cat([extract(images) for images in batches()])
    loss = loss_of(vectors.requires_grad_())
    backward(loss)
    assert vectors.grad is not None
    start = 0
    for images in batches():
        retained = vectors.grad[start : start + len(images)]
        backward((extract(images) * retained).sum())
        start += len(images)
    return loss.detach()
