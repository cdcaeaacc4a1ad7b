"""U-Net: a segmentation network that takes maps of any size.

Source: Ronneberger et al. 2015, as multi-stage-segmentation-2019 uses it on maps of feature vectors
(section 3.1) and, for comparison, on reduced pictures of slides (section 4.2.1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from slidelens.nn.precision import ExactConv2d

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["UNet"]


class UNet(nn.Module):
    """``(N, in_channels, H, W)`` to ``(N, out_channels, H, W)`` logits.

    Maps are centred in zeros up to the next size that halves ``depth`` times, and the logits are
    cut back: where the paper has one fixed map size, any size does. There is no normalisation, as
    in the original: statistics over a map would depend on how much of it is empty. Convolutions
    keep the size by zeros at the border (the original loses a frame).

    Parameters
    ----------
    in_channels, out_channels
        Of the map and of the logits.
    width
        Channels of the first level; each level has twice as many.
    depth
        How often the map is halved. One cell of the deepest level sees about ``2 ** depth`` cells.
    """

    def __init__(self, in_channels: int, out_channels: int, width: int = 32, depth: int = 3):
        super().__init__()
        if min(in_channels, out_channels, width) < 1 or depth < 0:
            raise ValueError("a U-Net needs channels, a width of at least 1 and a depth from 0")
        self.depth = depth
        widths = [width * 2**level for level in range(depth + 1)]
        entries = [in_channels, *widths[:-1]]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip(entries, widths, strict=True))
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in reversed(widths[:-1])
        )
        self.up = nn.ModuleList(_double(2 * w, w) for w in reversed(widths[:-1]))
        self.head = ExactConv2d(width, out_channels, 1)
        self.apply(_initialize)

    def forward(self, maps: Tensor) -> Tensor:
        """Return the logits of each cell."""
        height, width = maps.shape[2:]
        top, bottom = self._margins(height)
        left, right = self._margins(width)
        x = F.pad(maps, (left, right, top, bottom))
        kept: list[Tensor] = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        kept.pop()
        for enlarge, block in zip(self.enlarge, self.up, strict=True):
            x = block(torch.cat((kept.pop(), enlarge(x)), 1))
        logits: Tensor = self.head(x)
        return logits[:, :, top : top + height, left : left + width]

    def _margins(self, length: int) -> tuple[int, int]:
        """Return how many zeros go before and after ``length`` cells."""
        missing = -length % 2**self.depth
        return missing // 2, missing - missing // 2


def _double(entry: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(entry, width, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(inplace=True),
    )


def _initialize(module: nn.Module) -> None:
    """He et al. 2015, as the original: without normalisation the signal must keep its size."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        assert module.bias is not None
        nn.init.zeros_(module.bias)
