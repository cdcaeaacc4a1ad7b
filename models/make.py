"""Train the bundled model packages anew: ``make models``.

They learn from phantom slides that ``slidelens.testing.phantom`` draws, from random weights, so
that anyone can make them from this repository alone. Each has its recipe in ``models/recipes``;
what the recipes share is in ``models/workshop.py``.
"""

from __future__ import annotations

import argparse
import pkgutil
import sys
import tempfile
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import recipes
from workshop import Workshop, say

HERE = Path(__file__).resolve().parent


def main() -> int:
    known = sorted(one.name.replace("_", "-") for one in pkgutil.iter_modules(recipes.__path__))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help=f"packages to make, of {', '.join(known)}")
    parser.add_argument("--slides", type=int, default=48, help="phantoms to learn from")
    parser.add_argument("--out", type=Path, default=HERE, help="folder that gets the packages")
    parser.add_argument("--work", type=Path, help="keep slides, tiles and backbones here for later")
    parser.add_argument("--quick", action="store_true", help="hardly train: to try a recipe")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(known))
    if unknown:
        parser.error(f"no recipe {', '.join(unknown)}; there are {', '.join(known)}")
    if options.quick and options.out == HERE:
        parser.error("--quick makes models that know nothing: give another --out")
    kept = nullcontext(options.work) if options.work else tempfile.TemporaryDirectory()
    with kept as work:
        Path(work).mkdir(parents=True, exist_ok=True)
        shop = Workshop(Path(work), options.out, slides=options.slides, quick=options.quick)
        for name, recipe in in_order(options.names or known):
            start = perf_counter()
            recipe.make(shop)
            say(f"{name}: made in {perf_counter() - start:.0f} s")
    return 0


def in_order(names: list[str]) -> list[tuple[str, Any]]:
    """Return names with their recipes; last those that build on the network of another."""
    found = [(name, import_module(f"recipes.{name.replace('-', '_')}")) for name in names]
    return sorted(found, key=lambda one: getattr(one[1], "NEEDS", ""))


if __name__ == "__main__":
    sys.exit(main())
