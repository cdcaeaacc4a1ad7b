"""The rows of the tables of docs/results.md: what each is trained with (see ``results.py``)."""

from __future__ import annotations

from dataclasses import dataclass

from streaming_crc import OPTIONS as STREAMING

PLAIN = ("--stain", 0, "--colour", 0)
COPIES = ("--copies", 4)


@dataclass(frozen=True)
class Row:
    """A model to train and score.

    Attributes
    ----------
    title
        Of its line in the table.
    family, options
        What ``slidelens train`` is told beside slides, labels, backbone, weights and seed.
    seeds
        Each a model.
    tables
        The tables it stands in; those of the second are scored on shifted slides too.
    base
        The row whose model of the same seed it starts from; none: ImageNet weights.
    figures
        Another benchmark that trains the same model; its committed figures are shown as long as the
        row is not done here.
    """

    title: str
    family: str
    options: tuple[object, ...]
    seeds: tuple[int, ...] = (0,)
    tables: tuple[int, ...] = (1,)
    base: str = ""
    figures: str = ""


def cached(
    title: str, pooling: str, *options: object, tables: tuple[int, ...] = (1,), base: str = ""
) -> Row:
    """Return a row of a pooling on cached features, of ImageNet's encoder or of another row's."""
    words = ("--pooling", pooling, "--features", "cached", *options)
    return Row(title, "mil", words, (0, 1, 2), tables, base)


def local(title: str, modules: int, *options: object, tables: tuple[int, ...] = (1,)) -> Row:
    """Return a row of a locally supervised network at 1 µm/px.

    At this resolution SqueezeNet's own first stride would leave it cells of 16 µm, in which it has
    next to no features of nuclei.
    """
    words = ("--modules", modules, "--mpp", 1, "--stem-stride", 1, "--window-px", 112)
    return Row(title, "local", (*words, *options), (0,), tables)


ROWS = {
    "mean": cached("mean", "mean"),
    "max": cached("max", "max"),
    "abmil": cached("ABMIL", "abmil"),
    "gated-abmil": cached("gated ABMIL", "gated-abmil", tables=(1, 2)),
    "dsmil": cached("DSMIL", "dsmil"),
    "clam-sb": cached("CLAM-SB", "clam-sb"),
    "clam-mb": cached("CLAM-MB", "clam-mb"),
    "rnn": cached("RNN over the top tiles", "rnn"),
    "top1": Row("top-1, end to end", "mil", (), (0, 1, 2), (1, 2), figures="mil_crc"),
    "gated-top1": cached(
        "gated ABMIL on the encoder that top-1 trained", "gated-abmil", base="top1"
    ),
    "rnn-top1": cached(
        "RNN over the top tiles of the encoder that top-1 trained", "rnn", base="top1"
    ),
    "streaming": Row("streaming, end to end", "streaming", STREAMING, figures="streaming_crc"),
    "local-1": local("local, K = 1 (end to end)", 1),
    "local-4": local("local, K = 4", 4, tables=(1, 2)),
    "local-8": local("local, K = 8", 8),
    "local-4-no-rfr": local("local, K = 4, without RFR", 4, "--patches", 0),
    "local-8-no-rfr": local("local, K = 8, without RFR", 8, "--patches", 0),
    "gated-turned": cached(
        "gated ABMIL, copies turned, stain as it is", "gated-abmil", *COPIES, *PLAIN, tables=(2,)
    ),
    "gated-stain": cached(
        "gated ABMIL, copies with stain jitter", "gated-abmil", *COPIES, tables=(2,)
    ),
    "gated-strong": cached(
        "gated ABMIL, copies with strong stain jitter (0.4, colour 0.15)",
        "gated-abmil",
        *COPIES,
        "--stain",
        0.4,
        "--colour",
        0.15,
        tables=(2,),
    ),
    "gated-macenko": cached(
        "gated ABMIL, Macenko normalisation",
        "gated-abmil",
        "--stain-normalization",
        "macenko",
        tables=(2,),
    ),
    "gated-oriented": cached(
        "gated ABMIL, Macenko normalisation, eight orientations of each tile",
        "gated-abmil",
        "--stain-normalization",
        "macenko",
        "--orientations",
        8,
        tables=(1, 2),
    ),
    "top1-plain": Row("top-1, without stain augmentation", "mil", PLAIN, (0,), (2,)),
    "local-4-plain": local("local, K = 4, without stain augmentation", 4, *PLAIN, tables=(2,)),
}
