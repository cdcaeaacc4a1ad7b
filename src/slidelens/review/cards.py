"""Cohort and model cards of a report, without paths and slide names."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from slidelens.engine.package import find_models
from slidelens.engine.packages.manifest import Manifest, read_manifest
from slidelens.errors import ModelError, ResultError
from slidelens.maps.run_settings import config_texts, grouped, value_text
from slidelens.maps.schema import read_result_file
from slidelens.review.wording import describe_run

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from pathlib import Path

    from slidelens.maps.run_settings import RunGroup
    from slidelens.maps.schema import ResultFile, SlideInfo
    from slidelens.review.evaluation import SavedEvaluation

__all__ = ["CohortCard", "ModelCard", "cohort_card", "model_cards"]

_SHORT = 12  # digits of a digest


@dataclass(frozen=True)
class CohortCard:
    """The evaluated slides.

    Attributes
    ----------
    slides, patients
        How many; ``None`` if no slide names its patient.
    of_class
        Class to number of slides.
    split
        The one that was evaluated; ``None``: all.
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
    """One model: what its results state, and its package if that was found.

    Attributes
    ----------
    digest
        sha256 of the weights, as the results state it.
    facts
        Name to text, to be printed in order.
    about
        Sentences of the package: what it is, what it is meant for.
    results, gone, changed
        How many results were evaluated; how many of them can no longer be read, and how many have
        changed.
    software
        Versions that occur among the results.
    settings
        Digest of the settings of all results together: slides, regions, resolution and model.
    runs
        How its slides were run; those that were run alike are together.
    given_mpp
        Slide id to what ``predict --mpp`` was given for it: a number, ``from-objective``,
        ``TABLE``, or nothing.
    config
        Field of the model to text: as used in its runs, with differences between slides; as stated
        in its package if no result says.
    as_run
        Whether ``config`` comes from the runs.
    packaged
        Whether its package was found.
    """

    name: str
    digest: str | None = None
    facts: dict[str, str] = field(default_factory=dict)
    about: list[str] = field(default_factory=list)
    results: int = 0
    gone: int = 0
    changed: int = 0
    software: dict[str, str] = field(default_factory=dict)
    settings: str | None = None
    runs: list[RunGroup] = field(default_factory=list)
    given_mpp: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    as_run: bool = False
    packaged: bool = False


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
        is used for a model only if its weights made the results.

    Raises
    ------
    ModelError
        One of ``packages`` is not a package, or has other weights than the results.
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
    scored = saved.cases[name].scored
    if scored.folds:
        card.packaged = True  # each is in its fold, and is no model to be used
        card.about.append(
            f"The models of {scored.folds} folds of a cross-validation, each of which scored the "
            "slides that it held out. No maps were kept."
        )
        return card
    of_slide: dict[str, ResultFile] = {}
    for slide_id, folder in scored.folders.items():
        card.results += 1
        try:
            of_slide[slide_id] = one = read_result_file(folder / "result.json")
        except ResultError:
            card.gone += 1
            continue
        evaluated = scored.probabilities[slide_id].tolist()
        card.changed += list(one.probabilities.values()) != evaluated
    read = list(of_slide.values())
    card.digest = digest = next((r.model.sha256 for r in read if r.model.sha256), None)
    family = next((r.model.family for r in read if r.model.family), None)
    manifest = next((m for m in manifests if digest and m.weights_sha256 == digest), None)
    _add_runs(card, of_slide)
    if family:
        card.facts["Family"] = family
    if manifest is not None:
        card.packaged = True
        _add_package(card, manifest)
    else:
        card.about.append("Its package was not found; this is what its results state.")
    card.facts["Run"] = _runs_text(card)
    stored = scored.threshold
    card.facts["Stored threshold"] = "none" if stored is None else f"{stored:.4g}"
    if digest:
        card.facts["Weights (sha256)"] = f"{digest[:_SHORT]}…"
    digests = sorted(r.settings_sha256 for r in read if r.settings_sha256)
    if digests:  # one per slide, as its own file is part of it
        card.settings = sha256("\n".join(digests).encode()).hexdigest()
    for key in sorted({key for r in read for key in r.software}):
        versions = sorted({r.software[key] for r in read if key in r.software})
        card.software[key] = " | ".join(versions)
    return card


