"""Attention over a picture, the window it chooses, and the foresight loss.

Source: magnifying-networks-2023, sections 3.1 and 4.2. Where the paper (as published, without its
appendix) is silent the choice is ours, and the docstring says so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Attention",
    "Centre",
    "FeatureAttention",
    "Sees",
    "early_part",
    "foresight_loss",
    "places",
    "read_out",
    "remove_grey",
]

Centre = Literal["exact", "tanh"]
Sees = Literal["colours", "features"]
_LEFT_OUT = 0.5
"""Share of the features that a training step's attention does not see."""
_TRIED, _SMALLEST = 64, 6
"""Side in px of a picture by which an early part is found, and least side of its map: stride 8."""
_KERNELS = (1, 3, 5, 7)
_GREY = 15


def remove_grey(images: Tensor) -> Tensor:
    """Blacken pixels whose red, green and blue lie close together: glass, shadows, black ink.

    ``(..., 3, H, W)`` uint8; grey is a difference of at most 15 (section 4.2).
    """
    spread = images.amax(-3, keepdim=True) - images.amin(-3, keepdim=True)
    return images * (spread > _GREY)


def read_out(
    mass: Tensor, *, least: float | Tensor = 0.05, reach: float = 1.0, centre: Centre = "exact"
) -> Tensor:
    """Read windows out of maps of attention: ``(..., H, W)`` mass to ``(..., 3)`` scale, x, y.

    The paper says that the expected value gives the scale and "the expected L2 operation over both
    the x-axis and y-axis" the translation; its formulas are not published. Ours: with ``g`` the
    position of a cell in -1..1,

    - translation: the expected position, ``m = sum p g``;
    - scale: the spread, ``s = sqrt(3/2 sum p |g - m|^2)``, which is 1 for even attention (the
      window is the whole picture) and 0 for attention to one point;
    - ``s = max(s, least)`` (equation 1), ``least`` for all maps or ``(...)`` for each;
    - equations 2 and 3 bound the centre by tanh. ``m`` is bounded already, and tanh of it would
      pull each window up to a quarter of the picture away from what was attended to, out of reach
      of the rim. ``centre="exact"`` therefore takes ``tanh(artanh(m)) = m``; ``"tanh"`` is the
      equation as it stands, ``tanh(m)``.
    """
    height, width = mass.shape[-2:]
    x = places(width, mass)
    y = places(height, mass)
    across, down = mass.sum(-2), mass.sum(-1)
    mean_x, mean_y = (across * x).sum(-1), (down * y).sum(-1)
    spread = (across * (x - mean_x[..., None]).square()).sum(-1)
    spread = spread + (down * (y - mean_y[..., None]).square()).sum(-1)
    scale = (reach * (1.5 * spread + 1e-12).sqrt()).clamp(max=1.0)
    scale = torch.maximum(scale, torch.as_tensor(least, dtype=scale.dtype, device=scale.device))
    place = torch.stack((mean_x, mean_y), -1)
    if centre == "tanh":
        place = place.tanh()
    return torch.cat((scale[..., None], place), -1)


def foresight_loss(scores: Tensor, parents: Tensor, probes: Tensor, evidence: Tensor) -> Tensor:
    """Compare where attention would look with what looking there found (ours, not the paper's).

    Scores are read as logits: the chance that a closer look at this place finds something. Windows
    that were looked through anyway say what it did find. Unlike the sampler's gradient, which sees
    as far as a window reaches, this teaches attention about places far from where it looks.

    Parameters
    ----------
    scores
        ``(B, N, h, w)`` attention before sparsemax.
    parents
        ``(B, N, 3)``: the window that each map is of.
    probes
        ``(B, M, 3)`` windows that were looked through, anywhere in the whole picture.
    evidence
        ``(B, M)`` chance of something in each; gets no gradient.

    Returns
    -------
    Mean binary cross entropy over all pairs of a map and a probe whose centre lies in it; 0 where
    there is none.
    """
    place = (probes[:, None, :, 1:] - parents[:, :, None, 1:]) / parents[:, :, None, :1]
    place = place.detach()
    within = (place.abs() < 1).all(-1)
    if not within.any():
        return scores.sum() * 0
    foreseen = F.grid_sample(
        scores.flatten(0, 1)[:, None],
        place.flatten(0, 1)[:, None],
        padding_mode="border",
        align_corners=False,
    ).view(within.shape)
    target = evidence.detach()[:, None].expand_as(foreseen)
    return F.binary_cross_entropy_with_logits(foreseen[within], target[within])


