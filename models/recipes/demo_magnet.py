"""demo-magnet: SqueezeNet looks at eight windows of 112 µm that attention chose in two steps.

Its network is that of ``demo-mil``, which learnt from slide labels, and stays as it is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from slidelens.geometry import Box
from slidelens.slide.open import open_slide
from slidelens.tiling.annotations import read_annotations

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from workshop import Workshop

NEEDS = "demo-mil"
LOOK, MPP, BACKBONE = 112, 1.0, "squeezenet1_1"
SIDE = 448
"""µm along an edge of the golden picture: with a whole phantom the package would be too large."""
CONFIG = {
    "patches": (4, 2),
    "glance": 112,
    "look": LOOK,
    "mpp": MPP,
    "map_mpp": 8.0,
    "width": 8,
    "state": 32,
    "sees": "features",
    "shared": True,
    "tissue": True,
    "frozen": False,
    "auxiliary": "small",
    "auxiliary_layers": (),
    "least": 0.25,
    "inhibition": 20.0,
    "reach": (1.2, 0.01),
    "gain": (4.0, 8.0),
    "dropout": 0.2,
    "evidence": True,
    "survey": 48,
    "probes": 0,
    "probe_scales": (0.125, 0.14),
    "stray": 0.1,
    "warmup": 30,
    "scouting": 24,
    "window": 3,
    "stages": [
        {"epochs": 30, "lr": 1e-4, "head_lr": 1e-3, "trains": "head"},
        {
            "epochs": 24,
            "lr": 1e-4,
            "head_lr": 1e-2,
            "trains": "head",
            "schedule": "cosine",
            "start": "last",
        },
    ],
}


def make(shop: Workshop) -> None:
    trained = shop.train(
        "magnet",
        "demo-magnet",
        backbone=BACKBONE,
        weights=shop.learnt(NEEDS),
        config=CONFIG,
    )
    shop.publish("demo-magnet", trained, golden=_around_a_lesion(shop))


def _around_a_lesion(shop: Workshop) -> NDArray[np.uint8]:
    """Return the surroundings of the first lesion: a golden input."""
    for path in sorted((shop.cohort / "annotations").iterdir()):
        for lesion in read_annotations(path):
            with open_slide(shop.cohort / "slides" / f"{path.stem}.tif") as slide:
                side = SIDE / slide.require_mpp().x
                x, y = lesion.polygon.centroid.coords[0]
                return np.asarray(slide.read(Box(x - side / 2, y - side / 2, side, side), MPP))
    raise SystemExit("no phantom has a lesion to take the golden picture from")
