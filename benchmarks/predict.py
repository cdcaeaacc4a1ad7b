"""What ``predict`` adds to reading and inferring: a real slide of 203 megapixels, SqueezeNet.

Three things are timed in turns in one warm process, on the same tiles:

read     open the slide, find its tissue, read every tile that the model would see
forward  the network, with the same batches and precision, on tiles that are in memory
predict  the whole of it, from the path to a result folder on disk

On a CPU reading and inferring share the cores, so predict should cost no more than their sum; on a
GPU it should cost no more than the slower of the two. ``--quick`` runs a region of the slide.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import common
import torch

from slidelens.engine.device import evaluating, pick_device, uses_bf16
from slidelens.engine.loader import SlideView
from slidelens.engine.package import load_model, save_model
from slidelens.engine.predict import predict
from slidelens.families.base import Model
from slidelens.families.mil import MilConfig, build, grid_spec
from slidelens.geometry import Box
from slidelens.nn.backbones import load_weights
from slidelens.nn.pixels import normalize
from slidelens.slide.open import open_slide

SLIDE = common.DATA / "wsi" / "colon_polyp_203mp.tif"
WEIGHTS = common.DATA / "weights" / "squeezenet1_1_imagenet.safetensors"
QUICK = Box(3000, 2500, 9000, 8000)
WARM = Box(6000, 5000, 1000, 1000)
BUDGET_S = 100  # --quick starts no further round after this; two at least
KEPT = 4  # batches in memory for the forward pass alone


def squeezenet(folder: Path) -> Model[MilConfig]:
    """Return MIL's default (224 px at 0.5 µm/px) on SqueezeNet, by way of a package."""
    torch.manual_seed(0)
    config = MilConfig(backbone="squeezenet1_1")
    module = build(config, 2)
    load_weights(module.features, WEIGHTS)
    save_model(Model("squeezenet", "mil", config, ("normal", "tumour"), module), folder)
    return load_model(folder, "auto")


class Ways:
    """The three things that are compared."""

    def __init__(self, model: Model[MilConfig], region: Box | None, out: Path) -> None:
        self.model, self.region, self.out = model, region, out
        self.device = pick_device("auto")
        self.batches: list[torch.Tensor] = []
        self.tiles = self.size = 0

    def read(self) -> None:
        """Read all tiles; remember how many, and the first batches."""
        with (
            open_slide(SLIDE) as slide,
            SlideView(slide, region=self.region, device=self.device) as view,
        ):
            grid = view.grid(grid_spec(self.model.config))
            self.tiles = len(grid)
            for batch in view.batches(grid, self.model.config.batch_size):
                if len(self.batches) < KEPT:
                    self.batches.append(batch.images)
            self.size = view.batch_in_use

    def forward(self) -> None:
        """Run the network as often as the slide asks for."""
        if not self.batches:
            self.read()
        size = self.size  # that of predict
        bf16 = uses_bf16(self.device, "auto")
        for number, start in enumerate(range(0, self.tiles, size)):
            images = self.batches[number % KEPT][: self.tiles - start]
            with evaluating(self.device, bf16):
                self.model.module(normalize(images, self.model.mean, self.model.std)).float().cpu()

    def predict(self) -> float:
        """Run it all; return the seconds, without those that removing the result takes."""
        start = time.perf_counter()
        predict(SLIDE, self.model, region=self.region, out=self.out)
        seconds = time.perf_counter() - start
        shutil.rmtree(self.out)
        return seconds


def timed(ways: Ways, quick: bool) -> dict[str, list[float]]:
    """Time the three in turns, their order reversed every round."""
    turns = {"read": ways.read, "forward": ways.forward, "predict": ways.predict}
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    start = time.perf_counter()
    for number in range(5):
        if quick and number >= 2 and time.perf_counter() - start > BUDGET_S:
            break
        order = turns if number % 2 else dict(reversed(turns.items()))
        for name, spent in common.interleaved(order, rounds=1, warm=0).items():
            seconds[name] += spent
    return seconds


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    """Time the three and compare."""
    folder = Path(tempfile.mkdtemp(prefix="slidelens-bench-"))
    try:
        model = squeezenet(folder / "model")
        predict(SLIDE, model, region=WARM, out=folder / "warm")
        ways = Ways(model, QUICK if quick else None, folder / "out")
        seconds = timed(ways, quick)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    pairs = list(zip(seconds["read"], seconds["forward"], strict=True))
    if ways.device.type == "cpu":
        bound, name, target = [r + f for r, f in pairs], "reading plus inferring", 1.10
    else:
        bound, name, target = [max(p) for p in pairs], "the slower of reading and inferring", 1.15
    claim = common.at_most(
        f"predict on {ways.device.type}, time relative to {name}",
        common.ratio(seconds["predict"], bound),
        target,
        "x",
    )
    return [claim], {
        "seconds": seconds,
        "tiles": ways.tiles,
        "tiles_per_second": ways.tiles / sorted(seconds["predict"])[len(pairs) // 2],
        "precision": "bf16" if uses_bf16(ways.device, "auto") else "fp32",
        "region": QUICK if quick else None,
    }


if __name__ == "__main__":
    common.main(__doc__, measure, [SLIDE, WEIGHTS])
