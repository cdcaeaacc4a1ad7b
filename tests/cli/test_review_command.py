import csv
import io
import json
import sqlite3
import sys

import pytest
from typer import BadParameter

from slidelens.cli.review_request import check_category
from slidelens.review.evaluation import read_evaluation
from slidelens.review.store import CaseKey


@pytest.fixture
def review(slidelens, folder):
    return lambda *arguments: slidelens("review", folder, *arguments)


def test_list_tells_errors_decisions_and_near_misses(review):
    done = review("list", "--near", "1")
    assert done.code == 0
    assert done.out.count("\nweak ") == 4 + 2
    assert "6 errors, 0 decided" in done.out
    found = json.loads(review("list", "--json", "--model", "good", "--kind", "fp").out)
    (one,) = found["errors"]
    assert (one["slide_id"], one["score"], one["label_suspect"]) == ("b", 0.7, True)
    assert one["pseudonym"].startswith("S-00")
    assert {v["model"]: v["right"] for v in one["verdicts"]} == {"good": False, "weak": False}
    assert len(json.loads(review("list", "--suspects", "--json").out)["errors"]) == 2
    at = ("--operating-point", "weak:0.95", "--operating-point", "good:0.75", "--json")
    errors = json.loads(review("list", *at).out)["errors"]
    assert {(e["model"], e["slide_id"]) for e in errors} == {
        *(("weak", s) for s in "def"),
        ("good", "d"),
    }


def test_set_decides_for_all_models_or_one_and_keeps_what_is_not_given(review, folder):
    assert review("set", "b", "--category", "Inflammation", "--reviewer", "ann").code == 0
    review("set", "b", "--note", "dense", "--reviewer", "ann", "--model", "good")
    assert "no error was decided by two reviewers yet" in review("agreement").out
    name = json.loads(review("list", "--json").out)["errors"][0]["pseudonym"]
    made = json.loads(review("set", name, "--label-wrong", "--reviewer", "bob", "--json").out)
    assert {(d["slide_id"], d["true_label"]) for d in made} == {("b", "tumor")}
    with sqlite3.connect(folder / "review.sqlite") as db:
        rows = db.execute("SELECT model, reviewer, category, note, true_label FROM decision")
        assert sorted(rows) == [
            ("good", "ann", "Inflammation", "", ""),
            ("good", "ann", "Inflammation", "dense", ""),
            ("good", "bob", "", "", "tumor"),
            ("weak", "ann", "Inflammation", "", ""),
            ("weak", "bob", "", "", "tumor"),
        ]
    assert "6 errors, 2 decided" in review("list").out
    assert "4 errors, 0 decided" in review("list", "--open").out
    assert len(json.loads(review("history", "b", "--json").out)) == 5
    assert "dense" in review("history").out
    compared = json.loads(review("agreement", "--json").out)
    assert [(a["about"], a["cases"], a["same"]) for a in compared] == [
        ("source", 2, 0),
        ("label", 2, 0),
    ]
    assert "ann" in review("agreement").out


def test_export_and_import_carry_decisions_between_reviews(review, tmp_path, folder):
    review("set", "b", "--true-label", "tumor", "--reviewer", "ann", "--note", "see, IHC")
    out, labels = tmp_path / "out.csv", tmp_path / "corrected.csv"
    done = review("export", "--out", out, "--labels", labels)
    assert "2 decisions" in done.out
    assert "1 label corrected" in done.out
    assert "b,1\n" in labels.read_text()
    (folder / "review.sqlite").unlink()
    assert "2 of 2 decisions are new" in review("import", out).out
    assert "0 of 2 decisions are new" in review("import", out).out
    review("set", "b", "--note", "", "--reviewer", "ann")
    refused = review("export", "--out", out, "--history")
    assert (refused.code, "is there already" in refused.err) == (1, True)
    assert review("export", "--out", out, "--history", "--overwrite").code == 0
    with out.open(newline="") as file:
        assert [r["note"] for r in csv.DictReader(file)] == ["see, IHC"] * 2 + [""] * 2