def _add_runs(card: ModelCard, of_slide: Mapping[str, ResultFile]) -> None:
    """Record how the slides were run, as stated in their results."""
    card.runs = grouped({slide_id: one.settings for slide_id, one in of_slide.items()})
    card.given_mpp = {slide_id: _given_mpp(one.slide) for slide_id, one in of_slide.items()}
    stated = [one.settings for one in of_slide.values() if one.settings is not None]
    card.as_run = bool(stated)
    card.config = config_texts(stated)


def _given_mpp(slide: SlideInfo) -> str:
    """Return the ``predict --mpp`` value of a slide, inferred from its resolution's source."""
    source, mpp = slide.mpp_source or "", slide.resolution
    if source == "given" and mpp is not None:
        return f"{mpp.x:.12g}" if mpp.x == mpp.y else f"{mpp.x:.12g},{mpp.y:.12g}"
    if source.startswith("table "):
        return "TABLE"
    return "from-objective" if source.startswith("objective power") else ""


def _runs_text(card: ModelCard) -> str:
    """Describe how the slides were run, or that they were run differently."""
    if not card.runs:
        return "not known, as its results are gone"
    if len(card.runs) > 1:
        return f"in {len(card.runs)} ways; see Settings and versions"
    settings = card.runs[0].settings
    return "not stated by its results" if settings is None else describe_run(settings)


def _add_package(card: ModelCard, manifest: Manifest) -> None:
    extra: dict[str, Any] = manifest.model_extra or {}
    if not card.as_run:
        config = {k: v for k, v in manifest.config.items() if v is not None}
        card.config = {name: value_text(name, value) for name, value in config.items()}
    used = [run.settings.config for run in card.runs if run.settings is not None] or [{}]
    mpps = [_number(one.get("mpp"), manifest.mpp) for one in used]
    card.facts["Resolution"] = _either(f"{mpp:g} µm/px" for mpp in mpps)
    if manifest.tile_size:
        sides = [_number(one.get("tile"), manifest.tile_size) for one in used]
        tiles = zip(sides, mpps, strict=True)
        card.facts["Tile"] = _either(
            f"{n:g} px ({n * mpp:g} µm)" if n else "no fixed side" for n, mpp in tiles
        )
    backbone = manifest.config.get("backbone")
    if isinstance(backbone, str):
        card.facts["Backbone"] = value_text("backbone", backbone)
    if trained := _slides(manifest.training_data):
        card.facts["Trained on"] = trained
    auc, split = manifest.metrics.get("auc"), manifest.metrics.get("split")
    if isinstance(auc, int | float):
        card.facts["AUC in training"] = f"{auc:.3f}" + (f" (split {split})" if split else "")
    if manifest.licence:
        card.facts["Licence"] = manifest.licence
    card.about += [t for t in (extra.get("about"), manifest.intended_use) if isinstance(t, str)]


def _number(value: Any, otherwise: float) -> float:
    return value if isinstance(value, int | float) and value > 0 else otherwise


def _either(texts: Iterable[str]) -> str:
    return " | ".join(dict.fromkeys(texts))


def _slides(training: Any) -> str:
    """Return how many slides of each class a model learned from."""
    splits = training.get("slides") if isinstance(training, dict) else None
    if not isinstance(splits, dict):
        return ""
    parts = []
    for split, counts in splits.items():
        if isinstance(counts, dict):
            listed = ", ".join(f"{name} ({n})" for name, n in counts.items())
            parts.append(f"{split}: {listed}")
    return "; ".join(parts)
