from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from slidelens.engine import metrics
from slidelens.engine.bootstrap import bootstrap, bootstrap_share, percentile_interval
from slidelens.engine.intervals import delong, delong_test, holm, wilson

# Ovarian cancer: albumin, total protein, K-G score, and whether surgery was of benefit. Data and
# results: SAS/STAT User's Guide, The LOGISTIC Procedure, example "Comparing Receiver Operating
# Characteristic Curves", after DeLong, DeLong and Clarke-Pearson (Biometrics 1988, 44:837-845).
OVARIAN = np.array(
    """
    3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
    1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
    4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
    3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
    3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
    3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
    3.6 6.6 5 1
    """.split(),  # noqa: SIM905  # reason: a table is readable, a list of 172 strings is not
    float,
).reshape(-1, 4)
BENEFIT = OVARIAN[:, 3].astype(int)
ALBUMIN, PROTEIN, KG = OVARIAN[:, 0], OVARIAN[:, 1], 10 - OVARIAN[:, 2]


def cohort(n=60, seed=0, shift=1.0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    return labels, rng.normal(labels * shift, 1.0)


def test_delong_gives_the_published_areas_and_errors():
    found = delong(BENEFIT, [ALBUMIN, PROTEIN, KG])
    np.testing.assert_allclose(found.auc, [0.7366, 0.6478, 0.7258], atol=5e-5)
    errors = np.sqrt(np.diag(found.covariance))
    np.testing.assert_allclose(errors, [0.0927, 0.1000, 0.1028], atol=5e-5)
    np.testing.assert_allclose(found.interval(0), [0.5549, 0.9182], atol=5e-5)


@pytest.mark.parametrize(
    ("score", "difference", "low", "high", "chi_square", "p"),
    [
        (ALBUMIN, 0.0108, -0.1761, 0.1976, 0.0127, 0.9102),
        (PROTEIN, -0.0780, -0.2830, 0.1271, 0.5554, 0.4561),
    ],
)
def test_delong_gives_the_published_tests(score, difference, low, high, chi_square, p):
    found = delong_test(BENEFIT, score, KG)
    assert found.difference == pytest.approx(difference, abs=5e-5)
    assert found.interval == pytest.approx((low, high), abs=5e-5)
    assert found.z**2 == pytest.approx(chi_square, abs=5e-5)
    assert found.p == pytest.approx(p, abs=5e-5)


@settings(max_examples=40)
@given(
    st.integers(4, 25).flatmap(
        lambda n: st.tuples(
            arrays(np.int64, n, elements=st.integers(0, 1)),
            arrays(np.float64, (2, n), elements=st.integers(0, 6).map(float)),
        )
    )
)
def test_delong_equals_its_definition_with_ties(cases):
    labels, scores = cases
    m, n = int(labels.sum()), int((1 - labels).sum())
    assume(m > 1 and n > 1)
    # Structural components, written as in the paper: the mean of psi over the other class.
    x, y = scores[:, labels == 1], scores[:, labels == 0]
    psi = (x[:, :, None] > y[:, None, :]) + 0.5 * (x[:, :, None] == y[:, None, :])
    expected = np.cov(psi.mean(2)) / m + np.cov(psi.mean(1)) / n
    found = delong(labels, scores)
    np.testing.assert_allclose(found.auc, psi.mean((1, 2)), atol=1e-12)
    np.testing.assert_allclose(found.covariance, expected, atol=1e-12)


def test_groups_of_one_case_change_nothing():
    labels, scores = cohort()
    alone = delong(labels, scores).covariance
    named = delong(labels, scores, groups=np.arange(len(labels))[::-1] * 7).covariance
    np.testing.assert_allclose(named, alone, rtol=1e-12)


def test_clustered_error_agrees_with_a_bootstrap_of_clusters():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(120), 4)
    labels = (rng.random(480) < np.repeat(rng.beta(1, 1, 120), 4)).astype(int)
    scores = labels + np.repeat(rng.normal(0, 1.2, 120), 4) + rng.normal(0, 0.6, 480)
    clustered = np.sqrt(delong(labels, scores, groups=groups).covariance[0, 0])
    naive = np.sqrt(delong(labels, scores).covariance[0, 0])
    drawn = bootstrap(labels, scores, groups=groups, resamples=4000).auc.std()
    assert clustered == pytest.approx(drawn, rel=0.05)
    assert abs(naive - drawn) > 0.1 * drawn  # so that the test would notice ignored groups


def test_equal_models_differ_by_nothing_with_p_one():
    labels, scores = cohort()
    found = delong_test(labels, scores, 5 * scores - 2)
    assert found.difference == 0
    assert found.p == 1
    assert found.interval == (0, 0)


def test_a_difference_without_variance_has_no_p():
    found = delong_test([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9], [0.8, 0.9, 0.1, 0.2])
    assert found.difference == 1
    assert np.isnan(found.p)
    assert np.isnan(found.interval.low)


