import csv
import errno
import json
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as oracle

from sample_evaluation import write_result
from slidelens.engine.evaluate import FILES, EvaluationOptions, evaluate
from slidelens.engine.evaluation import tables
from slidelens.engine.evaluation.measure import Resampling, measure
from slidelens.engine.evaluation.operating_point import Rule, parse_rule
from slidelens.engine.evaluation.pictures import (
    calibration_picture,
    roc_picture,
    table_picture,
)
from slidelens.engine.evaluation.scores import join, read_scores
from slidelens.engine.evaluation.tables import Table
from slidelens.engine.labels import read_labels
from slidelens.engine.predict import predict
from slidelens.errors import LabelError, ResultError
from slidelens.review.evaluation import read_evaluation
from slidelens.slide.array import from_array
from slidelens.tiling.tissue import TissueSettings

QUICK = Resampling(resamples=300)
CLASSES = ("normal", "tumor")


def write_labels(path, rows, header="slide_id,label"):
    path.write_text("\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def binary(root, model, scores, **model_keys):
    for slide_id, p in scores.items():
        write_result(root, model, slide_id, {"normal": 1 - p, "tumor": p}, **model_keys)


def run(tmp_path, **options):
    given = EvaluationOptions(**{"resampling": QUICK, **options})
    return evaluate(tmp_path / "results", tmp_path / "labels.csv", tmp_path / "eval", given)


def errors_of(tmp_path):
    with (tmp_path / "eval" / "errors.csv").open(newline="") as file:
        return list(csv.DictReader(file))


SCORES = {"a": 0.1, "b": 0.7, "c": 0.35, "d": 0.4, "e": 0.8, "f": 0.9}
TRUTH = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1}


@pytest.fixture
def pictures():
    """Asked for by tests that look at the pictures."""


@pytest.fixture(autouse=True)
def _figures_only(request, monkeypatch):
    """Drawing takes ten times as long as all the rest; it is left out where nobody looks."""
    if "pictures" not in request.fixturenames:
        monkeypatch.setattr("slidelens.engine.evaluate._pictures", lambda *_: {})


@pytest.fixture
def cohort(tmp_path):
    """Six slides of two models, one of them with a stored threshold."""
    binary(tmp_path / "results", "good", SCORES, threshold=0.5)
    binary(tmp_path / "results", "weak", {k: 1 - v / 2 for k, v in SCORES.items()})
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    return tmp_path


def test_figures_are_those_of_the_oracle(cohort):
    one = run(cohort).metrics["models"]["good"]
    labels, scores = list(TRUTH.values()), list(SCORES.values())
    assert one["n"] == 6
    assert one["n_positive"] == 3
    assert one["auc"] == pytest.approx(oracle.roc_auc_score(labels, scores))
    assert one["pr_auc"] == pytest.approx(oracle.average_precision_score(labels, scores))
    assert one["brier"] == pytest.approx(oracle.brier_score_loss(labels, scores))
    called = [int(s >= 0.5) for s in scores]
    assert one["accuracy"] == pytest.approx(oracle.accuracy_score(labels, called))
    assert one["kappa"] == pytest.approx(oracle.cohen_kappa_score(labels, called))
    assert one["confusion"] == oracle.confusion_matrix(labels, called).tolist()
    assert (one["sensitivity"], one["specificity"]) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert one["auc_ci"][0] < one["auc"] <= one["auc_ci"][1]


def test_every_error_is_listed_with_score_and_margin(cohort):
    run(cohort)
    good = [row for row in errors_of(cohort) if row["model"] == "good"]
    assert [(r["slide_id"], r["label"], r["kind"]) for r in good] == [
        ("b", "normal", "fp"),
        ("d", "tumor", "fn"),
    ]
    assert [float(r["score"]) for r in good] == [0.7, 0.4]
    np.testing.assert_allclose([float(r["margin"]) for r in good], [0.2, 0.1])


def test_the_stored_threshold_is_used_and_every_other_choice_is_named(cohort):
    models = run(cohort).metrics["models"]
    assert (models["good"]["threshold"], models["good"]["threshold_source"]) == (0.5, "model")
    assert (models["weak"]["threshold"], models["weak"]["threshold_source"]) == (0.5, "default")
    assert "no threshold is stored" in models["weak"]["threshold_rule"]
    points = models["good"]["operating_points"]
    assert points["stored"]["chosen_on"] == "tuning split of the model"
    assert points["max_accuracy_on_evaluated"]["accuracy"] == pytest.approx(5 / 6)

    best = run(cohort, rule=Rule("max-accuracy"))
    one = best.metrics["models"]["good"]
    assert (one["accuracy"], one["threshold_source"]) == (pytest.approx(5 / 6), "max-accuracy")
    assert "on the evaluated slides" in one["threshold_rule"]
    assert any("chosen on the evaluated slides" in text for text in best.warnings)
    assert [r["slide_id"] for r in errors_of(cohort) if r["model"] == "good"] == ["b"]

    one = run(cohort, rule=Rule("sensitivity", 1.0)).metrics["models"]["good"]
    assert (one["sensitivity"], one["threshold_source"]) == (1.0, "sensitivity")
    one = run(cohort, rule=Rule("given", 0.85)).metrics["models"]["good"]
    assert (one["tp"], one["fp"], one["threshold_source"]) == (1, 0, "given")


def test_models_are_compared_on_the_same_slides(cohort):
    (test,) = run(cohort).metrics["comparisons"]
    assert (test["a"], test["b"], test["n"], test["test"]) == ("good", "weak", 6, "DeLong")
    assert test["difference"] == pytest.approx(test["auc_a"] - test["auc_b"])
    assert 0 < test["p"] == test["p_holm"] < 1


