"""demo-local: SqueezeNet in four modules that train on their own, whole slides at 1 µm/px."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workshop import Workshop

MPP, BACKBONE = 1.0, "squeezenet1_1"
STAGES = [
    {"epochs": 2, "lr": 5e-5, "head_lr": 1e-3, "trains": "head"},
    {"epochs": 2, "lr": 5e-5, "head_lr": 2e-4, "schedule": "cosine", "start": "last"},
]


def make(shop: Workshop) -> None:
    trained = shop.train(
        "local",
        "demo-local",
        backbone=BACKBONE,
        weights=shop.backbone(BACKBONE),
        config={
            "modules": 4,
            "mpp": MPP,
            "head_width": 64,
            "pooling": "attention",
            "patches": 0,  # their decoders would be twice as large as all else
            "tile": 512,
            "stages": STAGES,
        },
    )
    shop.publish("demo-local", trained, golden=shop.tumor_tile(112, MPP))
