"""Locally supervised learning: memory of a training step, and time of inference.

**Memory** is that of one training step of ResNet-34 (stem frozen, first stride 3) relative to plain
end-to-end training of the same network on the same image, as PyTorch's autograd does it: what the
paper compares with (locally-supervised-2022, Table 2). Two counts:

- bytes of the tensors that autograd keeps, each memory once, at their highest, at the sizes of
  Table 2. They follow from shapes alone, so the very same training code runs on tensors without
  data (device ``meta``) and the count is exact; nothing of 9 to 78 GB is computed.
- peak memory of a process that really takes the step, above what it had before, on the first image
  of Table 2 where there are 20 GB free for plain training, and on one of a 16th of its area
  (``--quick``: a 64th). Judged is Table 2's size with each module's step streamed by tiles of 512
  px (``--set train_tile=512``), which changes no gradient; the same without is given.

Given beside it: the same relative to our own ``--modules 1``, whose frozen norms keep nothing.

**Time** is that of ``predict``, slide to score, against gated-attention MIL on tiles of 224 px with
the same backbone in batches of 32, on the same all-tissue slide at 2 µm/px (in memory, so that no
file is read), in turns. Where the test data are at hand, a real slide is given beside it: with both
at 2 µm/px, and each at the resolution that it has by default, 2 and 0.5 µm/px.

``SLIDELENS_BENCH_PART=inference`` measures time alone.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter, process_time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
import torch
from common import DATA, Claim, at_least, at_most, interleaved, main, ratio

from slidelens.engine.package import family_of
from slidelens.engine.predict import predict
from slidelens.engine.provenance import LOADED
from slidelens.families.base import Model
from slidelens.nn.backbones import build_features
from slidelens.nn.local import LocalNetwork
from slidelens.nn.pixels import IMAGENET_MEAN, IMAGENET_STD, normalize
from slidelens.nn.relay import Relay
from slidelens.slide.array import from_array
from slidelens.slide.open import open_slide
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from slidelens.slide.base import Slide

PART = os.environ.get("SLIDELENS_BENCH_PART", "all")
SIZES = ((8698, 7496), (12223, 10057), (23849, 10257))  # px, width x height
PAPER = {4: (0.299, 0.287, 0.234), 8: (0.207, 0.192, 0.152)}
BACKBONE, STEM_STRIDE, TILE = "resnet34", 3, 512
ROOM = 20 << 30
"""Bytes that must be free to train end to end on the first image of Table 2: it takes 14 GB."""
REAL = DATA / "wsi" / "colon_polyp_203mp.tif"


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Count memory and time inference."""
    kept, table = ([], []) if PART == "inference" else kept_memory()
    peaks, processes = ([], []) if PART == "inference" else process_memory(quick)
    times, seconds = inference_time(quick)
    return [*kept, *peaks, *times], {"kept": table, "process": processes, "inference": seconds}


# Tensors that autograd keeps ------------------------------------------------------------------


class Meter:
    """Bytes of memory that tensors kept for the backward pass hold, now and at most.

    Memory that several of them share counts once; memory of weights does not count.
    """

    def __init__(self, module: torch.nn.Module) -> None:
        self._own = {t.untyped_storage()._cdata for t in module.state_dict().values()}
        self._users: dict[int, int] = {}
        self.now = self.peak = 0

    @contextmanager
    def watching(self) -> Iterator[None]:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: Kept(t, self), lambda k: k.tensor):
            yield

    def add(self, key: int, size: int) -> None:
        if key not in self._own:
            self._users[key] = self._users.get(key, 0) + 1
            self.now += size if self._users[key] == 1 else 0
            self.peak = max(self.peak, self.now)

    def drop(self, key: int, size: int) -> None:
        if key not in self._own:
            self._users[key] -= 1
            if not self._users[key]:
                del self._users[key]
                self.now -= size


class Kept:
    """One kept tensor; autograd lets go of it with the graph."""

    def __init__(self, tensor: torch.Tensor, meter: Meter) -> None:
        storage = tensor.untyped_storage()
        self.tensor, self.meter = tensor, meter
        self.key, self.size = storage._cdata, storage.nbytes()
        meter.add(self.key, self.size)

    def __del__(self) -> None:
        self.meter.drop(self.key, self.size)