def test_calls_are_compared_at_the_operating_points(cohort):
    found = run(cohort)
    (pair,) = found.metrics["call_comparisons"]
    assert (pair["a"], pair["b"], pair["n"]) == ("good", "weak", 6)
    assert pair["test"] == "McNemar, exact"
    for name, of in pair["figures"].items():
        for model, key in (("good", "a"), ("weak", "b")):
            assert of[key] == pytest.approx(found.metrics["models"][model][name])
        assert of["n"] * (of["a"] - of["b"]) == pytest.approx(of["only_a"] - of["only_b"])
    assert pair["figures"].keys() == {"sensitivity", "specificity", "accuracy"}
    assert "| good | weak | accuracy | 6 | " in found.table
    rows = [(k, v, "p" if k in "ab" else k) for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,patient")
    (pair,) = run(cohort).metrics["call_comparisons"]
    assert pair["test"] == "exact sign flips of patients"


def test_calls_of_models_without_a_common_slide_are_not_compared(cohort):
    for slide_id in TRUTH:
        model = "good" if slide_id in "ad" else "weak"
        (cohort / "results" / model / slide_id / "result.json").unlink()
    found = run(cohort, allow_missing=True)
    assert found.metrics["call_comparisons"] == [
        {"a": "good", "b": "weak", "n": 0, "test": None, "figures": {}}
    ]
    assert "only a right" not in found.table


def test_what_is_written_is_complete_and_holds_no_nan(cohort, pictures):
    found = run(cohort)
    folder = cohort / "eval"
    assert {path.name for path in folder.iterdir()} == set(FILES)
    assert json.loads((folder / "metrics.json").read_text()) == found.metrics
    record = json.loads((folder / "evaluation.json").read_text())
    assert (folder / record["results"]).resolve() == (cohort / "results").resolve()
    assert (folder / record["labels"]).resolve() == (cohort / "labels.csv").resolve()
    assert record["models"]["good"]["threshold"] == 0.5
    slide = next(s for s in record["slides"] if s["id"] == "d")
    assert slide["label"] == "tumor"
    assert slide["probabilities"]["good"] == pytest.approx([0.6, 0.4])
    assert (folder / slide["results"]["good"] / "result.json").is_file()
    assert str(cohort) not in (folder / "evaluation.json").read_text()
    for name in ("roc", "calibration", "comparison"):
        picture = np.asarray(Image.open(folder / f"{name}.png").convert("RGB"))
        assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 10  # something is drawn
    text = (folder / "comparison.md").read_text()
    assert "| good | 6 | 0.889" in text
    assert "\n6 slides (3 normal, 3 tumor).\n" in text
    assert "p (DeLong)" in text


def test_no_spreadsheet_computes_the_name_of_a_slide(tmp_path):
    binary(tmp_path / "results", "m", {"=1+1": 0.9, "-2": 0.8, "c": 0.95})
    write_labels(tmp_path / "labels.csv", [("=1+1", 0), ("-2", 0), ("c", 1)])
    run(tmp_path)
    assert [row["slide_id"] for row in errors_of(tmp_path)] == ["'=1+1", "-2"]
    assert float(errors_of(tmp_path)[0]["score"]) == 0.9


def test_a_name_with_dollars_is_no_formula(tmp_path, pictures):
    classes = (r"$\n$", r"$\x$")
    for name in (r"a$\x$", "$b"):
        for slide_id, p in SCORES.items():
            given = dict(zip(classes, (1 - p, p), strict=True))
            write_result(tmp_path / "results", name, slide_id, given)
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    run(tmp_path)
    assert (tmp_path / "eval" / "comparison.png").stat().st_size > 5000


@pytest.mark.parametrize("draw_it", [partial(roc_picture, level=0.95), calibration_picture])
def test_a_name_that_begins_with_an_underscore_is_in_the_legend(cohort, monkeypatch, draw_it):
    scored = read_scores(cohort / "results")
    cases, _ = join({"_x": scored["good"]}, read_labels(cohort / "labels.csv", CLASSES))
    measured = {name: measure(one, Rule(), QUICK) for name, one in cases.items()}
    drawn = []
    monkeypatch.setattr(
        "slidelens.engine.evaluation.pictures.written", lambda f, *_: drawn.append(f)
    )
    draw_it(measured)
    assert [text.get_text().split(":")[0] for text in drawn[0].legends[0].get_texts()] == [" _x"]


def test_a_second_evaluation_keeps_the_review_and_repeats_bit_for_bit(cohort, pictures):
    run(cohort)
    folder = cohort / "eval"
    (folder / "review.sqlite").write_bytes(b"decisions")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    run(cohort)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("place", ["", "C:\\slides\\", "/data/"])
def test_labels_may_be_names_and_ids_file_names_or_paths(tmp_path, place):
    binary(tmp_path / "results", "m", SCORES)
    rows = [(f"{place}{k}.svs", CLASSES[v]) for k, v in TRUTH.items()]
    write_labels(tmp_path / "labels.csv", rows)
    assert run(tmp_path).metrics["models"]["m"]["auc"] == pytest.approx(8 / 9)


def test_two_rows_of_one_slide_are_refused(cohort):
    write_labels(cohort / "labels.csv", [*TRUTH.items(), ("a.svs", 1)])
    with pytest.raises(LabelError, match=r"a and a\.svs"):
        run(cohort)


def test_missing_and_unknown_slides_are_listed_at_once(cohort):
    rows = [(k, v) for k, v in TRUTH.items() if k not in "ab"] + [("x", 0), ("y", 1)]
    write_labels(cohort / "labels.csv", rows)
    with pytest.raises(LabelError) as caught:
        run(cohort)
    text = str(caught.value)
    assert "good, weak: results without a label: a, b" in text
    assert "good, weak: labelled, no result: x, y" in text
    assert not (cohort / "eval").exists()

    found = run(cohort, allow_missing=True)
    assert found.metrics["models"]["good"]["n"] == 4
    left_out = {"no_label": ["a", "b"], "no_result": ["x", "y"]}
    assert found.metrics["models"]["good"]["left_out"] == left_out
    for reason in ("label", "result"):
        told = f"good: 2 slides without a {reason} left out of all figures; metrics.json names them"
        assert any(told in text for text in found.warnings)


def test_results_that_cannot_be_read_count_as_none_only_where_that_is_allowed(cohort, caplog):
    damaged, newer = (cohort / f"results/good/{slide}/result.json" for slide in "ab")
    damaged.write_text("{")
    newer.write_text('{"schema_version": 2}')
    both = r"2 results cannot be used:\n.*a.result\.json: not JSON.*\n.*by a newer slidelens"
    with pytest.raises(ResultError, match=both):
        run(cohort)
    found = run(cohort, allow_missing=True).metrics["models"]["good"]
    assert found["n"] == 4
    assert found["left_out"] == {"no_label": [], "no_result": ["a", "b"]}
    assert "good/a/result.json: not JSON" in caplog.text
    for file in cohort.glob("results/*/*/result.json"):
        file.write_text("{")
    with pytest.raises(ResultError, match="12 results cannot be used"):
        run(cohort, allow_missing=True)


def test_comparison_takes_the_slides_that_both_models_have(cohort):
    (cohort / "results/weak/f/result.json").unlink()
    (test,) = run(cohort, allow_missing=True).metrics["comparisons"]
    assert test["n"] == 5
    kept = [k for k in SCORES if k != "f"]
    expected = oracle.roc_auc_score([TRUTH[k] for k in kept], [SCORES[k] for k in kept])
    assert test["auc_a"] == pytest.approx(expected)


def test_the_note_tells_of_each_model_on_which_slides_and_with_which_intervals(cohort):
    rows = [(k, v, {"b": "", "d": "", "f": "q"}.get(k, "p")) for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,patient")
    for slide_id in "acef":
        (cohort / "results/weak" / slide_id / "result.json").unlink()
    note = run(cohort, allow_missing=True).table
    assert "6 slides (3 normal, 3 tumor) of 4 patients. Not every model" in note
    assert "measured on all of them: weak on 2." in note
    assert "resamples of patients, rates the same (good); AUC" in note
    assert "resamples of slides, rates Wilson (weak). The positive class is tumor." in note


def test_each_p_names_its_test_where_pairs_have_different_ones():
    pair = {"a": "a", "b": "b", "n": 6, "difference": 0.1, "difference_ci": None, "p_holm": 0.5}
    tests = ("DeLong", "DeLong-Obuchowski", None)
    pairs = [{**pair, "test": test, "p": test and 0.25} for test in tests]
    header, rows, _ = tables.tests_table(pairs)
    assert header[4] == "p"
    assert [row[4] for row in rows] == ["0.250 (DeLong)", "0.250 (DeLong-Obuchowski)", "-"]
    header, rows, _ = tables.tests_table(pairs[:1])
    assert (header[4], rows[0][4]) == ("p (DeLong)", "0.250")


def test_a_split_takes_its_slides_only(cohort):
    rows = [(k, v, "test" if k in "abde" else "train") for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,split")
    found = run(cohort, split="test")
    assert found.metrics["models"]["good"]["n"] == 4
    assert "4 slides of split test (" in found.table
    assert found.metrics["split"] == "test"
    assert not any("split train" in text for text in found.warnings)
    assert any("2 of 6 evaluated slides are in split train" in t for t in run(cohort).warnings)
    with pytest.raises(
        LabelError, match=r"no slide in split tune; found test \(4\), train \(2\)\."
    ):
        run(cohort, split="tune")


def test_slides_that_a_model_was_trained_on_are_told_where_the_table_has_no_split(cohort):
    for slide_id, split in {"a": "train", "d": "train", "e": "tune"}.items():
        path = cohort / "results" / "good" / slide_id / "result.json"
        content = json.loads(path.read_text())
        content["model"]["learnt_from"] = split
        path.write_text(json.dumps(content))
    found = run(cohort).warnings
    assert any("good: 2 of 6 evaluated slides were in split train" in text for text in found)
    assert any("good: its threshold was chosen on the split tune" in text for text in found)
    rows = [(k, v, "test" if k in "bcf" else "train") for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,split")
    assert not any("was trained" in t or "tune" in t for t in run(cohort, split="test").warnings)
    assert sum("in split train" in text for text in run(cohort).warnings) == 1


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc_and_the_reason_is_told(cohort, label, pictures):
    write_labels(cohort / "labels.csv", [(k, label) for k in TRUTH])
    found = run(cohort)
    one = found.metrics["models"]["good"]
    assert one["auc"] is one["auc_ci"] is one["pr_auc"] is None
    assert one["undefined"]["auc"] == "a class has no case"
    missing = "specificity" if label else "sensitivity"
    assert one[missing] is one[f"{missing}_ci"] is None
    assert one["undefined"][missing] == "a class has no case"
    assert one["accuracy"] == pytest.approx(0.5)
    assert one["bootstrap"]["degenerate"] == QUICK.resamples
    (test,) = found.metrics["comparisons"]
    assert test["p"] is None
    assert test["undefined"] == "a class has no case"
    assert (cohort / "eval" / "roc.png").is_file()
    assert any("AUC is undefined" in text for text in found.warnings)


def test_a_sensitivity_cannot_be_chosen_without_positive_slides(cohort):
    write_labels(cohort / "labels.csv", [(k, 0) for k in TRUTH])
    with pytest.raises(LabelError, match="no positive slide"):
        run(cohort, rule=Rule("sensitivity", 0.9))


def test_degenerate_resamples_are_said(tmp_path):
    binary(tmp_path / "results", "m", {"a": 0.2, "b": 0.6, "c": 0.4, "d": 0.7})
    write_labels(tmp_path / "labels.csv", [("a", 0), ("b", 0), ("c", 1), ("d", 1)])
    found = run(tmp_path)
    assert any("rest on 2 slides of class normal" in text for text in found.warnings)
    drawn = found.metrics["models"]["m"]["bootstrap"]
    assert 0 < drawn["degenerate"] < drawn["resamples"] == 300
    assert any(f"{drawn['degenerate']} of 300 resamples lack a class" in t for t in found.warnings)


def test_no_results_and_no_folder_are_named(tmp_path):
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    with pytest.raises(ResultError, match="no such folder"):
        run(tmp_path)
    (tmp_path / "results").mkdir()
    with pytest.raises(ResultError, match="no results; expected <model>/<slide>"):
        run(tmp_path)


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("model.json", "it is a model: `slidelens predict SLIDES --model .*results --out RESULTS`"),
        ("folds.json", "it is a cross-validation: .*results/fold-1 --out RESULTS`"),
        ("training/checkpoint.json", "it is a training that has not ended: .* --resume"),
        ("evaluation.json", "it is an evaluation, which `slidelens report .*results --out"),
        ("slide.png", "no results; expected <model>/<slide>"),
    ],
)
def test_another_folder_is_told_with_what_to_run(tmp_path, file, told):
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    path = tmp_path / "results" / file
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ResultError, match=told):
        run(tmp_path)


def test_a_folder_of_slides_or_results_is_told_with_what_to_run(tmp_path):
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    (tmp_path / "results").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "results" / "slide.tif")
    with pytest.raises(ResultError, match=r"it holds slides: `slidelens predict .*results --model"):
        run(tmp_path)
    binary(tmp_path / "others", "m", {"a": 0.2})
    with pytest.raises(ResultError, match=r"holds results: `slidelens evaluate .*others --labels"):
        read_evaluation(tmp_path / "others")


