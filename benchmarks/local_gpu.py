"""Locally supervised learning on a GPU: memory of the device in training, and time of inference.

**Memory** is the peak that PyTorch's allocator hands out on the device during one training step of
ResNet-34 (fp32, stem frozen, first stride 3), weights, gradients and the libraries' workspace
included, relative to plain end-to-end training of the same network on the same image
(locally-supervised-2022, Table 2, at the table's sizes). Judged is the step of which each module is
streamed by tiles of 2048 px (``--set train_tile=2048``), which changes no gradient; the same
without is given. A size at which plain training does not fit the device is reported without a
ratio.

**Time** is that of ``predict``, slide to score, against gated-attention MIL on tiles of 224 px with
the same backbone (``benchmarks/local.py``), on an all-tissue slide at 2 µm/px in memory. Where it
is at hand a real slide is given beside it, also with each at the resolution that it has by default.

``SLIDELENS_BENCH_PART=inference`` measures time alone.

Without a GPU the same runs on the CPU at a 256th of the area: to see that it runs; nothing is
judged and memory is not counted.
"""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any

import torch
from common import Claim, at_least, at_most, main
from local import PAPER, PART, SIZES, all_tissue, compare, compare_real, learner, take_step

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
TILE = 2048
"""Px of a module's step at once: with fewer, a GPU waits for Python."""


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Take steps and time inference."""
    memory, table = ([], []) if PART == "inference" else device_memory(quick)
    times, seconds = inference_time(quick)
    claims = [*memory, *times]
    if DEVICE == "cpu":
        claims = [replace(claim, holds=None) for claim in claims]
    return claims, {"device": DEVICE, "memory": table, "inference": seconds}


def device_memory(quick: bool) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Take one step per method and size; return peaks in MB and what they are of plain training."""
    claims, rows = [], []
    for number, size in enumerate(SIZES[:1] if quick else SIZES):
        width, height = size if DEVICE == "cuda" else (side // 16 for side in size)
        row: dict[str, Any] = {"size": f"{width} x {height}"}
        for modules, tile in ((0, 0), *((m, t) for m in (1, *PAPER) for t in (0, TILE))):
            name = f"modules_{modules}" + ("_streamed" if tile else "") if modules else "plain"
            row[f"{name}_mb"], row[f"{name}_seconds"] = step(modules, tile, height, width)
        claims += judged(row, number)
        rows.append(row)
    return claims, rows


def judged(row: dict[str, Any], number: int) -> list[Claim]:
    """Add to a size's row what the peaks are of plain training; claim what the paper has."""
    claims = []
    for modules, paper in PAPER.items():
        for way in ("_streamed", ""):
            own, plain = row[f"modules_{modules}{way}_mb"], row["plain_mb"]
            if own and plain:
                row[f"modules_{modules}{way}_to_plain"] = round(own / plain, 4)
                what = f"K = {modules}{way.replace('_', ', ')}: peak of device memory"
                claim = at_most(
                    f"{what} relative to plain, {row['size']} px", own / plain, paper[number]
                )
                claims.append(claim if way else replace(claim, target="", holds=None))
    return claims


def step(modules: int, tile: int, height: int, width: int) -> tuple[float | None, float | None]:
    """Return MB of the peak and seconds of a second step; None where it does not fit.

    The first, on a small image, loads the libraries and makes the gradients' memory.
    """
    network, label = learner(modules).to(DEVICE), torch.tensor([1], device=DEVICE)
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8, device=DEVICE)
    if modules:
        image = image.cpu()  # read piece by piece
    small = image[:, :, :256, :256].clone()
    take_step(network, small, label, modules, tile)
    if DEVICE == "cpu":
        take_step(network, image, label, modules, tile)
        return None, None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    start = perf_counter()
    try:
        take_step(network, image, label, modules, tile)
    except torch.OutOfMemoryError:
        return None, None
    finally:
        torch.cuda.synchronize()
    return round(torch.cuda.max_memory_allocated() / 2**20, 1), round(perf_counter() - start, 2)


def inference_time(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Run both families over one slide, in turns."""
    side = (3584 if quick else 10240) if DEVICE == "cuda" else 896
    figures: dict[str, Any] = {"size": f"{side} x {side}", "threads": torch.get_num_threads()}
    figures |= compare(all_tissue(side), "whole", "auto", 5, DEVICE)
    what = "inference faster than tiles and gated ABMIL, GPU"
    claims = [at_least(what, figures["speed_up"], 7.0, "x")]
    if DEVICE == "cuda" and not quick:
        claims += compare_real(figures, DEVICE)
    return claims, figures


if __name__ == "__main__":
    main(__doc__, measure)