def test_the_interval_of_a_difference_holds_no_impossible_one():
    labels, right, wrong = [0, 0, 0, 1, 1, 1], [1, 2, 4, 3, 5, 6], [4, 5, 6, 1, 2, 4.5]
    for groups in (None, [0, 1, 2, 0, 1, 2]):
        found = delong_test(labels, right, wrong, groups=groups)
        back = delong_test(labels, wrong, right, groups=groups)
        assert -1 <= found.interval.low < found.difference < found.interval.high == 1
        assert back.interval == (-1, pytest.approx(-found.interval.low))
        assert 0 < found.p < 1


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 1]])
def test_too_few_cases_have_no_test(labels):
    assert np.isnan(delong_test(labels, [0.1, 0.5, 0.9], [0.3, 0.2, 0.4]).p)


def test_swapping_models_swaps_the_sign():
    labels, scores = cohort()
    other = cohort(seed=5)[1]
    one, two = delong_test(labels, scores, other), delong_test(labels, other, scores)
    assert one.difference == -two.difference
    assert one.p == pytest.approx(two.p)


@settings(max_examples=40)
@given(
    st.integers(3, 20).flatmap(
        lambda n: st.tuples(
            arrays(np.int64, n, elements=st.integers(0, 1)),
            arrays(np.float64, n, elements=st.integers(0, 5).map(float)),
        )
    )
)
def test_each_resample_is_measured_as_its_cases_alone(cases):
    labels, scores = cases
    found = bootstrap(labels, scores, resamples=20, seed=4)
    drawn = np.random.default_rng(4).integers(0, len(labels), (20, len(labels)))
    spread = 1 < labels.sum() < len(labels) - 1
    for rows, area, precision in zip(drawn, found.auc[:, 0], found.pr_auc[:, 0], strict=True):
        truth = labels[rows]
        if spread and 0 < truth.sum() < len(truth):
            assert area == pytest.approx(metrics.auc(truth, scores[rows]), abs=1e-12)
            expected = metrics.pr_auc(truth, scores[rows])
            assert precision == pytest.approx(expected, abs=1e-12)
        else:
            assert np.isnan(area)
            assert np.isnan(precision)


def test_degenerate_resamples_are_counted_and_left_out():
    labels, scores = np.array([0, 0, 0, 1, 1]), np.array([0.1, 0.2, 0.6, 0.4, 0.5])
    found = bootstrap(labels, scores, resamples=5000)
    # No draw of a positive case: (3/5)^5; no draw of a negative one: (2/5)^5.
    assert found.degenerate / 5000 == pytest.approx(0.6**5 + 0.4**5, abs=0.02)
    assert found.degenerate == np.isnan(found.auc).sum()
    assert 0 <= percentile_interval(found.auc[:, 0]).low < 1
    assert np.isnan(percentile_interval(bootstrap([1, 1], [0.1, 0.2]).auc[:, 0])).all()


def test_few_resamples_that_are_defined_give_no_interval():
    """Of eight classes with two patients each, a third of the resamples hold all."""
    labels = np.eye(8, dtype=bool).repeat(4, 0)
    scores = np.random.default_rng(0).random((32, 8))
    found = bootstrap(labels, scores, groups=np.arange(16).repeat(2), resamples=2000)
    areas = found.auc.mean(1)
    assert 0 < (~np.isnan(areas)).sum() < 1000
    assert np.isnan(percentile_interval(areas)).all()


@pytest.mark.parametrize("lone", [0, 1])
def test_one_group_of_a_class_gives_no_interval(lone):
    """Its resamples are that group again and again: they say nothing of others."""
    labels = np.where(np.arange(12) < 2, lone, 1 - lone)
    groups = np.maximum(np.arange(12) - 1, 0)  # the two cases of the class are of one patient
    scores = np.random.default_rng(1).random(12)
    found = bootstrap(labels, scores, groups=groups, fpr=[0.5], resamples=50)
    assert found.degenerate == 50
    assert np.isnan(found.auc).all()
    assert np.isnan(found.pr_auc).all()
    assert np.isnan(found.tpr).all()
    assert not np.isnan(bootstrap(labels, scores, resamples=50).auc).all()


