"""Intervals have the known values, paired differences come from items that differ, and each interval says what it covers."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats as reference

from glyphlm.evaluation.stats import (
    bootstrap,
    holm,
    mcnemar,
    over_runs,
    over_seeds,
    over_seeds_and_items,
    paired,
    pooled_over_seeds,
    power,
    ratio,
    seeds_for,
    student_p,
    wilson,
)


def shares(values):
    return np.column_stack([values, np.ones(len(values))])


def test_wilson_has_the_textbook_values():
    assert wilson(8, 10)[:2] == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 5).low == 0 and wilson(5, 5).high == 1
    assert wilson(1, 2).name == "Wilson 95% over items"


def test_bootstrap_of_a_mean_agrees_with_the_normal_distribution_where_there_are_many_items():
    values = np.random.default_rng(0).exponential(size=2000)
    low, high, name = bootstrap(shares(values))
    half = 1.96 * values.std() / math.sqrt(2000)
    assert (high - low) / 2 == pytest.approx(half, rel=0.1)
    assert (high + low) / 2 == pytest.approx(values.mean(), abs=half / 5)
    assert name == "bootstrap 95% over items"


def test_bootstrap_of_a_ratio_weighs_items_by_their_size():
    sums = np.array([(8.0, 1.0), (2.0, 100.0)] * 50)
    low, high, _ = bootstrap(sums, over="documents")
    assert low < ratio(sums.sum(0)) < high < 1  # the mean of the ratios would be about 4
    assert bootstrap(sums) == bootstrap(sums)._replace(name="bootstrap 95% over items")


def test_over_runs_is_the_published_interval():
    sigma, (low, high, name) = over_runs([0.20, 0.26, 0.24, 0.18, 0.22, 0.21, 0.23, 0.25, 0.19, 0.22])
    assert sigma == pytest.approx(math.sqrt(0.0006))  # divided by n, not n - 1
    assert (high - low) / 2 == pytest.approx(1.96 * sigma / math.sqrt(10))
    assert "decoding runs" in name


def test_over_seeds_is_students_interval():
    values = [0.31, 0.35, 0.30]
    expected = reference.t.interval(0.95, 2, np.mean(values), reference.sem(values))
    assert over_seeds(values)[:2] == pytest.approx(expected)
    assert over_seeds([0.3]).low == -math.inf and "training seeds" in over_seeds([0.3]).name


def test_students_test_is_scipys():
    values = [0.31, 0.35, 0.30]
    assert student_p(values, 0.25) == pytest.approx(reference.ttest_1samp(values, 0.25).pvalue)
    assert (student_p([1.0]), student_p([2.0, 2.0], 2.0), student_p([2.0, 2.0], 1.0)) == (1, 1, 0)


def test_the_pooled_interval_is_that_of_a_two_way_analysis_of_variance():
    values = np.random.default_rng(3).normal(size=(4, 5)) + np.arange(5)
    low, high, _ = pooled_over_seeds(values, 2, 0)
    rest = values - values.mean(1, keepdims=True) - values.mean(0) + values.mean()
    error = math.sqrt(2 / 5 * (rest**2).sum() / 12)
    expected = values[2].mean() - values[0].mean() + np.array([-1, 1]) * reference.t.ppf(0.975, 12) * error
    assert (low, high) == pytest.approx(tuple(expected))
    two = over_seeds(values[1] - values[3])
    assert pooled_over_seeds(values[[1, 3]], 0, 1)[:2] == pytest.approx(two[:2])


def test_power_is_what_simulated_studies_find():
    random = np.random.default_rng(0).normal(0.02, 0.02, (20000, 8))
    found = (reference.ttest_1samp(random, 0, axis=1).statistic > reference.t.ppf(0.975, 7)).mean()
    assert power(8, 0.02, 0.02) == pytest.approx(found, abs=0.01)
    needed = seeds_for(0.02, 0.02)
    assert power(needed - 1, 0.02, 0.02) < 0.8 <= power(needed, 0.02, 0.02)
    assert power(1, 0.02, 0.02) == 0 and seeds_for(1.0, 1e-6) is None


def test_mcnemar_looks_only_where_two_models_differ():
    a, b = [1] * 10 + [0] * 2, [0] * 10 + [1] * 2
    assert mcnemar(a, b) == pytest.approx(2 * sum(math.comb(12, k) for k in range(3)) / 2**12)
    assert mcnemar(a + [1] * 500, b + [1] * 500) == mcnemar(a, b) == mcnemar(b, a)
    assert mcnemar([1, 0], [1, 0]) == 1


def test_a_pair_on_the_same_items_is_distinguished_where_their_own_intervals_overlap():
    hard = np.random.default_rng(1).random(400)
    a, b = (hard < 0.50).astype(float), (hard < 0.54).astype(float)
    assert wilson(int(a.sum()), 400).high > wilson(int(b.sum()), 400).low
    found = paired(shares(a), shares(b), right=True)
    assert found.difference == pytest.approx((b - a).mean()) and found.p < 0.01
    assert 0 < found.interval.low < found.difference < found.interval.high


@pytest.mark.parametrize("right", [True, False])
def test_a_model_does_not_differ_from_itself(right):
    values = shares((np.random.default_rng(2).random(50) < 0.5).astype(float))
    found = paired(values, values, right=right)
    assert (found.difference, found.p) == (0, 1)
    assert found.mde == (6 / 50 if right else None)


def test_the_smallest_detectable_difference_is_found_four_times_in_five():
    random, found, size = np.random.default_rng(3), 0, 300
    effect = paired(shares(random.normal(size=size)), shares(random.normal(size=size))).mde
    for _ in range(60):
        a = random.normal(size=size)
        found += paired(shares(a), shares(random.normal(effect, size=size))).p < 0.05
    assert 0.65 <= found / 60 <= 0.95


def test_holm_has_the_textbook_values():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1))
def test_holm_lies_between_the_single_tests_and_bonferroni_and_keeps_their_order(ps):
    raised = holm(ps)
    assert all(p <= q <= min(1, len(ps) * p) for p, q in zip(ps, raised))
    assert [raised[n] for n in sorted(range(len(ps)), key=ps.__getitem__)] == sorted(raised)


def test_one_item_has_no_bounds_and_shows_no_difference():
    assert bootstrap([[3.0, 4.0]])[:2] == (-math.inf, math.inf)
    found = paired([[3.0, 4.0]], [[2.0, 4.0]])
    assert (found.difference, found.p, found.mde) == (-0.25, 1.0, None)
    assert found.interval[:2] == (-math.inf, math.inf)


def crossed(of_seeds, of_items, noise, seed=1):
    """nats and bytes [K, N, 2] of a model whose every document costs 2 bits a byte and what seed and document add."""
    random = np.random.default_rng(seed)
    nats_KN = 2 + of_seeds[:, None] + of_items + random.normal(0, noise, (len(of_seeds), len(of_items)))
    return np.stack([nats_KN, np.ones_like(nats_KN)], -1)


def test_an_interval_over_seeds_and_items_has_the_variance_of_both():
    random = np.random.default_rng(1)
    seeds, items = random.normal(0, 0.1, 60), random.normal(0, 0.1, 240)
    theirs = crossed(np.zeros(60), np.zeros(240), 0)

    def width(*mine):
        low, high, _ = over_seeds_and_items(crossed(*mine, 0), theirs)
        return (high - low) / (2 * 1.96)

    assert width(seeds, 0 * items) == pytest.approx(0.1 / 60**0.5, rel=0.2)
    assert width(0 * seeds, items) == pytest.approx(0.1 / 240**0.5, rel=0.2)
    assert width(seeds, items) == pytest.approx((0.01 / 60 + 0.01 / 240) ** 0.5, rel=0.2)


def test_seeds_and_items_that_both_models_share_cancel():
    random = np.random.default_rng(2)
    seeds, items = random.normal(0, 1, 5), random.normal(0, 1, 40)
    low, high, _ = over_seeds_and_items(crossed(seeds, items + 0.3, 0.01, 3), crossed(seeds, items, 0.01, 4))
    assert 0.29 < low < high < 0.31


@pytest.mark.parametrize("shape", [(1, 5), (5, 1)])
def test_one_seed_or_one_item_has_no_bounds_over_both(shape):
    sums = np.ones((*shape, 2))
    assert over_seeds_and_items(sums, sums)[:2] == (-math.inf, math.inf)
