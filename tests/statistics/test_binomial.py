"""Binomial bounds against oracles, statsmodels, SciPy, mpmath and exact enumeration."""

from itertools import product

import mpmath
import numpy as np
import pytest
from scipy.special import betainccinv
from scipy.stats import binom, binomtest, multinomial
from statsmodels.stats.proportion import proportion_confint

from lightning_rs.statistics.binomial import (
    clopper_pearson_lower,
    clopper_pearson_tail_upper,
    clopper_pearson_upper,
    randomized_clopper_pearson_tail,
    simultaneous_bounds,
    simultaneous_tail_bounds,
    top_class_p_value,
)
from tests.oracles import oracle_cases

ALPHAS = (0.3, 0.05, 0.001, 1e-9)


def cdf(k: int, n: int, p: mpmath.mpf) -> mpmath.mpf:
    """P(Bin(n, p) <= k), summed term by term downwards from k."""
    with mpmath.workdps(34):
        term = mpmath.exp(
            mpmath.loggamma(n + 1) - mpmath.loggamma(k + 1) - mpmath.loggamma(n - k + 1)
            + k * mpmath.log(p) + (n - k) * mpmath.log1p(-p)
        )  # fmt: skip
        total, i = mpmath.mpf(0), k
        while i >= 0 and term > total * mpmath.mpf(10) ** -25:
            total += term
            term *= i * (1 - p) / (p * (n - i + 1))
            i -= 1
        return total


@pytest.mark.parametrize("case", oracle_cases("cohen_certify"))
def test_tail_and_lower_agree_with_oracles(case):
    given, expected = case["inputs"], case["expected"]
    q = clopper_pearson_tail_upper(given["k"], given["n"], given["alpha"])
    assert q == pytest.approx(expected["qA"], rel=1e-10)
    assert q >= expected["qA"] * (1 - 1e-15)
    assert clopper_pearson_lower(given["k"], given["n"], given["alpha"]) == pytest.approx(expected["pA_low"], rel=1e-10)


@pytest.mark.parametrize("case", oracle_cases("cp_upper"))
def test_upper_agrees_with_oracles(case):
    given = case["inputs"]
    p = clopper_pearson_upper(given["k"], given["n"], given["alpha"])
    assert p == pytest.approx(case["expected"]["p_up"], rel=1e-10)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 7, 1000])
def test_agrees_with_statsmodels_and_scipy(n, alpha):
    k = np.unique(np.linspace(0, n, 12).astype(int))
    low, high = proportion_confint(k, n, alpha=2 * alpha, method="beta")
    np.testing.assert_allclose(clopper_pearson_lower(k, n, alpha), low, rtol=1e-9)
    np.testing.assert_allclose(clopper_pearson_upper(k, n, alpha), high, rtol=1e-9)
    np.testing.assert_allclose(clopper_pearson_tail_upper(k, n, alpha), 1 - low, rtol=1e-7)
    interval = binomtest(int(k[1]), n).proportion_ci(confidence_level=1 - 2 * alpha, method="exact")
    assert clopper_pearson_lower(k[1], n, alpha) == pytest.approx(interval.low, rel=1e-6)


UNSAFE_IN_SCIPY = (1, 10**8, 0.3)


@pytest.mark.parametrize(
    ("k", "n", "alpha"),
    [UNSAFE_IN_SCIPY, (0, 10**8, 1e-3), (3, 10**6, 0.05), (0, 10, 1e-30), (49, 100, 5e-5), (99, 100, 0.3),
     (5000, 10**4, 1e-3)],
)  # fmt: skip
def test_bounds_are_on_the_safe_side_of_the_exact_equation(k, n, alpha):
    upper = mpmath.mpf(float(clopper_pearson_upper(k, n, alpha)))
    assert cdf(k, n, upper) <= alpha
    assert cdf(k, n, upper * (1 - mpmath.mpf(10) ** -8)) > alpha * (1 - 1e-9)
    # P(Bin(n, p) >= n - k) is P(Bin(n, 1 - p) <= k).
    lower = mpmath.mpf(float(clopper_pearson_lower(n - k, n, alpha)))
    assert cdf(k, n, 1 - lower) <= alpha


def test_scipy_alone_would_be_on_the_unsafe_side():
    k, n, alpha = UNSAFE_IN_SCIPY
    assert cdf(k, n, mpmath.mpf(float(betainccinv(k + 1, n - k, alpha)))) > alpha


