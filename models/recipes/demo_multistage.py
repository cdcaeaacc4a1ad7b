"""demo-multistage: SqueezeNet describes patches of 112 px at 1 µm/px, a U-Net reads their map."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.geometry import Box
from slidelens.slide.open import open_slide
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from workshop import Workshop

TILE, MPP, BACKBONE = 112, 1.0, "squeezenet1_1"


def make(shop: Workshop) -> None:
    trained = shop.train(
        "multistage",
        "demo-multistage",
        annotations=shop.cohort / "annotations",
        backbone=BACKBONE,
        weights=shop.backbone(BACKBONE),
        epochs=30,
        config={
            "tile": TILE,
            "mpp": MPP,
            "min_tissue": 0.5,  # phantoms are small: a patch at the border counts
            "fine": 4,
            "width": 16,
            "depth": 2,
            "batch_size": 64,
        },
    )
    shop.publish("demo-multistage", trained, golden=_patches(shop))


def _patches(shop: Workshop) -> NDArray[np.uint8]:
    """Return three by three patches around the middle of the first lesion: a golden input."""
    for path in sorted((shop.cohort / "annotations").iterdir()):
        for lesion in read_annotations(path):
            with open_slide(shop.cohort / "slides" / f"{path.stem}.tif") as slide:
                side = 3 * TILE * MPP / slide.require_mpp().x
                x, y = lesion.polygon.centroid.coords[0]
                return np.asarray(slide.read(Box(x - side / 2, y - side / 2, side, side), MPP))
    raise SystemExit("no phantom has a lesion to take the golden patches from")
