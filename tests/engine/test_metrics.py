import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics as oracle

from slidelens.engine import metrics

QUICK = settings(max_examples=40)
CASES = st.integers(2, 40).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 1)),
        # Few distinct values: ties are the hard part of every ranking.
        arrays(np.float64, n, elements=st.integers(0, 12).map(lambda v: v / 12)),
    )
)


def both_classes(labels):
    return 0 < labels.sum() < len(labels)


@QUICK
@given(CASES)
def test_auc_equals_the_oracle_and_the_pairwise_definition(cases):
    labels, scores = cases
    assume(both_classes(labels))
    pairs = np.subtract.outer(scores[labels == 1], scores[labels == 0])
    found = metrics.auc(labels, scores)
    assert found == pytest.approx(((pairs > 0) + (pairs == 0) / 2).mean(), abs=1e-12)
    assert found == pytest.approx(oracle.roc_auc_score(labels, scores), abs=1e-12)


@QUICK
@given(CASES, st.randoms(use_true_random=False))
def test_no_figure_depends_on_the_order_of_cases(cases, random):
    labels, scores = cases
    order = random.sample(range(len(labels)), len(labels))
    for figure in (metrics.auc, metrics.pr_auc, metrics.threshold_of_max_accuracy):
        assert figure(labels[order], scores[order]) == pytest.approx(
            figure(labels, scores), nan_ok=True, abs=1e-12
        )


@QUICK
@given(CASES)
def test_swapped_labels_and_reversed_scores_mirror_the_auc(cases):
    labels, scores = cases
    assume(both_classes(labels))
    area = metrics.auc(labels, scores)
    assert metrics.auc(1 - labels, scores) == pytest.approx(1 - area, abs=1e-12)
    assert metrics.auc(labels, -scores) == pytest.approx(1 - area, abs=1e-12)
    assert metrics.auc(labels, np.exp(3 * scores)) == area  # only the order counts


@QUICK
@given(CASES)
def test_curves_equal_the_oracle(cases):
    labels, scores = cases
    assume(both_classes(labels))
    curve = metrics.roc_curve(labels, scores)
    fpr, tpr, thresholds = oracle.roc_curve(labels, scores, drop_intermediate=False)
    np.testing.assert_allclose(curve.fpr, fpr, atol=1e-12)
    np.testing.assert_allclose(curve.tpr, tpr, atol=1e-12)
    np.testing.assert_array_equal(curve.thresholds, thresholds)
    assert np.trapezoid(curve.tpr, curve.fpr) == pytest.approx(metrics.auc(labels, scores))
    expected = oracle.average_precision_score(labels, scores)
    assert metrics.pr_auc(labels, scores) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_has_no_auc(label):
    assert np.isnan(metrics.auc([label] * 3, [0.1, 0.2, 0.3]))


def test_no_positive_case_has_no_pr_auc_and_rates_without_cases_are_nan():
    assert np.isnan(metrics.pr_auc([0, 0], [0.1, 0.2]))
    point = metrics.at_threshold([0, 0], [0.1, 0.2], 0.5)
    assert point.specificity == 1.0
    assert np.isnan(point.sensitivity)
    assert np.isnan(point.ppv)


@pytest.mark.parametrize(
    ("labels", "scores", "what"),
    [
        ([0, 1], [0.1], "one length"),
        ([0, 2], [0.1, 0.2], "0 or 1"),
        ([0, 1], [0.1, np.nan], "1 scores are not finite"),
        ([0, 1], [0.1, np.inf], "1 scores are not finite"),
    ],
)
def test_malformed_cases_are_refused(labels, scores, what):
    with pytest.raises(ValueError, match=what):
        metrics.auc(labels, scores)


@QUICK
@given(CASES)
def test_threshold_of_max_accuracy_is_the_best_of_all(cases):
    labels, scores = cases
    threshold = metrics.threshold_of_max_accuracy(labels, scores)
    found = metrics.at_threshold(labels, scores, threshold)
    points = [
        metrics.at_threshold(labels, scores, t)
        for t in [*np.unique(scores), *([] if scores.max() >= 1 else [2.0])]
    ]
    best = max(p.accuracy for p in points)
    assert found.accuracy == best
    assert found.tp == max(p.tp for p in points if p.accuracy == best)


@QUICK
@given(CASES)
def test_threshold_of_max_balanced_accuracy_is_the_best_of_all(cases):
    labels, scores = cases
    assume(both_classes(labels))
    threshold = metrics.threshold_of_max_balanced_accuracy(labels, scores)
    found = metrics.at_threshold(labels, scores, threshold)
    points = [metrics.at_threshold(labels, scores, t) for t in [*np.unique(scores), 2.0]]
    balanced = [point.sensitivity + point.specificity for point in points]
    best = max(balanced)
    assert found.sensitivity + found.specificity == pytest.approx(best, abs=1e-12)
    ties = zip(points, balanced, strict=True)
    assert found.tp == max(p.tp for p, value in ties if value == pytest.approx(best, abs=1e-12))
    assert 0 <= threshold <= 1