def worst_miss(bound: np.ndarray, n: int, sign: int) -> float:
    """Largest probability, over p, that a lower (sign 1) or upper (sign -1) bound lies beyond p."""
    step = 1e-5 * np.minimum(bound, 1 - bound)
    p = np.concatenate([bound - step, bound + step, np.linspace(0.001, 0.999, 50)])[:, None]
    missed = sign * bound[None] > sign * p
    return float((binom.pmf(np.arange(n + 1), n, p) * missed).sum(axis=1).max())


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("n", [1, 5, 60])
def test_coverage_by_enumeration(n, alpha):
    k = np.arange(n + 1)
    for bound, sign in (
        (clopper_pearson_lower(k, n, alpha), 1),
        (clopper_pearson_upper(k, n, alpha), -1),
        (clopper_pearson_tail_upper(n - k, n, alpha), -1),
    ):
        assert 0.99 * alpha < worst_miss(bound, n, sign) <= alpha


def test_coverage_check_notices_planted_mistakes():
    k, n, alpha = np.arange(61), 60, 0.05
    assert worst_miss(clopper_pearson_lower(k, n, 2 * alpha), n, 1) > alpha
    assert worst_miss(clopper_pearson_upper(k, n, alpha), n, 1) > alpha
    assert worst_miss(clopper_pearson_lower(np.minimum(k + 1, n), n, alpha), n, 1) > alpha


def test_edges_and_closed_forms():
    assert clopper_pearson_lower(0, 10, 0.05) == 0
    assert clopper_pearson_upper(10, 10, 0.05) == 1
    assert clopper_pearson_tail_upper(0, 10, 0.05) == 1
    for n in (1, 100, 10**9):
        assert clopper_pearson_tail_upper(n, n, 0.001) == pytest.approx(-np.expm1(np.log(0.001) / n), rel=1e-10)
    assert 0 <= clopper_pearson_lower(3, 5, 1e-300) <= 1e-50
    assert 0.999 < clopper_pearson_upper(96, 100, 1e-300) <= 1
    assert isinstance(clopper_pearson_lower(3, 5, 0.1), np.float64)
    assert clopper_pearson_lower([[1], [2]], [5, 6, 7], 0.1).shape == (2, 3)
    k = np.arange(1001)
    assert (np.diff(clopper_pearson_tail_upper(k, 1000, 1e-3)) < 0).all()


@pytest.mark.parametrize(
    ("count", "n", "alpha", "message"),
    [
        (0, 0, 0.1, "n must be >= 1"),
        (6, 5, 0.1, "count must not exceed n = 5, got 6"),
        (-1, 5, 0.1, "count must be >= 0"),
        (1.5, 5, 0.1, "count must hold whole numbers"),
        (1, 5, 0.0, "alpha must lie in"),
        (1, 5, 1.5, "alpha must lie in"),
        (1, 5, float("nan"), "alpha must not be NaN"),
    ],
)
def test_bad_input_is_refused(count, n, alpha, message):
    for bound in (clopper_pearson_lower, clopper_pearson_upper, clopper_pearson_tail_upper):
        with pytest.raises(ValueError, match=message):
            bound(count, n, alpha)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("p", [0.3, 0.62, 0.9, 0.999])
def test_randomized_bound_has_exact_coverage(p, alpha):
    n = 40
    k = np.arange(n + 1)
    # The bound must miss p if and only if u is below this number ...
    edge = np.clip((alpha - binom.sf(k, n, p)) / binom.pmf(k, n, p), 0, 1)
    for u, missed in ((edge - 1e-6, True), (edge + 1e-6, False)):
        some = (u >= 0) & (u <= 1)
        assert some.any()
        assert ((randomized_clopper_pearson_tail(k[some], n, alpha, u[some]) < 1 - p) == missed).all()
    # ... so that it misses with probability alpha.
    assert binom.pmf(k, n, p) @ edge == pytest.approx(alpha, rel=1e-9)


def test_randomized_bound_at_its_ends():
    n, k = 50, np.arange(51)
    fixed = clopper_pearson_tail_upper(k, n, 0.01)
    np.testing.assert_allclose(randomized_clopper_pearson_tail(k, n, 0.01, 1.0), fixed, rtol=1e-9)
    np.testing.assert_allclose(randomized_clopper_pearson_tail(k[:-1], n, 0.01, 0.0), fixed[1:], rtol=1e-9)
    assert (randomized_clopper_pearson_tail(k, n, 0.01, 0.5) <= fixed).all()
    assert randomized_clopper_pearson_tail(n, n, 0.01, 0.005) == 0
    assert randomized_clopper_pearson_tail(n, n, 0.01, 0.5) == pytest.approx(-np.expm1(np.log(0.02) / n), rel=1e-9)
    assert randomized_clopper_pearson_tail(0, n, 0.01, 0.5) == 1
    # math.md F.8: 3.838 sigma for n = 1e5, all correct, U = 0.5.
    assert randomized_clopper_pearson_tail(10**5, 10**5, 1e-3, 0.5) == pytest.approx(6.2144e-5, rel=1e-4)
    with pytest.raises(ValueError, match="u must lie in"):
        randomized_clopper_pearson_tail(1, 2, 0.1, 1.5)


