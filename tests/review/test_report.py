import ctypes
import json
import re
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path

import pypdfium2
import pytest
import tinyhtml5

from sample_evaluation import SCORES, TRUTH, evaluated, write_result
from slidelens.engine.evaluate import (
    EvaluationOptions,
    counted_ignored,
    evaluate,
    named_ignored,
)
from slidelens.engine.evaluation.measure import Resampling
from slidelens.engine.evaluation.operating_point import Rule
from slidelens.errors import LabelError, ModelError, ResultError
from slidelens.review.errors import list_errors
from slidelens.review.report import ReportOptions, write_report
from slidelens.review.store import CaseKey, ReviewStore
from slidelens.review.wording import merge_notes
from slidelens.slide.base import Slide

ONE_WRONG = {slide_id: SCORES["weak"][slide_id] for slide_id in "bf"}
"""A slide of each class, and an error on one: a page of the PDF takes a second."""
NOTE = "<script>alert('x')</script> & \"dense\"\n" + "long <b>words</b> " * 300


FEW = Resampling(100)


def read(path):
    without_pictures = re.sub(rb"data:image/[^\"]+", b"data:", path.read_bytes())
    return tinyhtml5.parse(without_pictures, namespace_html_elements=False)


def text_of(element):
    return " ".join("".join(element.itertext()).split())


def rows_of(table):
    return [[text_of(cell) for cell in row] for row in table.iter("tr")]


def sources(page, kind):
    """The table of sources, as source to method to count."""
    table = next(t for t in page.iter("table") if t.get("data-sources") == kind)
    header, *rows = rows_of(table)
    models = [name.rpartition(" (")[0] for name in header[1:]]
    return {row[0]: dict(zip(models, map(int, row[1:]), strict=True)) for row in rows}


def listed(page):
    table = next(t for t in page.iter("table") if t.get("id") == "list")
    return rows_of(table)[1:]


@pytest.fixture(scope="module")
def reviewed(phantoms, tmp_path_factory):
    """A copy of the phantoms' evaluation with decisions of two reviewers."""
    folder = tmp_path_factory.mktemp("reviewed")
    shutil.copytree(phantoms.parent, folder / "all")
    store = ReviewStore(folder / "all" / "eval" / "review.sqlite")
    first = {model: CaseKey("doe_jane_1", model, "fp") for model in ("mil", "streaming", "magnet")}
    missed = CaseKey("doe_jane_2", "streaming", "fn")
    store.set(first["mil"], reviewer="Ann Lee", category="Inflammation", note=NOTE)
    store.set(first["streaming"], reviewer="Ann Lee", category="Tissue artefacts")
    store.set(first["mil"], reviewer="Bob Roe", category="Inflammation")
    store.set(missed, reviewer="Bob Roe", true_label="normal")
    return folder / "all" / "eval"


@pytest.fixture(scope="module")
def made(reviewed, tmp_path_factory):
    """The report of it, and its PDF."""
    out = tmp_path_factory.mktemp("made")
    return write_report(reviewed, out / "report.html", pdf=out / "report.pdf")


def test_sources_of_error_are_the_decisions_in_the_database(made, reviewed):
    page = read(made.html)
    with closing(sqlite3.connect(reviewed / "review.sqlite")) as db:
        counted = db.execute(
            "SELECT kind, CASE category WHEN '' THEN 'Label is wrong' ELSE category END, model, "
            "count(DISTINCT slide_id) FROM decision GROUP BY 1, 2, 3"
        ).fetchall()
    assert len(counted) == 3
    for kind in ("fp", "fn"):
        table = sources(page, kind)
        of_kind = {(source, model): n for k, source, model, n in counted if k == kind}
        for source, counts in table.items():
            if source != "Not reviewed" and not source.startswith("of all errors, "):
                for model, n in counts.items():
                    assert n == of_kind.pop((source, model), 0), (source, model)
        assert not of_kind
        for model in ("magnet", "mil", "segmentation", "streaming"):
            errors = sum(e.kind == kind and e.model == model for e in list_errors(reviewed))
            assert errors == sum(n[model] for s, n in table.items() if not s.startswith("of all"))
    assert sources(page, "fp")["Not reviewed"]["magnet"] == 1
    assert (made.errors, made.slides, made.decided) == (5, 2, 3)