def test_shares_of_clustered_cases():
    """Cases that are copies of others say no more than one: the interval is that of the groups."""
    random = np.random.default_rng(2)
    right = random.random(30) < 0.7
    alone = bootstrap_share(right, np.ones(30, bool), resamples=4000)
    copied = bootstrap_share(
        right.repeat(5), np.ones(150, bool), groups=np.arange(30).repeat(5), resamples=4000
    )
    np.testing.assert_allclose(alone, copied)
    low, high = percentile_interval(alone)
    np.testing.assert_allclose([low, high], wilson(int(right.sum()), 30), atol=0.05)
    of = np.arange(30) < 10
    assert np.nanmean(bootstrap_share(right, of, resamples=4000)) == pytest.approx(
        right[:10].mean(), abs=0.01
    )
    assert np.isnan(bootstrap_share(right, of, groups=np.arange(30) // 10, resamples=9)).all()


def test_few_patients_reject_a_true_hypothesis_about_as_often_as_they_should():
    """Four patients, nothing to find: 5 % of tests may say otherwise; by the normal 16 % do."""
    random = np.random.default_rng(3)
    groups, labels = np.arange(4).repeat(6), np.tile([0, 1], 12)
    p = []
    for _ in range(400):
        effects = random.normal(size=(2, 4)).repeat(6, 1)
        first, second = effects * (labels - 0.5) + random.normal(size=(2, 24))
        p.append(delong_test(labels, first, second, groups=groups).p)
    assert np.mean(np.array(p) < 0.05) < 0.10
    assert percentile_interval(np.append([np.nan] * 5, np.arange(5.0))).high == pytest.approx(3.9)


def test_a_variance_that_rounds_below_zero_is_zero():
    scores = np.array([1, 2, 2, 0, 2, 0, 2, 2, 0]) / 3
    groups = [1, 1, 1, 0, 1, 0, 0, 0, 1]
    found = delong([0, 0, 1, 0, 1, 1, 1, 0, 1], scores, groups=groups)
    assert abs(found.covariance[0, 0]) < 1e-15
    low, high = found.interval()
    assert low == pytest.approx(high)


def test_chunks_do_not_change_the_draws(monkeypatch):
    labels, scores = cohort()
    whole = bootstrap(labels, scores, resamples=50, fpr=[0.1, 0.5])
    monkeypatch.setattr("slidelens.engine.bootstrap._CHUNK", 7 * len(labels))
    parts = bootstrap(labels, scores, resamples=50, fpr=[0.1, 0.5])
    np.testing.assert_array_equal(whole.auc, parts.auc)
    np.testing.assert_array_equal(whole.tpr, parts.tpr)


def test_seeds_reproduce_and_order_of_groups_does_not_matter():
    labels, scores = cohort()
    first = bootstrap(labels, scores, resamples=100, seed=1).auc
    np.testing.assert_array_equal(first, bootstrap(labels, scores, resamples=100, seed=1).auc)
    assert (first != bootstrap(labels, scores, resamples=100, seed=2).auc).any()


def test_groups_are_drawn_whole():
    # Two groups, each with both classes: only three kinds of resample exist.
    labels, scores = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.8, 0.2])
    found = bootstrap(labels, scores, groups=[5, 5, 9, 9], resamples=300)
    assert set(np.unique(found.auc)) == {0.0, 0.75, 1.0}
    assert found.degenerate == 0


def test_the_band_of_the_roc_follows_the_curve():
    labels, scores = cohort(400)
    fpr = np.linspace(0, 1, 21)
    band = np.quantile(bootstrap(labels, scores, fpr=fpr, resamples=500).tpr, [0.025, 0.975], 0)
    curve = metrics.roc_curve(labels, scores)
    tpr = np.interp(fpr, curve.fpr, curve.tpr)
    assert (band[0] <= tpr + 0.01).all()
    assert (tpr <= band[1] + 0.01).all()
    assert (band[1] - band[0]).max() < 0.3
    assert band[0, -1] == 1.0


def test_the_interval_covers_the_true_area_as_often_as_it_says():
    truth = NormalDist().cdf(1.0 / np.sqrt(2))
    covered = 0
    for seed in range(200):
        labels, scores = cohort(80, seed=seed)
        low, high = percentile_interval(
            bootstrap(labels, scores, resamples=400, seed=seed).auc[:, 0]
        )
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_what_one_group_holds_has_no_interval():
    labels, scores = cohort(40)
    one = np.zeros(40, int)
    assert np.isnan(bootstrap(labels, scores, groups=one, resamples=50).auc).all()
    positives_together = np.where(labels == 1, 0, 1 + np.arange(40) % 5)
    assert np.isnan(delong(labels, scores, groups=positives_together).interval()).all()


def test_macro_columns_share_their_draws():
    labels, scores = cohort()
    both = bootstrap(
        np.stack([labels, 1 - labels], 1), np.stack([scores, -scores], 1), resamples=50
    )
    np.testing.assert_allclose(both.auc[:, 0], both.auc[:, 1], atol=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (3, 10), (10, 10), (1, 2), (480, 535)])
def test_wilson_equals_scipy(successes, n):
    expected = stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_without_cases_is_undefined():
    assert np.isnan(wilson(0, 0)).all()


def test_holm_of_the_textbook():
    assert holm([0.01, 0.04, 0.03, float("nan")])[:3] == pytest.approx([0.03, 0.06, 0.06])
    assert np.isnan(holm([0.01, float("nan")])[1])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
