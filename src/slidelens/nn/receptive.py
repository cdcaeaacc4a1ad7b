"""Receptive fields and window arithmetic in integers, one axis at a time.

Everything that makes streaming exact is decided here: which input rows an output row reads, how
many output rows a strip of input completes, and, over a whole network, the size, stride and offset
of the receptive field. Nothing is probed or guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["PaddingMode", "ReceptiveField", "Window"]

PaddingMode = Literal["constant", "reflect", "replicate", "circular"]


@dataclass(frozen=True)
class Window:
    """One axis of a convolution, a pooling or a padding layer.

    Output ``o`` reads inputs ``o * stride - before + dilation * j``, ``j < kernel``; inputs outside
    of the image (``before`` it and ``after`` it) are made by ``mode``. ``ceil`` counts an output
    whose window reaches past the end, as poolings with ``ceil_mode`` do.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    mode: PaddingMode = "constant"
    ceil: bool = False

    @property
    def span(self) -> int:
        """Inputs from the first to the last that one output reads."""
        return self.dilation * (self.kernel - 1) + 1

    def size(self, n: int) -> int:
        """Return how many outputs ``n`` inputs give; 0 where PyTorch would refuse.

        In ceil mode PyTorch lets no window start in the padding behind the image.
        """
        free = n + self.before + self.after - self.span
        if free < 0 and not (self.ceil and free > -self.stride):
            return 0
        count = (-(-free // self.stride) if self.ceil else free // self.stride) + 1
        if self.ceil and (count - 1) * self.stride >= n + self.before:
            count -= 1
        return count

    def span_of(self, first: int, last: int) -> tuple[int, int]:
        """Return the inputs ``[a, b)`` that outputs ``[first, last)`` read, padding and all."""
        start = first * self.stride - self.before
        return start, (last - 1) * self.stride - self.before + self.span

    def source(self, i: int, n: int) -> int:
        """Return the input in ``[0, n)`` whose copy stands at position ``i`` of the padded axis."""
        if 0 <= i < n:
            return i
        if self.mode == "reflect":
            return -i if i < 0 else 2 * (n - 1) - i
        if self.mode == "circular":
            return i % n
        return 0 if i < 0 else n - 1

    def reads(self, first: int, last: int, n: int) -> tuple[int, int]:
        """Return the real inputs ``[low, high)``, at least one, that outputs depend on.

        Outputs are ``[first, last)``; the axis has ``n`` inputs.
        """
        a, b = self.span_of(first, last)
        if self.mode == "circular" and (a < 0 or b > n):
            return 0, n
        low = min(max(a, 0), n - 1)
        high = max(min(b, n), low + 1)
        if self.mode == "reflect":
            low = min(low, self.source(b - 1, n)) if b > n else low
            high = max(high, self.source(a, n) + 1) if a < 0 else high
        return low, high

    def ready(self, have: int, n: int) -> int:
        """Return how many first outputs the inputs ``[0, have)`` of ``n`` complete."""
        total = self.size(n)
        if have >= n or have <= 0:
            return total if have >= n else 0
        count = min(max((have - self.span + self.before) // self.stride + 1, 0), total)
        # The first output also reads what is mirrored or wrapped into the leading padding.
        waits = self.mode == "circular" or (self.mode == "reflect" and have <= self.before)
        return 0 if waits and self.before else count


class ReceptiveField(NamedTuple):
    """Output ``o`` of a network depends on inputs ``[o * stride + first, o * stride + last]``."""

    first: int = 0
    last: int = 0
    stride: int = 1

    @property
    def size(self) -> int:
        """Width of the field in input pixels."""
        return self.last - self.first + 1

    @property
    def halo(self) -> tuple[int, int]:
        """Input pixels to read before and behind the cells a tile owns, in whole strides.

        A cell's own pixels are ``[o * stride, (o + 1) * stride)``.
        """
        before = max(-self.first, 0)
        behind = max(self.last + 1 - self.stride, 0)
        return (
            -(-before // self.stride) * self.stride,
            -(-behind // self.stride) * self.stride,
        )

    @property
    def lost(self) -> tuple[int, int]:
        """Output cells at the start and end of a tile that see its (false) border.

        For a tile whose side is a multiple of the stride; these are what the published engine finds
        by pushing a tile of ones through weights set to one.
        """
        return -(-max(-self.first, 0) // self.stride), max(self.last, 0) // self.stride

    def through(self, window: Window) -> ReceptiveField:
        """Field behind one more ``window``."""
        back = window.span - 1 - window.before
        return ReceptiveField(
            self.first - window.before * self.stride,
            self.last + back * self.stride,
            self.stride * window.stride,
        )

    @classmethod
    def union(cls, fields: Iterable[ReceptiveField]) -> ReceptiveField:
        """Field of a node that reads several branches.

        Raises
        ------
        ValueError
            Branches of different strides.
        """
        several = list(fields)
        strides = {field.stride for field in several}
        if len(strides) != 1:
            raise ValueError(f"branches of strides {sorted(strides)} meet")
        return cls(min(f.first for f in several), max(f.last for f in several), several[0].stride)
