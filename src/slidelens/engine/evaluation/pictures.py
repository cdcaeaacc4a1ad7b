"""Pictures of an evaluation, as PNG or SVG."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from slidelens.engine.evaluation.measure import FPR
from slidelens.engine.evaluation.tables import Table, number
from slidelens.engine.metrics import BINS
from slidelens.engine.plots import GREY, look, new_figure, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from matplotlib.axes import Axes

    from slidelens.engine.evaluation.measure import Measured
    from slidelens.engine.plots import FileFormat

__all__ = ["calibration_picture", "roc_picture", "table_picture"]

_MOST_ROWS = 40  # of a table in a picture: thirteen models make 78 pairs
_LONGEST = 40  # letters of a name in a legend


def roc_picture(
    measured: Mapping[str, Measured], level: float, file_format: FileFormat = "png"
) -> bytes:
    """Draw the ROC curve of every model, its pointwise interval band and its operating point."""
    figure = new_figure(5.4, 5.9 + 0.2 * len(measured))
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    for i, (name, one) in enumerate(measured.items()):
        figures = one.figures
        if one.roc is None:
            axes.plot([], [], " ", label=f"{_listed(name)}: ROC undefined (a class has no case)")
            continue
        color, style = look(i)
        label = f"{_listed(name)}: AUC {number(figures['auc'], figures['auc_ci'])}"
        # Bands overlap: many opaque ones would look like mud.
        alpha = min(0.14, 0.3 / len(measured))
        if one.band is not None:
            axes.fill_between(FPR, *one.band, color=color, alpha=alpha, linewidth=0)
        axes.plot(*one.roc, color=color, linestyle=style, linewidth=1.8, label=label)
        if figures["threshold_source"] != "argmax":
            axes.plot(
                1 - figures["specificity"],
                figures["sensitivity"],
                marker="o",
                markersize=7,
                markerfacecolor="white",
                markeredgecolor=color,
                markeredgewidth=1.8,
                clip_on=False,
                zorder=5,
            )
    axes.set(xlim=(0, 1), ylim=(0, 1.005), ylabel="sensitivity")
    axes.set_aspect("equal")
    multiclass = any(one.figures["threshold_source"] == "argmax" for one in measured.values())
    axes.set_title(
        "ROC, one-vs-rest, mean over classes" if multiclass else "ROC", loc="left", fontsize=12
    )
    _legend(figure, axes)
    circle = "" if multiclass else "; circle: operating point"
    note = f"1 - specificity\n(band: pointwise {level:.0%} bootstrap interval{circle})"
    axes.set_xlabel(note, fontsize=9)
    return written(figure, file_format)


def calibration_picture(measured: Mapping[str, Measured], file_format: FileFormat = "png") -> bytes:
    """Draw how often scores are right, with the number of cases behind each point.

    A point's area grows with its cases, and lines between points are thin: in a small cohort a bin
    has one case or two, which say little.
    """
    figure = new_figure(5.4, 6.0 + 0.2 * len(measured))
    axes, below = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
    n_models = len(measured)
    for i, (name, one) in enumerate(measured.items()):
        color, style = look(i)
        found = one.calibration
        label = f"{_listed(name)}: ECE {found.ece:.3f}, Brier {one.figures['brier']:.3f}"
        axes.plot(
            found.predicted,
            found.observed,
            color=color,
            linestyle=style,
            linewidth=0.9,
            marker="o",
            markersize=3,
            clip_on=False,
            label=label,
        )
        area = 130 * np.asarray(found.cases) / max(1, int(np.max(found.cases, initial=0)))
        axes.scatter(found.predicted, found.observed, area, color=color, alpha=0.6, clip_on=False)
        width = 0.08 / n_models
        shift = (i - (n_models - 1) / 2) * width
        below.bar(_bin_centres(found.predicted) + shift, found.cases, width, color=color)
    multiclass = any(one.figures["threshold_source"] == "argmax" for one in measured.values())
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_ylabel("share that is right" if multiclass else "share that is positive")
    below.set_xlabel("probability of the predicted class" if multiclass else "score")
    below.set_ylabel("cases")
    below.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_title("Calibration", loc="left", fontsize=12)
    _legend(figure, axes)
    return written(figure, file_format)


def table_picture(tables: Sequence[Table], note: str) -> bytes:
    """Draw tables below each other, with a note under the first; of a long table the first rows."""
    drawn = [table._replace(rows=table.rows[:_MOST_ROWS]) for table in tables]
    widths = [
        [max(map(len, column)) + 2.5 for column in zip(header, *rows, strict=True)]
        for header, rows, _ in drawn
    ]
    total = max(map(sum, widths))
    height = sum(len(table.rows) + 2.4 for table in drawn)
    figure = Figure(figsize=(total * 0.092, 0.36 * height + 0.2), dpi=150, facecolor="white")
    axes = figure.add_axes((0.02, 0.0, 0.96, 1.0))
    axes.set_axis_off()
    axes.set(xlim=(0, total), ylim=(-height, 0.4))
    top = 0.0
    for table, whole, columns in zip(drawn, tables, widths, strict=True):
        _draw(axes, table, columns, top)
        left_out = len(whole.rows) - len(table.rows)
        more = f"and {left_out} more rows" if left_out else ""
        below = "; ".join(filter(None, [more, note if whole is tables[0] else ""]))
        top -= len(table.rows) + 2.4
        axes.text(0, top + 0.8, _plain(below), ha="left", va="center", fontsize=8, color=GREY)
    return written(figure)


def _draw(axes: Axes, table: Table, widths: Sequence[float], top: float) -> None:
    """Draw a table whose upper border is at ``top``: words aligned left, numbers right."""
    left = 0.0
    for column, width in enumerate(widths):
        words = column < table.words
        at, align = (left, "left") if words else (left + width, "right")
        for line, row in enumerate([table.header, *table.rows]):
            weight = "normal" if line else "bold"
            y = top - line - 0.5
            text = _plain(row[column])
            axes.text(at, y, text, ha=align, va="center", fontsize=9, fontweight=weight)
        left += width
    for y, thick in ((0.0, 1.6), (-1.0, 1.0), (-1.0 - len(table.rows), 1.6)):
        axes.plot([0, left], [top + y] * 2, color="black", linewidth=thick, clip_on=False)


def _legend(figure: Figure, axes: Axes) -> None:
    """Put the legend below the axes, where it hides no curve."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", fontsize=9, frameon=False)


def _bin_centres(predicted: Any) -> Any:
    return ((predicted * BINS).astype(int).clip(0, BINS - 1) + 0.5) / BINS


def _listed(name: str) -> str:
    """Return a name for a legend, in which matplotlib leaves out what begins with an underscore."""
    short = name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
    return _plain(f" {short}" if short.startswith("_") else short)


def _plain(text: str) -> str:
    """Keep matplotlib from reading text between two dollars as a formula."""
    return text.replace("$", r"\$")
