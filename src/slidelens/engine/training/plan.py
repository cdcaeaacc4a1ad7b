"""Turn a request to train into a frozen plan, without opening, building or writing anything."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from slidelens.engine.annotations import find_annotations
from slidelens.engine.bags import find_bags, fitted
from slidelens.engine.fields import read_value, validated
from slidelens.engine.labels import read_labels
from slidelens.engine.package import family_of
from slidelens.engine.slide_folder import find_slides
from slidelens.engine.tissue_asked import tissue_asked, tissue_for
from slidelens.engine.training.file import LARGEST_SEED
from slidelens.engine.training.splits import fold_table, take_fraction
from slidelens.engine.training.start import starting_point, task_of
from slidelens.errors import LabelError, ModelError
from slidelens.nn.encoders import network_asked
from slidelens.slide.resolution import table_of
from slidelens.tiling.tissue import TissueSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.engine.labels import LabelledSlide, LabelTable
    from slidelens.engine.tissue_asked import GivenTissue
    from slidelens.families.base import FamilyConfig, Model
    from slidelens.families.training import TrainConfig
    from slidelens.slide.open import GivenMpp

__all__ = ["TrainOptions", "TrainPlan", "check_seed", "plan_training"]

_NAMED = ("imagenet", "none")
"""Names for weights that are not files."""


@dataclass(frozen=True)
class TrainPlan:
    """A fully resolved training run, as :func:`~slidelens.engine.train.train` carries it out.

    Attributes
    ----------
    family, config, training
        The method, its configuration, and its training options.
    labels, files
        The table of labels, and the file of each slide id.
    out
        Folder of the model package.
    weights, from_model
        Initial weights: ``"imagenet"``, ``"none"`` or a file; or a package to fine-tune.
    seed
        Seed of all random choices.
    device, nodes
        The device to run on, and the number of machines.
    mpp
        Resolution in µm/px of slides that state none.
    """

    family: str
    config: FamilyConfig
    training: TrainConfig
    labels: LabelTable
    files: Mapping[str, Path]
    out: Path
    weights: str = "imagenet"
    from_model: str | None = None
    seed: int = 0
    device: str = "auto"
    mpp: GivenMpp = None
    tissue: TissueSettings = field(default_factory=TissueSettings)
    """How tissue is found."""
    devices: int = 1
    """Processes on each node, each with its own device."""
    nodes: int = 1
    tested: Sequence[LabelledSlide] = ()
    """Slides of split ``test``, which are not used."""
    annotations: Mapping[str, Path] = field(default_factory=dict)
    """File of each slide id, for families that learn from annotations."""
    request: Mapping[str, Any] = field(default_factory=dict)
    """The given options, by their names in :mod:`slidelens.engine.training.file`."""
    derived: frozenset[str] = frozenset()
    """Fields of the training that nobody set and that follow from others."""

    @property
    def given_bags(self) -> bool:
        """Whether it learns from feature vectors that were made elsewhere."""
        return getattr(self.training, "bags", None) is not None

    @property
    def file(self) -> dict[str, Any]:
        """The training as :func:`~slidelens.engine.training.file.write_train_file` writes it.

        What is derived is left out: beside other fields, it may be something else.
        """
        learning = {k: v for k, v in self.learning.items() if k not in self.derived}
        fields = self.config.model_dump(mode="json") | learning
        return {"family": self.family, **self.request, **fields}

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values that must be equal when the run is resumed."""
        settings: dict[str, Any] = {
            "family": self.family,
            "config": self.config.model_dump(mode="json"),
            "training": self.learning,
            "classes": list(self.labels.classes),
            "slides": [[r.slide_id, r.label, r.split] for r in self.labels.rows],
            "annotations": sorted(self.annotations),
            "weights": _place(self.weights),
            "from_model": _place(self.from_model),
            "seed": self.seed,
            "processes": self.devices * self.nodes,
        }
        if self.mpp is not None:
            settings["slide_mpp"] = _mpp_text(self.mpp)
        if self.tissue != TissueSettings():  # as that of all that older versions began
            settings["tissue"] = self.tissue.model_dump(mode="json")
        return settings

    @property
    def learning(self) -> dict[str, Any]:
        """All fields of the training, with an absolute path to a folder of bags."""
        fields = self.training.model_dump(mode="json")
        return fields | {"bags": _place(fields["bags"])} if "bags" in fields else fields


class TrainOptions(TypedDict, total=False):
    """Options of a training by name, as :func:`plan_training` tells them."""

    classes: Sequence[str] | None
    backbone: str | None
    weights: str | Path | None
    epochs: int | None
    seed: int
    preset: str
    config: Mapping[str, Any] | None
    overrides: Mapping[str, str] | None
    annotations: str | Path | None
    from_model: str | Path | None
    fraction: float
    fold: tuple[int, int] | None
    device: str
    devices: int
    nodes: int
    mpp: GivenMpp
    tissue: GivenTissue


