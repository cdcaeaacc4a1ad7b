"""How long people wait before anything happens: import, help, info.

Whole processes, in turns with a bare interpreter; the smallest of the rounds is judged for absolute
times (a busy machine can only add), the difference to the interpreter for the import.
"""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import common

SLIDE = common.DATA / "wsi" / "CMU-1-Small-Region.svs"
LIGHT = ["torch", "napari", "openslide", "zarr", "numpy"]


def run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def measure(quick: bool) -> tuple[list[common.Claim], dict[str, Any]]:
    program = str(Path(sys.executable).with_name("slidelens"))
    ways = {
        "python": partial(run, sys.executable, "-c", "pass"),
        "import": partial(run, sys.executable, "-c", "import slidelens"),
        "help": partial(run, program, "--help"),
        "info": partial(run, program, "info", str(SLIDE)),
    }
    seconds = common.interleaved(ways, 5 if quick else 15)
    least = {name: min(values) for name, values in seconds.items()}
    code = f"import sys, slidelens; print([m for m in {LIGHT} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.strip()
    added = least["import"] - least["python"]
    claims = [
        common.at_most("import slidelens, above the interpreter", added, 0.15, "s"),
        common.at_most("slidelens --help", least["help"], 0.4, "s"),
        common.at_most("slidelens info of a small SVS", least["info"], 0.6, "s"),
        common.Claim("import slidelens loads nothing heavy", loaded, "", "[]", loaded == "[]"),
    ]
    return claims, {"seconds": seconds}


if __name__ == "__main__":
    common.main(__doc__, measure, [SLIDE])
