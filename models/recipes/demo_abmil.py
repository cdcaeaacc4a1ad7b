"""demo-abmil: gated-attention MIL on SqueezeNet's vectors, 112 px tiles at 1 µm/px."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workshop import Workshop

TILE, MPP, BACKBONE = 112, 1.0, "squeezenet1_1"


def make(shop: Workshop) -> None:
    trained = shop.train(
        "mil",
        "demo-abmil",
        backbone=BACKBONE,
        weights=shop.backbone(BACKBONE),
        config={
            "pooling": "gated-abmil",
            "tile": TILE,
            "mpp": MPP,
            "embed": 64,
            "hidden": 32,
            "batch_size": 64,
            "smoothing": 0.1,  # else its maps are two-valued
        },
    )
    golden, fine = shop.tumor_tile(TILE, MPP), {"overlap": TILE // 2}
    shop.publish("demo-abmil", trained, golden=golden, config=fine)