@pytest.mark.usefixtures("_no_plots")
def test_one_reviewers_decisions_can_be_counted_alone(reviewed, tmp_path):
    options = ReportOptions(reviewer="Bob Roe", fields=1)
    page = read(write_report(reviewed, tmp_path / "r.html", options=options).html)
    assert sources(page, "fp")["Tissue artefacts"]["streaming"] == 0
    assert sources(page, "fp")["Inflammation"]["mil"] == 1
    with pytest.raises(ResultError, match="no decision by 'Cy'; reviewers: Ann Lee, Bob Roe"):
        write_report(reviewed, tmp_path / "r.html", options=ReportOptions(reviewer="Cy"))


def test_figures_are_those_of_the_evaluation(made, reviewed):
    metrics = json.loads((reviewed / "metrics.json").read_text())["models"]
    tables = [rows_of(t) for t in read(made.html).iter("table")]
    figures = next(t for t in tables if "PR-AUC" in t[0])
    assert len(figures) == 1 + 4
    for row in figures[1:]:
        one = metrics[row[0]]
        shown = f"{one['auc']:.3f} {one['auc_ci'][0]:.3f} to {one['auc_ci'][1]:.3f}"
        assert row[2] == shown
        assert row[4].startswith(f"{one['accuracy']:.3f}")


@pytest.mark.usefixtures("_no_plots")
def test_another_operating_point_gives_other_errors(reviewed, tmp_path):
    rules = {"mil": Rule("given", 0.95), "magnet": Rule("given", 0.95)}
    options = ReportOptions(rules=rules, fields=1)
    page = read(write_report(reviewed, tmp_path / "r.html", options=options).html)
    # tumours: doe_jane_2, ok_3 and ok_4; both models now call all slides normal
    frames = {row[0]: row[1] for row in listed(page)}
    assert len(frames) == 4
    totals = sources(page, "fn")
    assert sum(counts["mil"] for s, counts in totals.items() if not s.startswith("of")) == 3
    text = text_of(page)
    assert "mil: the threshold is given by the user" in text
    assert "1 decisions are on slides that are right at this operating point" in text
    assert "--operating-point mil:0.95" in text


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_only_what_the_evaluation_said_of_a_threshold_goes_with_it(tmp_path):
    """A model may be called after what others are warned of."""
    scores = {"a": 0.1, "b": 0.9, "c": 0.7}
    labels = {"a": 0, "b": 1, "c": 0}
    models = {"no-threshold": scores, "other": scores}
    folder = evaluated(tmp_path, labels, models)
    warned = "no threshold is stored with the model; 0.5 is used"
    text = text_of(read(write_report(folder, tmp_path / "as.html").html))
    assert f"no-threshold, other: {warned}" in text
    options = ReportOptions(rules={"other": Rule("given", 0.95)})
    text = text_of(read(write_report(folder, tmp_path / "r.html", options=options).html))
    assert f"no-threshold: {warned}" in text
    assert f"other: {warned}" not in text
    assert "other: the threshold is given by the user" in text


@pytest.mark.usefixtures("_no_plots")
def test_nothing_tells_who_or_where(made, reviewed, tmp_path):
    page = made.html.read_text()
    with pypdfium2.PdfDocument(made.pdf) as document:
        printed = "\n".join(p.get_textpage().get_text_range() for p in document)
        about = " ".join(map(str, document.get_metadata_dict().values()))
    for secret in (
        "doe_jane",
        "ok_1",
        "Ann Lee",
        "Bob Roe",
        "patient_1",
        str(reviewed.parent),
        "/tmp",
    ):
        assert secret not in page
        assert secret not in printed + about
        assert secret.encode() not in made.pdf.read_bytes()
    for shown in ("S-00", "Reviewer 1", "Reviewer 2"):
        assert shown in page
        assert shown in printed
    options = ReportOptions(identify=True, fields=1)
    told = write_report(reviewed, tmp_path / "r.html", options=options).html.read_text()
    for shown in ("doe_jane_1", "Ann Lee", "patient_1"):
        assert shown in told
    assert str(reviewed.parent) not in told  # paths are never shown


