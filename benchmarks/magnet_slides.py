"""The slides of ``benchmarks/magnet.py``: one small section on a large slide, one small target.

Every slide is 20,480 px wide and high (10.2 mm at 0.5 µm/px). A section of about 2 mm lies anywhere
on it; in it are two or three dark areas of about 0.4 mm. On a negative slide all are lymphoid
follicles; on a positive one of them is tumour, a thousandth of the slide. On the mean, tumour is as
dark as a follicle: only glands and nuclei tell them apart, and those show in close view alone.
"""

from __future__ import annotations

import csv
import json
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import shapely

from slidelens.testing.phantom import PhantomSpec, truth, write_phantom

__all__ = ["REPEAT", "write_slides"]

REPEAT = 5
_BLOCK = 4096
_SEEDS = {"train": 1000, "tune": 3000, "test": 5000}
"""Of the first slide of each part: one can grow without changing the others."""


def spec_of(seed: int) -> PhantomSpec:
    """Return the slide of a seed; odd seeds have a target."""
    random = np.random.default_rng([seed, 2023])
    target = seed % 2
    across, down = (int(n) for n in random.integers(0, REPEAT, 2))
    return PhantomSpec(
        size=(_BLOCK, _BLOCK),
        seed=seed,
        lesions=target,
        follicles=int(random.integers(2, 4)) - target,
        tumor_fraction=0.08,
        section=0.95,
        repeat=(REPEAT, REPEAT),
        place=(across, down),
    )


def write_slides(folder: Path, **counts: int) -> None:
    """Write slides, ``labels.csv`` (train and tune), ``test.csv`` and ``targets.json`` (polygons).

    ``counts`` are of ``train``, ``tune`` and ``test``. What is there is kept; the rest is drawn by
    one process per core, in 2 to 3 seconds each. Every second slide of each part has a target; the
    polygons are for judging only.
    """
    (folder / "slides").mkdir(parents=True, exist_ok=True)
    targets, rows, missing = {}, [], []
    for part, number in ((part, n) for part, count in counts.items() for n in range(count)):
        spec, name = spec_of(_SEEDS[part] + number), f"{part}_{number:03d}"
        path = folder / "slides" / f"{name}.tif"
        if not path.exists():
            missing.append((str(path), spec.seed))
        targets[name] = [shapely.to_wkt(area.polygon) for area in truth(spec).tumor]
        rows.append((name, ("normal", "tumor")[spec.lesions], part))
    if missing:
        # Spawned, as a fork of a process whose torch has threads can hang.
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
            list(pool.map(_write, *zip(*missing, strict=True)))
    (folder / "targets.json").write_text(json.dumps(targets))
    for file, parts in (("labels.csv", ("train", "tune")), ("test.csv", ("test",))):
        with (folder / file).open("w", newline="") as out:
            chosen = [row for row in rows if row[2] in parts]
            csv.writer(out).writerows([("slide_id", "label", "split"), *chosen])


def _write(path: str, seed: int) -> None:
    """Write one slide; under its own name only once it is whole."""
    part = Path(path).with_suffix(".part")
    write_phantom(part, spec_of(seed))
    part.rename(path)
