"""The least memory in which a training step of ResNet-34 on a large image runs, planned and taken.

ResNet-34 streamed to layer4[0], float32, forward and backward on the CPU, at the tile that the plan
says takes least. Measured is the peak of a process of its own above what it held before the step
(libraries, weights, image). SLIDELENS_BENCH_SIZES says which images (px, by default 8192,16384);
``--quick`` takes 2048 px.
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from typing import Any

from common import Claim, at_most, main
from streaming import LARGE, Worker, trunk_of

LIMIT_GB = 11
"""What the paper's training on 16384 px takes (of a GPU)."""


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Plan and take a step on each image."""
    from slidelens.nn.streaming import StreamingTrunk

    wanted = "2048" if quick else os.environ.get("SLIDELENS_BENCH_SIZES", "8192,16384")
    module = trunk_of(LARGE.network, LARGE.upto)
    claims, steps = [], []
    for size in map(int, wanted.split(",")):
        plans = [StreamingTrunk(module, tile).plan(size, size) for tile in range(128, 2049, 128)]
        least = min(plans, key=lambda plan: plan.bytes)
        tile = least.tile[0]
        print(f"{size} px, tile {tile}: {least.bytes / 1e9:.2f} GB planned", file=sys.stderr)
        worker = Worker(sys.executable, "streaming", LARGE._replace(size=size), tile)
        seconds = worker.step()
        taken = (worker.peak_mb - worker.base_mb) * 2**20 / 1e9
        worker.close()
        steps.append({"size": size, "tile": tile, "planned_gb": least.bytes / 1e9,
                      "measured_gb": taken, "seconds": seconds})  # fmt: skip
        name = f"ResNet-34 to layer4[0], {size} px, tile {tile}"
        claims += [
            at_most(f"{name}: memory of a training step, measured", taken, LIMIT_GB, "GB"),
            at_most(f"{name}: measured relative to planned", taken / steps[-1]["planned_gb"], 1.2),
        ]
    # Of a small image what libraries take in their first step is as much as the plan.
    return [replace(c, holds=None) for c in claims] if quick else claims, {"steps": steps}


if __name__ == "__main__":
    main(__doc__, measure)