def test_faults_of_results_are_listed_at_once(cohort):
    results = cohort / "results"
    write_result(results, "good", "nan", {"normal": float("nan"), "tumor": 0.5})
    write_result(results, "good", "single", {"tumor": 0.5})
    write_result(results, "good", "range", {"normal": -0.5, "tumor": 1.5})
    (results / "weak" / "a" / "result.json").write_text("{")
    with pytest.raises(ResultError) as caught:
        run(cohort)
    text = str(caught.value)
    assert "probabilities.normal" in text
    for place in ("good/nan", "good/single", "good/range", "weak/a"):
        assert str(results / place) in text


def test_two_results_of_one_slide_are_refused(cohort):
    binary(cohort / "results" / "again", "good", {"a": 0.3}, threshold=0.5)
    with pytest.raises(ResultError, match=r"model good, slide a: results in .* and .*; keep one"):
        run(cohort)


@pytest.mark.parametrize(
    ("key", "values", "what"),
    [
        ("sha256", ("1" * 64, "2" * 64), "weights"),
        ("threshold", (0.3, 0.4), "thresholds"),
    ],
)
def test_several_models_under_one_name_are_refused(tmp_path, key, values, what):
    binary(tmp_path / "results", "m", {"a": 0.1}, **{key: values[0]})
    binary(tmp_path / "results", "m", {"b": 0.9}, **{key: values[1]})
    write_labels(tmp_path / "labels.csv", [("a", 0), ("b", 1)])
    with pytest.raises(ResultError, match=f"model m: results with different {what}"):
        run(tmp_path)


