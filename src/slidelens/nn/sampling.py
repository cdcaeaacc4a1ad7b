"""Sample windows of pictures, with useful gradients to the windows' positions.

Bilinear sampling gives a window's parameters the slope between neighbouring source pixels, which is
noise where the window shrinks or enlarges much. Linearized multi-sampling (Jiang et al. 2019) fits
a plane to several samples around each position and gives its slope. Values are the same.

Windows are ``(scale, x, y)`` as in magnifying-networks-2023, equation 4: the window's half side and
centre in a picture that reaches from -1 to 1. Pixels are areas: the outermost pixel *edges* lie at
-1 and 1 (``align_corners=False``), so that halving the resolution does not move anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["inside", "multi_sample", "sample", "window_grid"]

_NEIGHBOURS = 7


def window_grid(windows: Tensor, size: int) -> Tensor:
    """Return where the pixels of windows lie: ``(N, 3)`` to ``(N, size, size, 2)`` x and y."""
    steps = (torch.arange(size, device=windows.device, dtype=windows.dtype) * 2 + 1) / size - 1
    scale, x, y = windows[:, 0, None], windows[:, 1, None], windows[:, 2, None]
    across, down = x + scale * steps, y + scale * steps
    return torch.stack(
        [across[:, None, :].expand(-1, size, -1), down[:, :, None].expand(-1, -1, size)], -1
    )


def inside(outer: Tensor, inner: Tensor) -> Tensor:
    """Place windows of windows: ``inner`` ``(..., 3)`` is relative to ``outer``."""
    scale = outer[..., :1]
    return torch.cat((scale * inner[..., :1], outer[..., 1:] + scale * inner[..., 1:]), -1)


def sample(pictures: Tensor, windows: Tensor, size: int) -> Tensor:
    """Sample windows bilinearly: what inference does.

    Parameters
    ----------
    pictures
        ``(N, C, H, W)``; beyond the border the outermost pixels go on.
    windows
        ``(N, 3)``, one per picture.
    size
        Side of the output in px.

    Returns
    -------
    ``(N, C, size, size)``.
    """
    return _at(pictures, window_grid(windows, size))


def multi_sample(
    pictures: Tensor,
    windows: Tensor,
    size: int,
    *,
    radius: float = 1.0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Sample windows bilinearly, with gradients of linearized multi-sampling.

    The values are those of :func:`sample`. The gradient to a window is that of a plane, fitted by
    least squares to the value at each output pixel and at seven others around it, Gaussian with a
    standard deviation of ``radius`` output pixels. On a linear ramp it is exact. (Ours: the seven
    offsets are drawn once per call, not once per pixel, so that the fit is a fixed weighted sum of
    eight samples. The published code draws them per pixel and adds the fitted bias to the value.)

    Parameters
    ----------
    pictures, windows, size
        As for :func:`sample`. The gradient to the pictures is bilinear sampling's.
    radius
        In output pixels. Wider sees further and less sharply.
    generator
        Of the offsets, on the CPU; the global one by default.
    """
    grid = window_grid(windows, size)
    centre = _at(pictures, grid.detach())
    if not (torch.is_grad_enabled() and windows.requires_grad):
        return centre
    offsets = torch.randn(_NEIGHBOURS, 2, generator=generator, dtype=torch.float64)
    with torch.no_grad():
        slopes = _fitted(pictures, grid, windows[:, 0] * (2 / size) * radius, offsets)
    out: Tensor = _Sloped.apply(centre, grid, *slopes)
    return out


class _Sloped(torch.autograd.Function):
    """Values as given, with given slopes as their derivatives by position."""

    @staticmethod
    def forward(  # the positions are not used, they get the gradient
        ctx: Any,
        values: Tensor,
        grid: Tensor,  # noqa: ARG004
        across: Tensor,
        down: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(across, down)
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        across, down = ctx.saved_tensors
        steps = [torch.einsum("nchw,nchw->nhw", grads[0], slope) for slope in (across, down)]
        return grads[0], torch.stack(steps, -1), None, None


def _at(pictures: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(
        pictures, grid, mode="bilinear", padding_mode="border", align_corners=False
    )


def _fitted(pictures: Tensor, grid: Tensor, unit: Tensor, offsets: Tensor) -> Sequence[Tensor]:
    """Return the slopes along x and y ``(N, C, size, size)`` of the planes around each position.

    ``unit`` ``(N,)`` is the length of an offset of 1.
    """
    # Rows 1 and 2 of the pseudo-inverse give the slopes as weighted sums of the eight values.
    points = torch.cat((torch.zeros(1, 2, dtype=torch.float64), offsets))
    design = torch.cat((torch.ones(len(points), 1, dtype=torch.float64), points), 1)
    weights = torch.linalg.pinv(design)[1:].tolist()
    slopes: list[Tensor] = []
    for k, offset in enumerate(points.to(grid)):
        values = _at(pictures, grid + unit.view(-1, 1, 1, 1) * offset)
        for row in (0, 1):
            if k == 0:
                slopes.append(values * weights[row][k])
            else:
                slopes[row].add_(values, alpha=weights[row][k])
    return [slope.div_(unit.view(-1, 1, 1, 1)) for slope in slopes]
