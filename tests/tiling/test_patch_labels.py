"""Labels of patches on drawn squares whose shares are known; lumps of patches."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from slidelens.errors import LabelError
from slidelens.geometry import Size
from slidelens.tiling.annotations import Annotation
from slidelens.tiling.lumps import find_lumps, split_windows
from slidelens.tiling.patch_labels import NOLABEL, NORMAL, TUMOUR, PatchRules, check_drawn, within

SIZE = Size(100, 100)
ONE = np.array([[0.0, 0.0, 10.0, 10.0]])


def _area(label, share, left=0.0):
    return Annotation(shapely.box(left, 0, left + 10 * share, 10), label)


@pytest.mark.parametrize(
    ("tumour", "expected"),
    # Section 4.1: tumour above 20 %, else normal above 80 % normal, else nothing.
    [(0.05, NORMAL), (0.19, NORMAL), (0.2, NOLABEL), (0.201, TUMOUR), (1.0, TUMOUR)],
)
def test_the_papers_rules_where_all_that_is_not_drawn_is_normal(tumour, expected):
    rules = PatchRules()
    assert rules.label([_area("tumour", tumour)], ONE, SIZE).tolist() == [expected]


@pytest.mark.parametrize(
    ("tumour", "normal", "expected"),
    [
        (0.1, 0.9, NORMAL),
        (0.1, 0.8, NOLABEL),
        (0.1, 0.0, NOLABEL),
        (0.3, 0.7, TUMOUR),
        (0.15, 0.84, NORMAL),
    ],
)
def test_the_papers_rules_where_normal_tissue_is_drawn(tumour, normal, expected):
    rules = PatchRules(normal=("healthy",))
    drawn = [_area("tumour", tumour), _area("Healthy", normal, left=10 * tumour)]
    assert rules.label(drawn, ONE, SIZE).tolist() == [expected]


def test_what_is_drawn_as_something_else_is_not_normal():
    rules = PatchRules()
    drawn = [_area("tumour", 0.1), _area("necrosis", 0.5, left=1)]
    assert rules.label(drawn, ONE, SIZE).tolist() == [NOLABEL]


def test_only_what_lies_inside_the_slide_counts():
    half_outside = np.array([[95.0, 0.0, 10.0, 10.0]])
    drawn = [Annotation(shapely.box(95, 0, 96.5, 10), "tumour")]
    assert PatchRules().label(drawn, half_outside, SIZE).tolist() == [TUMOUR]


@pytest.mark.parametrize(
    ("rules", "drawn", "found"),
    [
        (PatchRules(), {"a": ["Tumour", "necrosis"], "b": ["necrosis"]}, ["Tumour"]),
        (PatchRules(), {"a": [], "b": []}, []),
        (PatchRules(positive="1"), {"a": ["anything"], "b": ["Anything"]}, ["anything"]),
        (PatchRules(positive="1"), {"a": ["Tumors"], "b": ["tumour "]}, ["Tumors"]),
        (PatchRules(), {"a": ["tumor", "cyst"], "b": ["TUMOUR"]}, ["tumor"]),
        (PatchRules(positive="tumor"), {"a": ["Tumour", "tumor"], "b": []}, ["Tumour", "tumor"]),
        (PatchRules(positive="1"), {"a": [""], "b": []}, [""]),
        (PatchRules(positive="1", normal=("ok",)), {"a": ["a", "OK"], "b": ["ok"]}, ["a"]),
        (PatchRules(("_0", "_1")), {"a": ["_0", "_1", "x"]}, ["_0", "_1"]),
    ],
)
def test_which_classes_are_tumour_is_one_question_for_a_cohort(rules, drawn, found):
    resolved = rules.of_cohort(drawn)
    areas = [_area(label, 0.5) for label in drawn["a"]]
    if found:
        assert [a.label for a in resolved.some_tumour_of(areas)] == found
    else:
        assert resolved.tumour == ("tumour",)


def test_classes_that_may_or_may_not_be_tumour_are_asked_for():
    drawn = {"a": {"Tumor"}, "b": {"Necrosis"}, "c": {"tumor", "Necrosis"}, "d": set()}
    said = r"'1', and several are drawn: 'Necrosis' on b, c; 'Tumor' on a; 'tumor' on c\. Say which"
    with pytest.raises(LabelError, match=said + r".*--set tumour=NAME"):
        PatchRules(positive="1").of_cohort(drawn)
    assert PatchRules(positive="1", normal=("necrosis",)).of_cohort(drawn).tumour == ("Tumor",)


def test_another_word_for_tumour_is_asked_for_and_another_spelling_told(caplog):
    drawn = {"a": {"tumor"}, "b": {"Tumour", "cyst"}, "c": {"Metastasis"}}
    said = r"class 'tumour' there .*: 'Metastasis' on c; 'tumor' on a; 'Tumour' on b\. Say which"
    with pytest.raises(LabelError, match=said):
        PatchRules().of_cohort(drawn)
    assert "'tumor' on a and 'Tumour' on b. Rename" in caplog.text
    rules = PatchRules(("tumour",)).of_cohort(drawn)  # says that a metastasis is something else
    both = [_area("Metastasis", 1.0), _area("tumor", 0.1)]
    assert rules.label(both, ONE, SIZE).tolist() == [NOLABEL]
    with pytest.raises(LabelError, match="labelled 'normal', but 1 annotations of it are 'tumor'"):
        rules.label_negative([_area("tumor", 0.2)], ONE, SIZE, "normal")
    caplog.clear()
    PatchRules().of_cohort({"a": {"tumour"}, "b": {"Cyst", "stroma"}})
    assert not caplog.text


def test_a_class_alone_in_its_file_is_not_taken_for_tumour():
    with pytest.raises(LabelError, match=r"no annotation is of class 'tumour'; there are 'Nec"):
        PatchRules().label([_area("Necrosis", 0.5)], ONE, SIZE)
    with pytest.raises(LabelError, match=r"no annotation is of class 'cancer'; there are 'Tumor'"):
        PatchRules(("cancer",)).some_tumour_of([_area("Tumor", 0.1)])


def test_a_label_without_a_drawing_and_a_drawing_against_the_label_are_refused():
    for drawn in ([], [_area("healthy", 1.0)]):
        with pytest.raises(LabelError, match="labelled 'tumour', but no tumour is drawn"):
            PatchRules(normal=("healthy",)).label(drawn, ONE, SIZE)
    PatchRules().check_negative([_area("fold", 0.2)], "normal")
    with pytest.raises(LabelError, match="labelled 'normal', but 1 annotations of it are 'Tumour'"):
        PatchRules().check_negative([_area("Tumour", 0.2)], "normal")


@pytest.mark.parametrize(
    ("drawn", "expected"),
    [
        ([], NORMAL),
        ([_area("healthy", 0.1)], NORMAL),
        ([_area("fold", 0.1)], NORMAL),
        ([_area("fold", 0.3)], NOLABEL),
    ],
)
@pytest.mark.parametrize("normal", [(), ("Healthy",)])
def test_a_negative_slide_is_normal_but_where_something_else_is_drawn(drawn, expected, normal):
    """Normal tissue need not be drawn on it, even where it has a class."""
    rules = PatchRules(normal=normal)
    assert rules.label_negative(drawn, ONE, SIZE, "normal").tolist() == [expected]
    beyond = np.array([[100.0, 0, 5, 5]])
    assert rules.label_negative(drawn, beyond, SIZE, "normal").tolist() == [NOLABEL]
    with pytest.raises(LabelError, match="labelled 'normal'"):
        rules.label_negative([*drawn, _area("tumour", 0.1)], ONE, SIZE, "normal")


def test_the_part_of_a_box_within_a_slide_has_no_negative_sides():
    boxes = np.array([[10.0, 20, 30, 40], [90, 90, 20, 20], [100, 0, 5, 5], [150, -50, 50, 20]])
    assert within(boxes, Size(100, 100)).tolist() == [
        [10, 20, 30, 40],
        [90, 90, 10, 10],
        [100, 0, 0, 5],
        [100, 0, 0, 0],
    ]
    labels = PatchRules().label([_area("tumour", 0.9)], boxes, Size(100, 100))
    assert labels.tolist() == [NORMAL, NORMAL, NOLABEL, NOLABEL]


def test_annotations_of_another_slide_are_refused():
    inside = Annotation(shapely.box(90, 90, 300, 300), "tumour")
    check_drawn([inside], SIZE)
    outside = Annotation(shapely.box(500, 20, 600, 90), "tumour", name="lesion 3")
    with pytest.raises(LabelError, match=r"'lesion 3' at x=500\.\.600, y=20\.\.90 lies outside"):
        check_drawn([inside, outside], SIZE)


def test_lumps_are_bridged_over_one_missing_patch_and_not_over_two():
    index = np.array([[0, 0], [2, 1], [5, 1], [0, 9], [1, 8]])
    assert [rows.tolist() for rows in find_lumps(index)] == [[0, 1], [2], [3, 4]]
    assert find_lumps(np.empty((0, 2), np.int64)) == []


@given(
    st.sets(st.tuples(st.integers(0, 14), st.integers(0, 14)), min_size=1, max_size=40),
    st.integers(1, 6),
)
def test_groups_hold_every_patch_once_and_lie_apart(cells, side):
    index = np.array(sorted(cells))
    for groups in (find_lumps(index), split_windows(index, side)):
        assert sorted(np.concatenate(groups).tolist()) == list(range(len(index)))
        assert [g[0] for g in groups] == sorted(g[0] for g in groups)
    lumps = find_lumps(index)
    for a, b in ((a, b) for i, a in enumerate(lumps) for b in lumps[:i]):
        gap = np.abs(index[a][:, None] - index[b][None]).max(2)
        assert gap.min() > 2
    windows = split_windows(index, side)
    assert all(np.ptp(index[w], axis=0).max() < side for w in windows)