def test_label_and_macro_pictures_are_never_read(reviewed, tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError

    monkeypatch.setattr(Slide, "read_associated", refuse)
    write_report(reviewed, tmp_path / "r.html", options=ReportOptions(fields=1))


def test_a_long_note_with_html_in_it_is_text(made):
    page = read(made.html)
    notes = [p for p in page.iter("p") if p.get("class") == "note"]
    assert ["".join(p.itertext()) for p in notes] == [NOTE.strip()]
    assert [len(list(p)) for p in notes] == [0]
    assert "<script>alert" not in made.html.read_text()
    with pypdfium2.PdfDocument(made.pdf) as document:
        printed = "".join(p.get_textpage().get_text_range() for p in document)
    assert "<script>alert('x')</script>" in printed


def test_the_file_needs_nothing_else(made):
    text = made.html.read_text()
    for link in re.findall(r'(?:src|href)="([^"]{1,40})', text):
        assert link.startswith(("data:image/", "#"))
    assert "url(" not in text
    assert "@import" not in text
    assert "default-src 'none'" in text
    assert list(made.html.parent.iterdir()) == unordered(made.html, made.pdf)


def unordered(*paths):
    class Any(list):
        def __eq__(self, other):
            return sorted(self) == sorted(other)

        __hash__ = None

    return Any(paths)


def test_the_pdf_has_a_page_per_slide_and_its_pictures(made):
    with pypdfium2.PdfDocument(made.pdf) as document:
        pages = [p.get_textpage().get_text_range() for p in document]
        assert len(document) >= 5
        images = sum(o.type == 3 for p in document for o in p.get_objects(max_depth=5))
    assert sum(bool(re.match(r"S-00\d False", text)) for text in pages) == 2
    assert images == made.html.read_text().count('loading="lazy"')


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_pictures_of_five_methods_stand_in_one_row(phantoms, tmp_path):
    shutil.copytree(phantoms.parent, tmp_path / "all")
    results = tmp_path / "all" / "results"
    shutil.copytree(results / "mil", results / "mil-2")
    for path in (results / "mil-2").glob("*/result.json"):
        content = json.loads(path.read_text())
        content["model"]["name"] = "mil-2"
        path.write_text(json.dumps(content))
    options = EvaluationOptions(resampling=FEW, allow_missing=True)
    evaluate(results, tmp_path / "all" / "labels.csv", tmp_path / "eval", options)
    found = write_report(
        *(tmp_path / "eval", tmp_path / "r.html"),
        pdf=tmp_path / "r.pdf",
        options=ReportOptions(fields=1),
    )
    with pypdfium2.PdfDocument(found.pdf) as document:
        rows = [
            Counter(round(o.get_bounds()[3]) for o in p.get_objects(max_depth=5) if o.type == 3)
            for p in document
            if "Overview" in p.get_textpage().get_text_range()
        ]
    assert rows
    assert {n for row in rows for n in row.values()} == {6}


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_cards_begin_below_their_heading_where_only_one_row_fits(tmp_path):
    right = {slide_id: SCORES["weak"][slide_id] for slide_id in "af"}
    evaluation = evaluated(tmp_path, TRUTH, {f"m{n}": right for n in range(5)})
    found = write_report(
        *(evaluation, tmp_path / "r.html"),
        pdf=tmp_path / "r.pdf",
        options=ReportOptions(title="long title " * 60),
    )
    with pypdfium2.PdfDocument(found.pdf) as document:
        assert "Labelled normal" in document[0].get_textpage().get_text_range()


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_tables_of_many_methods_stay_on_the_page(tmp_path):
    names = [f"method-with-a-name-{n}" for n in range(7)]
    scores = dict.fromkeys(names, ONE_WRONG)
    found = write_report(
        evaluated(tmp_path, TRUTH, scores), tmp_path / "r.html", pdf=tmp_path / "r.pdf"
    )
    with pypdfium2.PdfDocument(found.pdf) as document:
        for page in document:
            text = page.get_textpage()
            ends = [text.get_charbox(n)[2] for n in range(text.count_chars())]
            assert max(ends) < page.get_width() - 30


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_names_of_few_methods_are_not_broken_in_the_list(tmp_path):
    names = ("magnet", "mil", "segmentation", "streaming")
    scores = dict.fromkeys(names, ONE_WRONG)
    evaluation = evaluated(tmp_path, TRUTH, scores)
    found = write_report(evaluation, tmp_path / "r.html", pdf=tmp_path / "r.pdf")
    with pypdfium2.PdfDocument(found.pdf) as document:
        pages = [page.get_textpage().get_text_range() for page in document]
    (errors,) = (text for text in pages if "A framed score" in text)
    assert "Slide Label Kind magnet mil segmentation streaming Margin Decision" in errors


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_figures_and_margins_are_explained(tmp_path):
    two = evaluated(tmp_path / "two", TRUTH, {"m": SCORES["weak"]})
    three = tmp_path / "three"
    for number, slide_id in enumerate("abcdef"):
        probabilities = {name: 0.6 if k == number % 2 else 0.2 for k, name in enumerate("xyz")}
        write_result(three / "results", "m", slide_id, probabilities)
    rows = "\n".join(f"{slide_id},{n % 3}" for n, slide_id in enumerate("abcdef"))
    (three / "labels.csv").write_text(f"slide_id,label\n{rows}\n")
    evaluate(
        three / "results", three / "labels.csv", three / "eval", EvaluationOptions(resampling=FEW)
    )
    for evaluation in (two, three / "eval"):
        page = read(write_report(evaluation, tmp_path / "r.html").html)
        (meaning,) = (p for p in page.iter("p") if p.get("class") == "meaning")
        header = rows_of(next(t for t in page.iter("table") if "Brier" in text_of(t)))[0]
        explained = {text_of(name).lower() for name in meaning.iter("b")}
        assert explained == {name.lower() for name in header[2:]}
        assert "margins" in text_of(page)


@pytest.mark.usefixtures("_no_plots")
def test_what_is_gone_since_the_run_is_said_and_the_rest_is_there(reviewed, tmp_path):
    shutil.copytree(reviewed.parent, tmp_path / "moved")
    shutil.rmtree(tmp_path / "moved" / "results" / "mil" / "doe_jane_1")
    for file in (tmp_path / "moved" / "results").glob("*/doe_jane_1/result.json"):
        content = json.loads(file.read_text())
        content["slide"]["path"] = "/nowhere/doe.tif"
        file.write_text(json.dumps(content))
    done = write_report(tmp_path / "moved" / "eval", tmp_path / "r.html")
    text = text_of(read(done.html))
    assert "The slide's file is gone" in text
    assert "The result of mil is gone." in text
    assert "Results that were evaluated and are gone now, or cannot be read: mil 1." in text
    assert "/nowhere" not in done.html.read_text()
    assert [note[6:12] for note in done.notes] == [" The r", " The s"]
    options = ReportOptions(slides=str(tmp_path / "moved" / "slides"))
    done = write_report(tmp_path / "moved" / "eval", tmp_path / "r.html", options=options)
    assert len(done.notes) == 1


def test_what_holds_for_several_models_is_said_once():
    notes = ["a: one", "b: two", "c: one", "all: one", "none"]
    assert merge_notes(notes, ["a", "b", "c"]) == ["a, c: one", "b: two", "all: one", "none"]


@pytest.mark.usefixtures("_no_pictures")
def test_zero_errors_and_one_class_only_make_a_report_too(tmp_path):
    right = evaluated(tmp_path / "right", {"a": 0, "b": 1}, {"m": {"a": 0.1, "b": 0.9}})
    done = write_report(right, tmp_path / "right.html", pdf=tmp_path / "right.pdf")
    assert (done.errors, done.slides) == (0, 0)
    assert "No method is wrong on any slide" in text_of(read(done.html))
    one = evaluated(tmp_path / "one", {"a": 1, "b": 1}, {"m": {"a": 0.1, "b": 0.9}})
    text = text_of(read(write_report(one, tmp_path / "one.html").html))
    assert "AUC is undefined, because a class has no case" in text
    assert "not defined" in text


@pytest.mark.usefixtures("_no_pictures")
def test_more_than_two_classes_are_reported(tmp_path):
    for slide_id, p in {"x": (0.2, 0.5, 0.3), "y": (0.1, 0.7, 0.2), "z": (0.6, 0.3, 0.1)}.items():
        three = dict(zip(("benign", "low", "high"), p, strict=True))
        write_result(tmp_path / "results", "m", slide_id, three)
    (tmp_path / "labels.csv").write_text("slide_id,label\nx,high\ny,low\nz,benign\n")
    options = EvaluationOptions(resampling=FEW)
    evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", options)
    done = write_report(tmp_path / "eval", tmp_path / "r.html")
    page = read(done.html)
    (warning,) = done.warnings
    assert warning.startswith("m: no package with these weights was found for the card; `slidelens")
    ((_, label, kinds, *_),) = listed(page)
    assert (label, kinds) == ("high", "False positive False negative")
    assert "1 wrong call (each a false positive of one class and a false negative" in text_of(page)
    assert sources(page, "fp")["Not reviewed"] == sources(page, "fn")["Not reviewed"] == {"m": 1}
    text = text_of(page)
    assert "P(high)P(called)Margin" in "".join(text.split())
    assert "0.3000.500" in "".join(text.split())
    assert "closest to another class" in text
    assert "rates Wilson. Figures are means over classes, one-vs-rest." in text


def test_pictures_that_find_no_place_name_the_folder(reviewed, tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.review.report.make_scratch", lambda parent: parent / "gone")
    with pytest.raises(ResultError, match=re.escape(f"{tmp_path}: cannot be written (No such")):
        write_report(reviewed, tmp_path / "r.html", options=ReportOptions(fields=1))


def test_what_cannot_be_used_is_named(reviewed, evaluation, tmp_path):
    with pytest.raises(ResultError, match="expected a folder written by `slidelens evaluate"):
        write_report(tmp_path / "nothing", tmp_path / "r.html")
    with pytest.raises(ModelError, match=re.escape(f"{tmp_path} is not a model package")):
        write_report(evaluation, tmp_path / "r.html", options=ReportOptions(packages=[tmp_path]))
    demo = Path(__file__).parents[2] / "models" / "demo-mil"
    with pytest.raises(ModelError, match="no result was made with these weights"):
        write_report(evaluation, tmp_path / "r.html", options=ReportOptions(packages=[demo]))
    with pytest.raises(LabelError, match="no such folder of slides"):
        write_report(evaluation, tmp_path / "r.html", options=ReportOptions(slides=tmp_path / "x"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ResultError, match="cannot be written"):
        write_report(evaluation, tmp_path / "file" / "r.html")  # a folder that is none, root too
    store = ReviewStore(evaluation / "review.sqlite")
    store.set(CaseKey("b", "good", "fp"), reviewer="ann", category="Inflammation")
    with closing(sqlite3.connect(store.path)) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ResultError, match="newer than this slidelens reads"):
        write_report(evaluation, tmp_path / "r.html")
    assert not list(tmp_path.glob("*.html"))
    assert not list(tmp_path.glob(".*"))


def test_an_evaluation_that_cannot_be_written_is_reported(evaluation, tmp_path):
    before = {p.name for p in evaluation.iterdir()}
    write_report(evaluation, tmp_path / "r.html")
    assert {p.name for p in evaluation.iterdir()} == before  # nothing is written there
    assert (tmp_path / "r.html").stat().st_size > 10_000


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_a_models_card_comes_from_its_package(tmp_path):
    manifest = json.loads(
        (Path(__file__).parents[2] / "models" / "demo-mil" / "model.json").read_text()
    )
    digest = manifest["weights_sha256"]
    folder = evaluated(tmp_path, {"a": 0, "b": 1}, {"m": {"a": 0.6, "b": 0.9}}, sha256=digest)
    text = text_of(read(write_report(folder, tmp_path / "r.html").html))
    assert manifest["intended_use"] in text
    assert "112 px (112 µm)" in text
    assert "train: normal (18), tumor (18); tune: normal (6), tumor (6)" in text
    assert digest in text


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
def test_a_label_that_was_corrected_is_not_called_wrong(evaluation, tmp_path):
    store = ReviewStore(evaluation / "review.sqlite")
    store.set(CaseKey("c", "weak", "fp"), reviewer="ann", true_label="tumor")
    labels = tmp_path / "labels.csv"
    page = text_of(read(write_report(evaluation, tmp_path / "r.html").html))
    assert "labelled normal, tumor is right" in page
    labels.write_text(labels.read_text().replace("c,0", "c,1"))  # now an error of the other model
    options = EvaluationOptions(resampling=FEW, allow_missing=True)
    evaluate(tmp_path / "results", labels, evaluation, options)
    page = read(write_report(evaluation, tmp_path / "r.html").html)
    assert "is right" not in text_of(page)
    assert "According to the reviewers" not in text_of(page)
    assert not any(source.startswith("of all") for source in sources(page, "fn"))


@pytest.mark.usefixtures("_no_pictures", "_no_plots")
@pytest.mark.parametrize("older", [False, True])
def test_labels_of_annotations_are_told_only_to_who_may_know(evaluation, tmp_path, older):
    path = evaluation / "metrics.json"
    metrics = json.loads(path.read_text())
    names = ["Jane Doe", "stroma"]
    metrics["models"]["good"]["tiles"] = {"ignored_labels": names}
    said = named_ignored("good", names) if older else counted_ignored("good", 2)
    metrics["warnings"] = [said, "good: slides without result are left out (left_out)."]
    path.write_text(json.dumps(metrics))
    page = write_report(evaluation, tmp_path / "r.html").html.read_text()
    assert "slides without result are left out." in page, "as an older version said it"
    assert "annotations of 2 labels are of no class" in page
    assert "Jane" not in page
    options = ReportOptions(identify=True)
    page = write_report(evaluation, tmp_path / "r.html", options=options).html.read_text()
    assert "annotations labelled Jane Doe, stroma are of no class" in page


def test_a_pdf_that_is_typeset_slide_by_slide_reads_as_one(made, reviewed, tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.review.report._TOGETHER", 1)
    told = []
    parts = write_report(
        reviewed,
        tmp_path / "r.html",
        pdf=tmp_path / "r.pdf",
        progress=lambda *what: told.append(what),
    )
    assert [what for what in told if what[0] == "typesetting the PDF"][-1] == (
        "typesetting the PDF",
        parts.slides - 1,
        parts.slides,
    )
    with pypdfium2.PdfDocument(made.pdf) as one, pypdfium2.PdfDocument(parts.pdf) as other:
        assert len(other) == len(one) > parts.slides
        for number, (before, after) in enumerate(zip(one, other, strict=True), 1):
            first, second = (p.get_textpage().get_text_range().split() for p in (before, after))
            assert str(number) in second
            if number > 1:  # the first one says when it was made
                assert second[: len(first) // 2] == first[: len(first) // 2]
            assert links(after) == links(before)
        assert [entry.get_title() for entry in other.get_toc()] == [
            entry.get_title() for entry in one.get_toc()
        ]
        assert sum(map(len, map(links, other))) > parts.slides


def links(page) -> list[int]:
    """Return the pages that links on a page lead to."""
    found, place, link = [], ctypes.c_int(0), pypdfium2.raw.FPDF_LINK()
    while pypdfium2.raw.FPDFLink_Enumerate(page, place, link):
        target = pypdfium2.raw.FPDFLink_GetDest(page.pdf, link)
        found.append(pypdfium2.raw.FPDFDest_GetDestPageIndex(page.pdf, target))
    return found
