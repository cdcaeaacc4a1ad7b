"""Draw the layers of the program and the imports between them, from the code: ``architecture.svg``.

Usage: ``python docs/architecture_picture.py`` writes ``docs/images/architecture.svg``; with
``--check`` it fails if the file is out of date. Layers and their order are those of the layers
contract in ``pyproject.toml``; an arrow means that a file of one layer imports a file of another,
a heavier one that more do. Numbers of files are not drawn, so that the picture changes with the
architecture and not with every file. ``testing``, which plugins use too, is left out.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import Counter
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "slidelens"
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
GROUND = {"settings", "registry", "geometry", "errors", "faults", "files", "panels", "tables"}
WIDTH, ROW, BOX, LEFT = 780, 64, 30, 250


def layers() -> list[str]:
    """Return the layers, uppermost first."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    found = next(c["layers"] for c in contracts["contracts"] if c["type"] == "layers")
    names = [name.rpartition(".")[2] for name in found]
    return [name for name in names if name not in GROUND]


def imports() -> Counter[tuple[str, str]]:
    """Return how many files of a layer import from another one."""
    found: Counter[tuple[str, str]] = Counter()
    known = layers()
    for path in sorted(SOURCE.rglob("*.py")):
        layer = path.relative_to(SOURCE).parts[0]
        if layer not in known:
            continue
        used = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                used.add(node.module)
            elif isinstance(node, ast.Import):
                used |= {name.name for name in node.names}
        parts = {name.split(".")[1] for name in used if name.startswith("slidelens.")}
        found.update((layer, other) for other in parts if other in known and other != layer)
    return found


def picture() -> str:
    """Return the SVG."""
    names, arrows = layers(), imports()
    middle = {name: 30 + row * ROW + BOX / 2 for row, name in enumerate(names)}
    height = 60 + len(names) * ROW
    lines = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            'font-family="sans-serif" font-size="14">'
        ),
        '<rect width="100%" height="100%" fill="white"/>',
        (
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
            'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto">'
            '<path d="M0 0L8 4L0 8z" fill="#4a6a8a"/></marker></defs>'
        ),
    ]
    for (upper, lower), count in sorted(arrows.items()):
        lines.append(arrow(names, middle, upper, lower, count))
    for name in names:
        y = middle[name] - BOX / 2
        lines += [
            (
                f'<rect x="{LEFT}" y="{y:g}" width="200" height="{BOX}" rx="5" fill="#e8eef5" '
                'stroke="#4a6a8a"/>'
            ),
            f'<text x="{LEFT + 12}" y="{y + 20:g}">{name}</text>',
        ]
    ground = ", ".join(sorted(GROUND))
    lines += [
        f'<text x="{LEFT}" y="{height - 12}" fill="#667">{escape(ground)}: for all</text>',
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def arrow(names: list[str], middle: dict[str, float], upper: str, lower: str, count: int) -> str:
    """Return the path from a layer to one that it imports; longer paths swing further out."""
    span = names.index(lower) - names.index(upper)
    right = span % 2 == 0
    edge, sign = (LEFT + 200, 1) if right else (LEFT, -1)
    out = edge + sign * (18 + 24 * abs(span))
    start, end = middle[upper] + 5, middle[lower] - 5
    weight = 0.8 if count < 4 else 1.6 if count < 16 else 2.8
    return (
        f'<path d="M{edge} {start:g}C{out} {start:g} {out} {end:g} {edge} {end:g}" fill="none" '
        f'stroke="#4a6a8a" stroke-opacity="0.75" stroke-width="{weight}" '
        f'marker-end="url(#tip)"><title>{upper} imports {lower}</title></path>'
    )


if __name__ == "__main__":
    if "--check" not in sys.argv[1:]:
        PICTURE.write_text(picture(), encoding="utf-8")
    elif PICTURE.read_text(encoding="utf-8") != picture():
        sys.exit(f"{PICTURE.relative_to(ROOT)} does not match the code: run make fmt")
