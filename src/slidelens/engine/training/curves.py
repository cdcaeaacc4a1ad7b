"""The picture of a training."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from slidelens.engine.plots import GREY, look, new_figure, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["curves_picture"]

_COLUMNS = ("train_loss", "tune_loss", "tune_auc")


def curves_picture(history: Sequence[Mapping[str, Any]], chosen: Sequence[int]) -> bytes:
    """Draw the losses of a training's epochs and, where there are any, their AUC, as PNG.

    Parameters
    ----------
    history
        Rows with ``epoch`` (from 1), ``stage``, ``train_loss``, ``tune_loss`` and ``tune_auc``,
        which may be None.
    chosen
        Epochs whose weights are the model's: they lie on a grey band. A dotted line stands where a
        stage of the schedule begins.
    """
    shown = [name for name in _COLUMNS if any(row[name] is not None for row in history)]
    panels = 1 + ("tune_auc" in shown)  # there is no AUC where a class has no tuning slide
    ratios = (3, 2)[:panels]
    figure = new_figure(6.4, 0.2 + sum(ratios))
    plots = figure.subplots(panels, 1, sharex=True, height_ratios=ratios, squeeze=False)[:, 0]
    losses, last = plots[0], plots[-1]
    epochs = [row["epoch"] for row in history]
    for i, name in enumerate(shown):
        axes = last if name == "tune_auc" else losses
        color, style = look(i)
        values = [float("nan") if row[name] is None else row[name] for row in history]
        label = name.replace("_", " ").replace("auc", "AUC")
        axes.plot(epochs, values, color=color, linestyle=style, marker="o", ms=3, label=label)
    for axes in plots:
        axes.axvspan(min(chosen) - 0.5, max(chosen) + 0.5, color="#e4e4e4", linewidth=0, zorder=0)
        for before, row in pairwise(history):
            if row["stage"] != before["stage"]:
                axes.axvline(row["epoch"] - 0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=9, frameon=False)
    losses.set(ylabel="loss", ylim=(0, None), xlim=(0.5, max(epochs) + 0.5))
    if last is not losses:
        last.set(ylabel="AUC", ylim=(min(0.5, *last.get_ylim()), 1.02))
    last.set_xlabel("epoch (grey: whose weights are the model's)")
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    return written(figure)