def test_a_category_of_one_kind_of_a_slides_errors_names_the_option_for_it(folder):
    keys = [CaseKey("b", "good", kind) for kind in ("fn", "fp")]
    with pytest.raises(BadParameter, match=r"of false negatives \(it is.*; --kind fp sets it"):
        check_category("Inflammation", keys, read_evaluation(folder))
    check_category("Tissue artefacts", keys, read_evaluation(folder))


def test_an_error_names_the_command_as_its_usage_does(review):
    refused = review("set")
    assert "review EVAL_DIR set [OPTIONS] SLIDE" in refused.err
    assert "review EVAL_DIR set -h" in refused.err


def test_an_edited_taxonomy_is_in_force(review, folder):
    refused = review("set", "b", "--category", "Floaters", "--reviewer", "ann")
    assert refused.code == 2
    assert "taxonomy --edit" in " ".join(refused.err.split())
    review("taxonomy", "--edit")
    path = folder / "taxonomy.toml"
    path.write_text(path.read_text().replace("Colon epithelium", "Floaters"))
    assert review("set", "b", "--category", "Floaters", "--reviewer", "ann").code == 0
    assert "Floaters" in review("taxonomy").out
    assert "Floaters" in json.loads(review("taxonomy", "--json").out)["fp"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("set", "q", "--note", "x"), 1, "no slide 'q'"),
        (("set", "a", "--note", "x"), 1, "slide 'a' has no error of any model"),
        (("set", "b"), 2, "give --category, --note"),
        (("set", "b", "--true-label", "x"), 2, "no class 'x'; normal, tumor"),
        (("set", "b", "--true-label", "tumor", "--label-wrong"), 2, "not both"),
        (("set", "b", "--true-label", "normal"), 2, "is the label that the slide has"),
        (("list", "--model", "x"), 2, "no model 'x'; there are good, weak"),
        (("list", "--operating-point", "best"), 2, "expected stored, max-accuracy"),
        (("export",), 2, "give --out"),
        (("import", "gone.csv"), 1, "gone.csv: cannot be read"),
    ],
)
def test_a_mistake_is_told_in_a_sentence(review, arguments, code, said):
    done = review(*arguments)
    assert done.code == code
    assert said in " ".join(done.err.split())


def test_a_folder_that_is_no_evaluation_is_named(slidelens, tmp_path):
    done = slidelens("review", tmp_path, "list")
    assert done.code == 1
    assert "expected a folder written by `slidelens evaluate --out`" in done.err


def test_export_of_labels_replaces_no_table(review, tmp_path):
    review("set", "b", "--label-wrong", "--reviewer", "ann")
    labels, corrected = tmp_path / "labels.csv", tmp_path / "corrected.csv"
    before = labels.read_text()
    for option in (("--labels", labels, "--overwrite"), ("--out", labels)):
        done = review("export", *option)
        assert done.code == 1
        assert "labels.csv: is the table of labels that was evaluated" in done.err
    assert labels.read_text() == before
    corrected.write_text("mine")
    done = review("export", "--labels", corrected, "--out", tmp_path / "out.csv")
    assert done.code == 1
    assert "is there already; choose another file, or give --overwrite" in done.err
    assert corrected.read_text() == "mine"
    assert not (tmp_path / "out.csv").exists()
    assert review("export", "--labels", corrected, "--overwrite").code == 0
    assert "b,1\n" in corrected.read_text()
    both = tmp_path / "both.csv"
    assert "both --out and --labels" in review("export", "--out", both, "--labels", both).err


def test_letters_that_a_terminal_lacks_are_escaped(review, monkeypatch):
    for arguments in (("set", "b", "--note", "żółć 🔬", "--reviewer", "ann"), ("list",)):
        output = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "cp1252"))
        assert review(*arguments).code == 0
        sys.stdout.flush()
        assert b"\\u017c\xf3\\u0142\\u0107" in output.getvalue()
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, "cp1252"))
    review("history", "--json")
    sys.stdout.flush()
    assert json.loads(output.getvalue().decode("cp1252"))[0]["note"] == "żółć 🔬"


def test_one_decision_is_told_in_the_singular(review, tmp_path):
    review("set", "b", "--note", "dense", "--reviewer", "ann", "--model", "good")
    assert review("export", "--out", tmp_path / "out.csv").out.endswith("out.csv: 1 decision\n")
