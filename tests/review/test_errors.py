import csv
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sample_evaluation import evaluated, write_result
from slidelens.engine.evaluate import EvaluationOptions, evaluate
from slidelens.engine.evaluation.operating_point import Rule
from slidelens.errors import LabelError, ResultError
from slidelens.review.errors import choose_rules, list_errors, list_near_misses
from slidelens.review.evaluation import read_evaluation

pytestmark = pytest.mark.usefixtures("_no_pictures")


def listed(evaluation, rules=None):
    return {(e.model, e.slide_id, e.kind) for e in list_errors(evaluation, rules)}


def test_the_errors_are_those_of_the_evaluation(evaluation):
    with (evaluation / "errors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = list_errors(evaluation)
    assert [(e.model, e.slide_id, e.kind, e.label, e.predicted) for e in found] == [
        (r["model"], r["slide_id"], r["kind"], r["label"], r["predicted"]) for r in rows
    ]
    assert [e.score for e in found] == [float(r["score"]) for r in rows]
    assert [e.margin for e in found] == [float(r["margin"]) for r in rows]
    assert {e.target for e in found} == {"tumor"}
    assert {e.threshold for e in found} == {0.5}


def test_another_operating_point_gives_the_errors_counted_by_hand(evaluation):
    # good: normal a .1 b .7 c .35, tumor d .4 e .8 f .9
    assert listed(evaluation) >= {("good", "b", "fp"), ("good", "d", "fn")}
    of_good = {key for key in listed(evaluation, Rule("max-accuracy")) if key[0] == "good"}
    assert of_good == {("good", "b", "fp")}  # between c .35 and d .4
    strict = listed(evaluation, {"good": Rule("given", 0.75)})
    assert {key for key in strict if key[0] == "good"} == {("good", "d", "fn")}
    # weak: normal a .3 b .9 c .6, tumor d .45 e .2 f .55; all tumours found from .2 on
    assert {key for key in strict if key[0] == "weak"} == {
        ("weak", "b", "fp"),
        ("weak", "c", "fp"),
        ("weak", "d", "fn"),
        ("weak", "e", "fn"),
    }
    assert {key for key in listed(evaluation, Rule("sensitivity", 1.0)) if key[0] == "weak"} == {
        ("weak", slide, "fp") for slide in "abc"
    }


def test_margins_and_the_verdicts_of_all_methods(evaluation):
    one = next(e for e in list_errors(evaluation) if e.key == ("d", "good", "fn"))
    assert one.margin == pytest.approx(0.1)
    (other,) = one.others
    assert (other.model, other.predicted, other.right) == ("weak", "normal", False)
    assert (other.score, other.margin) == (pytest.approx(0.45), pytest.approx(0.05))


def test_a_label_is_suspect_where_all_methods_contradict_it_confidently(evaluation, tmp_path):
    # On slides labelled tumor the mean score is .7 (good) and .4 (weak): b is at .7 and .9. On
    # slides labelled normal the mean of the class normal is .617 and .4: d is at .6 and .55.
    suspect = {e.slide_id for e in list_errors(evaluation) if e.suspect}
    assert suspect == {"b"}
    alone = evaluated(tmp_path / "alone", {"a": 0, "b": 0, "c": 1}, {"m": {"a": 1, "b": 0, "c": 1}})
    assert not any(e.suspect for e in list_errors(alone))  # one method is no agreement


def test_near_misses_are_right_and_nearest_first(evaluation):
    found = [m for m in list_near_misses(evaluation, count=1) if m.model == "good"]
    assert [(m.slide_id, m.label, m.score) for m in found] == [
        ("c", "normal", pytest.approx(0.35)),
        ("e", "tumor", 0.8),
    ]
    assert [m.margin for m in found] == [pytest.approx(0.15), pytest.approx(0.3)]
    wrong = {(e.model, e.slide_id) for e in list_errors(evaluation)}
    assert not wrong & {(m.model, m.slide_id) for m in list_near_misses(evaluation)}


@settings(max_examples=25)
@given(
    scores=st.lists(st.integers(0, 20), min_size=4, max_size=12),
    threshold=st.integers(0, 20),
)
def test_errors_near_misses_and_the_plain_count_agree(tmp_path_factory, scores, threshold):
    folder = tmp_path_factory.mktemp("any")
    truth = {f"s{i}": i % 2 for i in range(len(scores))}
    of_slide = {f"s{i}": score / 20 for i, score in enumerate(scores)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})
        saved = read_evaluation(evaluated(folder, truth, {"m": of_slide}))
    rule = Rule("given", threshold / 20)
    wrong = {
        (s, "fp" if called else "fn")
        for s, label in truth.items()
        if (called := of_slide[s] >= threshold / 20) != label
    }
    assert {(e.slide_id, e.kind) for e in list_errors(saved, rule)} == wrong
    right = {m.slide_id for m in list_near_misses(saved, rule, count=99)}
    assert right == truth.keys() - {slide_id for slide_id, _ in wrong}


