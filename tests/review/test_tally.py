import pytest
from sklearn.metrics import cohen_kappa_score

from slidelens.review.errors import list_errors
from slidelens.review.evaluation import read_evaluation
from slidelens.review.store import CaseKey, Decision
from slidelens.review.tally import (
    DISAGREED,
    LABEL_WRONG,
    NOT_REVIEWED,
    agreement,
    cause_tables,
    consensus,
    label_votes,
)
from slidelens.review.taxonomy import TAXONOMY, read_taxonomy, write_taxonomy


def said(slide, reviewer, category="", true_label="", model="good", kind="fp", time="1", **rest):
    return Decision(slide, model, kind, reviewer, category, "", true_label, time, **rest)


def test_the_majority_decides_and_a_tie_is_told():
    votes = [said("b", "ann", "Inflammation"), said("b", "bob", "Tissue artefacts")]
    key = CaseKey("b", "good", "fp")
    assert consensus(votes) == {key: DISAGREED}
    assert consensus([*votes, said("b", "cy", "Inflammation")]) == {key: "Inflammation"}
    assert consensus([said("b", "ann", true_label="tumor")]) == {key: LABEL_WRONG}
    assert consensus([Decision("b", "good", "fp", "ann", note="hm")]) == {}


def test_every_error_counts_once_in_the_column_of_its_method(evaluation):
    errors = list_errors(evaluation)
    decisions = [
        said("b", "ann", "Inflammation"),
        said("b", "ann", "Colon epithelium", model="weak"),
        said("c", "ann", "A category of an older file", model="weak"),
        said("d", "ann", true_label="normal", kind="fn"),
        said("f", "ann", "Inflammation"),  # no error at this operating point
    ]
    labels = read_evaluation(evaluation).labels
    fp, fn = cause_tables(errors, decisions, dict(TAXONOMY), ("good", "weak"), labels)
    assert fp.rows["Inflammation"] == {"good": 1, "weak": 0}
    assert fp.rows["Colon epithelium"] == {"good": 0, "weak": 1}
    assert fp.rows["A category of an older file"] == {"good": 0, "weak": 1}
    assert NOT_REVIEWED not in fp.rows
    assert list(fp.rows)[:5] == list(TAXONOMY["fp"])
    assert fn.rows[LABEL_WRONG] == {"good": 1, "weak": 0}
    assert fn.rows[NOT_REVIEWED] == {"good": 0, "weak": 2}
    assert fn.wrong_labels == {"good": 1, "weak": 1}  # d is an error of both
    for table in (fp, fn):
        for model, total in table.totals.items():
            assert sum(row[model] for row in table.rows.values()) == total
    assert (fp.totals, fn.totals) == ({"good": 1, "weak": 2}, {"good": 1, "weak": 2})


def test_a_label_that_was_corrected_is_no_source_of_errors(evaluation):
    errors = list_errors(evaluation)
    decisions = [said("d", "ann", true_label="tumor", kind="fn")]  # which is its label by now
    labels = read_evaluation(evaluation).labels
    _, fn = cause_tables(errors, decisions, dict(TAXONOMY), ("good", "weak"), labels)
    assert fn.rows[NOT_REVIEWED] == {"good": 1, "weak": 2}
    assert LABEL_WRONG not in fn.rows
    assert fn.wrong_labels == {"good": 0, "weak": 0}


def test_kappa_is_that_of_the_oracle():
    ann = ["x", "x", "y", "y", "z", "x"]
    bob = ["x", "y", "y", "y", "z", "z"]
    decisions = [said(f"s{i}", "ann", c) for i, c in enumerate(ann)]
    decisions += [said(f"s{i}", "bob", c) for i, c in enumerate(bob)]
    decisions += [said("s9", "ann", "x"), said("s0", "cy", "x")]
    first = next(a for a in agreement(decisions) if a.second == "bob")
    assert (first.about, first.cases, first.same) == ("source", 6, 4)
    assert first.kappa == pytest.approx(cohen_kappa_score(ann, bob))
    apart = [a for a in agreement(decisions) if a.second == "cy"]
    assert [(a.cases, a.kappa) for a in apart] == [(1, None)] * 4
    strangers = [said("s0", "ann", "x"), said("s1", "bob", "x")]
    assert agreement(strangers) == []  # who share no error cannot be compared


def test_a_label_falls_only_to_more_than_half():
    one = [said("b", "ann", true_label="tumor")]
    labels = {"b": "normal"}
    assert label_votes(one, labels)["b"] == ("tumor", False)
    even = [*one, said("b", "bob", "Inflammation")]
    assert label_votes(even, labels)["b"] == (None, True)
    most = [*even, said("b", "cy", true_label="tumor")]
    assert label_votes(most, labels)["b"] == ("tumor", False)
    # one vote per reviewer and slide, whatever the number of methods
    twice = [said("b", "ann", "Inflammation", model="weak"), *even]
    assert label_votes(twice, labels)["b"] == (None, True)
    assert label_votes([said("b", "ann", "Inflammation")], labels)["b"] == (None, False)
    # once the label is corrected, all agree that it is right
    assert label_votes(even, {"b": "tumor"})["b"] == (None, False)


def test_the_taxonomy_is_a_file_that_can_be_edited(tmp_path):
    assert read_taxonomy(tmp_path) == dict(TAXONOMY)
    path = write_taxonomy(tmp_path)
    assert read_taxonomy(tmp_path) == dict(TAXONOMY)
    path.write_text(path.read_text().replace("Bladder epithelium", "Floaters"))
    assert "Floaters" in read_taxonomy(tmp_path)["fp"]
    assert write_taxonomy(tmp_path) == path  # an edited file stays
    assert "Floaters" in read_taxonomy(tmp_path)["fp"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "cannot be read"),
        ("false_positives = ['x']", "false_negatives must be a list"),
        ("false_positives = ['x', 'x']\nfalse_negatives = ['y']", "names a category twice"),
        ("false_positives = [1]\nfalse_negatives = ['y']", "false_positives must be a list"),
    ],
)
def test_a_damaged_taxonomy_is_named(tmp_path, text, said):
    (tmp_path / "taxonomy.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_taxonomy(tmp_path)
