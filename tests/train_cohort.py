"""A cohort that a network can learn in seconds: pink slides, some with one dark violet tile."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

TILE = 32
STAGES = (
    '[{"epochs": 1, "lr": 0.001, "head_lr": 0.001, "trains": "head"},'
    ' {"epochs": 2, "lr": 0.001, "head_lr": 0.001, "schedule": "cosine"}]'
)


def make_cohort(folder: Path, train: int = 4, tune: int = 2) -> Path:
    """Write slides of 3 x 3 tiles and their labels; every second slide is positive."""
    slides = folder / "slides"
    slides.mkdir(parents=True)
    rows = ["slide_id,label,split"]
    for number in range(train + tune):
        name, positive = f"s{number}", number % 2
        random = np.random.default_rng(number)
        pixels = random.integers(-20, 20, (3 * TILE, 3 * TILE, 3)) + np.array((220, 150, 190))
        if positive:
            y, x = random.integers(0, 3, 2) * TILE
            pixels[y : y + TILE, x : x + TILE] -= (120, 100, 60)
        tifffile.imwrite(
            slides / f"{name}.tif",
            pixels.clip(0, 255).astype(np.uint8),
            tile=(32, 32),
            photometric="rgb",
            resolution=(20000, 20000),  # 0.5 µm/px
            resolutionunit="CENTIMETER",
        )
        split = "train" if number < train else "tune"
        rows.append(f"{name},{'tumour' if positive else 'normal'},{split}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder


def annotate(folder: Path) -> Path:
    """Annotate the dark tile of every positive slide of a cohort; return its folder."""
    (folder / "annotations").mkdir()
    for path in sorted((folder / "slides").iterdir()):
        tiles = tifffile.imread(path).reshape(3, TILE, 3, TILE, 3).mean((1, 3, 4))
        row, column = np.unravel_index(tiles.argmin(), tiles.shape)
        x, y = int(column) * TILE, int(row) * TILE
        if int(path.stem[1:]) % 2:
            ring = [[x, y], [x + TILE, y], [x + TILE, y + TILE], [x, y + TILE], [x, y]]
            polygon = {"type": "Polygon", "coordinates": [ring]}
            (folder / "annotations" / f"{path.stem}.geojson").write_text(json.dumps(polygon))
    return folder


def request(cohort: Path, out: Path, **options: Any) -> dict[str, Any]:
    """Return the arguments of a short training in fp32."""
    overrides = {"tile": str(TILE), "min_tissue": "0", "precision": "fp32", "train_batch": "2"}
    overrides |= {"stages": STAGES, "warm_steps": "2", **options.pop("overrides", {})}
    asked = {"backbone": "squeezenet1_1", "weights": "none", "device": "cpu", "seed": 1}
    if "from_model" in options:
        del asked["weights"], asked["backbone"]
    return {
        "family_name": "mil",
        "slides_dir": cohort / "slides",
        "labels_csv": cohort / "labels.csv",
        "out": out,
        "overrides": overrides,
        **asked,
        **options,
    }
