"""Confidence intervals, paired tests and detectable effects.

An interval names what it is over, and the kinds are never mixed: over items (other questions), over decoding runs (other
samples; the published ±), over training seeds (other trainings).

A statistic is a function of sums over items (accuracy of (right, 1), bits per byte of (nats, bytes), BLEU of n-gram counts),
so that one bootstrap serves all. Shapes: N items, S sums, R resamples, M decoding runs.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from statistics import NormalDist
from typing import Any, NamedTuple

import mpmath  # which torch needs anyway; the same functions of scipy would be 142 MB
import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 1000
EXCHANGES, CHUNK = 9999, 500  # permutations of a test, and how many are computed at once
SEED = 1  # of resampling: the same items give the same interval
Z_95, Z_POWER_80 = 1.959964, 0.841621
ENOUGH_POWER, MOST_SEEDS = 0.8, 1000
FEWEST_DISCORDANT = 6  # with fewer items on which two models differ McNemar's p cannot be below 0.05 (2 / 2^6 = 0.03)
Statistic = Callable[[NDArray], NDArray]  # sums [..., S] -> values [...]


class Interval(NamedTuple):
    """A 95% interval; `name` is its method and what it is over."""

    low: float
    high: float
    name: str


class Paired(NamedTuple):
    """Two models on the same items: b minus a, its interval, the test, and the minimum detectable effect."""

    difference: float
    interval: Interval
    p: float
    test: str
    mde: float | None


def ratio(sums_RS: NDArray) -> NDArray:
    """The first sum divided by the second: the mean over items."""
    return sums_RS[..., 0] / sums_RS[..., 1]


def wilson(right: int, items: int) -> Interval:
    """Wilson's score interval of a proportion (Wilson 1927), which is within 0 and 1 and valid for few items."""
    share, z = right / items, NormalDist().inv_cdf(0.975)
    middle, half = share + z**2 / (2 * items), z * math.sqrt(share * (1 - share) / items + z**2 / (4 * items**2))
    low, high = ((middle + sign * half) / (1 + z**2 / items) for sign in (-1, 1))
    return Interval(low if right else 0.0, high if right < items else 1.0, "Wilson 95% over items")


def bootstrap(sums_NS: ArrayLike, statistic: Statistic = ratio, over: str = "items") -> Interval:
    """The percentile bootstrap interval of a statistic over items; unbounded for a single item."""
    name, sums_NS = f"bootstrap 95% over {over}", np.asarray(sums_NS, float)
    if len(sums_NS) < 2:
        return Interval(-math.inf, math.inf, name)
    low, high = np.nanpercentile(statistic(_resampled(sums_NS)), [2.5, 97.5])
    return Interval(float(low), float(high), name)


def over_seeds_and_items(mine_KNS: ArrayLike, theirs_KNS: ArrayLike, statistic: Statistic = ratio) -> Interval:
    """The bootstrap interval of a difference of two models over K training seeds and N items.

    Both are resampled, the same for the two models (a two-way bootstrap, at worst too wide: Owen 2007).

    Returns: of mine minus theirs, the mean over seeds of the statistic over items; unbounded for one seed or one item.
    """
    mine_KNS, theirs_KNS = np.asarray(mine_KNS, float), np.asarray(theirs_KNS, float)
    seeds, name = len(mine_KNS), "bootstrap 95% over seeds and items"
    if min(mine_KNS.shape[:2]) < 2:
        return Interval(-math.inf, math.inf, name)
    items_RN, seeds_RK = np.stack([*_times(mine_KNS.shape[1])]), np.stack([*_times(seeds, SEED + 1)])
    differences_RK = np.stack([statistic(items_RN @ mine_NS) - statistic(items_RN @ theirs_NS)
                               for mine_NS, theirs_NS in zip(mine_KNS, theirs_KNS, strict=True)], 1)
    low, high = np.percentile((seeds_RK * differences_RK).sum(1) / seeds, [2.5, 97.5])
    return Interval(float(low), float(high), name)


def over_runs(values_M: Sequence[float]) -> tuple[float, Interval]:
    """σ and the published interval, mean ± 1.96 σ/√M, of M decoding runs on the same items.

    σ divides by M: so the published σ fit the published means in all 189 lines of MMLU subjects with 100 questions; with
    M - 1 they do in 55.
    """
    mean, sigma = float(np.mean(values_M)), float(np.std(values_M))
    half = 1.96 * sigma / math.sqrt(len(values_M))
    return sigma, Interval(mean - half, mean + half, "mean ± 1.96 σ/√n over decoding runs")


