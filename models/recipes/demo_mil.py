"""demo-mil: top-1 MIL on SqueezeNet, 112 px tiles at 1 µm/px, from slide labels alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workshop import Workshop

TILE, MPP, BACKBONE = 112, 1.0, "squeezenet1_1"


def make(shop: Workshop) -> None:
    trained = shop.train(
        "mil",
        "demo-mil",
        backbone=BACKBONE,
        weights=shop.backbone(BACKBONE),
        epochs=10,
        config={"tile": TILE, "mpp": MPP, "overlap": TILE // 2, "batch_size": 64, "smoothing": 0.1},
    )
    # Cells of 28 µm, each the mean of 16 tiles: a map that follows the tumour's outline.
    golden, fine = shop.tumor_tile(TILE, MPP), {"overlap": TILE * 3 // 4}
    shop.publish("demo-mil", trained, golden=golden, config=fine)
