"""What all benchmarks share: arguments, environment, claims, fair timing, runs of the program.

A benchmark defines ``measure(quick: bool) -> tuple[list[Claim], dict]`` and ends with
``common.main(__doc__, measure)``. It prints one JSON object (``--json``) or a table, and exits 0
whether or not its claims hold.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

DATA = Path(
    os.environ.get("SLIDELENS_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@dataclass(frozen=True)
class Claim:
    """One sentence with a figure and a bound; ``holds`` is ``None`` where it cannot be judged."""

    claim: str
    value: float | str | None
    unit: str
    target: str
    holds: bool | None


def at_least(claim: str, value: float, target: float, unit: str = "") -> Claim:
    """Make a claim that holds where ``value >= target``."""
    return Claim(claim, round(value, 4), unit, f">= {target:g}", value >= target)


def at_most(claim: str, value: float, target: float, unit: str = "") -> Claim:
    """Make a claim that holds where ``value <= target``."""
    return Claim(claim, round(value, 4), unit, f"<= {target:g}", value <= target)


def interleaved(
    ways: Mapping[str, Callable[[], object]], rounds: int, *, warm: int = 1
) -> dict[str, list[float]]:
    """Time several ways of doing one thing, in turns, so that a busy machine slows all alike.

    A way that returns a float has timed itself (without its preparation, say). The order turns
    round every round. Judge by :func:`ratio`, which pairs neighbours in time.

    Returns
    -------
    Name to seconds, one entry per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(-warm, rounds):
        order = list(ways) if number % 2 else list(reversed(ways))
        for name in order:
            start = time.perf_counter()
            own = ways[name]()
            if number >= 0:
                elapsed = time.perf_counter() - start
                seconds[name].append(own if isinstance(own, float) else elapsed)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Return the median of the rounds' ratios ``above / below``."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def slidelens(*words: object) -> tuple[float, float]:
    """Run the program; return wall and processor seconds."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    program = [sys.executable, "-c", "from slidelens.cli import main; main()", *map(str, words)]
    subprocess.run(program, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return round(time.perf_counter() - start, 1), round(cpu, 1)


def environment() -> dict[str, Any]:
    """Say on what machine, with which versions, how busy."""
    facts: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpu": _gpu(),
        "load": round(os.getloadavg()[0], 2),
        "os": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }
    for package in ("slidelens", "numpy", "openslide-bin", "tifffile", "torch", "zarr", "napari"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    return facts


def main(
    doc: str | None,
    measure: Callable[[bool], tuple[list[Claim], dict[str, Any]]],
    needs: Iterable[Path] = (),
) -> None:
    """Run a benchmark from the command line, if the real data that it ``needs`` is there."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--quick", action="store_true", help="end within three minutes")
    options = parser.parse_args()
    lacking = [str(path) for path in needs if not path.exists()]
    if lacking:
        parser.exit(
            1,
            f"{parser.prog}: no {', '.join(lacking)}; say in SLIDELENS_TEST_DATA which folder "
            "holds the real data.\n",
        )
    where = environment()
    claims, figures = measure(options.quick)
    if options.json:
        report = {"environment": where, "claims": [asdict(c) for c in claims], **figures}
        print(json.dumps(report, indent=1))
        return
    for claim in claims:
        mark = {True: "holds", False: "DOES NOT HOLD", None: "not judged"}[claim.holds]
        print(f"{mark:<14}{claim.claim}: {claim.value} {claim.unit} ({claim.target})")


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> str:
    """Name the GPU; torch is asked only if the benchmark has loaded it or a driver is there."""
    drivers = map(Path, ("/proc/driver/nvidia", "/dev/nvidiactl"))
    if "torch" not in sys.modules and not any(path.exists() for path in drivers):
        return "none"
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