def over_seeds(values: Sequence[float]) -> Interval:
    """Student's interval of the mean over training seeds; unbounded for a single seed.

    With differences of two arms, seed by seed, as `values` it is the paired interval.
    """
    mean, name = float(np.mean(values)), "Student 95% over training seeds"
    if len(values) < 2:
        return Interval(-math.inf, math.inf, name)
    half = t_95(len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Interval(mean - half, mean + half, name)


def student_p(values: Sequence[float], against: float = 0.0) -> float:
    """Two-sided p-value of Student's test that the mean is `against`; 1 for a single value, 0 or 1 if all are equal."""
    if len(values) < 2:
        return 1.0
    apart, error = float(np.mean(values)) - against, float(np.std(values, ddof=1)) / math.sqrt(len(values))
    if not error:
        return float(not apart)
    return _two_sided(apart / error, len(values) - 1)


def pooled_over_seeds(values_AS: ArrayLike, a: int, b: int) -> Interval:
    """Interval of the mean of arm `a` minus that of arm `b`, with the residual variance of all A arms over the same S seeds.

    Equivalent to a balanced mixed model with a fixed effect of the arm and a random effect of the seed: the residual
    variance has (A - 1)(S - 1) degrees of freedom, where the paired interval of two arms has S - 1. It assumes that the
    variances of all arms are equal. With two arms it is the paired interval.
    """
    values_AS, name = np.asarray(values_AS, float), "pooled 95% over arms and training seeds"
    arms, seeds = values_AS.shape
    difference = float(values_AS[a].mean() - values_AS[b].mean())
    freedom = (arms - 1) * (seeds - 1)
    if not freedom:
        return Interval(-math.inf, math.inf, name)
    rest_AS = values_AS - values_AS.mean(1, keepdims=True) - values_AS.mean(0) + values_AS.mean()
    error = math.sqrt(2 * float((rest_AS**2).sum()) / freedom / seeds)
    half = t_95(freedom) * error
    return Interval(difference - half, difference + half, name)


def power(seeds: int, spread: float, effect: float) -> float:
    """Power of Student's two-sided paired test at level 0.05 for a true mean difference `effect`.

    `spread` is the standard deviation of the paired difference over seeds.
    """
    if seeds < 2 or not effect:
        return 0.0
    apart, freedom = effect * math.sqrt(seeds) / spread, seeds - 1
    quantile, scale = t_95(freedom), 2 * mpmath.mpf(freedom / 2) ** (freedom / 2) / mpmath.gamma(freedom / 2)

    def share(s: Any) -> Any:
        """Density of a standard deviation of `s` times its true value, times the power with it."""
        return scale * s ** (freedom - 1) * mpmath.exp(-freedom * s**2 / 2) * mpmath.ncdf(apart - quantile * s)

    width = 10 / math.sqrt(2 * freedom)
    found: Any = mpmath.quad(share, [max(0.0, 1 - width), 1, 1 + width])
    return float(found)


def seeds_for(spread: float, effect: float) -> int | None:
    """The smallest number of seeds with a power of ENOUGH_POWER; None if it is above MOST_SEEDS."""
    counts = range(2, MOST_SEEDS + 1)
    place = bisect_left(counts, ENOUGH_POWER, key=lambda seeds: power(seeds, spread, effect))
    return counts[place] if place < len(counts) else None


def mcnemar(right_a_N: ArrayLike, right_b_N: ArrayLike) -> float:
    """Exact p-value of equal accuracy (McNemar 1947): a binomial test on the discordant items."""
    a_N, b_N = np.asarray(right_a_N, bool), np.asarray(right_b_N, bool)
    only_a, only_b = int((a_N & ~b_N).sum()), int((b_N & ~a_N).sum())
    return against_chance(only_a, only_a + only_b, 0.5) if only_a + only_b else 1.0


def paired(
    sums_a_NS: ArrayLike, sums_b_NS: ArrayLike, statistic: Statistic = ratio, right: bool = False, over: str = "items"
) -> Paired:
    """Compare two models on the same N items, in the same order.

    The interval is the paired bootstrap's (Koehn 2004). The test is McNemar's if each item is scored 0 or 1 (`right`), else
    the permutation test that exchanges the two models' sums item by item. The minimum detectable effect is 2.80 standard
    errors (power 0.8 at level 0.05); with `right` it is at least 6 discordant items, otherwise None if the models never
    differ. A single item shows no difference.
    """
    a_NS, b_NS = np.asarray(sums_a_NS, float), np.asarray(sums_b_NS, float)
    difference = float(statistic(b_NS.sum(0)) - statistic(a_NS.sum(0)))
    if len(a_NS) < 2:
        unbounded = Interval(-math.inf, math.inf, f"paired bootstrap 95% over {over}")
        return Paired(difference, unbounded, 1.0, "none, a single item", None)
    drawn_R = statistic(_resampled(b_NS)) - statistic(_resampled(a_NS))  # the same resamples: SEED is fixed
    low, high = np.nanpercentile(drawn_R, [2.5, 97.5])
    interval = Interval(float(low), float(high), f"paired bootstrap 95% over {over}")
    mde = (Z_95 + Z_POWER_80) * float(np.nanstd(drawn_R))
    if right:
        p = mcnemar(a_NS[:, 0], b_NS[:, 0])
        return Paired(difference, interval, p, "McNemar, exact", max(mde, FEWEST_DISCORDANT / len(a_NS)))
    return Paired(difference, interval, permutation(a_NS, b_NS, statistic), "permutation", mde or None)


def permutation(a_NS: NDArray, b_NS: NDArray, statistic: Statistic = ratio) -> float:
    """Two-sided p-value of the permutation test that exchanges the two models' sums of each item.

    Exact for up to 13 items (at most EXCHANGES permutations), else from EXCHANGES random ones, whose smallest p-value of
    0.0001 is low enough for Holm's correction over the 57 subjects of MMLU.
    """
    change_NS, count = b_NS - a_NS, len(a_NS)
    exact = 2**count <= EXCHANGES
    random = np.random.default_rng(SEED)
    given, found = float(statistic(b_NS.sum(0)) - statistic(a_NS.sum(0))), 0
    for start in range(0, 2**count if exact else EXCHANGES, CHUNK):
        if exact:
            numbers = np.arange(start, min(start + CHUNK, 2**count))
            exchanged_RN = (numbers[:, None] >> np.arange(count)) & 1
        else:
            exchanged_RN = random.integers(0, 2, (min(CHUNK, EXCHANGES - start), count), dtype=np.int8)
        moved_RS = exchanged_RN @ change_NS
        difference_R = statistic(b_NS.sum(0) - moved_RS) - statistic(a_NS.sum(0) + moved_RS)
        found += int((np.abs(difference_R) >= abs(given) * (1 - 1e-9)).sum())  # equal up to rounding counts
    return found / 2**count if exact else (1 + found) / (1 + EXCHANGES)


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted to control the family-wise error rate (Holm 1979)."""
    raised, highest = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=lambda number: ps[number])):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[number]))
        raised[number] = highest
    return raised


def against_chance(right: int, items: int, chance: float) -> float:
    """Exact two-sided binomial p-value of a number of correct answers under uniform guessing."""
    if chance in (0, 1):
        return float(right == chance * items)
    right_N = np.arange(items + 1)
    log_factorial_N = np.cumsum(np.log(np.maximum(right_N, 1)))
    log_ways_N = log_factorial_N[-1] - log_factorial_N - log_factorial_N[::-1]
    p_N = np.exp(log_ways_N + right_N * math.log(chance) + right_N[::-1] * math.log1p(-chance))
    return min(1.0, float(p_N[p_N <= p_N[right] * (1 + 1e-7)].sum()))  # equal up to rounding counts


@cache
def t_95(freedom: int) -> float:
    """The 0.975 quantile of Student's t distribution."""
    return float(mpmath.findroot(lambda t: _two_sided(t, freedom) - 0.05, (1.9, 13), solver="anderson", tol=1e-28))


def _two_sided(t: float, freedom: int) -> float:
    """Two-sided p-value of Student's t: the regularized incomplete beta function at freedom / (freedom + t²)."""
    return float(mpmath.betainc(freedom / 2, 0.5, 0, freedom / (freedom + t * t), regularized=True))


def _resampled(sums_NS: NDArray) -> NDArray:
    """Sums of RESAMPLES bootstrap resamples [R, S]."""
    return np.stack([times_N @ sums_NS for times_N in _times(len(sums_NS))])


def _times(count: int, seed: int = SEED) -> Iterator[NDArray]:
    """How often each of `count` items is in each resample, [N]; the draws depend on `count` and `seed` alone."""
    random = np.random.default_rng(seed)
    return (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
