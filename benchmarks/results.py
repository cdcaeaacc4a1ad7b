"""Ways to learn from slide labels on the cohort ``crc_mosaic``: the tables of docs/results.md.

Each row is trained by ``slidelens train``, run over the tuning slides by ``slidelens predict``, and
scored: slides by ``predictions.csv``, tiles by ``prob_1`` of ``tiles.csv`` against the annotated
tumour tiles, all slides pooled. Rows of the second table are also scored on the same slides as
another laboratory would have stained them (:class:`slidelens.testing.shift.StainShift`, one shift
per slide). The tuning split also chose the epochs, so expect less on unseen slides.

Models and scores are kept in ``$SLIDELENS_BENCH_WORK`` (default: the system's temporary folder);
the same command goes on from there, row by row, and writes the tables into ``docs/results.md`` when
all are done. ``--row NAME`` makes one row only (rows can be made side by side), ``--rows`` lists
them, ``--render`` writes the tables of what is done so far, and keeps the runs behind them in
``figures/results.csv``, so that rows can come from several machines. ``--quick`` is two rows and
one seed: to see that it runs; nothing is written into the docs. All runs on the CPU unless
SLIDELENS_BENCH_DEVICE names another device; rows that were trained on a GPU say so in the table.
"""

from __future__ import annotations

import csv
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Claim, at_least, environment, main, slidelens
from mil_crc import COHORT, WEIGHTS, tiles
from results_rows import ROWS, Row

from slidelens.engine.metrics import auc
from slidelens.slide.open import open_slide
from slidelens.testing.shift import StainShift

WORK = Path(os.environ.get("SLIDELENS_BENCH_WORK", tempfile.gettempdir())) / "results"
FIGURES = Path(__file__).resolve().parent / "figures"
RECORD = FIGURES / "results.csv"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "results.md"
DEVICE = os.environ.get("SLIDELENS_BENCH_DEVICE", "cpu")
WORDS = ("row", "gpu", "cpu", "date")
"""Fields of a run that are not numbers."""
FIELDS = (
    *("row", "seed", "slide_auc", "tile_auc", "tiles", "epochs"),
    *("shifted_slide_auc", "shifted_tile_auc", "shifted_tiles"),
    *("train_seconds", "train_cpu_seconds", "load", "gpu", "cpu", "date"),
)
"""Of a run on record."""


def measure(quick: bool) -> tuple[list[Claim], dict[str, Any]]:
    """Make what is not there yet, and put the tables together."""
    if quick:
        rows = {name: [made(name, 0)] for name in ("mean", "gated-abmil")}
        gated = statistics.mean(run["slide_auc"] for run in rows["gated-abmil"])
        return [at_least("gated ABMIL: slide AUC, seed 0", gated, 0.97)], {"rows": rows}
    finished = published() | measured()
    for name, row in ROWS.items():
        if name not in finished:
            finished[name] = [made(name, seed) for seed in row.seeds]
    rows = {name: finished[name] for name in ROWS}
    render()
    claims = [
        at_least("gated ABMIL: slide AUC, mean of 3 seeds", mean(rows["gated-abmil"]), 0.97),
        at_least(
            "gated ABMIL on the encoder that top-1 trained: slide AUC, mean of 3 seeds",
            mean(rows["gated-top1"]),
            0.97,
        ),
        at_least(
            "gated ABMIL, Macenko normalisation, eight orientations: slide AUC, mean of 3 seeds",
            mean(rows["gated-oriented"]),
            0.97,
        ),
        at_least("local K = 4: slide AUC, seed 0", mean(rows["local-4"]), 0.93),
    ]
    return claims, {"rows": rows}


def measured() -> dict[str, list[dict[str, Any]]]:
    """Return the rows of which every seed was run here."""
    rows = {}
    for name, row in ROWS.items():
        files = [WORK / "rows" / f"{name}-{seed}.json" for seed in row.seeds]
        if all(path.exists() for path in files):
            rows[name] = [json.loads(path.read_text()) for path in files]
    return rows


