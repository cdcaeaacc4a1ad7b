"""A review without a window: order, filters, decisions, undo, progress."""

from __future__ import annotations

import pytest
from cohorts import make_cohort

from slidelens.desktop.state.review import (
    Filter,
    case_text,
    decision_text,
    evaluation_folder,
    open_review,
)
from slidelens.errors import ResultError
from slidelens.review.taxonomy import TAXONOMY, read_taxonomy, save_taxonomy


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    return make_cohort(tmp_path_factory.mktemp("cohort"))


@pytest.fixture
def review(cohort):
    for file in cohort.glob("review.sqlite*"):
        file.unlink()
    (cohort / "taxonomy.toml").unlink(missing_ok=True)
    return open_review(cohort, "ann", "0.5")


def test_errors_of_all_methods_come_by_margin(review):
    found = [(c.slide_id, c.model, round(c.margin, 2)) for c in review.cases]
    assert found == [
        ("b", "weak", 0.45),
        ("c", "weak", 0.3),
        ("b", "good", 0.2),
        ("c", "good", 0.1),
    ]
    assert review.case is review.cases[0]
    assert "weak calls it tumor, the label says normal" in case_text(review.case)


def test_steps_stay_within_the_list(review):
    assert review.step(-1) is review.cases[0]
    assert review.step(1).slide_id == "c"
    assert review.go(99) is review.cases[3]
    assert review.step(1) is review.cases[3]


def test_filters_keep_the_current_error_where_they_can(review):
    review.go(2)
    review.choose(Filter(models=frozenset({"good"})))
    assert [c.model for c in review.cases] == ["good", "good"]
    assert review.case.slide_id == "b"
    review.choose(Filter(kind="fn"))
    assert {c.slide_id for c in review.cases} == {"c"}
    assert review.index == 0
    review.choose(Filter(models=frozenset()))
    assert review.case is None
    assert review.step(1) is None
    assert review.categories() == ()
    assert review.labels() == []


def test_a_decision_is_in_the_store_at_once_and_leaves_the_list_alone(review, cohort):
    review.choose(Filter(only_open=True))
    first = review.case
    review.decide(first, category="Inflammation")
    review.decide(first, true_label="tumor", note="dense\ninfiltrate")
    other = open_review(cohort, "ann", "0.5")
    kept = other.decision(first)
    assert (kept.category, kept.true_label) == ("Inflammation", "tumor")
    text = "Inflammation, label wrong: tumor, “dense infiltrate”"
    assert decision_text(kept, {}) == text
    assert decision_text(kept, {kept.model: kept.time}) == text
    assert decision_text(kept, {kept.model: "9999"}) == f"{text}, made with other weights"
    assert first in review.cases
    review.choose(review.filter)
    assert first not in review.cases
    assert tuple(review.progress()) == (1, 4)
    assert tuple(open_review(cohort, "bob", "0.5").progress()) == (0, 4)


def test_another_reviewer_is_seen_and_not_overwritten(review, cohort):
    other = open_review(cohort, "bob", "0.5")
    other.decide(other.case, category="Tissue artefacts")
    review.decide(review.case, category="Inflammation")
    assert [d.reviewer for d in review.others(review.case)] == ["bob"]
    assert [d.reviewer for d in review.history(review.case)] == ["ann", "bob"]


def test_undo_goes_back_step_by_step_and_history_keeps_all(review):
    first = review.case
    review.decide(first, category="Inflammation")
    review.decide(first, category="Tissue artefacts", note="fold")
    review.decide(first, category="Tissue artefacts")  # nothing new: nothing to undo
    review.step(1)
    assert review.undo() is first
    assert review.decision(first).category == "Inflammation"
    assert review.decision(first).note == ""
    review.undo()
    assert not review.decision(first).decided
    assert not review.can_undo
    assert review.undo() is None
    assert len(review.history(first)) == 4


def test_undo_leaves_what_another_window_recorded_meanwhile(review, cohort):
    first = review.case
    other = open_review(cohort, "ann", "0.5")
    review.decide(first, category="Inflammation")
    other.decide(first, note="dense")
    review.undo()
    assert not review.left
    kept = other.decision(first)
    assert (kept.category, kept.note) == ("", "dense")
    review.decide(first, category="Inflammation", note="fold")
    other.decide(first, category="Tissue artefacts")
    review.undo()
    assert review.left.startswith(
        f"{first.slide_id}: the reason has been changed in another window"
    )
    kept = other.decision(first)
    assert (kept.category, kept.note) == ("Tissue artefacts", "dense")
    assert not review.can_undo


def test_an_evaluation_that_is_opened_anew_goes_on_where_it_was(review, cohort):
    review.decide(review.case, category="Inflammation")
    at = review.step(1)
    again = open_review(cohort, "ann", "0.4")
    again.follow(review)
    assert again.case.key == at.key
    assert again.can_undo
    other = open_review(cohort, "bob", "0.5")
    other.follow(review)
    assert other.case.key == at.key
    assert not other.can_undo


def test_edited_categories_are_offered_and_old_ones_stay(review, cohort):
    assert review.categories() == TAXONOMY["fp"]
    review.decide(review.case, category="Inflammation")
    save_taxonomy(cohort, {"fp": ["Nerve", 'So-called "tumor"'], "fn": TAXONOMY["fn"]})
    assert read_taxonomy(cohort)["fp"] == ("Nerve", 'So-called "tumor"')
    assert review.categories() == ("Nerve", 'So-called "tumor"', "Inflammation")
    with pytest.raises(ResultError, match="twice"):
        save_taxonomy(cohort, {"fp": ["Nerve", "Nerve"], "fn": ["x"]})
    assert read_taxonomy(cohort)["fp"][0] == "Nerve"


def test_labels_are_offered_as_verdicts(review):
    assert review.labels() == [
        ("", "The label stands: normal"),
        ("tumor", "The label is wrong: it is tumor"),
    ]


def test_operating_points_change_what_is_an_error(cohort):
    assert len(open_review(cohort, "ann", "0.5 good:0.85").cases) == 3
    with pytest.raises(ResultError, match="operating point"):
        open_review(cohort, "ann", "nobody:0.5")
    with pytest.raises(ResultError, match=r"evaluation\.json"):
        open_review(cohort / "gone", "ann")


def test_each_study_has_a_folder_of_its_own(tmp_path):
    home, results = tmp_path / "evaluations", tmp_path / "results"
    one, two = (tmp_path / study / "data" / "labels.csv" for study in ("study1", "study2"))
    found = evaluation_folder(home, one, results)
    assert found.parent == home
    assert found.name.startswith("data-labels-")
    assert evaluation_folder(home, one, results) == found
    assert evaluation_folder(home, two, results) != found
    assert evaluation_folder(home, one, tmp_path / "other") != found


def test_a_folder_of_an_older_version_is_found_if_it_is_of_the_same_study(tmp_path, cohort):
    labels, results = cohort.parent / "labels.csv", cohort.parent / "results"
    older = tmp_path / f"{cohort.parent.name}-labels"
    older.symlink_to(cohort)
    assert evaluation_folder(tmp_path, labels, results) == older
    assert evaluation_folder(tmp_path, labels, tmp_path / "results") != older
    older.unlink()
    older.mkdir()
    (older / "evaluation.json").write_text("[]")
    assert evaluation_folder(tmp_path, labels, results) != older
