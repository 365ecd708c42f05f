"""Separability of classes and translation pairs in states: nearest neighbours, a linear probe, ranks of partners.

Scores are kept an item, so that intervals can be drawn over items. Shapes: N texts, D channels, C classes, K neighbours.
"""

import numpy as np
from numpy.typing import NDArray

VOTERS, FOLDS = 5, 5
RIDGE = 0.01  # of the mean squared length of a state: the linear probe needs no tuning for the scale of a layer
TINY = 1e-12  # keeps 0 / 0 away where states are zero or equal


def knn_right(x_ND: NDArray, label_N: NDArray) -> NDArray:
    """Whether the VOTERS nearest others by cosine vote for a text's class, bool [N]; the nearer decide a tie."""
    cosine_NN = _unit(x_ND) @ _unit(x_ND).T
    np.fill_diagonal(cosine_NN, -np.inf)
    near_NK = np.argsort(-cosine_NN, axis=1, kind="stable")[:, :VOTERS]
    weight_NK = 1 + 1e-3 * np.take_along_axis(cosine_NN, near_NK, 1)
    vote_NC = (np.eye(label_N.max() + 1)[label_N[near_NK]] * weight_NK[..., None]).sum(1)
    return vote_NC.argmax(1) == label_N


def linear_right(x_ND: NDArray, label_N: NDArray, seed: int = 1) -> NDArray:
    """Whether a ridge regression onto the classes, fitted without a text's fold, names its class; bool [N].

    It is solved over texts, of which there are fewer than channels in a large model.
    """
    fold_N = np.random.default_rng(seed).permutation(len(label_N)) % FOLDS
    class_NC, right_N = np.eye(label_N.max() + 1)[label_N], np.zeros(len(label_N), bool)
    for fold in range(FOLDS):
        fit, test = fold_N != fold, fold_N == fold
        centre_D, mean_C = x_ND[fit].mean(0, dtype=float), class_NC[fit].mean(0)
        fit_ND, test_ND = x_ND[fit] - centre_D, x_ND[test] - centre_D
        products_NN = fit_ND @ fit_ND.T
        products_NN += (RIDGE * np.trace(products_NN) / len(fit_ND) + TINY) * np.eye(len(fit_ND))
        score_NC = test_ND @ (fit_ND.T @ np.linalg.solve(products_NN, class_NC[fit] - mean_C)) + mean_C
        right_N[test] = score_NC.argmax(1) == label_N[test]
    return right_N


def reciprocal_ranks(ours_ND: NDArray, theirs_ND: NDArray) -> NDArray:
    """1 / rank of each text's partner among the other language's texts by cosine, the mean of both directions, [N].

    The mean state of each language is taken off, since it only says which language it is. A tie counts half.
    """
    cosine_NN = _unit(ours_ND - ours_ND.mean(0)) @ _unit(theirs_ND - theirs_ND.mean(0)).T
    own_N1 = np.diag(cosine_NN)[:, None]
    ranks = [0.5 + (each_NN > own_N1).sum(1) + (each_NN == own_N1).sum(1) / 2 for each_NN in (cosine_NN, cosine_NN.T)]
    return np.mean([1 / rank_N for rank_N in ranks], axis=0)


def class_sums(score_N: NDArray, label_N: NDArray) -> NDArray:
    """The per-item sums of `class_mean` [N, 2 C]: the score in the column of its class, then 1 in that column."""
    one_NC = np.eye(label_N.max() + 1)[label_N]
    return np.concatenate([score_N[:, None] * one_NC, one_NC], axis=1)


def class_mean(sums: NDArray) -> NDArray:
    """The mean score of each class, and their mean: a class counts the same however many items it has."""
    score, count = np.split(sums, 2, axis=-1)
    return (score / np.maximum(count, 1)).mean(-1)


def gain(sums: NDArray) -> NDArray:
    """`class_mean` of the first half of the columns less that of the second: two models on the same items."""
    own, other = np.split(sums, 2, axis=-1)
    return class_mean(own) - class_mean(other)


def _unit(x_ND: NDArray) -> NDArray:
    return x_ND / np.maximum(np.linalg.norm(x_ND, axis=1, keepdims=True), TINY)
