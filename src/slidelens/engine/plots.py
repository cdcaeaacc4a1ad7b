"""What pictures of evaluations and training share; no global matplotlib state is used."""

from __future__ import annotations

from io import BytesIO
from typing import Literal

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["GREY", "FileFormat", "look", "new_figure", "written"]

# Okabe and Ito (2008), without yellow, which is too light for a line on white.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_STYLES = ("-", "--", "-.", ":")
GREY = "#666666"

FileFormat = Literal["png", "svg"]


def new_figure(width: float, height: float) -> Figure:
    """Make a white figure of so many inches whose parts make room for each other."""
    return Figure(figsize=(width, height), dpi=150, facecolor="white", layout="constrained")


def look(i: int) -> tuple[str, str]:
    """Return color and line style; both change, so that curves that coincide are seen as two."""
    return _COLORS[i % len(_COLORS)], _STYLES[i % len(_STYLES)]


def written(figure: Figure, file_format: FileFormat = "png") -> bytes:
    """Write a figure; the same input gives the same bytes."""
    from matplotlib import rc_context

    FigureCanvasAgg(figure)
    stream = BytesIO()
    unsaid = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[file_format]
    with rc_context({"svg.hashsalt": "slidelens"}):
        figure.savefig(stream, format=file_format, metadata=unsaid)
    return stream.getvalue()