@pytest.mark.usefixtures("_no_pictures")
def test_with_more_classes_an_error_is_a_miss_of_one_and_a_false_alarm_of_another(tmp_path):
    for slide_id, p in {"x": (0.3, 0.5, 0.2), "y": (0.1, 0.7, 0.2), "z": (0.6, 0.3, 0.1)}.items():
        probabilities = dict(zip(("benign", "low", "high"), p, strict=True))
        write_result(tmp_path / "results", "m", slide_id, probabilities)
    (tmp_path / "labels.csv").write_text("slide_id,label\nx,high\ny,low\nz,benign\n")
    evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", EvaluationOptions())
    found = list_errors(tmp_path / "eval")
    assert {(e.slide_id, e.kind, e.target, e.score) for e in found} == {
        ("x", "fn", "high", 0.2),
        ("x", "fp", "low", 0.5),
    }
    assert [e.margin for e in found] == pytest.approx([0.3, 0.3])
    assert [e.verdicts[0].margin for e in found] == pytest.approx([0.3, 0.3])
    near = {m.slide_id: m.margin for m in list_near_misses(tmp_path / "eval")}
    assert near == {"y": pytest.approx(0.5), "z": pytest.approx(0.3)}
    with pytest.raises(LabelError, match="needs two classes"):
        list_errors(tmp_path / "eval", Rule("given", 0.5))


@pytest.mark.usefixtures("_no_pictures")
def test_no_error_is_an_empty_list(tmp_path):
    folder = evaluated(tmp_path, {"a": 0, "b": 1}, {"m": {"a": 0.1, "b": 0.9}})
    assert list_errors(folder) == []


def test_rules_are_read_for_all_methods_and_for_one():
    models = ("mil", "my:net")
    assert choose_rules([], models) is None
    assert choose_rules(["max-accuracy", "my:net:0.3"], models) == {
        "mil": Rule("max-accuracy"),
        "my:net": Rule("given", 0.3),
    }
    for text in ("best", "other:0.3"):
        with pytest.raises(ValueError, match="operating point"):
            choose_rules([text], models)


@pytest.mark.usefixtures("_no_pictures")
def test_a_stored_threshold_is_found_whatever_the_evaluation_used(tmp_path):
    scores = {"a": 0.1, "b": 0.4, "c": 0.6}
    folder = evaluated(
        tmp_path, {"a": 0, "b": 0, "c": 1}, {"m": scores}, rule=Rule("given", 0.9), threshold=0.3
    )
    assert listed(folder) == {("m", "c", "fn")}
    assert listed(folder, Rule("stored")) == {("m", "b", "fp")}
    record = json.loads((folder / "evaluation.json").read_text())
    del record["models"]["m"]["stored_threshold"]  # as written before it was kept
    (folder / "evaluation.json").write_text(json.dumps(record))
    assert listed(folder, Rule("stored")) == set()  # .5, as for a model that stores none


def test_bad_folders_are_named(tmp_path, evaluation):
    with pytest.raises(ResultError, match="expected a folder written by `slidelens evaluate"):
        read_evaluation(tmp_path / "none")
    path = evaluation / "evaluation.json"
    good = json.loads(path.read_text())
    for change, said in (
        ({"schema_version": 2}, "newer"),
        ({"slides": []}, "no slides of good, weak"),
        ({"operating_point": {"kind": "best"}}, "operating_point.kind 'best'"),
        ({"classes": ["normal"]}, "not as `slidelens evaluate` writes it"),
    ):
        path.write_text(json.dumps(good | change))
        with pytest.raises(ResultError, match=said):
            read_evaluation(evaluation)
    path.write_text("{")
    with pytest.raises(ResultError, match="cannot be read"):
        read_evaluation(evaluation)
