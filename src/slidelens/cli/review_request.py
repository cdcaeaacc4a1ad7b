"""Arguments of ``slidelens review``, checked against the evaluation."""

from __future__ import annotations

import getpass
from typing import TYPE_CHECKING

import typer

from slidelens.errors import SlideLensError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from slidelens.engine.evaluation.operating_point import Rule
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.review.store import CaseKey, ReviewStore

__all__ = [
    "case_keys",
    "check_category",
    "check_model",
    "check_places",
    "meant_slide",
    "open_review",
    "other_class",
    "reviewer_name",
]


def open_review(
    context: typer.Context, *, write: bool = False
) -> tuple[SavedEvaluation, ReviewStore]:
    """Return the evaluation that the command names, and its decisions."""
    from slidelens.review.evaluation import read_evaluation
    from slidelens.review.store import STORE_FILE, ReviewStore

    saved = read_evaluation(context.obj)
    return saved, ReviewStore(saved.folder / STORE_FILE, read_only=not write)


def meant_slide(slide: str, saved: SavedEvaluation) -> str:
    """Return the id of a slide given by id or by its name in reports."""
    from slidelens.review.pseudonyms import slide_pseudonyms

    if slide in saved.labels:
        return slide
    of_name = {name: slide_id for slide_id, name in slide_pseudonyms(saved).items()}
    if slide not in of_name:
        raise SlideLensError(
            f"no slide {slide!r} in {saved.folder}; `slidelens review {saved.folder} list` lists "
            "the errors."
        )
    return of_name[slide]


def case_keys(
    saved: SavedEvaluation,
    rules: dict[str, Rule] | None,
    slide_id: str,
    model: str | None,
    kind: str | None,
) -> list[CaseKey]:
    """Return the errors of a slide that are meant; refuse where there is none."""
    from slidelens.review.errors import list_errors

    if model is not None:
        check_model(model, saved)
    keys = [
        e.key
        for e in list_errors(saved, rules)
        if e.slide_id == slide_id and model in (None, e.model) and kind in (None, e.kind)
    ]
    if not keys:
        whose = "any model" if model is None else model
        raise SlideLensError(
            f"slide {slide_id!r} has no {kind or 'error'} of {whose} at this operating point; "
            "give the --operating-point at which it has one."
        )
    return keys


def check_model(model: str, saved: SavedEvaluation) -> None:
    """Refuse a model that was not evaluated."""
    if model not in saved.models:
        raise typer.BadParameter(
            f"no model {model!r}; there are {', '.join(saved.models)}", param_hint="--model"
        )


def other_class(saved: SavedEvaluation, slide_id: str, true_label: str | None) -> str:
    """Return the class that is right where a label is called wrong, of two."""
    if true_label is not None:
        raise typer.BadParameter("give --label-wrong or --true-label, not both")
    other = saved.other(saved.labels[slide_id])
    if other is None:
        raise typer.BadParameter("there are more than two classes; give --true-label CLASS")
    return other


def check_category(category: str, keys: Sequence[CaseKey], saved: SavedEvaluation) -> None:
    """Refuse a category that these kinds of errors do not have."""
    from slidelens.review.taxonomy import no_category, read_taxonomy

    known = read_taxonomy(saved.folder)
    kinds = sorted({key.kind for key in keys})
    fitting = [kind for kind in kinds if category in known[kind]]
    for kind in kinds:
        if kind not in fitting:
            why = no_category(saved.folder, kind, category, known)
            if fitting:  # as with more than two classes, where each slide has errors of both kinds
                why += f"; --kind {fitting[0]} sets it for those errors alone"
            raise typer.BadParameter(why, param_hint="--category")


def reviewer_name(name: str | None) -> str:
    """Return who decides: as given, else the login name."""
    if name is not None and name.strip():
        return name
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:  # a container without users
        raise typer.BadParameter("your login name is not known; give --reviewer") from error


def check_places(
    saved: SavedEvaluation, out: Path | None, labels: Path | None, *, overwrite: bool
) -> None:
    """Refuse what would replace work of the user, before anything is written."""
    for path in (out, labels):
        if path is not None:
            saved.refuse_own(path)
    if out is not None and labels is not None and out.resolve() == labels.resolve():
        raise SlideLensError(f"{out}: cannot be both --out and --labels; name two files.")
    taken = [path for path in (out, labels) if path is not None and path.exists()]
    if taken and not overwrite:
        raise SlideLensError(
            f"{taken[0]}: is there already; choose another file, or give --overwrite to replace it."
        )
