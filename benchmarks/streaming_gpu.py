"""A training step of ResNet-34 on an image of the paper's size, 16384 x 16384 px, on a GPU.

Streamed to layer4[0], head global max pooling, forward and backward, from a uint8 image that stays
in the memory of the host: seconds, megapixels per second, and peak memory of the device, in
float32 (convolutions in TF32, as is PyTorch's default) and in bfloat16, at several tiles. Then the
same beside the un-streamed step on the largest image that fits, in turns. ``--quick`` takes
4096 px. Without a GPU a small image proves that the script runs, and nothing is judged.
"""

from __future__ import annotations

import gc
import sys
import time
from typing import TYPE_CHECKING, Any

import torch
from common import Claim, at_most, main, ratio
from streaming import trunk_of

from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.nn.streaming import StreamingTrunk

if TYPE_CHECKING:
    from collections.abc import Sequence

NETWORK = ("resnet34", "layer4[0]")
TILES = (2048, 4096)
WHOLE = (12288, 8192, 6144, 4096, 2048)
"""Images that the un-streamed step is tried on, largest first."""
LIMIT_GB = {"float32": 11, "bfloat16": 6}
"""What the paper's training takes, and what we aim at."""


class Step:
    """A training step, streamed by tiles or (tile 0) not, on one random image."""

    def __init__(self, image: torch.Tensor, tile: int, *, half: bool, device: str) -> None:
        self.image, self.tile, self.half, self.device = image, tile, half, device
        self.module = trunk_of(*NETWORK).to(device)
        self.trunk = StreamingTrunk(self.module, tile) if tile else None
        self.peak_gb: float | None = None
        if device == "cuda":
            torch.cuda.empty_cache()  # of the way before; its own it keeps, as a training does

    def __call__(self) -> float:
        """Take the step; return its seconds."""
        cuda = self.device == "cuda"
        self.module.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.synchronize()
        start = time.perf_counter()
        with torch.autocast(self.device, torch.bfloat16, enabled=self.half):
            if self.trunk is None:
                image = normalize(self.image.to(self.device), IMAGENET_MEAN, IMAGENET_STD)
                features = self.module(image)
            else:
                features = self.trunk(self.image)
            features.amax((2, 3)).sum().backward()
        if cuda:
            torch.cuda.synchronize()
            self.peak_gb = torch.cuda.max_memory_allocated() / 1e9
        return time.perf_counter() - start

    def warm(self) -> None:
        """Choose kernels, on a few tiles of the image."""
        image, side = self.image, 2 * self.tile
        self.image = image[:, :, :side, :side].contiguous()
        self()
        self.image = image

    def figures(self, seconds: float) -> dict[str, Any]:
        """Return what is to be said of it."""
        size = self.image.shape[-1]
        planned = None if self.trunk is None else self.trunk.plan(size, size).bytes / 1e9
        return {
            "size": size, "tile": self.tile or None, "precision": precision(self.half),
            "seconds": seconds, "megapixels_per_second": size * size / seconds / 1e6,
            "peak_gb": self.peak_gb, "planned_gb": planned,
        }  # fmt: skip


def precision(half: bool) -> str:
    """Name a precision."""
    return "bfloat16" if half else "float32"


def random_image(size: int) -> torch.Tensor:
    """Return noise, ``(1, 3, size, size)`` uint8: no tile is glass, none is reused."""
    row = torch.randint(0, 256, (3, 256, size), dtype=torch.uint8)
    return torch.stack([row.roll(97 * n, -1) for n in range(size // 256 + 1)], 1).reshape(
        1, 3, -1, size
    )[:, :, :size]


def paper(size: int, tiles: Sequence[int], device: str) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Take steps on the image of the paper."""
    image = random_image(size)
    claims, steps = [], []
    for half in (False, True):
        mine = []
        for tile in tiles:
            step = Step(image, tile, half=half, device=device)
            step.warm()
            mine.append(step.figures(step()))
            print(mine[-1], file=sys.stderr, flush=True)
        steps += mine
        if mine[0]["peak_gb"] is not None:
            what = f"ResNet-34, {size} px, {precision(half)}"
            least = min(mine, key=lambda one: one["peak_gb"])
            fast = min(mine, key=lambda one: one["seconds"])
            limit = LIMIT_GB[precision(half)]
            claims.append(
                at_most(f"{what}: peak memory of a training step, tile {least['tile']}",
                        least["peak_gb"], limit, "GB"),
            )  # fmt: skip
            for one in (least, fast):
                name = f"{what}: seconds of a training step, tile {one['tile']}"
                claims.append(Claim(name, round(one["seconds"], 3), "s", "", None))
            name = f"{what}: megapixels per second, tile {fast['tile']}"
            claims.append(Claim(name, round(fast["megapixels_per_second"], 1), "", "", None))
    return claims, steps


def against_whole(
    sizes: Sequence[int], tile: int, device: str, rounds: int = 2
) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Compare with the un-streamed step on the largest image that fits."""
    claims, pairs = [], []
    for half in (False, True):
        for size in sizes:
            image = random_image(size)
            whole = Step(image, 0, half=half, device=device)
            try:
                whole()
            except torch.OutOfMemoryError:
                del whole
                gc.collect()
                continue
            streamed = Step(image, tile, half=half, device=device)
            streamed()
            seconds = [(streamed(), whole()) for _ in range(rounds)]
            times = ratio([s for s, _ in seconds], [w for _, w in seconds])
            pairs.append({
                "ratio": times,
                "whole": whole.figures(min(w for _, w in seconds)),
                "streamed": streamed.figures(min(s for s, _ in seconds)),
            })  # fmt: skip
            print(pairs[-1], file=sys.stderr, flush=True)
            what = f"ResNet-34, {size} px, {precision(half)}, tile {tile}"
            claims.append(
                Claim(f"{what}: time relative to un-streamed", round(times, 3), "x", "", None)
            )
            if whole.peak_gb and streamed.peak_gb:
                share = round(streamed.peak_gb / whole.peak_gb, 4)
                claims.append(
                    Claim(f"{what}: memory relative to un-streamed", share, "x", "", None)
                )
            break
    return claims, pairs


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Measure on a GPU; without one, prove the script on a small image and judge nothing."""
    if not torch.cuda.is_available():
        _, steps = paper(256, (64, 128), "cpu")
        _, pairs = against_whole((256,), 128, "cpu", rounds=1)
        name = "ResNet-34, 16384 px: peak memory of a training step on a GPU"
        return [Claim(name, "no GPU here", "", "<= 11", None)], {"steps": steps, "pairs": pairs}
    claims, steps = paper(4096 if quick else 16384, TILES, "cuda")
    more, pairs = against_whole(WHOLE[2:] if quick else WHOLE, 4096, "cuda")
    return claims + more, {"steps": steps, "pairs": pairs}


if __name__ == "__main__":
    main(__doc__, measure)
