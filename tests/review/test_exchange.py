import csv
import io

import pytest

from sample_evaluation import write_result
from slidelens.engine.evaluate import evaluate
from slidelens.engine.labels import read_labels
from slidelens.errors import ResultError
from slidelens.review.evaluation import read_evaluation
from slidelens.review.exchange import correct_labels, decisions_csv, read_decisions
from slidelens.review.store import CaseKey, Decision, ReviewStore
from slidelens.review.taxonomy import TAXONOMY

NOTE = 'a "note", of\ntwo lines; <b>ünïcode</b>'


@pytest.fixture
def saved(evaluation):
    return read_evaluation(evaluation)


def test_decisions_come_back_from_csv_as_they_were(saved, tmp_path):
    store = ReviewStore(saved.folder / "review.sqlite")
    store.set(CaseKey("b", "good", "fp"), reviewer="ann", category="Inflammation", note=NOTE)
    store.set(CaseKey("d", "weak", "fn"), reviewer="bob", true_label="normal")
    path = tmp_path / "decisions.csv"
    path.write_text(decisions_csv(store.decisions()), newline="")
    found = read_decisions(path, saved, dict(TAXONOMY))
    assert found == store.decisions()
    assert store.add_all(found) == 0


def test_a_table_written_elsewhere_needs_four_columns_and_any_time_zone(saved, tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text(
        "reviewer,kind,model,slide_id,time,category\n"
        "ann,fp,good,b,2026-01-31T12:00:00+02:00,Inflammation\n"
        "ann,fn,good,d,,\n"
    )
    first, second = read_decisions(path, saved, dict(TAXONOMY))
    assert first.time == "2026-01-31T10:00:00.000000+00:00"
    assert second.time == ""


def test_what_a_spreadsheet_makes_of_decisions_is_read(saved, tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text(
        "slide_id;model;kind;reviewer;category;note;true_label;time\n"
        'b;good;fp;ann;Inflammation;"dense; see\nIHC";;31.01.2026 12:00\n'
        "d;good;fn;ann;;;normal;2026/01/31 12:00:07\n"
        ";;;;;;;\n",
        encoding="utf-8-sig",
    )
    first, second = read_decisions(path, saved, dict(TAXONOMY))
    assert (first.note, first.time) == ("dense; see\nIHC", "2026-01-31T12:00:00.000000+00:00")
    assert (second.true_label, second.time) == ("normal", "2026-01-31T12:00:07.000000+00:00")
    path.write_text(path.read_text(encoding="utf-8-sig").replace("31.01.", "01/31/"))
    with pytest.raises(ResultError, match="write it so, or leave it empty"):
        read_decisions(path, saved, dict(TAXONOMY))


def test_rows_without_a_time_are_added_once_and_the_last_is_in_force(saved, tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text(
        "reviewer,kind,model,slide_id,category\n"
        "ann,fp,good,b,Inflammation\nann,fp,good,b,Tissue artefacts\nann,fn,good,d,\n"
    )
    store = ReviewStore(saved.folder / "review.sqlite")
    assert store.add_all(read_decisions(path, saved, dict(TAXONOMY))) == 3
    assert store.add_all(read_decisions(path, saved, dict(TAXONOMY))) == 0
    assert [d.category for d in store.decisions()] == ["Tissue artefacts"]
    assert all(d.time > "2026-" for d in store.history())


def test_the_table_that_was_evaluated_and_files_of_the_evaluation_are_refused(saved, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "labels.csv")
    for path in (
        tmp_path / "labels.csv",
        saved.folder / ".." / "labels.csv",
        tmp_path / "link.csv",
    ):
        with pytest.raises(ResultError, match="is the table of labels that was evaluated"):
            saved.refuse_own(path)
    for name in ("metrics.json", "roc.png", "review.sqlite", "taxonomy.toml"):
        with pytest.raises(ResultError, match="is a file of the evaluation itself"):
            saved.refuse_own(saved.folder / name)
    saved.refuse_own(saved.folder / "report.html")


def test_labels_and_patients_are_listed_once(saved):
    assert saved.labels is saved.labels  # for every slide they are asked for
    assert saved.patients is saved.patients


def test_a_label_that_was_corrected_since_is_not_wrong_any_more(saved, tmp_path):
    path = tmp_path / "decisions.csv"
    path.write_text(
        "reviewer,kind,model,slide_id,category,true_label\n"
        "ann,fp,good,b,Inflammation,normal\n"
        "ann,fp,good,b,Inflammation,tumor\n"
    )
    found = read_decisions(path, saved, dict(TAXONOMY))
    assert saved.labels["b"] == "normal"
    assert [one.label_is_wrong for one in found] == [False, True]


@pytest.mark.parametrize("note", ['=HYPERLINK("x")', "+1-2", "@a", "'=x", "''", "-0.5", "plain"])
def test_no_spreadsheet_computes_a_note_and_it_comes_back_as_it_was(saved, tmp_path, note):
    path = tmp_path / "decisions.csv"
    path.write_text(decisions_csv([Decision("b", "good", "fp", "ann", note=note)]))
    (cells,) = csv.DictReader(path.open(newline=""))
    assert cells["note"] == "-0.5" == note or cells["note"][0] not in "=+-@"
    assert [one.note for one in read_decisions(path, saved, dict(TAXONOMY))] == [note]


def test_a_category_that_the_taxonomy_lost_may_come_back_to_the_slide_that_has_it(saved, tmp_path):
    store = ReviewStore(saved.folder / "review.sqlite")
    store.set(CaseKey("b", "good", "fp"), reviewer="ann", category="Inflammation")
    path = tmp_path / "decisions.csv"
    path.write_text(decisions_csv(store.decisions()))
    fewer = {**TAXONOMY, "fp": tuple(set(TAXONOMY["fp"]) - {"Inflammation"})}
    assert read_decisions(path, saved, fewer, store.history()) == store.decisions()
    path.write_text(decisions_csv([Decision("c", "weak", "fp", "ann", "Inflammation")]))
    with pytest.raises(ResultError, match="category 'Inflammation' is not one of fp"):
        read_decisions(path, saved, fewer, store.history())


def test_all_faults_are_told_at_once(saved, tmp_path):
    path = tmp_path / "decisions.csv"
    rows = [
        "b,good,tp,ann,,,,",
        "b,good,fp,,,,,",
        "b,other,fp,ann,,,,",
        "q,good,fp,ann,,,,",
        "b,good,fp,ann,Low-grade tumor,,,",
        "b,good,fp,ann,,,cancer,",
        "b,good,fp,ann,,,,yesterday",
        "b,good,fp,ann,,fine,,",
    ]
    header = "slide_id,model,kind,reviewer,category,note,true_label,time"
    path.write_text("\n".join([header, *rows]))
    with pytest.raises(ResultError) as refused:
        read_decisions(path, saved, dict(TAXONOMY))
    text = str(refused.value)
    for number in range(2, 9):
        assert f"line {number}:" in text
    assert "line 9" not in text
    path.write_text("slide_id,kind\n")
    with pytest.raises(ResultError, match="no column model, reviewer"):
        read_decisions(path, saved, dict(TAXONOMY))
    with pytest.raises(ResultError, match="cannot be read"):
        read_decisions(tmp_path / "gone.csv", saved, dict(TAXONOMY))


def test_corrected_labels_keep_the_table_and_change_what_is_wrong(saved, tmp_path):
    decisions = [Decision("b", "good", "fp", "ann", true_label="tumor", time="1")]
    corrected = correct_labels(saved, decisions)
    assert corrected.original
    assert corrected.changed == {"b": "tumor"}
    assert corrected.text == (tmp_path / "labels.csv").read_text().replace("b,0", "b,1")
    rows = list(csv.DictReader(io.StringIO(corrected.text)))
    assert {r["slide_id"]: r["label"] for r in rows}["b"] == "1"


def test_without_the_evaluated_table_the_evaluated_slides_are_written(saved, tmp_path):
    table = tmp_path / "labels.csv"
    table.write_text(table.read_text().replace("a,0", "a,1"))  # edited since: not to be trusted
    decisions = [Decision("b", "good", "fp", "ann", true_label="tumor", time="1")]
    corrected = correct_labels(saved, decisions)
    assert not corrected.original
    rows = {r["slide_id"]: r["label"] for r in csv.DictReader(io.StringIO(corrected.text))}
    assert rows["a"] == "normal"
    assert rows["b"] == "tumor"
    assert len(rows) == 6


def test_a_disputed_label_stays(saved):
    decisions = [
        Decision("b", "good", "fp", "ann", true_label="tumor", time="1"),
        Decision("b", "good", "fp", "bob", "Inflammation", time="1"),
    ]
    corrected = correct_labels(saved, decisions)
    assert (corrected.changed, corrected.disputed) == ({}, ["b"])


def test_other_columns_separators_and_names_with_extension_stay(evaluation, tmp_path):
    from slidelens.engine.evaluate import EvaluationOptions, evaluate

    labels = tmp_path / "labels.csv"
    labels.write_text(
        'slide_id;grade;label\na;"x;y";normal\nb.svs;2;normal\nc;;0\nd;;1\ne;;tumor\n'
    )
    evaluate(tmp_path / "results", labels, tmp_path / "eval", EvaluationOptions(allow_missing=True))
    decisions = [
        Decision("b", "good", "fp", "ann", true_label="tumor", time="1"),
        Decision("d", "good", "fn", "ann", true_label="normal", time="1"),
    ]
    corrected = correct_labels(read_evaluation(tmp_path / "eval"), decisions)
    assert corrected.text == (
        'slide_id;grade;label\na;"x;y";normal\nb.svs;2;tumor\nc;;0\nd;;0\ne;;tumor\n'
    )


def test_columns_without_a_name_and_what_excel_writes_above_stay(evaluation, tmp_path):
    from slidelens.engine.evaluate import EvaluationOptions, evaluate

    labels = tmp_path / "labels.csv"
    labels.write_text("sep=;\nSlide_ID;;LABEL;\na;l;normal;r\nb;l;Normal;r;s\nd;l;1;r\n")
    options = EvaluationOptions(allow_missing=True)
    evaluate(tmp_path / "results", labels, tmp_path / "eval", options)
    decisions = [Decision("b", "good", "fp", "ann", true_label="tumor", time="1")]
    corrected = correct_labels(read_evaluation(tmp_path / "eval"), decisions)
    assert corrected.text == labels.read_text().replace("Normal", "tumor")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_mark_by_which_excel_knows_the_encoding_stays(evaluation, tmp_path, encoding):
    from slidelens.engine.evaluate import EvaluationOptions, evaluate

    labels = tmp_path / "labels.csv"
    labels.write_text("slide_id\tlabel\tArzt\na\t0\tMüller\nb\t0\t\nd\t1\t\n", encoding)
    options = EvaluationOptions(allow_missing=True)
    evaluate(tmp_path / "results", labels, tmp_path / "eval", options)
    decisions = [Decision("b", "good", "fp", "ann", true_label="tumor", time="1")]
    corrected = correct_labels(read_evaluation(tmp_path / "eval"), decisions)
    assert corrected.text.startswith("\ufeffslide_id\tlabel\tArzt\na\t0\tMüller\nb\t1")


@pytest.mark.usefixtures("_no_pictures")
@pytest.mark.parametrize(
    ("classes", "written", "right"),
    [
        (("normal", "tumor"), ("0.0", "1.0"), "1.0"),
        (("0", "1"), ("0.0", "1.0"), "1.0"),
        (("0", "1"), ("0", "1.00"), "1"),
        (("1", "2"), ("1.0", "2.0"), "2.0"),
        (("1.0", "1.5"), ("1.0", "1.5"), "1.5"),
    ],
)
def test_a_corrected_label_is_written_as_the_table_writes_indices(
    tmp_path, classes, written, right
):
    for slide_id, p in {"a": 0.9, "b": 0.1, "c": 0.8}.items():
        probabilities = dict(zip(classes, (1 - p, p), strict=True))
        write_result(tmp_path / "results", "m", slide_id, probabilities)
    table = tmp_path / "labels.csv"
    table.write_text(f"slide_id,label\na,{written[0]}\nb,{written[0]}\nc,{written[1]}\n")
    evaluate(tmp_path / "results", table, tmp_path / "eval")
    saved = read_evaluation(tmp_path / "eval")
    corrected = correct_labels(saved, [Decision("a", "m", "fp", "ann", true_label=classes[1])])
    assert corrected.text == table.read_text().replace(f"a,{written[0]}", f"a,{right}", 1)
    table.write_text(corrected.text)
    assert [row.label for row in read_labels(table, classes).rows] == [1, 0, 1]
