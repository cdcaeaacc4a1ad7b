"""The picture of a training."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import MaxNLocator

from slidelens.engine.plots import GREY, look, new_figure, written

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["curves_picture"]


def curves_picture(history: Sequence[Mapping[str, Any]], chosen: Sequence[int]) -> bytes:
    """Draw the losses and the AUC of a training's epochs, as PNG.

    Parameters
    ----------
    history
        Rows with ``epoch`` (from 1), ``stage``, ``train_loss``, ``tune_loss`` and ``tune_auc``,
        which may be None.
    chosen
        Epochs whose weights are the model's: they lie on a grey band. A dotted line stands where a
        stage of the schedule begins.
    """
    figure = new_figure(6.4, 5.2)
    losses, areas = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    epochs = [row["epoch"] for row in history]
    for i, (name, axes) in enumerate(
        (("train_loss", losses), ("tune_loss", losses), ("tune_auc", areas))
    ):
        color, style = look(i)
        values = [float("nan") if row[name] is None else row[name] for row in history]
        label = name.replace("_", " ").replace("auc", "AUC")
        axes.plot(epochs, values, color=color, linestyle=style, marker="o", ms=3, label=label)
    for axes in (losses, areas):
        axes.axvspan(min(chosen) - 0.5, max(chosen) + 0.5, color="#e4e4e4", linewidth=0, zorder=0)
        for before, row in pairwise(history):
            if row["stage"] != before["stage"]:
                axes.axvline(row["epoch"] - 0.5, color=GREY, linewidth=0.8, linestyle=(0, (2, 3)))
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.legend(fontsize=9, frameon=False)
    losses.set(ylabel="loss", ylim=(0, None), xlim=(0.5, max(epochs) + 0.5))
    areas.set(ylabel="AUC", ylim=(min(0.5, *areas.get_ylim()), 1.02))
    areas.set_xlabel("epoch (grey: whose weights are the model's)")
    areas.xaxis.set_major_locator(MaxNLocator(integer=True))
    return written(figure)
