"""The tile table, in WSInfer's format: level-0 boxes and one column per class."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from slidelens.errors import ResultError
from slidelens.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["Tiles"]

_BOX = ("minx", "miny", "width", "height")
_PREFIX = "prob_"
_ATTENTION = "attention"


@dataclass(frozen=True, eq=False)
class Tiles:
    """Instance values of N tiles.

    Attributes
    ----------
    boxes
        ``(N, 4)`` float64 x, y, w, h in level-0 px.
    classes
        Names of C classes, in label order.
    probabilities
        ``(N, C)`` float32 in 0..1; NaN where a tile has none.
    attention
        ``(N,)`` float32, or ``None`` for models without.
    """

    boxes: NDArray[np.float64]
    classes: tuple[str, ...]
    probabilities: NDArray[np.float32]
    attention: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.probabilities.shape != (n, len(self.classes)):
            raise ValueError(
                f"tiles: boxes {self.boxes.shape}, probabilities {self.probabilities.shape} "
                f"for {len(self.classes)} classes"
            )
        if self.attention is not None and self.attention.shape != (n,):
            raise ValueError(f"tiles: attention {self.attention.shape} for {n} boxes")

    def __len__(self) -> int:
        return len(self.boxes)

    def write(self, path: Path, *, attention: bool = True) -> None:
        """Write the CSV; numbers read back as the same floats."""
        header = [*_BOX, *(_PREFIX + name for name in self.classes)]
        columns: list[list[str]] = [_texts(column) for column in self.boxes.T]
        columns += [_texts(column) for column in self.probabilities.T]
        if attention and self.attention is not None:
            header.append(_ATTENTION)
            columns.append(_texts(self.attention))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(header)
        text.writelines(f"{','.join(row)}\n" for row in zip(*columns, strict=True))
        write_atomic(path, text.getvalue())

    @classmethod
    def read(cls, path: Path) -> Tiles:
        """Read the CSV, ours or WSInfer's; other columns are ignored.

        Raises
        ------
        ResultError
            The file cannot be read, lacks a column, or has a cell that is not a number; names the
            line.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ResultError(f"{path}: cannot read the tiles ({error}).") from error
        rows = csv.reader(io.StringIO(text))
        header = next(rows, [])
        missing = [name for name in _BOX if name not in header]
        if missing:
            raise ResultError(
                f"{path}: no column {', '.join(missing)}; expected {','.join(_BOX)},prob_<class>..."
            )
        named = [name for name in header if name.startswith(_PREFIX)]
        wanted = [*_BOX, *named, *([_ATTENTION] if _ATTENTION in header else [])]
        table = _numbers(path, rows, [header.index(name) for name in wanted], wanted)
        return cls(
            boxes=table[:, :4],
            classes=tuple(name.removeprefix(_PREFIX) for name in named),
            probabilities=table[:, 4 : 4 + len(named)].astype(np.float32),
            attention=table[:, -1].astype(np.float32) if _ATTENTION in header else None,
        )


def _texts(column: NDArray[Any]) -> list[str]:
    """Shortest texts that read back as the same numbers; whole ones without a point; NaN empty."""
    double = column.dtype == np.float64  # which Python writes the same way, in half the time
    texts = map(repr, column.tolist()) if double else column.astype(str).tolist()
    return ["" if text == "nan" else text.removesuffix(".0") for text in texts]


def _numbers(path: Path, rows: Any, columns: list[int], names: list[str]) -> NDArray[np.float64]:
    table = []
    for row in rows:
        if not row:
            continue
        try:
            table.append([float(row[c] or "nan") for c in columns])
        except (IndexError, ValueError) as error:
            raise ResultError(
                f"{path}, line {rows.line_num}: {error}; expected numbers in {', '.join(names)}."
            ) from error
    return np.asarray(table, np.float64).reshape(-1, len(columns))
