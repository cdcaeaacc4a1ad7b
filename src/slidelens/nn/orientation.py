"""The eight orientations of an image: four quarter turns, plain and mirrored.

Orientation ``n`` is ``n % 4`` quarter turns anticlockwise and, from 4 on, a left-right flip.
Points are x, y around the centre of the image.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["NumberT", "orient", "orient_points", "restore", "restore_points"]

NumberT = TypeVar("NumberT", bound=np.number)


def orient(images: Tensor, n: int) -> Tensor:
    """Bring images ``(..., H, W)`` into orientation ``n``; 0 leaves them as they are."""
    turned = torch.rot90(images, n % 4, (-2, -1))
    return turned.flip(-1) if n >= 4 else turned


def restore(images: Tensor, n: int) -> Tensor:
    """Undo :func:`orient`."""
    upright = images.flip(-1) if n >= 4 else images
    return torch.rot90(upright, -n % 4, (-2, -1))


def orient_points(points: NDArray[NumberT], n: int) -> NDArray[NumberT]:
    """Return where points ``(N, 2)`` lie after :func:`orient`."""
    x, y = points.T
    for _ in range(n % 4):
        x, y = y, -x
    return np.stack((-x if n >= 4 else x, y), 1)


def restore_points(points: NDArray[NumberT], n: int) -> NDArray[NumberT]:
    """Undo :func:`orient_points`."""
    x, y = points.T
    x = -x if n >= 4 else x
    for _ in range(n % 4):
        x, y = -y, x
    return np.stack((x, y), 1)