@pytest.mark.parametrize("case", oracle_cases("predict_pvalue"))
def test_p_value_agrees_with_oracles_and_scipy(case):
    top, second = case["inputs"]["nA"], case["inputs"]["nB"]
    p = top_class_p_value(top, second)
    assert p == pytest.approx(case["expected"]["pvalue"], rel=1e-10)
    assert (p <= 0.001) == case["expected"]["returns_at_alpha_0_001"]
    if top + second:
        assert p == pytest.approx(binomtest(top, top + second, 0.5).pvalue, rel=1e-10)


def test_p_value_vectorised_and_refuses_swapped_counts():
    np.testing.assert_allclose(top_class_p_value([9, 5], [1, 5]), [0.021484375, 1.0], rtol=1e-10)
    with pytest.raises(ValueError, match="count_second must not exceed count_top"):
        top_class_p_value(3, 4)


@pytest.mark.parametrize("case", oracle_cases("multiclass_cp"))
def test_bonferroni_bounds_agree_with_oracles(case):
    given, expected = case["inputs"], case["expected"]
    q, p_upper = simultaneous_tail_bounds(given["counts"], given["top"], given["alpha"])
    assert q == pytest.approx(expected["qA_bonf"], rel=1e-10)
    assert p_upper == pytest.approx(expected["pB_bonf"], rel=1e-10)
    p_lower, same = simultaneous_bounds(given["counts"], given["top"], given["alpha"])
    assert p_lower == pytest.approx(1 - expected["qA_bonf"], rel=1e-10)
    assert same == p_upper


def test_grouped_bounds_are_three_clopper_pearson_bounds():
    votes, alpha = np.array([500, 300, 150, 50]), 0.003
    q, p_upper = simultaneous_tail_bounds(votes, 0, alpha, "grouped", 1)
    assert q == pytest.approx(clopper_pearson_tail_upper(500, 1000, 0.001), rel=1e-9)
    assert p_upper == pytest.approx(clopper_pearson_upper(300, 1000, 0.001), rel=1e-9)
    _, lumped = simultaneous_tail_bounds(votes, 0, alpha, "grouped", 3)
    assert lumped == pytest.approx(clopper_pearson_tail_upper(550, 1000, 0.001), rel=1e-9)


def joint_miss(p: np.ndarray, n: int, alpha: float, method: str) -> float:
    """Probability, by enumeration, that one of the two bounds (top 0, runner-up 1) is wrong."""
    votes = np.array([v for v in product(range(n + 1), repeat=3) if sum(v) == n])
    lower, upper = simultaneous_bounds(votes, 0, alpha, method, 1)
    return float(multinomial.pmf(votes, n, p)[(lower > p[0]) | (upper < p[1:].max())].sum())


@pytest.mark.parametrize("method", ["bonferroni", "grouped"])
def test_simultaneous_coverage_by_enumeration(method):
    n, alpha = 20, 0.1
    # Just below each attainable lower bound the top class is missed most often.
    share = 0.5 if method == "bonferroni" else 1 / 3
    worst = clopper_pearson_lower(np.arange(1, n), n, alpha * share) * (1 - 1e-6)
    truths = [np.array([p, (1 - p) * s, (1 - p) * (1 - s)]) for p in worst for s in (0.5, 0.9)]
    miss = [joint_miss(p, n, alpha, method) for p in truths]
    assert 0.3 * alpha < max(miss) <= alpha
    # A planted mistake: three times the level, as if alpha were not split.
    assert max(joint_miss(p, n, 3 * alpha, method) for p in truths) > alpha


def test_simultaneous_bounds_shapes_and_clipping():
    votes = np.array([[[9, 1, 0], [4, 3, 3]], [[10, 0, 0], [0, 5, 5]]])
    top = np.array([[0, 0], [0, 2]])
    for method in ("bonferroni", "grouped"):
        lower, upper = simultaneous_bounds(votes, top, 0.05, method, (top + 1) % 3)
        assert lower.shape == upper.shape == (2, 2)
        assert (upper <= 1 - lower + 1e-15).all()
        alone = simultaneous_bounds(votes[1, 1], 2, 0.05, method, 0)
        assert alone == (lower[1, 1], upper[1, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([5], 0, 0.1), "C >= 2"),
        (([5, 5], 2, 0.1), "top must hold class indices in"),
        (([5, 5], -1, 0.1), "top must hold class indices in"),
        (([0, 0], 0, 0.1), "n must be >= 1"),
        (([5, 5], 0, 0.1, "goodman"), "method must be one of"),
        (([5, 5], 0, 0.1, "grouped"), "runner_up is needed"),
        (([5, 5], 0, 0.1, "grouped", 0), "runner_up must differ from top"),
    ],
)
def test_simultaneous_bounds_refuse_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        simultaneous_bounds(*arguments)
