"""The parts that train one module: an attention classifier and a feature reconstruction.

Source: locally-supervised-2022, section 2.1 and figure 1; gated attention after Ilse et al. 2018.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slidelens.nn.pieces import cut_patches, each_window, window_means
from slidelens.nn.precision import at_least_single, without_autocast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "AttentionHead",
    "Reading",
    "Reconstruction",
    "kept",
    "patch_starts",
]

_GROUPS = 32
"""Groups of a head's norm, at most (the paper does not say)."""


_SMALLEST = 8
"""Side in cells below which a patch is not made smaller for the sake of time."""


class Reading(NamedTuple):
    """The output of a head for a map, at least in float32; a cell is one of its windows."""

    logits: Tensor
    """``(N, classes)``: of the slide."""
    attention: Tensor
    """``(N, h, w)``: share of each cell in the slide; sums to 1, 0 where there is no tissue."""
    instances: Tensor
    """``(N, classes, h, w)``: the logits that each cell would have as a slide of its own; NaN where
    there is no tissue."""


class AttentionHead(nn.Module):
    """Classifies a slide by gated attention over the cells of one of its feature maps.

    The cells are windows that do not overlap; attention weighs those with tissue. Glass takes no
    part in norm or attention, since its amount differs between slides and carries no information.
    The last row and column of windows may extend beyond the map, whose border is then repeated, so
    that all of it is used and small maps work. Both are not in the paper.

    Parameters
    ----------
    channels
        Of the map.
    n_classes
        Logits.
    window
        Side of a window in cells of the map.
    width
        Channels of the head's cells.
    hidden
        Of the attention.
    inner
        Units of the classifier's hidden layer.
    mean
        True: a cell is a linear layer on the mean of its window, which is normalised by itself
        before. False: a convolution over the window, and a norm over all windows of the slide
        after it (the paper's code): that has as many times more weights as a window has cells.
    additive
        Whether attention weighs the cells' logits, so that a slide's logits are a sum over its
        cells (Javed et al. 2022), or their vectors, which are classified then (the paper).
    dropout
        Before the classifier.
    """

    def __init__(
        self,
        channels: int,
        n_classes: int,
        *,
        window: int,
        width: int,
        hidden: int,
        inner: int,
        mean: bool = False,
        additive: bool = False,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.window, self.sees_means, self.additive = window, mean, additive
        self.embed: nn.Module
        self.norm: nn.Module
        if mean:
            self.norm, self.embed = nn.LayerNorm(channels), nn.Linear(channels, width)
        else:
            self.embed = nn.Conv2d(channels, width, window, stride=window)
            self.norm = nn.GroupNorm(_groups(width), width)
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1)
        self.classify = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, n_classes)
        )

    def start_undecided(self) -> None:
        """Set the classifier's last layer to zero, to favour no class (not in the paper)."""
        last = self.classify[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor, tissue: Tensor | None = None) -> Tensor:
        """Return the logits ``(N, classes)`` of the map ``(N, C, H, W)``.

        ``tissue`` are the row-major indices of the windows with tissue; None for all.
        """
        return self.score(kept(self.windows(features), tissue))

    def windows(self, features: Tensor) -> Tensor:
        """Return the mean or the convolution of each window, ``(N, C, h, w)``."""
        if self.sees_means:
            return window_means(features, self.window)
        return each_window(features, self.window, self.embed)

    def score(self, windows: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of the windows ``(N, C, n)`` of a slide.

        At least in float32, even under autocast: this costs little, as windows are few, and a
        softmax over many values needs the precision.
        """
        with without_autocast(windows.device):
            cells = self._cells(at_least_single(windows))
            return self._logits(cells, self._attention(cells))

    def read(self, windows: Tensor, tissue: Tensor | None = None) -> Reading:
        """Return the complete output for the ``(N, C, h, w)`` that :meth:`windows` returned."""
        with without_autocast(windows.device):
            cells = self._cells(at_least_single(kept(windows, tissue)))
            attention, instances = self._attention(cells), self.classify(cells)
            logits = self._logits(cells, attention)
        size = windows.shape[2:]
        return Reading(
            logits,
            _spread(attention, tissue, size, 0.0),
            _spread(instances.movedim(1, 2), tissue, size, torch.nan),
        )

    def _cells(self, windows: Tensor) -> Tensor:
        """Return cells ``(N, n, width)`` of windows ``(N, C, n)``."""
        if self.sees_means:
            return F.relu(self.embed(self.norm(windows.movedim(1, 2))))
        return F.relu(self.norm(windows)).movedim(1, 2)

    def _attention(self, cells: Tensor) -> Tensor:
        """Return the attention ``(N, n)`` of cells."""
        gated = torch.tanh(self.value(cells)) * torch.sigmoid(self.gate(cells))
        weights: Tensor = self.weigh(gated)
        return torch.softmax(weights[:, :, 0], 1)

    def _logits(self, cells: Tensor, attention: Tensor) -> Tensor:
        weighed = self.classify(cells) if self.additive else cells
        slide = torch.bmm(attention[:, None], weighed)[:, 0]
        logits: Tensor = slide if self.additive else self.classify(slide)
        return logits


def kept(windows: Tensor, tissue: Tensor | None) -> Tensor:
    """Return the windows ``(N, C, n)`` that have tissue, of all ``(N, C, h, w)``."""
    windows = windows.flatten(2)
    return windows if tissue is None else windows[:, :, tissue]


def _spread(values: Tensor, tissue: Tensor | None, size: Sequence[int], fill: float) -> Tensor:
    """Put values ``(..., n)`` of the windows with tissue onto the grid ``(..., h, w)``."""
    if tissue is not None:
        grid = values.new_full((*values.shape[:-1], size[0] * size[1]), fill)
        grid[..., tissue] = values
        values = grid
    return values.reshape(*values.shape[:-1], *size)


class Reconstruction(nn.Module):
    """Random feature reconstruction: a module's input must be recoverable from its output.

    A few patches of the module's output, at random places, are decoded into the same places of its
    input; the loss is the mean absolute difference.

    Parameters
    ----------
    channels, given
        Of the module's output and of its input.
    scale
        Cells of the input per cell of the output along a side.
    side
        Of a patch, in cells of the output; half the map at most.
    patches
        How many; two or more, since their batch norm is over them alone.
    share
        Part of a map that all patches cover together, at most: their sides are bounded by it too,
        but not to below 8 cells. The paper's patches are 7 to 9 % of its smallest slide's maps; on
        a small slide the reconstruction would cost more than all else (ours).
    """

    def __init__(
        self,
        channels: int,
        given: int,
        *,
        scale: int,
        side: int,
        patches: int = 10,
        share: float = 0.1,
    ) -> None:
        super().__init__()
        self.scale, self.side, self.patches, self.share = scale, side, patches, share
        self.decode = nn.Sequential(
            nn.Conv2d(channels, given, 3, padding=1),
            # Statistics of these patches, always: a decoder only runs in training.
            nn.BatchNorm2d(given, track_running_stats=False),
            nn.ReLU(inplace=True),
            nn.Conv2d(given, given, 3, padding=1),
        )

    def forward(self, made: Tensor, given: Tensor) -> Tensor:
        """Return the loss of ``made`` ``(N, C, H, W)`` against ``given``, a scalar.

        Positions are drawn from torch's generator on the CPU.
        """
        side = self.side_on(made.shape[2], made.shape[3])
        rows, columns = (
            patch_starts(made.shape[axis], given.shape[axis], side, self.scale) for axis in (2, 3)
        )
        ys = torch.randint(len(rows.made), (self.patches,)).tolist()
        xs = torch.randint(len(columns.made), (self.patches,)).tolist()
        source = cut_patches(
            made, [rows.made[y] for y in ys], [columns.made[x] for x in xs], rows.side, columns.side
        )
        target = cut_patches(
            given,
            [rows.given[y] for y in ys],
            [columns.given[x] for x in xs],
            rows.given_side,
            columns.given_side,
        )
        if source.shape[2:] != target.shape[2:]:
            source = F.interpolate(
                source, size=target.shape[2:], mode="bilinear", align_corners=False
            )
        target = at_least_single(target)
        return F.l1_loss(self.decode(source).to(target), target)

    def side_on(self, height: int, width: int) -> int:
        """Return the side of a patch on a map of this size, before limiting it to half the map."""
        fair = isqrt(int(self.share * height * width / self.patches))
        return min(self.side, max(fair, _SMALLEST))


class Places(NamedTuple):
    """Possible positions of patches along one axis, in cells of both maps."""

    made: range
    given: Sequence[int]
    side: int
    given_side: int


def patch_starts(made: int, given: int, side: int, scale: int) -> Places:
    """Lay patches along an axis of ``made`` cells, each over ``scale`` of ``given`` cells.

    A patch is at most half the map. The last one ends where both maps end, so that every cell of
    both is reached, whatever the rounding of strides.
    """
    side = max(1, min(side, made // 2))
    starts = range(made - side + 1)
    # Where rounding makes the input longer than it should be, the last two patches must still meet.
    reach = given if len(starts) == 1 else -(-(given - (len(starts) - 2) * scale) // 2)
    given_side = min(max(side * scale, reach), given)
    last = given - given_side
    return Places(starts, [*(min(s * scale, last) for s in starts[:-1]), last], side, given_side)


def _groups(width: int) -> int:
    """Return the number of groups of a norm, of at least two channels each for maps of one cell."""
    return next((g for g in range(min(_GROUPS, width // 2), 0, -1) if width % g == 0), 1)