def published() -> dict[str, list[dict[str, Any]]]:
    """Return the rows that another benchmark has measured in full."""
    rows = {}
    for name, row in ROWS.items():
        paths = [FIGURES / f"{row.figures}{machine}.json" for machine in ("", "-gpu")]
        path = next((path for path in paths if row.figures and path.exists()), None)
        figures = {} if path is None else json.loads(path.read_text())
        if not figures or "--quick" in figures["command"]:
            continue
        if figures["environment"]["gpu"] != "none":
            figures["gpu"] = figures["environment"]["gpu"]
        rows[name] = figures.get("runs", [figures])
    return rows


def recorded() -> dict[str, list[dict[str, Any]]]:
    """Return the rows whose runs are on record, from whatever machine."""
    rows: dict[str, list[dict[str, Any]]] = {}
    if RECORD.exists():
        with RECORD.open(newline="") as file:
            for line in csv.DictReader(file):
                run = {k: v if k in WORDS else json.loads(v) for k, v in line.items() if v}
                rows.setdefault(str(run.pop("row")), []).append(run)
    return rows


def render() -> None:
    """Write the tables of what is done, here or on record; put on record what is done here."""
    rows = recorded() | measured()
    runs = [{"row": name, **run} for name in ROWS for run in rows.get(name, [])]
    with RECORD.open("w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(runs)
    write_page(published() | rows)


def mean(runs: list[dict[str, Any]], key: str = "slide_auc") -> float:
    """Return the mean of a figure over seeds."""
    return statistics.mean(run[key] for run in runs)


# One model ------------------------------------------------------------------------------------


def made(name: str, seed: int) -> dict[str, Any]:
    """Return the figures of a model, training and scoring it unless that was done before."""
    kept = WORK / "rows" / f"{name}-{seed}.json"
    if not kept.exists():
        model = WORK / "models" / f"{name}-{seed}"
        if not (model / "model.json").exists():
            base = ROWS[name].base
            if base:
                made(base, seed)
            train(ROWS[name], model, seed, WORK / "models" / f"{base}-{seed}" if base else None)
        figures = score(model, shifted=2 in ROWS[name].tables)
        figures |= {key: environment()[key] for key in ("cpu", "date")}
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"seed": seed, **figures}, indent=1))
        print(name, kept.read_text(), file=sys.stderr)
    figures = json.loads(kept.read_text())
    assert isinstance(figures, dict)
    return figures


def train(row: Row, model: Path, seed: int, base: Path | None) -> None:
    """Train by the plain command, or go on with it."""
    words: list[object] = ["train", row.family, "--slides", COHORT / "slides"]
    words += ["--labels", COHORT / "labels.csv", "--out", model, "--seed", seed, "--resume"]
    words += ["--device", DEVICE]
    words += ["--from", base] if base else ["--backbone", "squeezenet1_1", "--weights", WEIGHTS]
    if row.family == "mil":
        words += ["--bag-cache", WORK / "bags"]
    seconds, cpu = slidelens(*words, *row.options)
    spent: dict[str, Any] = {
        "train_seconds": seconds,
        "train_cpu_seconds": cpu,
        "load": os.getloadavg()[1],
    }
    if DEVICE != "cpu":
        spent["gpu"] = torch.cuda.get_device_name(DEVICE)
    (model / "training" / "spent.json").write_text(json.dumps(spent))


def score(model: Path, *, shifted: bool) -> dict[str, Any]:
    """Predict and score the tuning slides, and those stained otherwise."""
    with (model / "training" / "history.csv").open() as file:
        epochs = len(list(csv.DictReader(file)))
    spent = json.loads((model / "training" / "spent.json").read_text())
    figures = {**aucs(model, COHORT / "slides", "as they are"), "epochs": epochs, **spent}
    if shifted:
        found = aucs(model, shifted_slides(), "shifted")
        figures |= {f"shifted_{key}": value for key, value in found.items()}
    return figures


def aucs(model: Path, slides: Path, kind: str) -> dict[str, Any]:
    """Return slide and tile AUC on the tuning slides of a folder."""
    tune = tuning()
    out = WORK / "predicted" / kind.replace(" ", "-")
    files = [slides / f"{slide_id}.tif" for slide_id in tune]
    places = ("--model", model, "--out", out, "--device", DEVICE, "--overwrite")
    slidelens("predict", *files, *places)  # a model that is trained anew has its name again
    with (out / model.name / "predictions.csv").open() as file:
        scores = {r["slide_id"]: float(r["prob_1"]) for r in csv.DictReader(file)}
    tumour, probability = tiles(out / model.name, list(tune))
    seen = np.isfinite(probability)  # a map may end before the last tile of a slide
    return {
        "slide_auc": auc(list(tune.values()), [scores[s] for s in tune]),
        "tile_auc": auc(tumour[seen], probability[seen]),
        "tiles": int(seen.sum()),
    }