class Plain(torch.nn.Module):
    """End-to-end training as anybody would write it: torchvision's layers, one loss."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = build_features(BACKBONE).trunk.eval()
        self.trunk.conv1.stride = (STEM_STRIDE, STEM_STRIDE)
        self.head = LocalNetwork(BACKBONE, 2, 1).heads[0]

    def stem(self, image: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return self.trunk[:4](image)

    def forward(self, features: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        logits = self.head(self.trunk[4:](features))
        return torch.nn.functional.cross_entropy(logits, label)


class Local(LocalNetwork):
    """A network that is given what the stem makes: streaming it looks at pixels; meta has none."""

    def stem_features(self, relay: Relay) -> torch.Tensor:
        return relay.image


def kept_memory() -> tuple[list[Claim], list[dict[str, Any]]]:
    """Count what autograd keeps at the sizes of Table 2."""
    claims, rows = [], []
    for number, (width, height) in enumerate(SIZES):
        plain, own = kept_plain(height, width), kept_local(1, height, width)
        row: dict[str, Any] = {"size": f"{width} x {height}", "plain_bytes": plain}
        row["modules_1_bytes"] = own
        for modules, paper in PAPER.items():
            kept = kept_local(modules, height, width)
            row[f"modules_{modules}_bytes"] = kept
            row[f"modules_{modules}_to_plain"] = round(kept / plain, 4)
            row[f"modules_{modules}_to_modules_1"] = round(kept / own, 4)
            what = f"K = {modules}: kept tensors relative to plain end-to-end, {row['size']} px"
            claims.append(at_most(what, kept / plain, paper[number]))
        rows.append(row)
    return claims, rows


def kept_plain(height: int, width: int) -> int:
    """Return the bytes at most kept by a plain step."""
    with torch.device("meta"):
        network, image = Plain(), torch.empty(1, 3, height, width)
    features, meter = network.stem(image), Meter(network)
    with meter.watching():
        network(features, torch.zeros(1, dtype=torch.long, device="meta")).backward()
    return meter.peak


def kept_local(modules: int, height: int, width: int) -> int:
    """Return the bytes at most kept by a step of so many modules."""
    with torch.device("meta"):
        network = Local(BACKBONE, 2, modules, stem_stride=STEM_STRIDE).train()
        features = network.stem(torch.empty(1, 3, height, width)).detach()
    relay = Relay(features, torch.zeros(1, dtype=torch.long, device="meta"))
    meter = Meter(network)
    for index in range(modules):
        with meter.watching():
            network(relay, index).backward()
    return meter.peak


# Memory of a process --------------------------------------------------------------------------


def process_memory(quick: bool) -> tuple[list[Claim], list[dict[str, Any]]]:
    """Take real steps in processes of their own, on the first image of Table 2 and smaller ones."""
    claims, rows = [], []
    for part in (8,) if quick else (4, 1):
        width, height = (side // part for side in SIZES[0])
        if part == 1 and psutil.virtual_memory().available < ROOM:
            why = "not measured: less than 20 GB of memory are free"
            claims.append(Claim(f"peak of the process, {width} x {height}", why, "", "", None))
            continue
        peaks = {}
        for modules, tile in ((0, 0), *((m, t) for m in (1, *PAPER) for t in (0, TILE))):
            name = f"modules {modules}" + (", streamed" if tile else "") if modules else "plain"
            call = json.dumps([modules, tile, height, width])
            command = [sys.executable, __file__, "--step", call]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks[name] = json.loads(done.stdout)
            print(f"{width} x {height} px, {name}: {peaks[name]} MB", file=sys.stderr)
        for modules, paper in PAPER.items():
            for way, judged in ((", streamed", part == 1), ("", False)):
                what = f"K = {modules}{way}: peak of the process relative to plain"
                share = peaks[f"modules {modules}{way}"] / peaks["plain"]
                claim = at_most(f"{what}, {width} x {height} px", share, paper[0])
                claims.append(claim if judged else replace(claim, target="", holds=None))
        size = f"{width} x {height}"
        rows.append({"size": size, "streamed_tile_px": TILE, "peak_mb": peaks})
    return claims, rows


def step(modules: int, tile: int, height: int, width: int) -> float:
    """Take one step in this process; return the MB of its peak above what it began with.

    0 modules are plain training. A first step on a small image makes the gradients' memory.
    """
    network, label = learner(modules), torch.tensor([1])
    image = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
    take_step(network, image[:, :, :256, :256].clone(), label, modules, tile)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    take_step(network, image, label, modules, tile)
    return round(_status("VmHWM") - before, 1)


def learner(modules: int) -> Any:
    """Return a network in training mode; 0 modules are plain training."""
    torch.manual_seed(0)
    network: Any = (
        LocalNetwork(BACKBONE, 2, modules, stem_stride=STEM_STRIDE) if modules else Plain()
    )
    network.train().to(memory_format=torch.channels_last)
    if not modules:
        network.trunk.eval()
    return network


def take_step(
    network: Any, image: torch.Tensor, label: torch.Tensor, modules: int, tile: int
) -> None:
    """Go forward and back through a network; 0 modules are plain training."""
    if not modules:
        features = network.stem(normalize(image, IMAGENET_MEAN, IMAGENET_STD))
        network(features, label).backward()
        return
    relay = Relay(image, label, tile=tile)
    for index in range(modules):
        network(relay, index).backward()


def _status(field: str) -> float:
    """Return MB of this process from ``/proc`` (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


# Time of inference ----------------------------------------------------------------------------


def inference_time(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Run both families over one slide, in turns."""
    side = 1792 if quick else 3584
    slide = all_tissue(side)
    figures: dict[str, Any] = {"size": f"{side} x {side}", "threads": torch.get_num_threads()}
    claims = []
    for precision in ("auto", "fp32"):
        found = figures[precision] = compare(slide, "whole", precision, 3 if quick else 5)
        what = f"inference faster than tiles and gated ABMIL, CPU, precision {precision}"
        claims.append(at_least(what, found["speed_up"], 2.0, "x"))
    if not quick:
        claims += compare_real(figures)
    return claims, figures


def compare_real(figures: dict[str, Any], device: str = "cpu") -> list[Claim]:
    """Compare on a real slide, if it is there; add to ``figures`` and return what is not judged."""
    if not REAL.is_file():
        return []
    claims = []
    with open_slide(REAL) as slide:
        for name, what, mpp in (
            ("real", "both at 2 µm/px", {}),
            ("real_by_default", "local at 2, tiles at 0.5 µm/px (defaults)", {"mil": 0.5}),
        ):
            found = compare(slide, "auto", "auto", 2, device, mpp=mpp)
            figures[name] = {"slide": REAL.name, **found}
            told = f"inference faster than tiles and gated ABMIL, {device.upper()}, a real slide"
            claims.append(Claim(f"{told}, {what}", found["speed_up"], "x", "", None))
    return claims


def all_tissue(side: int) -> Slide:
    """Return a slide of texture in memory, at 2 µm/px."""
    random = np.random.default_rng(0)
    texture = random.integers(90, 220, (side // 8, side // 8, 3), np.uint8)
    return from_array(texture.repeat(8, 0).repeat(8, 1), mpp=2.0)


def compare(
    slide: Slide,
    tissue: str,
    precision: str,
    rounds: int,
    device: str = "cpu",
    mpp: Mapping[str, float] = MappingProxyType({}),
) -> dict[str, Any]:
    """Time ``predict`` by processor (others may be at work on this machine), on a GPU by the clock.

    ``mpp`` is the resolution of a family that does not work at 2 µm/px.
    """
    settings = TissueSettings(method=tissue)
    models = {
        "local": {"modules": 4},
        "mil": {"pooling": "gated-abmil", "keep_features": False},
    }
    clock = process_time if device == "cpu" else perf_counter

    def way(family: str) -> Any:
        kind = family_of(family)
        config = kind.config(backbone=BACKBONE, mpp=mpp.get(family, 2.0), **models[family])
        module = kind.build(config, 2).eval().to(memory_format=torch.channels_last)
        model = Model(family, family, config, ("a", "b"), module, device=torch.device("cpu"))
        LOADED.keep(module, family)  # as if from a package: else each run would sum its weights

        def run() -> float:
            start = clock()
            found = predict(slide, model, tissue=settings, precision=precision, device=device)
            seconds = clock() - start
            stages[family] = {name: round(value, 3) for name, value in found.timings.items()}
            return seconds

        return run

    stages: dict[str, dict[str, float]] = {}
    seconds = interleaved({family: way(family) for family in models}, rounds)
    speed_up = round(ratio(seconds["mil"], seconds["local"]), 3)
    name = "cpu_seconds" if device == "cpu" else "seconds"
    return {name: seconds, "speed_up": speed_up, "stages_of_the_last": stages}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--step"]:
        print(step(*json.loads(sys.argv[2])))
    else:
        main(__doc__, measure)