def test_models_of_unlike_classes_are_refused_with_their_classes(cohort):
    write_result(cohort / "results", "other", "a", {"benign": 0.4, "grade3": 0.6})
    with pytest.raises(ResultError, match=r"good: normal, tumor\n.*other: benign, grade3"):
        run(cohort)


def test_a_folder_that_cannot_be_written_is_named(cohort):
    (cohort / "eval").write_text("a file")
    with pytest.raises(ResultError, match="cannot write the evaluation"):
        run(cohort)


def test_a_disk_that_becomes_full_leaves_the_evaluation_before(cohort, monkeypatch):
    """Else the errors of one operating point lay beside the figures of another."""
    run(cohort)
    before = {path.name: path.read_bytes() for path in (cohort / "eval").iterdir()}
    original = Path.write_bytes

    def full(self, data):
        if "metrics.json" in self.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return original(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ResultError, match="No space left"):
        run(cohort, rule=Rule("given", 0.99))
    assert {path.name: path.read_bytes() for path in (cohort / "eval").iterdir()} == before
    monkeypatch.undo()
    run(cohort, rule=Rule("given", 0.99))
    assert (cohort / "eval" / "errors.csv").read_bytes() != before["errors.csv"]


def test_patients_are_measured_and_drawn_whole(cohort):
    patients = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p3", "f": "p4"}
    rows = [(k, v, patients[k]) for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,patient")
    one = run(cohort).metrics["models"]["good"]
    assert one["bootstrap"]["drawn"] == "patients"
    # Slides of a patient are not independent: rates are of resamples of patients, too.
    assert one["rates_interval"] == "bootstrap"
    low, high = one["accuracy_ci"]
    assert low < one["accuracy"] < high
    assert one["specificity_ci"][0] < one["specificity"]
    write_labels(
        cohort / "labels.csv", [(k, v, "p1") for k, v in TRUTH.items()], "slide_id,label,patient"
    )
    one = run(cohort).metrics["models"]["good"]
    assert one["accuracy_ci"] is None
    assert "one patient" in one["undefined"]["accuracy_ci"]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,patient")
    one = run(cohort).metrics["models"]["good"]
    found = one["patients"]
    assert found["n"] == 4
    # Highest slide: p1 0.7, p2 0.35 (normal); p3 0.8, p4 0.9 (tumor).
    assert (found["auc"], found["sensitivity"], found["specificity"]) == (1.0, 1.0, 0.5)
    assert found["accuracy_ci"] is not None
    assert {row["patient"] for row in errors_of(cohort)} <= set(patients.values())


def three_classes(tmp_path, models=("m",), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(30) % 3
    names = ("benign", "grade2", "grade3")
    for model in models:
        for i, label in enumerate(labels):
            p = rng.dirichlet(1 + 2 * (np.arange(3) == label))
            write_result(
                tmp_path / "results", model, f"s{i}", dict(zip(names, p.tolist(), strict=True))
            )
    write_labels(tmp_path / "labels.csv", [(f"s{i}", names[k]) for i, k in enumerate(labels)])
    return labels


def test_more_classes_are_measured_one_against_the_rest(tmp_path, pictures):
    labels = three_classes(tmp_path, ("m", "other"))
    found = run(tmp_path)
    one = found.metrics["models"]["m"]
    record = json.loads((tmp_path / "eval" / "evaluation.json").read_text())
    scores = np.array([slide["probabilities"]["m"] for slide in record["slides"]])
    expected = oracle.roc_auc_score(labels, scores, multi_class="ovr", average="macro")
    assert one["auc"] == pytest.approx(expected)
    called = scores.argmax(1)
    assert one["accuracy"] == pytest.approx(oracle.accuracy_score(labels, called))
    assert one["sensitivity"] == pytest.approx(oracle.balanced_accuracy_score(labels, called))
    weighted = oracle.cohen_kappa_score(labels, called, weights="quadratic")
    assert one["quadratic_weighted_kappa"] == pytest.approx(weighted)
    assert one["threshold"] is None
    assert one["threshold_source"] == "argmax"
    assert set(one["one_vs_rest"]) == set(one["per_class"]) == {"benign", "grade2", "grade3"}
    (test,) = found.metrics["comparisons"]
    assert test["test"] == "paired bootstrap"
    assert 0 < test["p"] <= 1
    assert test["difference_ci"][0] <= test["difference"] <= test["difference_ci"][1]
    wrong = int((called != labels).sum())
    rows = [row for row in errors_of(tmp_path) if row["model"] == "m"]
    assert [row["kind"] for row in rows].count("fn") == wrong
    assert [row["kind"] for row in rows].count("fp") == wrong
    assert all(row["class"] == row["label"] for row in rows if row["kind"] == "fn")
    assert all(row["class"] == row["predicted"] for row in rows if row["kind"] == "fp")
    # What is made of an evaluation is not written over these.
    assert {path.name for path in (tmp_path / "eval").iterdir()} == set(FILES)


def test_means_over_classes_are_undefined_together_where_a_class_has_no_slide(tmp_path):
    labels = three_classes(tmp_path)
    write_labels(tmp_path / "labels.csv", [(f"s{i}", min(k, 1)) for i, k in enumerate(labels)])
    one = run(tmp_path).metrics["models"]["m"]
    for mean in ("auc", "pr_auc", "sensitivity", "specificity"):
        assert one[mean] is None
        assert one["undefined"][mean] == "a class has no case"
    assert one["per_class"]["grade3"]["sensitivity"] is None
    assert 0 < one["per_class"]["benign"]["specificity"] < 1


def test_equal_scores_are_said_to_have_an_interval_that_says_nothing(tmp_path):
    write_labels(tmp_path / "labels.csv", TRUTH.items())
    binary(tmp_path / "results", "m", dict.fromkeys(TRUTH, 0.5))
    found = run(tmp_path)
    assert found.metrics["models"]["m"]["auc_ci"] == [0.5, 0.5]
    (said,) = [text for text in found.warnings if "the same score" in text]
    assert f"all {len(TRUTH)} slides" in said


def test_a_threshold_needs_two_classes(tmp_path):
    three_classes(tmp_path)
    with pytest.raises(LabelError, match="needs two classes, and these models have 3"):
        run(tmp_path, rule=Rule("given", 0.5))


def square(x, y, side, label):
    ring = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": [ring]},
        "properties": {"classification": {"name": label}},
    }


def write_tiles(folder, values):
    rows = [f"{100 * i},0,100,100,{1 - p},{p}" for i, p in enumerate(values)]
    header = "minx,miny,width,height,prob_normal,prob_tumor"
    (folder / "tiles.csv").write_text("\n".join([header, *rows]) + "\n")


@pytest.mark.parametrize("label", ["Tumor", "lesion"])
def test_tiles_are_measured_where_annotations_are(cohort, label):
    results, annotations = cohort / "results", cohort / "annotations"
    annotations.mkdir()
    # Slide d: tile 0 inside, tile 1 exactly half covered, tile 2 outside.
    features = [square(0, 0, 100, label), square(100, 0, 50, label), square(100, 50, 50, label)]
    if label == "Tumor":  # labelled by class: another label does not count
        features.append(square(200, 0, 100, "necrosis"))
    name = "d.geojson" if label == "Tumor" else "d.GeoJSON"
    (annotations / name).write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    write_tiles(results / "good" / "d", [0.9, 0.4, 0.5])
    write_tiles(results / "good" / "a", [0.1, 0.2, float("nan")])
    found = run(cohort, annotations=annotations).metrics["models"]
    tiles = found["good"]["tiles"]
    assert (tiles["n"], tiles["n_positive"], tiles["slides"]) == (5, 2, 2)
    assert tiles["auc_ci"] is None  # the positive tiles lie on one slide
    assert tiles["undefined"]["auc_ci"] == "a class is of fewer than two patients or slides"
    truth, scores = [1, 1, 0, 0, 0], [0.9, 0.4, 0.5, 0.1, 0.2]
    assert tiles["auc"] == pytest.approx(oracle.roc_auc_score(truth, scores))
    assert tiles["pr_auc"] == pytest.approx(oracle.average_precision_score(truth, scores))
    assert tiles["left_out"] == {"no annotations": ["e", "f"], "no tile probabilities": ["b", "c"]}
    told = " ".join(run(cohort, annotations=annotations).warnings)
    for reason in tiles["left_out"]:
        assert f"good: 2 slides left out of the figures of tiles, for {reason}; what is" in told
    assert found["weak"]["tiles"]["undefined"]["auc"] == "no slide with tiles and annotations"
    wider = run(cohort, annotations=annotations, tile_overlap=0.6).metrics["models"]["good"]
    assert wider["tiles"]["n_positive"] == 1


def draw(folder, **labels_of_slides):
    """Annotate the first of a slide's tiles, by the labels that are given for each slide."""
    folder.mkdir(exist_ok=True)
    for slide_id, label in labels_of_slides.items():
        features = [square(0, 0, 100, label)]
        content = {"type": "FeatureCollection", "features": features}
        (folder / f"{slide_id}.geojson").write_text(json.dumps(content))


def test_names_that_are_almost_those_of_classes_are_pointed_at(cohort, caplog):
    draw(cohort / "annotations", d="tumor", e="Tumour", f="tumr")
    for slide_id in "adef":
        write_tiles(cohort / "results" / "good" / slide_id, [0.9, 0.1])
    found = run(cohort, annotations=cohort / "annotations")
    assert any("the same: 'tumr' and 'tumor'?" in text for text in found.warnings)
    assert found.metrics["models"]["good"]["tiles"]["n_positive"] == 2  # another spelling counts
    assert "count as one: 'tumor' on d and 'Tumour' on e. Rename" in caplog.text
    for slide_id in TRUTH:
        write_result(cohort / "results", "other", slide_id, {"Normal": 0.5, "tumour": 0.5})
    near = (
        r"of each by itself\. Do these mean the same: 'normal' and 'Normal', 'tumor' and 'tumour'"
    )
    with pytest.raises(ResultError, match=near):
        run(cohort)


def test_annotations_of_another_name_are_no_negative_tiles(cohort):
    """Slide e is annotated in other words: its tumour must not count as a false positive."""
    draw(cohort / "annotations", d="tumor", e="Carcinoma")
    for slide_id in "ade":
        write_tiles(cohort / "results" / "good" / slide_id, [0.9, 0.1])
    found = run(cohort, annotations=cohort / "annotations")
    tiles = found.metrics["models"]["good"]["tiles"]
    assert (tiles["slides"], tiles["n"], tiles["n_positive"]) == (2, 4, 1)
    assert "e" in tiles["left_out"]["no annotations"]
    assert tiles["ignored_labels"] == ["Carcinoma"]
    said = [text for text in found.warnings if "labelled Carcinoma are of no class" in text]
    assert said
    assert all(text.endswith("rename them if they should.") for text in said)
    told = " ".join(found.metrics["warnings"])  # which reports repeat
    assert "annotations of 1 label are of no class" in told
    assert "Carcinoma" not in told


def test_the_figures_of_tiles_are_told(cohort):
    draw(cohort / "annotations", d="tumor")
    write_tiles(cohort / "results" / "good" / "d", [0.9, 0.1])
    found = run(cohort, annotations=cohort / "annotations")
    assert "- good, tiles: AUC 1.000" in found.table
    assert "(1 of 2 annotated)" in found.table
    assert "- weak, tiles: AUC is undefined, because no slide with tiles" in found.table


def test_what_is_drawn_as_the_negative_class_is_not_positive(cohort):
    draw(cohort / "annotations", d="Metastasis", e="normal")
    for slide_id in "ade":
        write_tiles(cohort / "results" / "good" / slide_id, [0.9, 0.1])
    tiles = run(cohort, annotations=cohort / "annotations").metrics["models"]["good"]["tiles"]
    assert tiles["annotations"] == "all of the positive class"
    assert (tiles["n"], tiles["n_positive"]) == (4, 1)
    assert "e" in tiles["left_out"]["no annotations"]


def test_of_a_tile_at_the_border_the_part_in_the_slide_counts(cohort):
    draw(cohort / "annotations", d="tumor")
    folder = cohort / "results" / "good" / "d"
    content = json.loads((folder / "result.json").read_text())
    content["slide"] |= {"width": 150, "height": 50}
    (folder / "result.json").write_text(json.dumps(content))
    write_tiles(folder, [0.9, 0.1])
    features = [square(0, 0, 50, "tumor"), square(50, 0, 50, "tumor")]  # all of tile 0 in the slide
    (cohort / "annotations" / "d.geojson").write_text(
        json.dumps({"type": "FeatureCollection", "features": features})
    )
    given = {"annotations": cohort / "annotations", "tile_overlap": 0.9}
    assert run(cohort, **given).metrics["models"]["good"]["tiles"]["n_positive"] == 1


def test_a_table_names_slides_with_any_extension_and_points(cohort):
    rows = [(f"{name}.ome.tif", truth) for name, truth in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows)
    assert run(cohort).metrics["models"]["good"]["n"] == 6
    write_labels(cohort / "labels.csv", [*list(TRUTH.items())[1:], ("a.7", 0)])
    with pytest.raises(LabelError, match=r"labelled, no result: a\.7"):
        run(cohort)


def test_many_classes_and_few_patients_have_no_interval(tmp_path):
    names = [f"c{i}" for i in range(10)]
    rows, rng = [], np.random.default_rng(0)
    for number, label in enumerate(names * 2):
        p = rng.dirichlet(np.ones(10))
        write_result(tmp_path / "results", "m", f"s{number}", dict(zip(names, p, strict=True)))
        rows.append((f"s{number}", label, f"p{number % 10}"))
    write_labels(tmp_path / "labels.csv", rows, "slide_id,label,patient")
    one = run(tmp_path, resampling=Resampling(resamples=100)).metrics["models"]["m"]
    assert 0 < one["auc"] < 1
    assert one["auc_ci"] is None
    assert "fewer than half of the resamples contain every class" in one["undefined"]["auc_ci"]


@pytest.mark.parametrize("classes", [2, 3])
def test_one_patient_has_no_intervals(tmp_path, classes):
    names, rng = [f"c{i}" for i in range(classes)], np.random.default_rng(0)
    rows = []
    for number in range(24):
        rows.append((f"s{number}", names[number % classes], "only"))
        for model in ("m", "n"):
            p = rng.dirichlet(np.ones(classes) + 2 * (np.arange(classes) == number % classes))
            write_result(
                tmp_path / "results", model, f"s{number}", dict(zip(names, p, strict=True))
            )
    write_labels(tmp_path / "labels.csv", rows, "slide_id,label,patient")
    found = run(tmp_path, resampling=Resampling(resamples=100))
    one, test = found.metrics["models"]["m"], found.metrics["comparisons"][0]
    assert 0.5 < one["auc"] < 1
    assert one["auc_ci"] is None
    assert "one patient" in one["undefined"]["auc_ci"]
    assert test["p"] is None
    assert test["undefined"] == "a class has only one patient"
    said = f"m: class {names[0]} has only one patient: there are no bootstrap intervals."
    assert said in found.warnings


def test_all_intervals_are_of_the_level_that_is_asked_for(cohort):
    widths = []
    for level in (0.8, 0.99):
        one = run(cohort, resampling=Resampling(300, 0, level)).metrics["models"]["good"]
        widths.append({k: v[1] - v[0] for k, v in one.items() if k.endswith("_ci") and v})
    assert {"sensitivity_ci", "specificity_ci", "accuracy_ci"} <= set(widths[0])
    for name in ("sensitivity_ci", "specificity_ci", "accuracy_ci"):
        assert widths[0][name] < widths[1][name]


def test_a_tile_overlap_is_a_share():
    with pytest.raises(ValueError, match=r"must be in \(0, 1\], not 0"):
        EvaluationOptions(tile_overlap=0)


def test_annotations_that_are_not_there_are_named(cohort):
    with pytest.raises(LabelError, match="no such folder of annotations"):
        run(cohort, annotations=cohort / "nowhere")
    (cohort / "annotations").mkdir()
    with pytest.raises(LabelError, match="no annotations of the evaluated slides"):
        run(cohort, annotations=cohort / "annotations")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("stored", Rule()),
        ("max-accuracy", Rule("max-accuracy")),
        ("sensitivity=0.95", Rule("sensitivity", 0.95)),
        ("0.42", Rule("given", 0.42)),
    ],
)
def test_operating_points_are_read(text, rule):
    assert parse_rule(text) == rule


