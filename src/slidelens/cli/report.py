"""``slidelens report``: write the report of an evaluation's errors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from slidelens.cli.options import JsonOption, parse_file, print_json
from slidelens.cli.progress import Bar
from slidelens.cli.review import OperatingPoints, read_points

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add the command to the program."""
    app.command(
        "report", epilog="Example: slidelens report eval --out report.html --pdf report.pdf"
    )(report)


def report(
    evaluation: Annotated[
        Path, typer.Argument(help="Folder that `slidelens evaluate` wrote.", metavar="EVAL_DIR")
    ],
    out: Annotated[
        str,
        typer.Option(
            "--out",
            metavar="PATH",
            help="HTML file to write (self-contained), or a folder for report.html.",
        ),
    ],
    pdf: Annotated[
        str | None,
        typer.Option(
            "--pdf", metavar="PATH", help="Also write a PDF: a file, or a folder for report.pdf."
        ),
    ] = None,
    operating_point: OperatingPoints = None,
    identify: Annotated[
        bool,
        typer.Option(
            "--identify", help="Show slide ids, patients and reviewers instead of pseudonyms."
        ),
    ] = False,
    reviewer: Annotated[
        str | None,
        typer.Option("--reviewer", metavar="NAME", help="Count this reviewer's decisions only."),
    ] = None,
    slides: Annotated[
        Path | None,
        typer.Option(
            "--slides", metavar="DIR", help="Folder of the slides, if they have moved since."
        ),
    ] = None,
    model: Annotated[
        list[Path] | None,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="Model package to take the model's card from; may be repeated.",
        ),
    ] = None,
    fields: Annotated[
        int,
        typer.Option(
            "--fields", min=1, max=20, metavar="N", help="Fields of view shown per slide."
        ),
    ] = 3,
    near: Annotated[
        int,
        typer.Option("--near", min=0, metavar="N", help="Near misses listed per model and class."),
    ] = 3,
    title: Annotated[
        str, typer.Option("--title", metavar="TEXT", help="Title of the report.")
    ] = "Review of errors",
    as_json: JsonOption = False,
) -> None:
    """Write a report of all errors as HTML and PDF.

    Holds the figures, the causes of errors, and the evidence for each slide with errors.
    """
    from slidelens.review.evaluation import read_evaluation
    from slidelens.review.report import ReportOptions, write_report

    if out.lower().endswith(".pdf"):
        raise typer.BadParameter(f"--out {out} is the HTML file; name the PDF with --pdf {out}")
    options = ReportOptions(
        rules=read_points(operating_point, read_evaluation(evaluation)),
        identify=identify,
        fields=fields,
        near_misses=near,
        slides=slides,
        packages=tuple(model or ()),
        reviewer=reviewer,
        title=title,
    )
    with Bar(quiet=as_json) as bar:
        done = write_report(
            evaluation,
            parse_file(out, "report.html"),
            pdf=None if pdf is None else parse_file(pdf, "report.pdf"),
            options=options,
            progress=bar.update,
        )
    for note in [*done.warnings, *done.notes]:
        typer.echo(f"note: {note}", err=True)
    if as_json:
        facts = {
            "html": str(done.html),
            "pdf": None if done.pdf is None else str(done.pdf),
            "slides": done.slides,
            "errors": done.errors,
            "decided": done.decided,
            "notes": done.notes,
            "warnings": done.warnings,
        }
        print_json(facts)
        return
    typer.echo(f"{done.errors} errors on {done.slides} slides, {done.decided} decided")
    for path in (done.html, done.pdf):
        if path is not None:
            typer.echo(path)