def check_seed(seed: int) -> None:
    """Raise a ``ModelError`` for a seed that random generators do not accept."""
    if not 0 <= seed <= LARGEST_SEED:
        raise ModelError(f"seed must be from 0 to {LARGEST_SEED}, not {seed}.")


def plan_training(
    family_name: str,
    slides_dir: str | Path,
    labels_csv: str | Path,
    out: str | Path,
    *,
    classes: Sequence[str] | None = None,
    backbone: str | None = None,
    weights: str | Path | None = None,
    epochs: int | None = None,
    seed: int = 0,
    preset: str = "default",
    config: Mapping[str, Any] | None = None,
    overrides: Mapping[str, str] | None = None,
    annotations: str | Path | None = None,
    from_model: str | Path | None = None,
    fraction: float = 1.0,
    fold: tuple[int, int] | None = None,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    mpp: GivenMpp = None,
    tissue: GivenTissue = None,
) -> TrainPlan:
    """Resolve a request to train.

    Parameters
    ----------
    family_name
        A family that can be trained.
    slides_dir, labels_csv
        See :mod:`slidelens.engine.labels`. No slide is read if the training field ``bags`` names a
        folder of feature bags.
    out
        Folder of the model package.
    classes
        Names of the classes in order; of two, the last is positive. By default those of
        ``from_model``, or as :func:`~slidelens.engine.labels.read_labels` orders them.
    backbone
        Value of the field of that name in the family's configuration.
    weights
        Initial weights: ``"imagenet"`` (the default), ``"none"``, or a safetensors file.
    epochs
        Largest number of epochs in total; the schedule's stages are scaled in proportion.
    seed
        Seed of the split (if the table has none), the head, the order and the augmentation; 0 to
        2**32 - 1.
    preset
        Named values of the training's fields.
    config
        Fields of the family's or the training's configuration, which override the preset.
    overrides
        The same as text (numbers, JSON or plain), which override ``config``.
    annotations
        Folder of annotations, for a family that learns from them; see
        :func:`~slidelens.engine.annotations.find_annotations`.
    from_model
        A package to fine-tune, starting from its configuration and weights; with other
        ``classes`` than its own, its last layers begin anew.
    fraction
        Fraction of the training slides to use, above 0; see
        :func:`~slidelens.engine.training.splits.take_fraction`.
    fold
        Fold (from 1) and number of folds (2 or more) of a cross-validation: this fold is for
        tuning, the others for training; see :func:`~slidelens.engine.training.splits.fold_table`.
    device, mpp
        As for :func:`slidelens.predict`; ``mpp`` in µm/px, for slides that state none.
    tissue
        How tissue is found, kept with the model, which predicts so: see
        :func:`~slidelens.engine.tissue_asked.tissue_asked`. What is not given is as in
        ``from_model``.
    devices, nodes
        Processes per machine, and number of machines. They share the steps of an epoch, and an
        update averages over accordingly more slides; see
        :mod:`slidelens.engine.training.replicas`.

    Raises
    ------
    LabelError
        A table or folder that cannot be used.
    ModelError
        An unknown family, preset or field; a value out of bounds; contradictory options.
    """
    _check_annotated(family_name, annotations)
    seed, fraction, mpp = int(seed), float(fraction), _plain(mpp)
    base, known = starting_point(from_model, family_name, classes, weights)
    asked = tissue_asked(tissue)
    given = dict(config or {}) | {k: read_value(v) for k, v in (overrides or {}).items()}
    if backbone is not None:
        given["backbone"] = backbone
    with network_asked() if "backbone" in given else nullcontext():
        model_config, training, derived = _configured(family_name, base, given, preset, epochs)
    labelled = _labelled(Path(labels_csv), known, None if classes is not None else from_model)
    table = _divided(labelled, fold, fraction, seed)
    bags = getattr(training, "bags", None)
    if bags is not None and asked.model_fields_set:
        raise ModelError("bags hold the tiles that were chosen: leave tissue out.")
    files = find_slides(Path(slides_dir)) if bags is None else find_bags(Path(bags))
    table = table.with_files(files)
    if bags is not None:
        model_config = fitted(model_config, files[table.rows[0].slide_id], given)
    return TrainPlan(
        family=family_name,
        config=model_config,
        training=training,
        labels=table,
        files={row.slide_id: files[row.slide_id] for row in table.rows},
        out=Path(out),
        weights="imagenet" if weights is None else str(weights),
        from_model=None if from_model is None else str(from_model),
        seed=seed,
        tested=labelled.of("test"),
        device=device,
        mpp=mpp,
        tissue=tissue_for(base, asked),
        devices=devices,
        nodes=nodes,
        request={
            "slides": _place(slides_dir),
            "labels": _place(labels_csv),
            "classes": None if classes is None else list(classes),
            "annotations": _place(annotations),
            "weights": _place(weights),
            "from": _place(from_model),
            "seed": seed,
            "fraction": fraction,
            "fold": None if fold is None else list(fold),
            "slide_mpp": _place(table_of(mpp)) or mpp,
            "slide_tissue": asked.model_dump(mode="json", exclude_unset=True) or None,
            "device": device,
            "devices": devices,
            "nodes": nodes,
        },
        annotations={} if annotations is None else find_annotations(Path(annotations), table),
        derived=derived,
    )


