from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slidelens.engine.labels import LabelledSlide, LabelTable
from slidelens.engine.training.splits import fold_table, take_fraction
from slidelens.errors import LabelError


def table(patients: list[tuple[int, int]], split=None) -> LabelTable:
    """One patient per pair of (label, number of slides)."""
    rows = [
        LabelledSlide(f"s{p}-{n}", label, split, f"p{p}")
        for p, (label, slides) in enumerate(patients)
        for n in range(slides)
    ]
    return LabelTable(Path("labels.csv"), ("a", "b"), tuple(rows))


cohorts = st.tuples(
    st.lists(st.tuples(st.just(0), st.integers(1, 3)), min_size=5, max_size=12),
    st.lists(st.tuples(st.just(1), st.integers(1, 3)), min_size=5, max_size=12),
).map(lambda pair: pair[0] + pair[1])


@given(cohorts, st.integers(2, 5), st.integers(0, 5))
def test_every_slide_is_held_out_once_and_patients_stay_together(patients, folds, seed):
    whole = table(patients)
    parts = [fold_table(whole, n, folds, seed) for n in range(1, folds + 1)]
    held = [row.slide_id for part in parts for row in part.of("tune")]
    assert sorted(held) == sorted(row.slide_id for row in whole.rows)
    for part in parts:
        assert {r.label for r in part.of("tune")} == {r.label for r in part.of("train")} == {0, 1}
        assert not {r.patient for r in part.of("tune")} & {r.patient for r in part.of("train")}
    counts = [len({r.patient for r in part.of("tune")}) for part in parts]
    assert max(counts) - min(counts) <= 1


def test_folds_follow_the_seed_and_leave_the_test_slides_out():
    whole = table([(0, 1)] * 6 + [(1, 1)] * 6)
    assert fold_table(whole, 1, 3, 7) == fold_table(whole, 1, 3, 7)
    assert fold_table(whole, 1, 3, 7) != fold_table(whole, 1, 3, 8)
    tested = table([(0, 1)] * 3 + [(1, 1)] * 3, split="test")
    mixed = LabelTable(whole.path, whole.classes, (*whole.rows, *tested.rows))
    assert len(fold_table(mixed, 1, 3, 0).rows) == len(whole.rows)


def test_too_few_patients_for_the_folds_are_named():
    with pytest.raises(LabelError, match="class b has fewer patients than 3 folds"):
        fold_table(table([(0, 2)] * 5 + [(1, 9)] * 2), 1, 3, 0)


@given(cohorts, st.floats(0.05, 1), st.floats(0.05, 1), st.integers(0, 5))
def test_a_fraction_keeps_classes_and_tuning_slides_and_a_smaller_one_is_part_of_it(
    patients, one, other, seed
):
    trained, tuned = table(patients, "train"), table([(0, 1), (1, 2)], "tune")
    whole = LabelTable(trained.path, trained.classes, trained.rows + tuned.rows)
    small, large = (take_fraction(whole, f, seed) for f in sorted((one, other)))
    assert set(small.rows) <= set(large.rows) <= set(whole.rows)
    assert set(tuned.rows) <= set(small.rows)
    assert {r.label for r in small.of("train")} == {0, 1}
    kept = {r.patient for r in small.of("train")}
    assert {r for r in trained.rows if r.patient in kept} == set(small.of("train"))


def test_a_quarter_is_a_quarter():
    whole = table([(0, 1)] * 40 + [(1, 1)] * 20, "train")
    quarter = take_fraction(whole, 0.25, 0)
    assert [sum(r.label == c for r in quarter.rows) for c in (0, 1)] == [10, 5]


def test_patients_with_slides_of_both_classes_can_be_folded():
    """As with lymph nodes: each patient has one of either class."""
    rows = [
        LabelledSlide(f"s{patient}{label}", label, None, f"p{patient}")
        for patient in range(4)
        for label in (0, 1)
    ]
    whole = LabelTable(Path("l.csv"), ("a", "b"), tuple(rows))
    for fold in (1, 2):
        part = fold_table(whole, fold, 2, 0)
        assert {r.label for r in part.of("tune")} == {r.label for r in part.of("train")} == {0, 1}


def test_a_fold_that_holds_all_of_a_class_is_refused():
    """Both slides of class a are of patients that fall into one fold, by class b."""
    rows = [LabelledSlide(f"s{n}", 1, None, f"p{n}") for n in range(6)]
    for seed in range(50):
        whole = LabelTable(Path("l.csv"), ("a", "b"), tuple(rows))
        order = [r.patient for r in fold_table(replace_label(whole), 1, 2, seed).of("tune")]
        if {"p0", "p1"} <= set(order):
            break
    mixed = (*rows, *(LabelledSlide(f"a{n}", 0, None, f"p{n}") for n in (0, 1)))
    with pytest.raises(LabelError, match="holds every patient of class a"):
        fold_table(LabelTable(Path("l.csv"), ("a", "b"), mixed), 1, 2, seed)


def replace_label(table):
    """Return the table with class b alone, so that folds do not ask for another."""
    return LabelTable(table.path, ("b",), tuple(replace(r, label=0) for r in table.rows))
