"""What a report says of its cohort and its models, without paths and without names of slides."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from slidelens.engine.manifest import Manifest, read_manifest
from slidelens.engine.package import find_models
from slidelens.errors import ModelError, ResultError
from slidelens.maps.schema import read_result_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from slidelens.maps.schema import ResultFile
    from slidelens.review.evaluation import SavedEvaluation

__all__ = ["CohortCard", "ModelCard", "cohort_card", "model_cards"]

_SHORT = 12  # digits of a digest


@dataclass(frozen=True)
class CohortCard:
    """The evaluated slides.

    Attributes
    ----------
    slides, patients
        How many; ``None`` where no slide names its patient.
    of_class
        Class to number of slides.
    split
        Which was evaluated; ``None``: all.
    labels_sha256
        Of the labels table.
    """

    slides: int
    patients: int | None
    of_class: Mapping[str, int]
    split: str | None
    labels_sha256: str


@dataclass
class ModelCard:
    """One model: what its results say of it, and its package where that is at hand.

    Attributes
    ----------
    digest
        sha256 of the weights, as the results state it.
    facts
        Name to text, to be printed in order.
    about
        Sentences of the package: what it is, what it is meant for.
    results, gone
        How many results were evaluated, and how many of them cannot be read any longer.
    software
        Versions that occur among the results.
    settings
        Digest of the settings of all results together: of slides, regions, resolution and model.
    config
        The model's fields, as its package states them.
    """

    name: str
    digest: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    results: int = 0
    gone: int = 0
    software: dict[str, str] = field(default_factory=dict)
    settings: str | None = None
    config: dict[str, Any] = field(default_factory=dict)


def cohort_card(saved: SavedEvaluation) -> CohortCard:
    """Count slides, patients and classes."""
    labels, patients = saved.labels, saved.patients
    count = Counter(labels.values())
    named = any(patients.values())
    return CohortCard(
        slides=len(labels),
        patients=len({patient or slide for slide, patient in patients.items()}) if named else None,
        of_class={name: count[name] for name in saved.classes},
        split=saved.record.get("split"),
        labels_sha256=str(saved.record.get("labels_sha256", "")),
    )


def model_cards(saved: SavedEvaluation, packages: Sequence[Path] = ()) -> list[ModelCard]:
    """Read what is known of every model.

    Parameters
    ----------
    packages
        Folders of model packages; others are looked for where :func:`find_models` looks. A package
        is a model's only if its weights are those that made the results.

    Raises
    ------
    ModelError
        One of ``packages`` is none, or of other weights than the results.
    """
    given = [(folder, read_manifest(folder)) for folder in packages]
    found = [read_manifest(info.path) for info in find_models() if info.error is None]
    cards = [_card(saved, name, [*(m for _, m in given), *found]) for name in saved.models]
    used = {card.digest for card in cards}
    strange = [str(folder) for folder, m in given if m.weights_sha256 not in used]
    if strange:
        raise ModelError(
            f"{', '.join(strange)}: no result was made with these weights; give the packages that "
            f"{', '.join(saved.models)} were predicted with."
        )
    return cards


def _card(saved: SavedEvaluation, name: str, manifests: Sequence[Manifest]) -> ModelCard:
    card = ModelCard(name)
    read: list[ResultFile] = []
    for folder in saved.cases[name].scored.folders.values():
        card.results += 1
        try:
            read.append(read_result_file(folder / "result.json"))
        except ResultError:
            card.gone += 1
    card.digest = digest = next((r.model.sha256 for r in read if r.model.sha256), None)
    family = next((r.model.family for r in read if r.model.family), None)
    manifest = next((m for m in manifests if digest and m.weights_sha256 == digest), None)
    if family:
        card.facts["Family"] = family
    if manifest is not None:
        _tell_package(card, manifest)
    else:
        card.about.append("Its package is not at hand; this is what its results say.")
    stored = saved.cases[name].scored.threshold
    card.facts["Stored threshold"] = "none" if stored is None else f"{stored:.4g}"
    if digest:
        card.facts["Weights (sha256)"] = f"{digest[:_SHORT]}…"
    digests = sorted(r.settings_sha256 for r in read if r.settings_sha256)
    if digests:  # one of each slide: its own file is part of it
        card.settings = sha256("\n".join(digests).encode()).hexdigest()
    for key in sorted({key for r in read for key in r.software}):
        versions = sorted({r.software[key] for r in read if key in r.software})
        card.software[key] = " | ".join(versions)
    return card


def _tell_package(card: ModelCard, manifest: Manifest) -> None:
    extra: dict[str, Any] = manifest.model_extra or {}
    card.facts["Resolution"] = f"{manifest.mpp:g} µm/px"
    if manifest.tile_size:
        side = manifest.tile_size * manifest.mpp
        card.facts["Tile"] = f"{manifest.tile_size} px ({side:g} µm)"
    card.config = dict(manifest.config)
    backbone = manifest.config.get("backbone")
    if isinstance(backbone, str):
        card.facts["Backbone"] = backbone
    if trained := _slides(manifest.training_data):
        card.facts["Trained on"] = trained
    auc, split = manifest.metrics.get("auc"), manifest.metrics.get("split")
    if isinstance(auc, int | float):
        card.facts["AUC in training"] = f"{auc:.3f}" + (f" (split {split})" if split else "")
    if manifest.licence:
        card.facts["Licence"] = manifest.licence
    card.about += [t for t in (extra.get("about"), manifest.intended_use) if isinstance(t, str)]


def _slides(training: Any) -> str:
    """Say how many slides of which class a model learned from."""
    splits = training.get("slides") if isinstance(training, dict) else None
    if not isinstance(splits, dict):
        return ""
    parts = []
    for split, counts in splits.items():
        if isinstance(counts, dict):
            listed = ", ".join(f"{name} ({n})" for name, n in counts.items())
            parts.append(f"{split}: {listed}")
    return "; ".join(parts)
