"""What training on whole slides shares: augmentation, and images kept in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from slidelens.families.slide_image import SlideImage
from slidelens.families.training import TrainConfig
from slidelens.nn.slide_augment import SlideAugment

if TYPE_CHECKING:
    from collections.abc import Callable

    from slidelens.families.base import View
    from slidelens.families.slide_image import Frame
    from slidelens.families.training import TrainData

__all__ = ["SlideImages", "SlideTraining"]


class SlideTraining(TrainConfig):
    """Training options shared by models of whole slides."""

    rotation: Literal["none", "quarter", "free"] = Field(
        "quarter", description="random rotation of slides: quarter turns, or any angle"
    )
    elastic: float = Field(
        0.0, ge=0, le=20, description="standard deviation of the elastic deformation in px"
    )
    flips: bool = Field(True, description="random mirroring of slides")
    stain: float = Field(0.2, ge=0, lt=1, description="stain jitter in optical density")
    colour: float = Field(0.05, ge=0, lt=1, description="hue, saturation and brightness jitter")

    def augment(self) -> SlideAugment:
        """Return a slide's augmentation."""
        return SlideAugment(self.rotation, self.flips, self.stain, self.colour, self.elastic)


class SlideImages:
    """The images of a training run's slides; pixels stay in memory while there is room.

    Parameters
    ----------
    data
        The slides.
    frame
        Returns the part of a slide that is its image.
    memory
        Memory for pixels, in bytes.
    """

    def __init__(self, data: TrainData, frame: Callable[[View], Frame], memory: int) -> None:
        self._data, self._frame, self._left = data, frame, memory
        self._images: dict[str, SlideImage] = {}

    def __getitem__(self, slide_id: str) -> SlideImage:
        """Return a slide's image.

        Raises
        ------
        SlideError
            No tissue, or a slide that cannot be read.
        """
        if slide_id not in self._images:
            image = SlideImage(
                # Not the view: it may be closed when many slides are open, and opened again.
                lambda box, mpp: self._data.view(slide_id).read(box, mpp),
                self._frame(self._data.view(slide_id)),
            )
            if image.nbytes <= self._left:
                self._left -= image.nbytes
                image.load()
            self._images[slide_id] = image
        return self._images[slide_id]