def tuning() -> dict[str, int]:
    """Return the tuning slides and their labels."""
    with (COHORT / "labels.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "tune"]
    return {row["slide_id"]: int(row["label"]) for row in rows}


def shifted_slides() -> Path:
    """Return a folder of the tuning slides, each with a stain shift of its own."""
    folder = WORK / "shifted"
    folder.mkdir(parents=True, exist_ok=True)
    for slide_id in tuning():
        path = folder / f"{slide_id}.tif"
        if not path.exists():
            draft = folder / f"{slide_id}.{os.getpid()}.part.tif"
            with open_slide(COHORT / "slides" / path.name) as slide:
                StainShift.of(slide_id).write(slide, draft)
            draft.replace(path)
    return folder


# The page -------------------------------------------------------------------------------------


def write_page(rows: dict[str, list[dict[str, Any]]]) -> None:
    """Put both tables between their markers in the page; lines of rows without runs stay."""
    text = PAGE.read_text()
    for number, heading, line_of in ((1, FIRST, first_line), (2, SECOND, second_line)):
        begin, end = f"<!-- table {number} begins -->\n", f"<!-- table {number} ends -->"
        head, _, rest = text.partition(begin)
        before, _, tail = rest.partition(end)
        lines = [heading, "|---|" + "---|" * (heading.count("|") - 2)]
        for name, row in ROWS.items():
            if number in row.tables:
                made_here = line_of(row, rows.get(name, []))
                old = [one for one in before.splitlines() if one.startswith(f"| {row.title} |")]
                lines += [made_here] if made_here else old
        text = "".join([head, begin, "\n", *(f"{line}\n" for line in lines), "\n", end, tail])
    PAGE.write_text(text)


FIRST = "| Method | Seeds | Slide AUC | Tile AUC | Epochs | Training, minutes |"
SECOND = "| Method | Seeds | Slide AUC | shifted | Tile AUC | shifted |"


def first_line(row: Row, runs: list[dict[str, Any]]) -> str:
    """Return a row's line of the table of methods; empty without runs."""
    if not runs:
        return ""
    return (
        f"| {row.title} | {len(runs)} | {spread(runs, 'slide_auc')} | {spread(runs, 'tile_auc')} | "
        f"{runs[0]['epochs']:.0f} | {spent(runs)} |"
    )


def second_line(row: Row, runs: list[dict[str, Any]]) -> str:
    """Return a row's line of the table of stain shift; empty without runs on shifted slides."""
    keys = ("slide_auc", "shifted_slide_auc", "tile_auc", "shifted_tile_auc")
    if not runs or keys[1] not in runs[0]:
        return ""
    cells = " | ".join(spread(runs, key) for key in keys)
    return f"| {row.title} | {len(runs)} | {cells} |"


def spent(runs: list[dict[str, Any]]) -> str:
    """Return the mean time of training: of the processor, or by the clock with a GPU."""
    if "gpu" in runs[0]:
        return f"{mean(runs, 'train_seconds') / 60:.1f} on {runs[0]['gpu']}"
    return f"{mean(runs, 'train_cpu_seconds') / 60:.1f} of CPU"


def spread(runs: list[dict[str, Any]], key: str) -> str:
    """Return the mean over seeds, and lowest and highest where there are several.

    Another benchmark may not have the figure.
    """
    if key not in runs[0]:
        return "–"
    values = [run[key] for run in runs]
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{statistics.mean(values):.3f} ({min(values):.3f}–{max(values):.3f})"


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rows"]:
        print("\n".join(ROWS))
    elif sys.argv[1:] == ["--render"]:
        render()
    elif sys.argv[1:2] == ["--row"]:
        for asked in sys.argv[2:]:
            for one in ROWS[asked].seeds:
                made(asked, one)
    else:
        main(__doc__, measure, [COHORT, WEIGHTS])
