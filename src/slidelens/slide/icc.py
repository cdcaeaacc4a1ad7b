"""Convert colours by the embedded ICC profile, if requested."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms

from slidelens.errors import SlideError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["srgb_transform"]


def srgb_transform(
    profile: bytes | None, path: Path
) -> Callable[[NDArray[np.uint8]], NDArray[np.uint8]] | None:
    """Make a function that converts ``(H, W, 3)`` RGB to sRGB; ``None`` without a profile.

    Relative colorimetric intent, so that white stays white.

    Raises
    ------
    SlideError
        The profile cannot be used.
    """
    if profile is None:
        return None
    try:
        transform = ImageCms.buildTransform(
            ImageCms.ImageCmsProfile(BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            "RGB",
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
        )
    except (ImageCms.PyCMSError, OSError) as error:
        raise SlideError(
            f"{path}: its ICC profile cannot be used ({error}); open it without icc."
        ) from error

    def apply(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        image = Image.fromarray(pixels)
        converted = ImageCms.applyTransform(image, transform)
        assert converted is not None
        return np.array(converted)

    return apply
