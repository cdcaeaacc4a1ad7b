"""Gather the content of a report before anything is drawn."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import slidelens
from slidelens.engine.annotations import annotation_files
from slidelens.engine.evaluation.calls import compare_calls
from slidelens.engine.evaluation.measure import Measured, Resampling, measure
from slidelens.engine.evaluation.tiles import read_annotated
from slidelens.engine.evaluation.warnings import (
    counted_ignored,
    named_ignored,
    threshold_warnings,
)
from slidelens.engine.last_run import counted_failed, failed_slides, named_failed
from slidelens.engine.slide_folder import find_slides
from slidelens.errors import LabelError, ResultError
from slidelens.maps.run_settings import settings_warnings
from slidelens.review.cards import CohortCard, ModelCard, cohort_card, model_cards
from slidelens.review.errors import ErrorCase, list_errors, list_near_misses
from slidelens.review.pseudonyms import reviewer_pseudonyms, slide_pseudonyms
from slidelens.review.slide_cases import SlideCase, slide_cases
from slidelens.review.store import STORE_FILE, Decision, ReviewStore
from slidelens.review.tally import Agreement, CauseTable, agreement, cause_tables, earlier_notes
from slidelens.review.taxonomy import read_taxonomy
from slidelens.review.wording import merge_notes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from slidelens.engine.evaluation.operating_point import Rule
    from slidelens.review.errors import NearMiss
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.tiling.annotations import Annotation

__all__ = ["Content", "ReportOptions", "gather"]


@dataclass(frozen=True)
class ReportOptions:
    """What a report shows.

    Attributes
    ----------
    rules
        The operating point of all models, or of each one; by default the evaluation's own.
    identify
        Show slide ids, patients and reviewers as they are, instead of pseudonyms.
    fields
        Places shown of each slide, at least one for each method that is wrong.
    near_misses
        Number per method and class.
    slides
        Folder of the slides, if they have moved since the run.
    packages
        Model packages that are not found automatically, for their cards.
    reviewer
        Count only this reviewer's decisions; by default the majority's.
    title
        Of the document.
    """

    rules: Rule | Mapping[str, Rule] | None = None
    identify: bool = False
    fields: int = 3
    near_misses: int = 3
    slides: str | Path | None = None
    packages: Sequence[str | Path] = ()
    reviewer: str | None = None
    title: str = "Review of errors"


@dataclass
class Content:
    """What the templates print.

    Attributes
    ----------
    measured
        Figures and curves of every model at the operating point of the report.
    cases
        Slides with errors, the most confident error first.
    names
        Slide id to what the report calls it.
    stray
        Decisions on slides that are not errors at the operating point of the report.
    earlier
        The models with errors that were decided when they had other weights.
    notes
        What a reader must know about the figures.
    last_run_failed
        Model to the slides (by id) whose last run failed, so that an older result is evaluated.
    """

    saved: SavedEvaluation
    options: ReportOptions
    made: str
    version: str
    cohort: CohortCard
    cards: list[ModelCard]
    measured: dict[str, Measured]
    cases: list[SlideCase]
    errors: list[ErrorCase]
    near_misses: list[NearMiss]
    causes: list[CauseTable]
    agreement: list[Agreement]
    reviewers: list[str]
    names: Mapping[str, str]
    stray: int
    earlier: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    last_run_failed: Mapping[str, list[str]] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    annotations: Mapping[str, Sequence[Annotation]] = field(default_factory=dict)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the methods."""
        return self.saved.models

    @property
    def wrong_calls(self) -> int:
        """Number of slides that a method gets wrong, summed over the methods.

        With more than two classes each is two errors: a false positive of the predicted class, and
        a false negative of the label's.
        """
        return len({(error.slide_id, error.model) for error in self.errors})

    @property
    def comparisons(self) -> list[dict[str, Any]]:
        """Tests between models, from the evaluation."""
        return list(self.saved.metrics.get("comparisons", ()))

    @property
    def call_comparisons(self) -> list[dict[str, Any]]:
        """Tests between the calls of models at the operating points of the report."""
        return compare_calls(self.saved.cases, self.measured)

    @property
    def changed(self) -> dict[str, tuple[str, str]]:
        """Slides whose label was found wrong, with the label and the right class."""
        labels = self.saved.labels
        return {
            case.name: (labels[case.errors[0].slide_id], case.new_label)
            for case in self.cases
            if case.new_label
        }


def gather(saved: SavedEvaluation, options: ReportOptions) -> Content:
    """Measure, list errors and read decisions and cards.

    Raises
    ------
    SlideLensError
        A review store, taxonomy, package or folder that cannot be used.
    """
    rules = saved.rules(options.rules)
    store = ReviewStore(saved.folder / STORE_FILE, read_only=True)
    taxonomy = read_taxonomy(saved.folder)
    everyone = store.reviewers()
    if options.reviewer is not None and options.reviewer not in everyone:
        raise ResultError(
            f"{store.path}: no decision by {options.reviewer!r}; reviewers: "
            f"{', '.join(everyone) or 'none yet'}."
        )
    decisions = store.decisions(options.reviewer)
    errors = list_errors(saved, rules)
    names = slide_pseudonyms(saved)
    people = reviewer_pseudonyms(everyone)
    if options.identify:
        names, people = {name: name for name in names}, {name: name for name in people}
    shown = [_renamed(d, people) for d in decisions]
    keys = {e.key for e in errors}
    content = Content(
        saved=saved,
        options=options,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        version=slidelens.__version__,
        cohort=cohort_card(saved),
        cards=model_cards(saved, [Path(one) for one in options.packages]),
        measured=_measure(saved, rules),
        cases=slide_cases(saved, errors, shown, names, options.identify),
        errors=errors,
        near_misses=list_near_misses(saved, rules, options.near_misses),
        causes=cause_tables(errors, decisions, taxonomy, saved.models, saved.labels),
        agreement=agreement(_renamed(d, people) for d in store.decisions()),
        reviewers=sorted({d.reviewer for d in shown}),
        names=names,
        stray=len({d.key for d in decisions if d.decided} - keys),
        earlier=earlier_notes(decisions, saved.since),
        last_run_failed=_last_run_failed(saved),
        files={} if options.slides is None else find_slides(Path(options.slides)),
    )
    content.notes += merge_notes(_notes(saved, content), saved.models)
    _annotate(saved, content)
    return content


