"""Run every benchmark and write ``docs/benchmarks.md`` from what they print.

Usage: ``python benchmarks/run.py [--quick] [NAME ...]``. Each ``benchmarks/<name>.py --json``
prints one JSON object with ``environment``, ``claims`` and raw figures. The JSON of a benchmark
that was not run this time is kept, so the page can be made on machines with and without a GPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FIGURES = HERE / "figures"
PAGE = HERE.parent / "docs" / "benchmarks.md"
NOT_BENCHMARKS = {"run", "common", "magnet_slides", "results_rows"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run; all when none is named")
    parser.add_argument("--quick", action="store_true", help="each within three minutes")
    parser.add_argument("--render", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    known = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in NOT_BENCHMARKS)
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}")
    failed = (
        [] if options.render else [n for n in options.names or known if not run(n, options.quick)]
    )
    PAGE.write_text(page())
    print(f"wrote {PAGE.relative_to(HERE.parent)}", file=sys.stderr)
    for name in failed:
        print(f"benchmark {name} failed to run", file=sys.stderr)
    return 1 if failed else 0


def run(name: str, quick: bool) -> bool:
    """Run one benchmark and keep its JSON; say whether it ran (not whether its claims hold)."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", *(["--quick"] if quick else [])]
    print("running", *command[1:], file=sys.stderr)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        return False
    figures = json.loads(done.stdout)
    figures["command"] = " ".join(["python", f"benchmarks/{name}.py", *command[2:]])
    FIGURES.mkdir(exist_ok=True)
    where = name if figures["environment"]["gpu"] == "none" else f"{name}-gpu"
    (FIGURES / f"{where}.json").write_text(json.dumps(figures, indent=1) + "\n")
    return True


def page() -> str:
    """Write the page from the kept JSON files."""
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` from what the scripts in `benchmarks/` print. A claim that does not",
        "hold stays in the table. Timings are interleaved; ratios are within one run.",
    ]
    for path in sorted(FIGURES.glob("*.json")):
        lines += section(path.stem, json.loads(path.read_text()))
    return "\n".join(lines) + "\n"


def section(name: str, figures: dict[str, Any]) -> list[str]:
    lines = ["", f"## {name}", "", f"`{figures['command']}`", ""]
    lines += [", ".join(f"{k}: {v}" for k, v in figures["environment"].items()), ""]
    if "note" in figures:  # added by hand where the code has changed since
        lines += [figures["note"], ""]
    lines += ["| claim | value | target | holds |", "|---|---|---|---|"]
    for claim in figures["claims"]:
        holds = {True: "yes", False: "**no**", None: "not judged here"}[claim["holds"]]
        value = claim["value"]
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        lines.append(
            f"| {claim['claim']} | {shown} {claim['unit']} | {claim['target']} | {holds} |"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
