"""Separability is what it says: full where classes stand apart, chance where nothing is to be found, and never a leak."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some

from glyphlm.analysis.probes import (
    FOLDS,
    RIDGE,
    VOTERS,
    class_mean,
    class_sums,
    gain,
    knn_right,
    linear_right,
    reciprocal_ranks,
)

LABELS = np.repeat([0, 1, 2], [40, 30, 20])


def noise(width, seed=1):
    return np.random.default_rng(seed).standard_normal((len(LABELS), width)).astype(np.float32)


def far_apart(width=8):
    return noise(width) + 20 * np.eye(3, width, dtype=np.float32)[LABELS]


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_classes_far_apart_are_all_distinguished(right_of):
    assert right_of(far_apart(), LABELS).all()


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
@pytest.mark.parametrize("width", [4, 400])  # with more channels than texts a fit that saw its test would be perfect
def test_in_noise_nothing_is_found(right_of, width):
    found = [class_mean(class_sums(right_of(noise(width, seed), LABELS), LABELS).sum(0)) for seed in range(10)]
    assert np.mean(found) == pytest.approx(1 / 3, abs=0.05)


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_states_that_are_all_equal_or_zero_are_no_error(right_of):
    for value in (0, 1):
        assert right_of(np.full((len(LABELS), 4), value, np.float32), LABELS).mean() <= 40 / 90


def test_neighbours_vote_as_by_hand():
    x_ND = noise(3)
    unit_ND = x_ND / np.linalg.norm(x_ND, axis=1)[:, None]
    for number, right in enumerate(knn_right(x_ND, LABELS)):
        cosine_N = unit_ND @ unit_ND[number]
        near = [other for other in np.argsort(-cosine_N) if other != number][:VOTERS]
        votes = [sum(1 + 1e-3 * cosine_N[other] for other in near if LABELS[other] == label) for label in range(3)]
        assert right == (np.argmax(votes) == LABELS[number])


def test_the_nearer_decide_a_tie():
    angle_N = np.array([0, 1, 2, 30, 31, 200])  # of class 1 two are near, of class 0 two are farther, and one opposite
    label_N = np.array([1, 1, 1, 0, 0, 2])
    assert knn_right(np.stack([np.cos(np.radians(angle_N)), np.sin(np.radians(angle_N))], 1), label_N)[0]
    assert not knn_right(np.stack([np.cos(np.radians(angle_N)), np.sin(np.radians(angle_N))], 1), label_N)[3]


def test_a_linear_probe_finds_what_neighbours_do_not_see():
    x_ND = 10 * noise(30)
    x_ND[:, 0] = LABELS == 0
    x_ND[:, 1] = LABELS == 1
    x_ND *= np.r_[20, 20, np.ones(28)]
    assert linear_right(x_ND, LABELS).mean() > knn_right(x_ND, LABELS).mean() + 0.1


def test_the_linear_probe_is_ridge_regression_whichever_side_it_is_solved_on():
    x_ND, seed = noise(6) + 0.5 * np.eye(3, 6)[LABELS], 5
    fold_N = np.random.default_rng(seed).permutation(len(LABELS)) % FOLDS
    right_N = np.zeros(len(LABELS), bool)
    for fold in range(FOLDS):
        fit = fold_N != fold
        a_ND, y_NC = x_ND[fit] - x_ND[fit].mean(0), np.eye(3)[LABELS[fit]]
        ridge = RIDGE * (a_ND**2).sum(1).mean()
        weight_DC = np.linalg.solve(a_ND.T @ a_ND + ridge * np.eye(6), a_ND.T @ (y_NC - y_NC.mean(0)))
        score_NC = (x_ND[~fit] - x_ND[fit].mean(0)) @ weight_DC + y_NC.mean(0)
        right_N[~fit] = score_NC.argmax(1) == LABELS[~fit]
    np.testing.assert_array_equal(linear_right(x_ND, LABELS, seed), right_N)
    assert 0.4 < right_N.mean() < 0.95


def test_the_folds_follow_the_seed():
    x_ND = noise(6) + 0.5 * np.eye(3, 6)[LABELS]
    np.testing.assert_array_equal(linear_right(x_ND, LABELS, 1), linear_right(x_ND, LABELS, 1))
    assert (linear_right(x_ND, LABELS, 1) != linear_right(x_ND, LABELS, 2)).any()


@pytest.mark.parametrize("right_of", [knn_right, linear_right])
def test_the_scale_of_the_states_changes_nothing(right_of):
    x_ND = noise(6) + 0.5 * np.eye(3, 6)[LABELS]
    np.testing.assert_array_equal(right_of(x_ND, LABELS), right_of(1024 * x_ND, LABELS))


def test_partners_in_the_same_place_come_first_wherever_their_language_lies():
    ours_ND, far_2D = noise(8), 100 * noise(8, seed=2)[:2]
    np.testing.assert_allclose(reciprocal_ranks(ours_ND + far_2D[0], 2 * ours_ND + far_2D[1]), 1)


def test_ranks_are_those_of_both_directions_counted_one_by_one():
    ours_ND, theirs_ND = noise(3), noise(3, seed=2)
    a_ND, b_ND = ours_ND - ours_ND.mean(0), theirs_ND - theirs_ND.mean(0)
    for number, found in enumerate(reciprocal_ranks(ours_ND, theirs_ND)):
        ranks = []
        for query_D, others_ND in ((a_ND[number], b_ND), (b_ND[number], a_ND)):
            cosine_N = others_ND @ query_D / np.linalg.norm(others_ND, axis=1)
            ranks.append(1 + (cosine_N > cosine_N[number] + 1e-6).sum())
        assert found == pytest.approx((1 / ranks[0] + 1 / ranks[1]) / 2)


def test_a_tie_counts_half():
    ours_ND = np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
    theirs_ND = ours_ND[[0, 1, 3, 2]]  # the last two are exchanged: three are nearer than the partner, two of them alike
    np.testing.assert_allclose(reciprocal_ranks(ours_ND, theirs_ND), [1, 1, 1 / 4, 1 / 4])


def test_where_all_are_alike_every_partner_has_the_middle_rank():
    np.testing.assert_allclose(reciprocal_ranks(np.ones((5, 3)), np.ones((5, 3))), 1 / 3)


def test_every_class_counts_the_same():
    score_N, label_N = np.array([1, 1, 1, 1, 0.0, 0]), np.array([0, 0, 0, 0, 1, 1])
    sums_NS = class_sums(score_N, label_N)
    assert class_mean(sums_NS.sum(0)) == 0.5 and class_mean(sums_NS[:4].sum(0)) == 0.5  # a class without items scores 0
    assert gain(np.concatenate([sums_NS, class_sums(1 - score_N, label_N)], 1).sum(0)) == 0
    assert gain(np.concatenate([class_sums(score_N**0, label_N), sums_NS], 1).sum(0)) == 0.5


@given(some.lists(some.tuples(some.booleans(), some.integers(0, 2)), min_size=1), some.randoms())
def test_the_mean_of_any_draw_lies_between_0_and_1(items, random):
    score_N, label_N = np.array(items).T
    sums_NS = class_sums(score_N, label_N)
    assert 0 <= class_mean(sums_NS[[random.randrange(len(items)) for _ in items]].sum(0)) <= 1
