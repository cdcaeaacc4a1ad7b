"""The input of a streamed network: a tensor, a uint8 tensor on the CPU, or a lazy reader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from slidelens.errors import StreamingError
from slidelens.geometry import Box
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from slidelens.nn.noise import PositionNoise
    from slidelens.nn.windows import Rect

__all__ = ["DeviceImage", "LazyImage", "Source"]

WHITE = 255


@runtime_checkable
class LazyImage(Protocol):
    """An image that is read piece by piece, such as a region of a slide."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        ...

    def read(self, box: Box) -> NDArray[np.uint8]:
        """Pixels ``(h, w, C)`` of a box in the image's own pixels."""
        ...


@runtime_checkable
class DeviceImage(LazyImage, Protocol):
    """A lazy image that makes its pixels on a device out of what it reads."""

    def read_onto(self, box: Box, device: torch.device) -> Tensor:
        """Pixels ``(1, C, h, w)`` uint8 of a box in the image's own pixels, on the device."""
        ...


class Source:
    """Reads pieces of an image onto the device, normalised.

    Parameters
    ----------
    image
        Floating-point tensor ``(N, C, H, W)``, taken as it is; uint8 tensor ``(N, C, H, W)`` or
        `LazyImage`, normalised piece by piece.
    device, dtype
        Of the pieces.
    mean, std
        Of the normalisation, per channel for values from 0 to 1.
    mask
        ``(h, w)`` bool over the whole image at any resolution; background (False) is painted white.
    noise
        Added to the normalised image.
    """

    def __init__(
        self,
        image: Tensor | LazyImage,
        *,
        device: torch.device,
        dtype: torch.dtype,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        mask: Tensor | None = None,
        noise: PositionNoise | None = None,
    ) -> None:
        self.image, self.device, self.dtype = image, device, dtype
        self.mean, self.std, self.mask, self.noise = mean, std, mask, noise
        if isinstance(image, Tensor):
            if image.dim() != 4:
                raise StreamingError(
                    f"image of shape {tuple(image.shape)}: expected (N, C, H, W); "
                    "add the axis of the batch with image[None]"
                )
            if not (image.is_floating_point() or image.dtype == torch.uint8):
                raise StreamingError(f"image of {image.dtype}: expected floats or uint8")
            self.shape = tuple(image.shape)
        elif isinstance(image, LazyImage):
            height, width, channels = image.shape
            self.shape = (1, channels, height, width)
        else:
            raise StreamingError(
                f"image of type {type(image).__name__}: expected a tensor (N, C, H, W), or an "
                "object with shape (H, W, C) and read(box)"
            )
        if not self._stored.is_floating_point and not len(mean) == len(std) == self.shape[1]:
            raise StreamingError(
                f"image of {self.shape[1]} channels, which mean= ({len(mean)} values) and std= "
                f"({len(std)}) do not normalise: give the trunk one of each per channel, or give a "
                "floating-point image, which is taken as it is"
            )
        if mask is not None and not isinstance(mask, Tensor):
            raise StreamingError(
                f"mask of type {type(mask).__name__}: expected a tensor (h, w) of bool; "
                "torch.from_numpy makes one of an array"
            )
        if mask is not None and (mask.dim() != 2 or mask.dtype != torch.bool):
            raise StreamingError(
                f"mask of shape {tuple(mask.shape)} and {mask.dtype}: expected (h, w) and bool"
            )
        if mask is not None and self._stored != torch.uint8:
            raise StreamingError(
                f"a mask paints uint8 images, this one is {self._stored}: paint it before, or give "
                "uint8"
            )

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.shape[2]

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.shape[3]

    def pixels(self, rect: Rect) -> Tensor:
        """Return one piece ``(N, C, h, w)`` as it is stored, painted; a view where possible.

        An image whose ``read`` gives another shape is a ``StreamingError``.
        """
        if isinstance(self.image, Tensor):
            piece = self.image.detach()[:, :, rect.top : rect.bottom, rect.left : rect.right]
        elif self.device.type != "cpu" and isinstance(self.image, DeviceImage):
            piece = self.image.read_onto(_box(rect), self.device)
        else:
            box = _box(rect)
            values = np.array(self.image.read(box), dtype=np.uint8)
            if values.shape != (rect.height, rect.width, self.shape[1]):
                raise StreamingError(
                    f"read({box}) gave shape {values.shape}: expected "
                    f"({rect.height}, {rect.width}, {self.shape[1]})"
                )
            piece = torch.from_numpy(values).permute(2, 0, 1)[None]
        tissue = self._tissue(rect, piece.device)
        return piece if tissue is None else piece.masked_fill(~tissue, WHITE)

    def prepare(self, pixels: Tensor, rect: Rect) -> Tensor:
        """Return a piece as the network takes it: on the device, normalised, with its noise."""
        pixels = pixels.to(self.device)
        if pixels.dtype == torch.uint8:
            pixels = normalize(pixels, self.mean, self.std).to(self.dtype)
        return pixels if self.noise is None else pixels + self.noise(rect, pixels)

    def _tissue(self, rect: Rect, device: torch.device) -> Tensor | None:
        """Mask of one piece: each pixel takes the cell it lies in. None: nothing is painted."""
        if self.mask is None or not rect.area:
            return None
        rows = torch.arange(rect.top, rect.bottom) * self.mask.shape[0] // self.height
        columns = torch.arange(rect.left, rect.right) * self.mask.shape[1] // self.width
        cells = self.mask.cpu()[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        if cells.all():  # as in the midst of tissue: a copy less
            return None
        rows, columns = (rows - rows[0]).to(device), (columns - columns[0]).to(device)
        return cells.to(device)[rows[:, None], columns]  # pixels are many: made where they are

    def empty(self) -> Tensor:
        """Return a prepared piece without pixels."""
        dtype = self._stored if self._stored.is_floating_point else self.dtype
        return torch.zeros((*self.shape[:2], 0, 0), dtype=dtype, device=self.device)

    @property
    def _stored(self) -> torch.dtype:
        return self.image.dtype if isinstance(self.image, Tensor) else torch.uint8


def _box(rect: Rect) -> Box:
    return Box(rect.left, rect.top, rect.width, rect.height)
