"""Streaming against un-streamed training and against lightstream 1.0.7: time, memory, work.

Every way runs in a process of its own, forward and backward in turns with the others, on the same
network, image and tile. lightstream has its own environment: the interpreter named by
LIGHTSTREAM_PYTHON, or one that is made in the temporary folder. What is measured of one network is
kept in the folder SLIDELENS_BENCH_WORK, if it is set: a run that was stopped goes on there.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import common

if TYPE_CHECKING:
    from torch import nn

LIGHTSTREAM = ["lightstream==1.0.7", "lightning", "numpy", "torchvision"]


class Case(NamedTuple):
    """A network, streamed up to a layer, with an image and a tile."""

    network: str
    upto: str
    size: int
    tile: int
    faster: float
    """How much faster than lightstream it is to be."""
    memory: float
    """Largest peak memory relative to lightstream."""
    within: int = 0
    """A tile that is also given what lightstream takes as its memory; 0 for none."""


CASES = {
    "ResNet-18 to layer3": Case("resnet18", "layer3", 2048, 1024, 1.6, 1.05, 512),
    "ResNet-18 to layer2": Case("resnet18", "layer2", 2048, 512, 1.8, 1.1, 256),
}
LARGE = Case("resnet34", "layer4[0]", 3072, 2048, 1.6, 1.05)
TILES = (256, 512, 1024)
QUICK = 1280
"""Px of the image with ``--quick``."""
# Of what lightstream's process adds to ours before its step, the share that a plan may fill: a
# process holds holes beside what a plan counts.
SHARE = 0.85
WITHIN = "within lightstream's memory, tile"


# In the processes that are measured -----------------------------------------------------------


def trunk_of(network: str, upto: str) -> nn.Module:
    """Return a torchvision ResNet up to a layer, in eval mode."""
    import torch
    import torchvision
    from torch import nn

    torch.manual_seed(0)
    net = getattr(torchvision.models, network)(weights=None).eval()
    parts = [net.conv1, net.bn1, net.relu, net.maxpool]
    for name in ("layer1", "layer2", "layer3", "layer4"):
        layer = getattr(net, name)
        if upto == f"{name}[0]":
            return nn.Sequential(*parts, layer[0])
        parts.append(layer)
        if upto == name:
            return nn.Sequential(*parts)
    raise SystemExit(f"no layer {upto}")


def child(way: str, network: str, upto: str, size: int, tile: int, peak_mb: float) -> None:
    """Answer each line of the input with the seconds of one step and the peak memory so far.

    And with the peak before the first step: libraries, weights, image. ``peak_mb`` is what the
    process should not exceed, 0 for any.
    """
    import torch

    module = trunk_of(network, upto)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    answers, sys.stdout = sys.stdout, sys.stderr  # lightstream prints
    base = _peak_mb()
    memory = int(SHARE * (peak_mb - base) * 2**20) if peak_mb else None
    if way == "lightstream":
        step = _lightstream(module, image, tile)
    else:
        step = _own(module, image, tile, memory)
    for _ in sys.stdin:
        start = time.perf_counter()
        step()
        seconds = time.perf_counter() - start
        answer = {"seconds": seconds, "peak_mb": _peak_mb(), "base_mb": base}
        print(json.dumps(answer), file=answers, flush=True)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _own(module: nn.Module, image: Any, tile: int, memory: int | None) -> Any:
    from slidelens.nn.streaming import StreamingTrunk

    net = StreamingTrunk(module, tile, memory=memory) if tile else module

    def step() -> None:
        module.zero_grad(set_to_none=True)
        net(image).sum().backward()

    return step


def _lightstream(module: nn.Module, image: Any, tile: int) -> Any:
    from lightstream.core.scnn.scnn import StreamingCNN

    net = StreamingCNN(module, tile_shape=(1, 3, tile, tile), copy_to_gpu=False)

    def step() -> None:
        module.zero_grad(set_to_none=True)
        features = net.forward(image).requires_grad_()
        features.sum().backward()
        net.backward(image, features.grad)

    return step


# In the process that measures -----------------------------------------------------------------


class Worker:
    """A process that runs one way of taking a training step."""

    def __init__(self, python: str, way: str, case: Case, tile: int, peak_mb: float = 0) -> None:
        command = [python, __file__, "--child", way, case.network, case.upto, str(case.size)]
        self.errors = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115  (closed with the process)
        self.process = subprocess.Popen(
            [*command, str(tile), str(peak_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True,
        )  # fmt: skip
        self.peak_mb = self.base_mb = 0.0

    def step(self) -> float:
        """Take one step; return its seconds."""
        pipe, answers = _pipe(self.process.stdin), _pipe(self.process.stdout)
        try:
            pipe.write("\n")
            pipe.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self.process.wait()
            self.errors.seek(0)
            error = self.errors.read().strip().splitlines()
            raise RuntimeError(error[-1] if error else "the process ended")
        answer = json.loads(line)
        self.peak_mb, self.base_mb = answer["peak_mb"], answer["base_mb"]
        return float(answer["seconds"])

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
        self.errors.close()


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream


def lightstream_python() -> str | None:
    """Return an interpreter that has lightstream, made if need be; None where it cannot be."""
    given = os.environ.get("LIGHTSTREAM_PYTHON")
    if given:
        return given
    folder = Path(tempfile.gettempdir()) / "slidelens-lightstream"
    python = folder / "bin" / "python"
    uv = shutil.which("uv")
    if uv:
        make = [uv, "venv", "--quiet", "--python", sys.executable, str(folder)]
        install = [uv, "pip", "install", "--quiet", "--python", str(python), *LIGHTSTREAM]
    else:
        make = [sys.executable, "-m", "venv", str(folder)]
        install = [str(python), "-m", "pip", "install", "--quiet", *LIGHTSTREAM]
    for command in [install] if python.exists() else [make, install]:
        if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
            return None
    return str(python)


def compare(case: Case, rounds: int, python: str | None) -> dict[str, Any]:
    """Time plain, lightstream and streaming at several tiles, in turns; of `LARGE` one tile."""
    some = () if case is LARGE else TILES
    tiles = [t for t in dict.fromkeys((*some, case.tile)) if t <= case.tile]
    workers = {f"tile {t}": Worker(sys.executable, "streaming", case, t) for t in tiles}
    if case is not LARGE:
        workers["plain"] = Worker(sys.executable, "plain", case, 0)
    if python:
        workers["lightstream"] = Worker(python, "lightstream", case, case.tile)
    failed: dict[str, str] = {}
    for name, worker in list(workers.items()):
        try:
            worker.step()  # first run: allocator, kernels
        except RuntimeError as error:
            failed[name] = str(error)
            workers.pop(name).close()
    if case.within and "lightstream" in workers:
        workers["lightstream"].step()  # its peak grows still
        peak = workers["lightstream"].peak_mb
        worker = Worker(sys.executable, "streaming", case, case.within, peak)
        name = f"{WITHIN} {case.within}"
        try:
            worker.step()
            workers[name] = worker
        except RuntimeError as error:  # no plan fits
            failed[name] = str(error)
            worker.close()
    seconds = common.interleaved({n: w.step for n, w in workers.items()}, rounds, warm=0)
    print(case.network, case.upto, {n: s[-1] for n, s in seconds.items()}, file=sys.stderr)
    peaks = {name: round(worker.peak_mb) for name, worker in workers.items()}
    for worker in workers.values():
        worker.close()
    return {
        "case": case._asdict(), "seconds": seconds, "peak_mb": peaks, "failed": failed,
        "median": {name: round(statistics.median(s), 3) for name, s in seconds.items()},
        "load": os.getloadavg()[0],
    }  # fmt: skip


def kept(name: str, case: Case, rounds: int, python: str | None) -> dict[str, Any]:
    """Compare, or read what an earlier run has kept."""
    folder = os.environ.get("SLIDELENS_BENCH_WORK")
    path = Path(folder) / f"streaming-{name}.json" if folder else None
    if path is not None and path.exists():
        return dict(json.loads(path.read_text()))
    found = compare(case, rounds, python)
    if path is not None:
        path.write_text(json.dumps(found))
    return found


def judge(name: str, found: dict[str, Any]) -> list[common.Claim]:
    """Make the claims of one case."""
    case, seconds, peaks = Case(**found["case"]), found["seconds"], found["peak_mb"]
    own = f"tile {case.tile}"
    claims = []
    if "lightstream" in seconds:
        theirs = seconds["lightstream"]
        own_ways = [n for n in seconds if n.startswith(("tile", WITHIN))]
        fits = [n for n in own_ways if peaks[n] <= peaks["lightstream"]]
        best = max((common.ratio(theirs, seconds[n]) for n in fits), default=0.0)
        claims += [
            common.at_least(f"{name}, {case.size} px, {own}: faster than lightstream",
                            common.ratio(theirs, seconds[own]), case.faster, "x"),
            common.at_most(f"{name}, {own}: peak memory relative to lightstream",
                           peaks[own] / peaks["lightstream"], case.memory),
            common.at_least(f"{name}: times faster than lightstream within its peak memory",
                            best, 1.8 if case.size < LARGE.size else case.faster, "x"),
        ]  # fmt: skip
    else:
        why = found["failed"].get("lightstream", "it could not be installed")
        claims.append(common.Claim(f"{name}: times faster than lightstream", why, "", "", None))
    claims += [
        common.at_most(f"{name}, {n}: time relative to un-streamed",
                       common.ratio(seconds[n], seconds["plain"]), 1.15)
        for n in seconds if n.startswith("tile") and "plain" in seconds
    ]  # fmt: skip
    return claims


def work() -> tuple[list[common.Claim], dict[str, Any]]:
    """Count multiply-adds that run, and the least memory for large images by plan."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from slidelens.nn.streaming import StreamingTrunk

    case = CASES["ResNet-18 to layer3"]
    module = trunk_of(case.network, case.upto)
    image = torch.randn(1, 3, 1024, 1024)
    counts = {}
    for tile in (0, *TILES[:2]):
        net = StreamingTrunk(module, tile) if tile else module
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(image)
        counts[tile] = counter.get_total_flops()
    claims = [
        common.at_most(f"forward multiply-adds relative to un-streamed, tile {tile}, 1024 px",
                       counts[tile] / counts[0], 1.02)
        for tile in counts if tile
    ]  # fmt: skip
    module = trunk_of("resnet34", "layer4[0]")
    plans = {}
    for size in (8192, 16384):
        least = min(
            (StreamingTrunk(module, tile).plan(size, size) for tile in range(128, 2049, 128)),
            key=lambda plan: plan.bytes,
        )
        plans[size] = least._asdict() if hasattr(least, "_asdict") else vars(least)
        claims.append(
            common.at_most(f"ResNet-34 to layer4[0], {size} px: least memory of a training step, "
                           f"by plan (tile {least.tile[0]}, float32)", least.bytes / 1e9, 11, "GB")
        )  # fmt: skip
    return claims, {"multiply_adds": counts, "plans": plans}


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    """Run all cases; ``quick`` leaves out the large one, all rounds but one, part of the image."""
    python = lightstream_python()
    claims, figures = work()
    cases = dict(CASES) if quick else {**CASES, "ResNet-34 to layer4[0]": LARGE}
    for name, full in cases.items():
        case = full._replace(size=QUICK) if quick else full
        rounds = 1 if quick or case is LARGE else 3
        figures[name] = kept(f"{case.network}-{case.upto}-{rounds}", case, rounds, python)
        claims += judge(name, figures[name])
    return claims, figures


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        way, network, upto, size, tile, peak = sys.argv[2:]
        child(way, network, upto, int(size), int(tile), float(peak))
    else:
        common.main(__doc__, measure)