def places(n: int, like: Tensor) -> Tensor:
    """Return the positions of ``n`` cells in -1..1, with the type and device of ``like``."""
    return (torch.arange(n, device=like.device, dtype=like.dtype) * 2 + 1) / n - 1


class _MultiKernel(nn.Module):
    """Convolutions of several sizes side by side, as salient parts are of all sizes."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Conv2d(channels, width // len(_KERNELS), k, padding=k // 2) for k in _KERNELS
        )

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([part(images) for part in self.parts], 1)


class Attention(nn.Module):
    """Where to look: three stacked multi-kernel convolutions, ``(N, 3, h, w)`` to ``(N, h, w)``.

    Kernel sizes (1, 3, 5 and 7 px side by side) and width are ours, as is that it begins with even
    attention: every window then starts as its whole parent and shrinks as it learns.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _MultiKernel(3, width)
        self.second = _MultiKernel(width, width)
        self.third = nn.Conv2d(width, 1, max(_KERNELS), padding=max(_KERNELS) // 2)
        nn.init.zeros_(self.third.weight)
        assert self.third.bias is not None
        nn.init.zeros_(self.third.bias)

    def forward(self, images: Tensor) -> Tensor:
        """Return scores; only their differences count."""
        hidden = self.second(self.first(images).relu()).relu()
        scores: Tensor = self.third(hidden)
        return scores[:, 0]


class FeatureAttention(nn.Module):
    """Where to look, read out of early features of the network that classifies windows.

    ``(N, D, h, w)`` features, standardized over all places, to ``(N, size, size)`` scores by one
    weighted sum, interpolated. (Ours: a network that is trained already sees texture where three
    new convolutions see colour, and a sum over its features is learnt from few slides.)
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        # No BatchNorm2d: training keeps the statistics of those as a network brought them.
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("variance", torch.ones(dim))
        self.weigh = nn.Conv2d(dim, 1, 1)
        nn.init.zeros_(self.weigh.weight)
        assert self.weigh.bias is not None
        nn.init.zeros_(self.weigh.bias)

    def forward(self, features: Tensor, size: int) -> Tensor:
        """Return scores; only their differences count.

        Features at the rim see the convolutions' padding, so those next to them stand for them.
        """
        standard = F.batch_norm(features, self.mean, self.variance, training=self.training)
        scores = self.weigh(F.dropout(standard, _LEFT_OUT, self.training))
        scores = F.pad(scores[..., 1:-1, 1:-1], (1, 1, 1, 1), mode="replicate")
        return F.interpolate(scores, (size, size), mode="bilinear", align_corners=False)[:, 0]


def early_part(trunk: nn.Sequential) -> tuple[list[nn.Module], int]:
    """Return the first modules of a network, as long as their maps have a stride of 8, and ``D``.

    The modules are the network's own.
    """
    flat = list(_flattened(trunk))
    training = trunk.training
    trunk.eval()
    picture, length, dim = torch.zeros(1, 3, _TRIED, _TRIED), 0, 3
    with torch.no_grad():
        for number, module in enumerate(flat, 1):
            picture = module(picture)
            if picture.shape[-1] < _SMALLEST:
                break
            length, dim = number, picture.shape[1]
    trunk.train(training)
    return flat[:length], dim


def _flattened(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        if isinstance(part, nn.Sequential):
            yield from _flattened(part)
        else:
            yield part
