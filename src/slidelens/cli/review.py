"""``slidelens review``: list errors, decide on them, import and export decisions."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from slidelens.cli.options import JsonOption, print_json
from slidelens.cli.readable import ReadableGroup
from slidelens.cli.review_request import (
    case_keys,
    check_category,
    check_model,
    check_places,
    meant_slide,
    open_review,
    other_class,
    reviewer_name,
)
from slidelens.cli.review_text import (
    decision_json,
    decision_text,
    error_json,
    error_row,
    print_table,
)
from slidelens.errors import SlideLensError, amount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from slidelens.engine.evaluation.operating_point import Rule
    from slidelens.review.evaluation import SavedEvaluation
    from slidelens.review.store import CaseKey, Decision

__all__ = ["OperatingPoints", "read_points", "register"]

OperatingPoints = Annotated[
    list[str] | None,
    typer.Option(
        "--operating-point",
        metavar="[MODEL:]RULE",
        help="stored, max-accuracy, sensitivity=S or a threshold, for all models or one; may be "
        "repeated. Default: as evaluated.",
    ),
]
_ReviewerOption = Annotated[
    str | None,
    typer.Option(
        "--reviewer", metavar="NAME", help="Your name as reviewer. Default: your login name."
    ),
]
_ModelOption = Annotated[
    str | None, typer.Option("--model", metavar="MODEL", help="Only errors of this model.")
]
_KindOption = Annotated[
    Literal["fp", "fn"] | None, typer.Option("--kind", help="Only false positives or negatives.")
]


def register(app: typer.Typer) -> None:
    """Add the command and its parts to the program."""
    group = typer.Typer(
        cls=ReadableGroup,
        help="Review the errors of an evaluation.",
        epilog="Example: slidelens review eval list",
        no_args_is_help=True,
        rich_markup_mode=None,
        subcommand_metavar="COMMAND",
    )
    group.callback()(_folder)
    parts = (
        ("list", list_, "slidelens review eval list --kind fn --open"),
        ("set", set_, 'slidelens review eval set slide_7 --category "Inflammation" --note dense'),
        ("export", export, "slidelens review eval export --labels corrected.csv"),
        ("import", import_, "slidelens review eval import decisions.csv"),
        ("history", history, "slidelens review eval history slide_7"),
        ("agreement", agreement, "slidelens review eval agreement"),
        ("taxonomy", taxonomy, "slidelens review eval taxonomy --edit"),
    )
    for name, part, example in parts:
        group.command(name, epilog=f"Example: {example}")(part)
    app.add_typer(group, name="review")


def read_points(texts: Sequence[str] | None, saved: SavedEvaluation) -> dict[str, Rule] | None:
    """Read ``--operating-point``.

    Raises
    ------
    typer.BadParameter
        No rule, or no model of the evaluation.
    """
    from slidelens.review.errors import choose_rules

    try:
        return choose_rules(texts or (), saved.models)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--operating-point") from error


def _folder(
    context: typer.Context,
    folder: Annotated[
        Path, typer.Argument(help="Folder that `slidelens evaluate` wrote.", metavar="EVAL_DIR")
    ],
) -> None:
    context.obj = folder


def list_(
    context: typer.Context,
    model: _ModelOption = None,
    kind: _KindOption = None,
    only_open: Annotated[
        bool, typer.Option("--open", help="Only errors that nobody has decided.")
    ] = False,
    suspects: Annotated[
        bool, typer.Option("--suspects", help="Only where all models contradict the label.")
    ] = False,
    near: Annotated[
        int,
        typer.Option(
            "--near", min=0, metavar="N", help="List this many near misses per class too."
        ),
    ] = 0,
    operating_point: OperatingPoints = None,
    as_json: JsonOption = False,
) -> None:
    """List errors and decisions.

    Shows the score, its margin, and what the other models say.
    """
    from slidelens.review.errors import list_errors, list_near_misses
    from slidelens.review.pseudonyms import slide_pseudonyms
    from slidelens.review.tally import earlier_notes

    saved, store = open_review(context)
    rules = read_points(operating_point, saved)
    if model is not None:
        check_model(model, saved)
    names = slide_pseudonyms(saved)
    decisions: dict[CaseKey, list[Decision]] = defaultdict(list)
    for decision in store.decisions():
        decisions[decision.key].append(decision)
    decided = {key for key, of_case in decisions.items() if any(d.decided for d in of_case)}
    errors = [
        e
        for e in list_errors(saved, rules)
        if (model is None or e.model == model)
        and (kind is None or e.kind == kind)
        and (e.suspect or not suspects)
        and not (only_open and e.key in decided)
    ]
    misses = list_near_misses(saved, rules, near) if near else []
    misses = [m for m in misses if model is None or m.model == model]
    if as_json:
        print_json(
            {
                "errors": [error_json(e, names, decisions) for e in errors],
                "near_misses": [m._asdict() | {"pseudonym": names[m.slide_id]} for m in misses],
            }
        )
        return
    rows = [error_row(e, names, decisions) for e in errors]
    print_table(
        ("model", "slide", "in reports", "", "score", "margin", "others", "decisions"), rows
    )
    done = sum(e.key in decided for e in errors)
    typer.echo(f"{amount(len(errors), 'error')}, {done} decided")
    for note in earlier_notes((d for of_case in decisions.values() for d in of_case), saved.since):
        typer.echo(f"note: {note}", err=True)
    if misses:
        typer.echo("near misses:")
        near_rows = [
            (m.model, m.slide_id, names[m.slide_id], m.label, f"{m.score:.3f}", f"{m.margin:.3f}")
            for m in misses
        ]
        print_table(("model", "slide", "in reports", "label", "score", "margin"), near_rows)


def set_(
    context: typer.Context,
    slide: Annotated[
        str, typer.Argument(metavar="SLIDE", help="Slide id, or its name in reports (S-001).")
    ],
    category: Annotated[
        str | None,
        typer.Option(
            "--category", metavar="CATEGORY", help="Cause of the error; `taxonomy` lists them."
        ),
    ] = None,
    note: Annotated[
        str | None, typer.Option("--note", metavar="TEXT", help="Free text; '' clears it.")
    ] = None,
    label_wrong: Annotated[
        bool, typer.Option("--label-wrong", help="The label is wrong: the other class is right.")
    ] = False,
    true_label: Annotated[
        str | None,
        typer.Option(
            "--true-label", metavar="CLASS", help="The label is wrong: this class is right."
        ),
    ] = None,
    reviewer: _ReviewerOption = None,
    model: _ModelOption = None,
    kind: _KindOption = None,
    operating_point: OperatingPoints = None,
    as_json: JsonOption = False,
) -> None:
    """Record a decision on a slide's errors.

    Options that are not given leave that part of the decision unchanged.
    """
    saved, store = open_review(context, write=True)
    rules = read_points(operating_point, saved)
    keys = case_keys(saved, rules, meant_slide(slide, saved), model, kind)
    if label_wrong:
        true_label = other_class(saved, keys[0].slide_id, true_label)
    if true_label and true_label not in saved.classes:
        raise typer.BadParameter(
            f"no class {true_label!r}; {', '.join(saved.classes)}", param_hint="--true-label"
        )
    label = saved.labels[keys[0].slide_id]
    if true_label == label:
        raise typer.BadParameter(
            f"{label} is the label that the slide has", param_hint="--true-label"
        )
    if category is None and note is None and true_label is None:
        raise typer.BadParameter("give --category, --note, --label-wrong or --true-label")
    if category:
        check_category(category, keys, saved)
    made = store.set_all(keys, reviewer_name(reviewer), category, note, true_label)
    if as_json:
        print_json([decision_json(d) for d in made])
        return
    for one in made:
        typer.echo(f"{one.slide_id} {one.model} {one.kind}: {decision_text(one)} ({one.reviewer})")


def export(
    context: typer.Context,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="CSV", help="CSV of decisions to write.")
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option("--labels", metavar="CSV", help="CSV of corrected labels to write."),
    ] = None,
    changes: Annotated[
        bool, typer.Option("--history", help="Write every change, not only current decisions.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace existing files.")] = False,
) -> None:
    """Write decisions, or labels corrected by them, as CSV."""
    from slidelens.review.exchange import correct_labels, decisions_csv

    if out is None and labels is None:
        raise typer.BadParameter("give --out, --labels or both")
    saved, store = open_review(context)
    check_places(saved, out, labels, overwrite=overwrite)
    if out is not None:
        decisions = store.history() if changes else store.decisions()
        _write(out, decisions_csv(decisions))
        typer.echo(f"{out}: {amount(len(decisions), 'decision')}")
    if labels is not None:
        corrected = correct_labels(saved, store.decisions())
        _write(labels, corrected.text)
        typer.echo(f"{labels}: {amount(len(corrected.changed), 'label')} corrected")
        for slide_id in corrected.disputed:
            typer.echo(f"note: {slide_id}: reviewers do not agree; it keeps its label", err=True)
        if not corrected.original:
            typer.echo(
                "note: the evaluated labels table is gone or has changed; the new one holds only "
                "the evaluated slides",
                err=True,
            )


def import_(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(help="CSV as `export` writes it.", metavar="CSV")],
) -> None:
    """Import decisions from a CSV file.

    For each error and reviewer the newest decision counts.
    """
    from slidelens.review.exchange import read_decisions
    from slidelens.review.taxonomy import read_taxonomy

    saved, store = open_review(context, write=True)
    found = read_decisions(path, saved, read_taxonomy(saved.folder), store.history())
    typer.echo(f"{store.add_all(found)} of {len(found)} decisions are new")


def history(
    context: typer.Context,
    slide: Annotated[
        str | None, typer.Argument(metavar="SLIDE", help="Slide id. Default: all.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Print every change, oldest first."""
    saved, store = open_review(context)
    wanted = None if slide is None else meant_slide(slide, saved)
    found = [d for d in store.history() if wanted in (None, d.slide_id)]
    if as_json:
        print_json([decision_json(d) for d in found])
        return
    rows = [(d.time[:19], d.reviewer, d.slide_id, d.model, d.kind, decision_text(d)) for d in found]
    print_table(("time (UTC)", "reviewer", "slide", "model", "", "decision"), rows)


