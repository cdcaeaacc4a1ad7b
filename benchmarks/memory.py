"""Peak memory of ``predict``: flat on any slide size.

Each slide is run in a process of its own with MIL on SqueezeNet (224 px tiles at 0.5 µm/px). The
baseline is that process once every library that a run uses is imported; the peak is its largest
resident memory. The 4.3-gigapixel slide is a phantom made on the spot by reusing encoded tiles.
``--quick`` runs bands of both slides, of the same width as the slide. A band fills no cache of
decoded tiles, and tissue is sought on the whole slide: so its peaks are not compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import common

SLIDE = common.DATA / "wsi" / "colon_polyp_203mp.tif"
LIBRARIES = [
    "imagecodecs",
    "openslide",
    "scipy.ndimage",
    "shapely",
    "skimage.filters",
    "skimage.measure",
    "skimage.morphology",
    "slidelens.engine.predict",
    "slidelens.families.mil",
    "slidelens.maps.geojson",
    "slidelens.maps.ngff",
    "slidelens.testing.phantom",
    "tifffile",
    "torchvision",
    "zarr",
]
GIANT = (65536, 65536)  # px
BAND, GIANT_BAND = (0, 4032, 15872, 3136), (0, 8960, 65536, 896)  # px; --quick


def memory(field: str) -> float:
    """Return ``VmRSS`` (now) or ``VmHWM`` (largest so far) of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def child(slide: str, region: str, out: str) -> None:
    """Run one slide in this process and print what it took."""
    for name in LIBRARIES:
        import_module(name)
    before = memory("VmRSS")
    from predict import squeezenet

    from slidelens.engine.predict import predict
    from slidelens.geometry import Box

    model = squeezenet(Path(out) / "model")
    numbers = json.loads(region)
    start = time.perf_counter()
    result = predict(slide, model, region=numbers and Box(*numbers), out=out)
    figures = {
        "libraries_mb": before,
        "peak_mb": memory("VmHWM"),
        "tiles": 0 if result.tiles is None else len(result.tiles),
        "seconds": time.perf_counter() - start,
    }
    print(json.dumps(figures))


def run(slide: Path, region: tuple[int, ...] | None) -> dict[str, float]:
    """Run one slide in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="slidelens-bench-") as out:
        command = [sys.executable, __file__, "--child", str(slide), json.dumps(region), out]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    figures: dict[str, float] = json.loads(done.stdout)
    return {**figures, "above_mb": figures["peak_mb"] - figures["libraries_mb"]}


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    """Run the real slide and the giant one."""
    from slidelens.testing.phantom import PhantomSpec, write_phantom

    real = run(SLIDE, BAND if quick else None)
    with tempfile.TemporaryDirectory(prefix="slidelens-bench-") as folder:
        path = Path(folder) / "giant.tif"
        start = time.perf_counter()
        write_phantom(path, PhantomSpec(size=(4096, 4096), repeat=(16, 16), lesions=2))
        made = time.perf_counter() - start
        giant = run(path, GIANT_BAND if quick else None)
    what = "4.3 gigapixels"
    flat = common.at_most(
        f"peak memory of {what} relative to 203 megapixels",
        giant["peak_mb"] / real["peak_mb"],
        1.10,
        "x",
    )
    claims = [
        common.at_most(
            "peak memory above the imported libraries, 203 megapixels", real["above_mb"], 1500, "MB"
        ),
        common.at_most(
            f"peak memory above the imported libraries, {what}", giant["above_mb"], 1500, "MB"
        ),
        replace(flat, holds=None) if quick else flat,
        common.at_most(f"time to make the slide of {what}", made, 120, "s"),
    ]
    return claims, {
        "real": real,
        "giant": giant,
        "regions": [BAND, GIANT_BAND] if quick else None,
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
    else:
        common.main(__doc__, measure, [SLIDE])
