"""End-to-End Learning of multi-stage segmentation: exact gradients, memory of one mini-batch.

Exactness: every gradient of a small model in fp64, by retained gradients in mini-batches and by
autograd through all patches at once. Memory: one step on one slide in a process of its own
(SqueezeNet, 128 px patches), its largest resident memory above that of the process before the
step, for several numbers of patches and sizes of mini-batch, and un-divided for comparison.
"""

from __future__ import annotations

import json
import subprocess
import sys
from math import isqrt
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import torch
from memory import memory

from slidelens.nn.multistage import MultiStage, arrange, backward_by_parts

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 128  # px


def build(count: int) -> tuple[MultiStage, np.ndarray]:
    """Return a network and the places of ``count`` patches."""
    torch.manual_seed(0)
    network = MultiStage("multistage", "squeezenet1_1", 16, 16, 2).eval()
    cells = np.arange(count)
    return network, np.stack([cells % isqrt(count), cells // isqrt(count)], 1)


def loss_of(network: MultiStage, vectors: torch.Tensor, index: np.ndarray) -> torch.Tensor:
    """Segment a map; every third patch is tumour."""
    laid, cells = arrange(vectors, index)
    logits = network(laid, "segment").flatten()[cells]
    target = (torch.arange(len(logits)) % 3 == 0).to(logits.dtype)
    return torch.nn.functional.binary_cross_entropy_with_logits(logits, target)


def patches(count: int, batch: int, side: int, dtype: torch.dtype) -> Iterator[torch.Tensor]:
    """Yield the same random patches each time, as slides are read: a mini-batch at a time."""
    for start in range(0, count, batch):
        random = torch.Generator().manual_seed(start)
        yield torch.randn(min(batch, count - start), 3, side, side, dtype=dtype, generator=random)


def step(network: MultiStage, index: np.ndarray, batch: int, side: int, dtype: torch.dtype) -> None:
    """Add the gradients of one slide, by parts."""
    backward_by_parts(
        lambda images: network(images, "vectors"),
        lambda: patches(len(index), batch, side, dtype),
        lambda vectors: loss_of(network, vectors, index),
        lambda loss: loss.backward(),
    )


def deviation() -> float:
    """Return the largest difference to un-divided gradients over the largest gradient, in fp64."""
    network, index = build(30)
    network = network.double()
    step(network, index, 7, 48, torch.float64)
    by_parts = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    network.zero_grad()
    images = torch.cat(list(patches(30, 7, 48, torch.float64)))
    loss_of(network, network(images, "vectors"), index).backward()
    whole = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    assert by_parts.keys() == whole.keys()
    largest = max(float(g.abs().max()) for g in whole.values())
    return max(float((by_parts[n] - g).abs().max()) for n, g in whole.items()) / largest


def child(count: int, batch: int) -> None:
    """Do one step in this process and print its memory; ``batch`` 0 is un-divided."""
    network, index = build(count)
    for images in patches(2, 2, SIDE, torch.float32):  # what the first step loads and keeps
        network(images, "vectors").sum().backward()
    network.zero_grad(set_to_none=False)
    before = memory("VmRSS")
    if batch:
        step(network, index, batch, SIDE, torch.float32)
    else:
        images = torch.cat(list(patches(count, 8, SIDE, torch.float32)))
        loss_of(network, network(images, "vectors"), index).backward()
    print(json.dumps({"patches": count, "batch": batch, "mb": memory("VmHWM") - before}))


def run(count: int, batch: int) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--child", str(count), str(batch)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    """Check the gradients, then measure memory."""
    counts = [32, 64] if quick else [64, 128, 256]
    batches = [8, 16] if quick else [8, 16, 32]
    by_count = [run(count, batches[0]) for count in counts]
    by_batch = [by_count[0], *(run(counts[0], batch) for batch in batches[1:])]
    whole = [run(count, 0) for count in counts[:2]]
    times, larger = counts[-1] // counts[0], batches[-1] // batches[0]
    worst = float(f"{deviation():.1e}")
    claims = [
        common.Claim(
            "largest relative difference of a gradient, fp64", worst, "", "<= 1e-10", worst <= 1e-10
        ),
        common.at_most(
            f"memory of a step with {times} times as many patches",
            by_count[-1]["mb"] / by_count[0]["mb"],
            1.15,
            "x",
        ),
        common.at_least(
            f"memory of a step with mini-batches {larger} times as large",
            by_batch[-1]["mb"] / by_batch[0]["mb"],
            0.5 * larger,
            "x",
        ),
        common.at_most(
            f"memory of a step on {counts[0]} patches over that of the un-divided one",
            by_count[0]["mb"] / whole[0]["mb"],
            0.5,
            "x",
        ),
    ]
    return claims, {"patches": by_count, "mini_batches": by_batch, "undivided": whole}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(int(sys.argv[2]), int(sys.argv[3]))
    else:
        common.main(__doc__, measure)
