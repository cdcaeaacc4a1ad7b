"""What trains a module on its own: an attention classifier, and the reconstruction of its input.

Source: locally-supervised-2022, section 2.1 and figure 1; gated attention after Ilse et al. 2018.
"""

from __future__ import annotations

from math import isqrt
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["AttentionHead", "Reading", "Reconstruction", "patch_starts", "whole_windows"]

_GROUPS = 32
"""Groups of a head's norm, at most (the paper does not say)."""


_SMALLEST = 8
"""Side in cells below which a patch is not made smaller for the sake of time."""


class Reading(NamedTuple):
    """What a head makes of a map, in float32 or better; a cell is a window of its convolution."""

    logits: Tensor
    """``(N, classes)``: of the slide."""
    attention: Tensor
    """``(N, h, w)``: share of each cell in the slide's vector; sums to 1."""
    instances: Tensor
    """``(N, classes, h, w)``: the logits that each cell would have as a slide of its own."""


class AttentionHead(nn.Module):
    """Classifies a slide from one map of features of it, by gated attention over its cells.

    Windows that do not overlap make its cells, a norm over the whole slide follows, and attention
    weighs the cells. The last row and column of windows may reach past the map, whose border is
    then repeated, so that all of it is seen and small maps work (ours).

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
        Whether a cell is a linear layer on the mean of its window, or a convolution over it (the
        paper's code): that has as many times more weights as a window has cells.
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
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        self.window = window
        self.embed: nn.Module = nn.Conv2d(channels, width, window, stride=window)
        if mean:
            self.embed = nn.Sequential(nn.AvgPool2d(window), nn.Conv2d(channels, width, 1))
        self.norm = nn.GroupNorm(_groups(width), width)
        self.value = nn.Linear(width, hidden)
        self.gate = nn.Linear(width, hidden)
        self.weigh = nn.Linear(hidden, 1)
        self.classify = nn.Sequential(
            nn.Dropout(dropout), nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, n_classes)
        )

    def start_undecided(self) -> None:
        """Set the classifier's last layer to zero, so that it favours no class (ours)."""
        last = self.classify[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of the map ``(N, C, H, W)``."""
        cells, attention = self._attend(self.windows(features))
        return self._logits(cells, attention)

    @property
    def sees_means(self) -> bool:
        """Whether the mean of each window is all that the head sees of a map."""
        return isinstance(self.embed, nn.Sequential)

    def windows(self, features: Tensor) -> Tensor:
        """Return what the convolution makes of each window: ``(N, width, h, w)``."""
        return self._by_window(features, self.embed)

    def means(self, features: Tensor) -> Tensor:
        """Return the mean of each window, ``(N, C, h, w)``: all that a head of means sees."""
        assert isinstance(self.embed, nn.Sequential)
        return self._by_window(features, self.embed[0])

    def score(self, means: Tensor) -> Tensor:
        """Return the logits ``(N, classes)`` of what :meth:`means` gave."""
        assert isinstance(self.embed, nn.Sequential)
        return self._logits(*self._attend(self.embed[1](means)))

    def _by_window(self, features: Tensor, make: Callable[[Tensor], Tensor]) -> Tensor:
        """Apply to every window what steps from window to window."""
        side = self.window
        rows, columns = features.shape[2] // side, features.shape[3] // side
        if not rows or not columns:
            return make(whole_windows(features, side))
        # The map itself is not padded, only what is left of it: it would be copied, and kept.
        made = make(features)
        if features.shape[3] > columns * side:
            right = features[:, :, : rows * side, columns * side :]
            made = torch.cat([made, make(whole_windows(right, side))], 3)
        if features.shape[2] > rows * side:
            below = features[:, :, rows * side :]
            made = torch.cat([made, make(whole_windows(below, side))], 2)
        return made

    def read(self, windows: Tensor) -> Reading:
        """Return all there is to see, of the ``(N, width, h, w)`` that :meth:`windows` gave."""
        size = windows.shape[2:]
        cells, attention = self._attend(windows)
        instances: Tensor = self.classify(cells)
        logits = self._logits(cells, attention)
        return Reading(
            logits.to(_precise(logits)),
            attention.unflatten(1, size),  # type: ignore[no-untyped-call]
            instances.to(_precise(instances)).movedim(1, 2).unflatten(2, size),  # type: ignore[no-untyped-call]
        )

    def _attend(self, windows: Tensor) -> tuple[Tensor, Tensor]:
        """Return cells ``(N, n, width)`` and their attention ``(N, n)``."""
        cells = F.relu(self.norm(windows)).flatten(2).movedim(1, 2)
        gated = torch.tanh(self.value(cells)) * torch.sigmoid(self.gate(cells))
        weights: Tensor = self.weigh(gated)
        # In float32: a softmax over a hundred thousand cells has no digits to spare.
        return cells, torch.softmax(weights[:, :, 0].to(_precise(weights)), 1)

    def _logits(self, cells: Tensor, attention: Tensor) -> Tensor:
        slide = torch.bmm(attention[:, None].to(cells.dtype), cells)[:, 0]
        logits: Tensor = self.classify(slide)
        return logits


class Reconstruction(nn.Module):
    """Random feature reconstruction: what a module was given must be told from what it made.

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

        Places are drawn from torch's generator on the CPU.
        """
        side = self.side_on(made.shape[2], made.shape[3])
        rows, columns = (
            patch_starts(made.shape[axis], given.shape[axis], side, self.scale) for axis in (2, 3)
        )
        ys = torch.randint(len(rows.made), (self.patches,)).tolist()
        xs = torch.randint(len(columns.made), (self.patches,)).tolist()
        source = _patches(
            made, [rows.made[y] for y in ys], [columns.made[x] for x in xs], rows.side, columns.side
        )
        target = _patches(
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
        return F.l1_loss(self.decode(source).to(_precise(target)), target.to(_precise(target)))

    def side_on(self, height: int, width: int) -> int:
        """Return the side of a patch on a map of this size, before it is bounded by half of it."""
        fair = isqrt(int(self.share * height * width / self.patches))
        return min(self.side, max(fair, _SMALLEST))


class Places(NamedTuple):
    """Where patches may lie along one axis, in cells of both maps."""

    made: range
    given: Sequence[int]
    side: int
    given_side: int


def patch_starts(made: int, given: int, side: int, scale: int) -> Places:
    """Lay patches along an axis of ``made`` cells, each over ``scale`` of ``given`` cells.

    A patch is half the map at most. The last one ends where both maps end, so that every cell of
    both is reached, whatever the strides' roundings have cut off.
    """
    side = max(1, min(side, made // 2))
    starts = range(made - side + 1)
    # Where rounding makes the input longer than it should be, the last two patches must still meet.
    reach = given if len(starts) == 1 else -(-(given - (len(starts) - 2) * scale) // 2)
    given_side = min(max(side * scale, reach), given)
    last = given - given_side
    return Places(starts, [*(min(s * scale, last) for s in starts[:-1]), last], side, given_side)


def whole_windows(features: Tensor, window: int) -> Tensor:
    """Repeat the last row and column of a map until its sides are whole windows."""
    down, right = (-features.shape[axis] % window for axis in (2, 3))
    return F.pad(features, (0, right, 0, down), mode="replicate") if down or right else features


def _groups(width: int) -> int:
    """Return the number of groups of a norm; two channels or more each, for maps of one cell."""
    return next((g for g in range(min(_GROUPS, width // 2), 0, -1) if width % g == 0), 1)


def _patches(
    features: Tensor, ys: Sequence[int], xs: Sequence[int], height: int, width: int
) -> Tensor:
    return torch.cat(
        [features[:, :, y : y + height, x : x + width] for y, x in zip(ys, xs, strict=True)]
    )


def _precise(values: Tensor) -> torch.dtype:
    return torch.promote_types(values.dtype, torch.float32)