def test_what_a_notebook_gives_as_text(cohort):
    """An operating point as on the command line, and a folder that is no Path."""
    for rule in ("sensitivity=1", Rule("sensitivity", 1)):
        found = run(cohort, rule=rule).metrics["models"]
        assert all(one["threshold_source"] == "sensitivity" for one in found.values())
    with pytest.raises(ValueError, match="expected stored"):
        EvaluationOptions(rule="best")
    with pytest.raises(LabelError, match="no such folder of annotations"):
        run(cohort, annotations=str(cohort / "nowhere"))


@pytest.mark.parametrize("text", ["best", "sensitivity=0", "1.2", "specificity=0.9", "nan", "="])
def test_other_operating_points_are_refused(text):
    with pytest.raises(ValueError, match="expected stored, max-accuracy"):
        parse_rule(text)


@pytest.mark.realdata
def test_annotated_tiles_of_the_cohort_are_found(tmp_path, data: Path):
    """A model that knows the annotations has tile AUC 1: labels, ids and geometry fit together."""
    with (data / "crc_mosaic" / "labels.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "tune"]
    annotations = data / "crc_mosaic" / "annotations"
    for row in rows:
        p = 0.2 + 0.6 * int(row["label"])
        folder = write_result(
            tmp_path / "results", "m", row["slide_id"], {"normal": 1 - p, "tumor": p}
        )
        path = annotations / f"{row['slide_id']}.geojson"
        found = json.loads(path.read_text())["features"] if path.is_file() else []
        corners = {tuple(map(int, f["geometry"]["coordinates"][0][0])) for f in found}
        lines = ["minx,miny,width,height,prob_normal,prob_tumor"]
        for x in range(0, 224 * 9, 224):
            for y in range(0, 224 * 9, 224):
                q = 0.9 if (x, y) in corners else 0.1
                lines.append(f"{x},{y},224,224,{1 - q},{q}")
        (folder / "tiles.csv").write_text("\n".join(lines))
    options = EvaluationOptions(split="tune", annotations=annotations, resampling=QUICK)
    labels = data / "crc_mosaic" / "labels.csv"
    one = evaluate(tmp_path / "results", labels, tmp_path / "eval", options).metrics["models"]["m"]
    assert (one["n"], one["n_positive"], one["auc"]) == (20, 10, 1.0)
    assert one["tiles"]["auc"] == 1.0
    assert one["tiles"]["n_positive"] > 20


def test_the_threshold_of_a_model_travels_with_its_results(tiny, tmp_path):
    """What ``train`` stores in ``model.json``, ``predict`` writes and ``evaluate`` applies."""
    tiny.card["threshold"] = 0.25
    colours = np.random.default_rng(0).integers(0, 255, (4, 64, 64, 3), np.uint8)
    for i, image in enumerate(colours):
        with from_array(image, mpp=1.0, name=f"s{i}") as slide:
            predict(slide, tiny, out=tmp_path / "results", tissue=TissueSettings(method="whole"))
    write_labels(tmp_path / "labels.csv", [(f"s{i}", i % 2) for i in range(4)])
    one = run(tmp_path).metrics["models"]["tiny-model"]
    assert (one["threshold"], one["threshold_source"], one["n"]) == (0.25, "model", 4)


def test_the_picture_of_the_comparison_has_the_tests_and_stays_small():
    def height(pairs):
        tests = [Table(("a", "b", "p"), [("m", "n", "0.5")] * pairs, words=2)] if pairs else []
        tables = [Table(("model", "AUC"), [("m", "0.9")]), *tests]
        with Image.open(BytesIO(table_picture(tables, "a note"))) as picture:
            return picture.height

    assert height(0) < height(1) < height(40) == height(900) < 3000


def test_results_that_do_not_state_what_others_do_are_of_several_models(tmp_path):
    for slide, threshold in (("a", 0.4), ("b", None)):
        write_result(
            tmp_path / "results", "m", slide, {"normal": 0.5, "tumor": 0.5}, threshold=threshold
        )
    write_labels(tmp_path / "labels.csv", [("a", 0), ("b", 1)])
    with pytest.raises(ResultError, match=r"different thresholds \(0.4 | none\)"):
        run(tmp_path)


def test_older_results_of_slides_that_a_mac_named(tmp_path):
    binary(tmp_path / "results", "m", {"Mu\u03081": 0.2, "b": 0.6})
    write_labels(tmp_path / "labels.csv", [("M\u00fc1", 0), ("b", 1)])
    assert run(tmp_path).metrics["models"]["m"]["n"] == 2


def test_probabilities_that_do_not_sum_to_one_are_warned_of(tmp_path):
    for slide in "ab":
        write_result(tmp_path / "results", "m", slide, {"normal": 0.9, "tumor": 0.9})
    write_labels(tmp_path / "labels.csv", [("a", 0), ("b", 1)])
    assert any("of 2 slides do not sum to 1" in text for text in run(tmp_path).warnings)


def test_tiles_of_a_patient_are_dependent(cohort):
    """Slides of one patient, as of one slide: with a patient of each class there is no interval."""
    annotations = cohort / "annotations"
    annotations.mkdir()
    for slide, value in (("d", 0.9), ("e", 0.6)):
        collection = {"type": "FeatureCollection", "features": [square(0, 0, 100, "Tumor")]}
        (annotations / f"{slide}.geojson").write_text(json.dumps(collection))
        write_tiles(cohort / "results" / "good" / slide, [value, 0.4])
    for slide in "ab":
        write_tiles(cohort / "results" / "good" / slide, [0.1, 0.7])
    found = run(cohort, annotations=annotations).metrics["models"]["good"]["tiles"]
    assert found["auc_ci"] is not None
    patients = {"a": "p1", "b": "p1", "c": "p2", "d": "p3", "e": "p3", "f": "p4"}
    rows = [(k, v, patients[k]) for k, v in TRUTH.items()]
    write_labels(cohort / "labels.csv", rows, "slide_id,label,patient")
    found = run(cohort, annotations=annotations).metrics["models"]["good"]["tiles"]
    assert found["auc_ci"] is None


def test_an_evaluation_made_again_leaves_slides_their_numbers(cohort):
    run(cohort)
    record = cohort / "eval" / "evaluation.json"
    first = json.loads(record.read_text())["numbers"]
    binary(cohort / "results", "good", {"new": 0.5}, threshold=0.5)
    binary(cohort / "results", "weak", {"new": 0.5})
    write_labels(cohort / "labels.csv", [*TRUTH.items(), ("new", 0)])
    run(cohort)
    assert json.loads(record.read_text())["numbers"] == first | {"new": len(first) + 1}