def test_balanced_accuracy_finds_the_few_positive_cases_that_accuracy_misses():
    labels = [0] * 38 + [1, 1]
    scores = [*np.linspace(0, 0.5, 35), 0.8, 0.85, 0.9, 0.7, 0.75]
    usual = metrics.threshold_of_max_accuracy(labels, scores)
    assert metrics.at_threshold(labels, scores, usual).tp == 0
    threshold = metrics.threshold_of_max_balanced_accuracy(labels, scores)
    assert threshold == pytest.approx(0.6)
    assert metrics.at_threshold(labels, scores, threshold).tp == 2
    with pytest.raises(ValueError, match="no case of a class"):
        metrics.threshold_of_max_balanced_accuracy([0, 0], [0.1, 0.2])


@QUICK
@given(CASES, st.sampled_from([0.5, 0.9, 0.95, 1.0]))
def test_threshold_at_sensitivity_is_the_most_specific_that_reaches_it(cases, wanted):
    labels, scores = cases
    assume(labels.any())
    threshold = metrics.threshold_at_sensitivity(labels, scores, wanted)
    found = metrics.at_threshold(labels, scores, threshold)
    assert found.sensitivity >= wanted - 1e-12
    reached = [metrics.at_threshold(labels, scores, t) for t in np.unique(scores)]
    reached = [point for point in reached if point.sensitivity >= wanted - 1e-12]
    assert found.fp == min(point.fp for point in reached)


def test_a_threshold_lies_between_two_scores():
    labels, scores = [0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]
    assert metrics.threshold_of_max_accuracy(labels, scores) == pytest.approx(0.4)
    # Neighbouring floats: there is nothing between, and the upper one must stay positive.
    low = 0.3
    high = float(np.nextafter(low, 1))
    threshold = metrics.threshold_of_max_accuracy([0, 1], [low, high])
    assert metrics.at_threshold([0, 1], [low, high], threshold).accuracy == 1.0


def test_no_threshold_lies_above_one():
    """A float32 sigmoid reaches 1; a model that stored more could not be saved."""
    labels, scores = [0, 0, 1, 0], [1.0, 1.0, 0.2, 0.5]
    threshold = metrics.threshold_of_max_accuracy(labels, scores)
    assert threshold <= 1
    points = [metrics.at_threshold(labels, scores, t) for t in np.unique(scores)]
    best = max(point.accuracy for point in points)
    assert metrics.at_threshold(labels, scores, threshold).accuracy == best
    assert metrics.threshold_of_max_accuracy([0, 0], [1.0, 1.0]) <= 1


def test_a_threshold_at_the_end_of_the_scores_withstands_rounding_too():
    lowest = metrics.threshold_of_max_accuracy([1, 1, 0, 1], [0.4, 0.9, 0.5, 0.99])
    assert lowest == pytest.approx(0.2)
    assert metrics.threshold_at_sensitivity([1, 0, 1], [0.4, 0.9, 0.99], 1.0) == lowest
    assert metrics.threshold_of_max_accuracy([0, 0, 0, 1], [0.4, 0.5, 0.6, 0.3]) == 0.8
    assert metrics.threshold_of_max_accuracy([1, 0], [0.0, 0.5]) == 0


def test_a_threshold_by_sensitivity_needs_positive_cases():
    with pytest.raises(ValueError, match="no positive case"):
        metrics.threshold_at_sensitivity([0, 0], [0.1, 0.2], 0.9)
    with pytest.raises(ValueError, match="at most 1"):
        metrics.threshold_at_sensitivity([0, 1], [0.1, 0.2], 1.5)


CLASSES = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40)


@QUICK
@given(CLASSES)
def test_confusion_and_kappa_equal_the_oracle(pairs):
    labels, predictions = np.array(pairs).T
    matrix = metrics.confusion(labels, predictions, 4)
    np.testing.assert_array_equal(
        matrix, oracle.confusion_matrix(labels, predictions, labels=range(4))
    )
    assume(len(np.unique(pairs)) > 1)
    assert metrics.kappa(matrix) == pytest.approx(oracle.cohen_kappa_score(labels, predictions))
    assert metrics.kappa(matrix, quadratic=True) == pytest.approx(
        oracle.cohen_kappa_score(labels, predictions, labels=range(4), weights="quadratic")
    )


def test_kappa_is_undefined_where_chance_agrees_fully():
    assert np.isnan(metrics.kappa([[5, 0], [0, 0]]))


def test_confusion_refuses_an_unknown_class():
    with pytest.raises(ValueError, match=r"0\.\.1, not 0\.\.2"):
        metrics.confusion([0, 2], [0, 1], 2)


def test_calibration_of_a_table_made_by_hand():
    # Bin 0.2-0.3: mean 0.25, half positive. Bin 0.9-1: mean 0.95, all positive; 1.0 is in it.
    found = metrics.calibration([0, 1, 1, 1], [0.21, 0.29, 0.9, 1.0])
    assert found.cases.tolist() == [2, 2]
    np.testing.assert_allclose(found.predicted, [0.25, 0.95])
    np.testing.assert_allclose(found.observed, [0.5, 1.0])
    assert found.ece == pytest.approx((2 * 0.25 + 2 * 0.05) / 4)
    with pytest.raises(ValueError, match=r"in 0\.\.1"):
        metrics.calibration([0, 1], [0.5, 1.5])


@QUICK
@given(CASES)
def test_brier_equals_the_oracle(cases):
    labels, scores = cases
    expected = ((labels - scores) ** 2).mean()
    assert metrics.brier(labels, scores) == pytest.approx(expected)
    onehot, both = np.stack([1 - labels, labels], 1), np.stack([1 - scores, scores], 1)
    assert metrics.brier(onehot, both) == pytest.approx(2 * expected)  # summed over two classes
