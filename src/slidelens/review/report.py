"""Write the report: one self-contained HTML file, and the same as PDF.

Pictures are drawn slide by slide and wait on the disk; memory holds those of one slide at a time.
"""

from __future__ import annotations

import gc
from base64 import b64encode
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slidelens.engine.evaluation.tables import intervals_note
from slidelens.engine.last_run import named_failed
from slidelens.errors import ResultError, SlideLensError
from slidelens.files import atomic_file, make_scratch, remove_scratch
from slidelens.review.commands import commands_of
from slidelens.review.content import Content, ReportOptions, gather
from slidelens.review.evaluation import read_evaluation
from slidelens.review.evidence import Evidence, Picture, make_evidence
from slidelens.review.page import HELPERS, legend_css, run_rows, settings_rows
from slidelens.review.tally import DISAGREED, LABEL_WRONG, NOT_REVIEWED

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from jinja2 import Environment

    from slidelens.review.slide_cases import SlideCase

__all__ = ["Report", "ReportOptions", "write_report"]

_TEMPLATES = Path(__file__).parent / "templates"
_SPOOL = "spool:"  # scheme under which the PDF's pictures are found
_TOGETHER = 24  # slides of the PDF that are typeset at a time


@dataclass(frozen=True)
class Report:
    """What was written.

    Attributes
    ----------
    html, pdf
        The files; ``pdf`` is ``None`` if none was requested.
    slides, errors
        How many slides have errors, and how many errors there are of all methods.
    decided
        How many errors are decided.
    notes
        What is missing in the evidence, by slide, as the report states it.
    warnings
        What is out of date, with the ids of slides, and whose package was not found: for the person
        who writes the report, not part of it.
    """

    html: Path
    pdf: Path | None
    slides: int
    errors: int
    decided: int
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def write_report(
    evaluation: str | Path,
    out: str | Path,
    *,
    pdf: str | Path | None = None,
    options: ReportOptions | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Write the report of an evaluation folder, with the decisions of its review.

    Parameters
    ----------
    evaluation
        Folder of ``slidelens evaluate``.
    out, pdf
        Files to write; each appears whole or not at all.
    options
        What is shown; by default the evaluation's operating points, with pseudonyms.
    progress
        Called with the current step, how far it is, and out of how much.

    Raises
    ------
    ResultError
        No evaluation, a damaged review, or a file that cannot be written, is the other one, or
        belongs to the evaluation itself.
    SlideLensError
        jinja2 or WeasyPrint is not installed; other input that cannot be used.
    """
    tell = progress or (lambda _what, _done, _total: None)
    out, pdf = Path(out), None if pdf is None else Path(pdf)
    environment = _environment()
    if pdf is not None:
        _weasyprint()
    saved = read_evaluation(evaluation)
    for path in (out,) if pdf is None else (out, pdf):
        saved.refuse_own(path)
    if pdf is not None and out.resolve() == pdf.resolve():
        raise ResultError(f"{out}: cannot be both the HTML and the PDF file; name two files.")
    content = gather(saved, options or ReportOptions())
    with _scratch(out) as scratch:
        drawn = list(_draw(content, scratch, tell))
        document = _Document(environment, content, drawn, scratch)
        document.write_html(out)
        if pdf is not None:
            document.write_pdf(pdf, tell)
    notes = [f"{case.name}: {note}" for case, evidence in drawn for note in evidence.notes]
    decided = {d.key for case in content.cases for d in case.decisions if d.decided}
    warnings = [named_failed(name, slides) for name, slides in content.last_run_failed.items()]
    bare = [card.name for card in content.cards if not card.packaged]
    if bare:
        warnings.append(
            f"{', '.join(bare)}: no package with these weights was found for the card; `slidelens "
            "report --model DIR` takes its folder."
        )
    counts = (len(content.cases), len(content.errors), len(decided))
    return Report(out, pdf, *counts, notes, warnings)


def _draw(
    content: Content, scratch: Path, tell: Callable[[str, int, int], None]
) -> Iterator[tuple[SlideCase, Evidence]]:
    """Draw slide after slide; the pictures wait in ``scratch``."""
    count = 0

    def keep(file: bytes) -> str:
        nonlocal count
        count += 1
        name = f"{count}.jpg"
        with _writing(scratch.parent):
            (scratch / name).write_bytes(file)
        return name

    for number, case in enumerate(content.cases):
        tell("drawing evidence", number, len(content.cases))
        yield (
            case,
            make_evidence(
                content.saved,
                case.errors,
                keep,
                fields=content.options.fields,
                files=content.files,
                annotations=content.annotations.get(case.errors[0].slide_id, ()),
            ),
        )


class _Document:
    """A report whose pictures are drawn, ready to be written as HTML and as PDF.

    Parameters
    ----------
    drawn
        Slides with errors, and their evidence.
    scratch
        Where the evidence's pictures are.
    """

    def __init__(
        self,
        environment: Environment,
        content: Content,
        drawn: list[tuple[SlideCase, Evidence]],
        scratch: Path,
    ) -> None:
        self._template = environment.get_template("report.html.j2")
        self._content, self._drawn, self._scratch = content, drawn, scratch
        interval = content.saved.metrics.get("interval") or {}
        self._level = float(interval.get("level", 0.95))
        self._plots = _plots(content, self._level)

        css = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
        self._css = css + legend_css()

    def write_html(self, out: Path) -> None:
        """Write the file; memory holds one picture at a time."""

        def src(picture: Picture) -> str:
            return _data_uri((self._scratch / picture.name).read_bytes(), "image/jpeg")

        with _writing(out), atomic_file(out) as file:
            for part in self._parts(src, self._drawn, self._css, interactive=True):
                file.write(part.encode())

    def write_pdf(self, out: Path, tell: Callable[[str, int, int], None]) -> None:
        """Typeset the same page without its controls.

        A few slides at a time: laying out pages takes three times the memory of the finished ones.
        There is a page break between slides anyway.
        """
        weasyprint, scratch = _weasyprint(), self._scratch

        class Spool(weasyprint.urls.URLFetcher):  # type: ignore[misc, name-defined]
            """Finds the pictures in the scratch folder, and nothing anywhere else."""

            def fetch(self, url: str, headers: dict[str, str] | None = None) -> Any:
                if not url.startswith(_SPOOL):
                    return super().fetch(url, headers)
                file = scratch / Path(url.removeprefix(_SPOOL)).name
                kind = {"Content-Type": "image/jpeg"}
                # When it writes, WeasyPrint rereads whatever has the address of a file.
                return weasyprint.urls.URLFetcherResponse(file.as_uri(), file.read_bytes(), kind)

        def src(picture: Picture) -> str:
            return _SPOOL + picture.name

        spool, fonts = Spool(allowed_protocols=["data"]), weasyprint.text.fonts.FontConfiguration()
        starts = range(0, max(1, len(self._drawn)), _TOGETHER)
        pages: list[Any] = []
        whole: Any = None
        for number, start in enumerate(starts):
            tell("typesetting the PDF", number, len(starts))
            some = self._drawn[start : start + _TOGETHER]
            css = f"{self._css} @page :first {{ counter-reset: page {len(pages) + 1}; }}"
            ends = {"first": number == 0, "last": number + 1 == len(starts)}
            text = "".join(self._parts(src, some, css, interactive=False, **ends))
            part = weasyprint.HTML(string=text, url_fetcher=spool).render(fonts, pdf_tags=True)
            whole = whole or part.copy([])
            pages += part.pages
            del part
            gc.collect()  # otherwise the next slides are typeset beside what is left of these
        with _writing(out), atomic_file(out) as file:
            whole.copy(pages).write_pdf(file, pdf_tags=True)

    def _parts(
        self,
        src: Callable[[Picture], str],
        plates: Sequence[tuple[SlideCase, Evidence]],
        css: str,
        *,
        interactive: bool,
        first: bool = True,
        last: bool = True,
    ) -> Iterator[str]:
        """Render piece by piece, so that only one slide's pictures are in memory."""
        from markupsafe import Markup

        content = self._content
        script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
        stream = self._template.stream(
            c=content,
            plates=plates,
            src=src,
            interactive=interactive,
            first=first,
            last=last,
            css=Markup(css),  # noqa: S704  # our own file
            script=Markup(script),  # noqa: S704  # our own file
            level=self._level,
            intervals=intervals_note(content.measured, content.saved.positive, self._level),
            plots=self._plots,
            suspects=[case for case in content.cases if case.suspect],
            special=(LABEL_WRONG, DISAGREED, NOT_REVIEWED),
            settings=settings_rows(content),
            runs=run_rows(content),
            commands=commands_of(content),
        )
        stream.enable_buffering(64)
        return iter(stream)


def _environment() -> Environment:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
    except ImportError as error:
        raise SlideLensError(
            f"the report needs jinja2 ({error}). Run: pip install 'slidelens[report]'"
        ) from error
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(HELPERS)
    return environment


def _weasyprint() -> Any:
    try:
        import weasyprint
    except (ImportError, OSError) as error:  # OSError: it lacks Pango
        raise SlideLensError(
            f"the PDF needs WeasyPrint and Pango ({error}). Run: pip install 'slidelens[report]', "
            "or print the HTML file from a browser."
        ) from error
    return weasyprint


def _plots(content: Content, level: float) -> list[dict[str, str]]:
    from slidelens.engine.evaluation.pictures import calibration_picture, roc_picture

    files = {
        "ROC curves with interval bands and operating points": roc_picture(
            content.measured, level, "svg"
        ),
        "Calibration curves with the number of slides behind each point": calibration_picture(
            content.measured, "svg"
        ),
    }
    return [{"src": _data_uri(file, "image/svg+xml"), "alt": alt} for alt, file in files.items()]


def _data_uri(file: bytes, kind: str) -> str:
    return f"data:{kind};base64,{b64encode(file).decode()}"


@contextmanager
def _scratch(out: Path) -> Iterator[Path]:
    with _writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = make_scratch(out.parent)
    try:
        yield scratch
    finally:
        remove_scratch(scratch)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ResultError(
            f"{path}: cannot be written ({error.strerror or error}); choose another place."
        ) from error
