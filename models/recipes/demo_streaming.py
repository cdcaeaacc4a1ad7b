"""demo-streaming: SqueezeNet over whole slides at 1 µm/px, end to end, from slide labels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workshop import Workshop

MPP, BACKBONE = 1.0, "squeezenet1_1"
CONTEXT = 7
"""Cells of 16 µm, averaged before the maximum: 112 µm, as the backbone learnt to look at."""
STAGES = [
    {"epochs": 1, "lr": 1e-4, "head_lr": 1e-3, "trains": "head"},
    {"epochs": 3, "lr": 1e-4, "head_lr": 3e-4, "schedule": "cosine", "start": "last"},
]
TRAINING = {"stages": STAGES, "accumulate": 4, "window": 2, "smoothing": 0.1}
MODEL = {"mpp": MPP, "context": CONTEXT, "pooling": "lse", "sharpness": 8.0, "tile": 512}
SALIENCY = {"saliency": "smoothgrad", "saliency_samples": 4}
"""The demonstration shows SmoothGrad, of fewer samples than a study takes: it is to be quick."""


def make(shop: Workshop) -> None:
    trained = shop.train(
        "streaming",
        "demo-streaming",
        backbone=BACKBONE,
        weights=shop.backbone(BACKBONE),
        config={**MODEL, **TRAINING},
    )
    shop.publish("demo-streaming", trained, golden=shop.tumor_tile(112, MPP), config=SALIENCY)