def agreement(context: typer.Context, as_json: JsonOption = False) -> None:
    """Compare reviewers who decided the same errors: Cohen's kappa."""
    from slidelens.review.tally import agreement as compare

    found = compare(open_review(context)[1].decisions())
    if as_json:
        print_json([a._asdict() for a in found])
        return
    if not found:
        typer.echo("no error was decided by two reviewers yet; each decides with --reviewer NAME")
        return
    rows = [
        (
            *(a.first, a.second, a.about, str(a.cases), str(a.same)),
            "-" if a.kappa is None else f"{a.kappa:.2f}",
        )
        for a in found
    ]
    print_table(("reviewer", "reviewer", "decision", "errors", "agreed", "kappa"), rows)


def taxonomy(
    context: typer.Context,
    edit: Annotated[
        bool, typer.Option("--edit", help="Write the categories to a file that you can edit.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Print the categories of errors, and where they can be edited."""
    from slidelens.review.taxonomy import TAXONOMY_FILE, read_taxonomy, write_taxonomy

    saved, _ = open_review(context)
    path = write_taxonomy(saved.folder) if edit else saved.folder / TAXONOMY_FILE
    found = read_taxonomy(saved.folder)
    if as_json:
        print_json(found)
        return
    typer.echo("\n  ".join(["false positives", *found["fp"]]))
    typer.echo("\n  ".join(["false negatives", *found["fn"]]))
    typer.echo(f"edit {path}" if path.exists() else "default categories; --edit writes a file")


def _write(path: Path, text: str) -> None:
    from slidelens.files import write_atomic

    try:
        write_atomic(path, text)
    except OSError as error:
        raise SlideLensError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place."
        ) from error