def _place(given: str | Path | None) -> str | None:
    """Return the absolute path of a file or folder; names that are not paths stay as they are."""
    if given is None or given in _NAMED or not Path(given).exists():
        return None if given is None else str(given)
    return str(Path(given).absolute())


def _plain(mpp: GivenMpp) -> GivenMpp:
    """Return a resolution that can be written to a file: NumPy numbers and ``Mpp`` made plain."""
    if mpp is None or isinstance(mpp, str | Path):
        return mpp
    return (float(mpp[0]), float(mpp[1])) if isinstance(mpp, tuple) else float(mpp)


def _mpp_text(mpp: GivenMpp) -> object:
    """Return the given µm/px for comparison: of a table the checksum of its content."""
    table = table_of(mpp)
    if table is not None and table.is_file():
        return sha256(table.read_bytes()).hexdigest()
    return list(mpp) if isinstance(mpp, tuple) else str(mpp)


def _check_annotated(family: str, annotations: str | Path | None) -> None:
    annotated = task_of(family).annotated
    if annotations is None and annotated:
        raise ModelError(
            f"family {family!r} learns from annotations: say which folder holds them, with "
            "--annotations DIR (one GeoJSON, JSON or XML file per positive slide)."
        )
    if annotations is not None and not annotated:
        raise ModelError(
            f"family {family!r} learns from slide labels alone: leave annotations out."
        )


def _labelled(table: Path, classes: Sequence[str] | None, theirs: str | Path | None) -> LabelTable:
    """Read the labels; ``theirs`` is the model that the classes were taken from, if they were."""
    try:
        return read_labels(table, classes)
    except LabelError as error:
        if theirs is None or not table.is_file():
            raise
        raise LabelError(
            f"{error}\n  (The classes are those of {theirs}; --classes, or Classes in the window, "
            "names others, for which its last layers begin anew.)"
        ) from error


def _divided(
    table: LabelTable, fold: tuple[int, int] | None, fraction: float, seed: int
) -> LabelTable:
    """Return the table with every slide in split train or tune; other slides are left out."""
    check_seed(seed)
    if not 0 < fraction <= 1:
        raise ModelError(f"fraction must be above 0 and at most 1, not {fraction}.")
    table = table.split(seed) if fold is None else fold_table(table, *fold, seed)
    table = take_fraction(table.without("test"), fraction, seed)
    # A patient with slides of several classes may be held out, or left out by the fraction.
    table.check_trained("take another --seed, a larger --fraction, or give a column 'split'")
    return table


def _configured(
    family: str,
    base: Model[Any] | None,
    given: Mapping[str, Any],
    preset: str,
    epochs: int | None,
) -> tuple[FamilyConfig, TrainConfig, frozenset[str]]:
    """Divide the given fields into those of the model and of its training; name the derived."""
    kind = family_of(family).config
    own = {k: v for k, v in given.items() if k in kind.model_fields}
    other = {k: v for k, v in given.items() if k not in own}
    whole = own if base is None else kind.fine_tuned(base.config.model_dump(), own)
    config = validated(kind, whole)
    asked = _asked(task_of(family).training, preset, other, config)
    training = asked.suited(config)
    unset = set(type(asked).model_fields) - asked.model_fields_set
    derived = frozenset(n for n in unset if getattr(training, n) != getattr(asked, n))
    if epochs is not None:
        training = validated(type(asked), {**dict(training), **training.of_length(epochs)})
    return config, training, derived


def _asked(
    kind: type[TrainConfig], preset: str, given: Mapping[str, Any], config: FamilyConfig
) -> TrainConfig:
    """Return the training as it was asked for: a preset, and fields given beside it."""
    values = kind.preset(preset, config, given)
    if values is None:
        names = [name for name in kind.presets if kind.preset(name, config, given) is not None]
        raise ModelError(f"no preset {preset!r}: choose one of {', '.join(names)}.")
    unknown = [name for name in given if name not in kind.model_fields]
    if unknown:
        known = [*type(config).model_fields, *kind.model_fields]
        alike = {n for name in unknown for n in get_close_matches(name, known, 1)}
        meant = f" (do you mean {', '.join(sorted(alike))}?)" if alike else ""
        raise ModelError(f"unknown {', '.join(unknown)}{meant}; the fields are {', '.join(known)}.")
    return validated(kind, {**values, **given})