def _measure(saved: SavedEvaluation, rules: Mapping[str, Rule]) -> dict[str, Measured]:
    given = saved.metrics.get("interval") or {}
    known = {key: given[key] for key in Resampling._fields if key in given}
    resampling = Resampling(**known)
    return {name: measure(one, rules[name], resampling) for name, one in saved.cases.items()}


def _renamed(decision: Decision, people: Mapping[str, str]) -> Decision:
    return replace(decision, reviewer=people[decision.reviewer])


def _notes(saved: SavedEvaluation, content: Content) -> list[str]:
    """Return the evaluation's warnings that hold here too, and new ones."""
    notes = _ignored_notes(saved, content.options.identify)
    for name, one in content.measured.items():
        if one.figures["threshold"] != saved.record["models"][name]["threshold"]:
            notes = [text for text in notes if text not in threshold_warnings(name)]
            notes.append(f"{name}: the threshold is {one.figures['threshold_rule']}.")
    if content.stray:
        notes.append(
            f"{content.stray} decisions are on slides that are right at this operating point; they "
            "are kept, and not counted here."
        )
    notes += content.earlier
    gone = [f"{card.name} {card.gone}" for card in content.cards if card.gone]
    if gone:
        notes.append(
            f"Results that were evaluated and are gone now, or cannot be read: {', '.join(gone)}."
        )
    return [*_failed_notes(content, notes), *_run_notes(content)]


def _ignored_notes(saved: SavedEvaluation, identify: bool) -> list[str]:
    """Return the evaluation's warnings; labels of annotations may be people's names.

    Evaluations of older versions named these labels, and keys of ``metrics.json``.
    """
    told: dict[str, str] = {}
    for name, one in saved.metrics.get("models", {}).items():
        if labels := (one.get("tiles") or {}).get("ignored_labels"):
            counted, named = counted_ignored(name, len(labels)), named_ignored(name, labels)
            told |= dict.fromkeys((counted, named), named if identify else counted)
    texts = (told.get(text, str(text)) for text in saved.metrics.get("warnings", ()))
    return [text.replace(" (left_out)", "") for text in texts]


def _failed_notes(content: Content, notes: list[str]) -> list[str]:
    """Name the slides with older results as the report names them; the evaluation counts them."""
    counted = {
        counted_failed(name, len(one["last_run_failed"]))
        for name, one in content.saved.metrics.get("models", {}).items()
        if one.get("last_run_failed")
    }
    named = [
        named_failed(name, [content.names[slide_id] for slide_id in slides])
        for name, slides in content.last_run_failed.items()
    ]
    return [*named, *(text for text in notes if text not in counted)]


def _run_notes(content: Content) -> list[str]:
    """Return notes on how the slides were run, if figures depend on it, without repetition."""
    notes = []
    for card in content.cards:
        runs = [run.settings for run in card.runs if run.settings for _ in run.slides]
        notes += settings_warnings(card.name, runs)
    changed = [f"{card.name} {card.changed}" for card in content.cards if card.changed]
    if changed:
        notes.append(
            f"Results that have changed since the evaluation: {', '.join(changed)}. Figures are of "
            "the old ones, pictures and settings of the new ones; evaluate again."
        )
    return notes


def _last_run_failed(saved: SavedEvaluation) -> dict[str, list[str]]:
    """Return the slides whose last run failed, at the time of the evaluation or since."""
    found = {}
    for name, one in saved.cases.items():
        then = saved.metrics.get("models", {}).get(name, {}).get("last_run_failed", ())
        folders = one.scored.folders
        now = {folder: failed_slides(folder) for folder in {f.parent for f in folders.values()}}
        failed = {i for i, folder in folders.items() if i in now[folder.parent]}
        if slides := [slide_id for slide_id in one.ids if slide_id in failed.union(then)]:
            found[name] = slides
    return found


def _annotate(saved: SavedEvaluation, content: Content) -> None:
    """Read the annotations that the evaluation names, for the slides with errors."""
    named = saved.record.get("annotations")
    if not named:
        return
    folder = saved.folder / str(named)
    ids = [case.errors[0].slide_id for case in content.cases]
    try:
        drawn = annotation_files(folder)
        if some := [name for name in ids if name in drawn]:
            content.annotations = read_annotated(folder, some, saved.classes).of_slide
    except LabelError:  # its text names paths, which a report must not
        content.notes.append("The annotations of the evaluation cannot be read any longer.")
