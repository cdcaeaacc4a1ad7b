"""A cross-validation is evaluated: every slide's score by its fold's model, at its threshold."""

from __future__ import annotations

import csv
import json

import pytest

from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.measure import Resampling
from slidelens.engine.evaluation.operating_point import Rule
from slidelens.errors import ResultError
from slidelens.review.errors import list_errors, list_near_misses
from slidelens.review.evaluation import read_evaluation
from slidelens.review.report import write_report

ROWS = "1,,a,n,.9,.1\n1,,b,n,.65,.35\n1,,d,y,.6,.4\n2,,c,n,.3,.7\n2,,e,y,.2,.8\n2,,f,y,.4,.6\n"
THRESHOLDS = {1: 0.3, 2: 0.75}


@pytest.fixture
def cv(tmp_path, monkeypatch):
    monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})  # they take long
    folder = tmp_path / "cv"
    for fold, threshold in THRESHOLDS.items():
        (folder / f"fold-{fold}").mkdir(parents=True)
        (folder / f"fold-{fold}" / "model.json").write_text(json.dumps({"threshold": threshold}))
    (folder / "out_of_fold.csv").write_text("fold,patient,slide_id,label,prob_n,prob_y\n" + ROWS)
    labels = "a,n,train\nb,n,tune\nc,n,train\nd,y,train\ne,y,tune\nf,y,train\nz,y,test\n"
    (tmp_path / "labels.csv").write_text("slide_id,label,split\n" + labels)
    return folder


def run(cv, **options):
    given = EvaluationOptions(**{"resampling": Resampling(300), **options})
    place = cv.parent / "eval"
    return evaluate(cv / "out_of_fold.csv", cv.parent / "labels.csv", place, given)


def test_each_slide_is_called_at_the_threshold_of_its_fold(cv):
    found = run(cv)
    one = found.metrics["models"]["cv"]
    assert (one["n"], one["confusion"]) == (6, [[2, 1], [1, 2]])  # none of split test
    assert (one["threshold"], one["threshold_source"]) == (None, "folds")
    assert "of each fold (0.3, 0.75), which chose it on the slides" in one["threshold_rule"]
    (said,) = [text for text in found.warnings if "folds" in text]
    assert said.startswith("cv: scores of the models of 2 folds, each of the slides that it held")
    assert not [text for text in found.warnings if "split train" in text]  # they did not learn it
    with (cv.parent / "eval" / "errors.csv").open() as file:
        rows = {r["slide_id"]: (r["kind"], float(r["margin"])) for r in csv.DictReader(file)}
    assert rows == {"f": ("fn", pytest.approx(0.15)), "b": ("fp", pytest.approx(0.05))}
    assert " folds |" in found.table
    pooled = run(cv, rule=Rule("given", 0.5)).metrics["models"]["cv"]
    assert (pooled["threshold"], pooled["confusion"]) == (0.5, [[2, 1], [1, 2]])


def test_a_patient_is_called_as_the_slide_that_decides_at_the_threshold_of_its_fold(cv):
    rows = "a,n,Q\nc,n,Q\nf,y,P\nd,y,P\nb,n,R\ne,y,S\n"
    (cv.parent / "labels.csv").write_text("slide_id,label,patient\n" + rows)
    assert run(cv).metrics["models"]["cv"]["patients"]["confusion"] == [[1, 1], [0, 2]]


def test_a_review_has_the_same_errors_and_no_maps(cv):
    run(cv)
    saved = read_evaluation(cv.parent / "eval")
    errors = {e.slide_id: (e.kind, e.threshold, e.margin) for e in list_errors(saved)}
    assert errors["f"] == ("fn", 0.75, pytest.approx(0.15))
    assert errors["b"] == ("fp", 0.3, pytest.approx(0.05))
    near = {n.slide_id: n.margin for n in list_near_misses(saved)}
    assert near == pytest.approx({"a": 0.2, "c": 0.05, "d": 0.1, "e": 0.05})
    written = write_report(cv.parent / "eval", cv.parent / "report.html")
    assert not [text for text in written.warnings if "package" in text]
    page = (cv.parent / "report.html").read_text()
    assert "The models of 2 folds of a cross-validation" in page
    assert "has no result" not in page
    assert '<td class="n">of each fold</td><td>stored with the model of each fold (0.3' in page


def test_what_cannot_be_told_of_folds_is_said(cv):
    with pytest.raises(ResultError, match="none of tiles: leave annotations out"):
        run(cv, annotations=cv)
    table = cv / "out_of_fold.csv"
    table.write_text(table.read_text() + "2,,f,y,nan,.6\n")
    with pytest.raises(ResultError, match="twice or lack a probability: f; cross-validate again"):
        run(cv)
    table.write_text("slide_id,label\na,n\n")
    with pytest.raises(ResultError, match=r"out_of_fold.csv: expected a folder of results.* fold,"):
        run(cv)
