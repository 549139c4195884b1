"""Bounds on the accuracy of a whole test set: oracles, exact enumeration, planted mistakes."""

import math

import numpy as np
import pytest
from scipy import optimize, stats
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lightning_rs.statistics.accuracy import (
    accuracy_interval,
    certified_accuracy_lower_bound,
    empirical_bernstein_lower,
    paired_difference_interval,
    paired_p_value,
)
from tests.oracles import oracle_cases

METHODS = {"bernstein": "bernstein", "exact": "exact_binomial", "uniform": "uniform_in_r"}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("case", oracle_cases("theorem5"))
def test_certified_accuracy_agrees_with_oracles(case, method):
    given, expected = case["inputs"], case["expected"][METHODS[method]]
    bound = certified_accuracy_lower_bound(given["Y"], given["m"], given["alpha"], given["rho"], method)
    assert bound == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert bound <= expected


def miss(m: int, a: float, rho: float, method: str, bound=certified_accuracy_lower_bound) -> float:
    """Largest probability, over the true number g, that the bound exceeds g / m.

    Worst case of Theorem 5: every true point is certified, every other one with probability exactly a.
    """
    bounds = np.asarray(bound(np.arange(m + 1), m, a, rho, method))
    g = np.arange(m + 1)[:, None]
    return float((binom.pmf(np.arange(m + 1) - g, m - g, a) * (bounds > g / m)).sum(axis=1).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("m", "a", "rho"), [(30, 0.05, 0.01), (60, 0.001, 0.001), (25, 0.3, 0.2), (1, 0.1, 0.1)])
def test_certified_accuracy_coverage_by_enumeration(m, a, rho, method):
    assert miss(m, a, rho, method) <= rho


def test_coverage_check_notices_planted_mistakes():
    assert miss(30, 0.05, 0.01, "exact", lambda y, m, a, rho, method: y / m) > 0.01
    assert miss(30, 0.05, 0.01, "exact", lambda y, m, a, rho, method: y / m - a) > 0.01
    fewer = certified_accuracy_lower_bound(np.arange(31), 30, 0.05, 0.05, "exact")
    assert miss(30, 0.05, 0.01, "exact", lambda *_: fewer) > 0.01


def test_exact_bound_is_the_smallest_consistent_number():
    m, a, rho = 40, 0.1, 0.05
    for y in range(m + 1):
        consistent = [g for g in range(m + 1) if g + binom.ppf(1 - rho, m - g, a) >= y]
        assert certified_accuracy_lower_bound(y, m, a, rho, "exact") == min(consistent) / m


def test_certified_accuracy_orders_and_edges():
    y = np.arange(501)
    exact, uniform, bernstein = (
        certified_accuracy_lower_bound(y, 500, 0.001, 0.001, method) for method in ("exact", "uniform", "bernstein")
    )
    assert (np.diff(exact) >= 0).all()
    assert (exact >= uniform).all()
    assert (exact >= bernstein).all()
    assert (exact <= y / 500).all()
    assert exact[0] == uniform[0] == bernstein[0] == 0
    assert isinstance(certified_accuracy_lower_bound(3, 5, 0.1, 0.1), np.float64)
    # alpha = rho ties with one trial: 500 of 500 prove that all 500 are certified.
    assert exact[500] == 1
    assert certified_accuracy_lower_bound(500, 500, 0.0011, 0.001, "exact") < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 5, 0.1, 0.1), "correct must lie in"),
        ((0, 0, 0.1, 0.1), "total be >= 1"),
        ((1, 5, 0.0, 0.1), "alpha must lie in"),
        ((1, 5, 0.1, 1.0), "rho must lie in"),
        ((1, 5, 0.6, 0.1), "alpha must be <= 1/2"),
        ((1, 5, 0.1, 0.1, "hoeffding"), "method must be one of"),
    ],
)
def test_certified_accuracy_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        certified_accuracy_lower_bound(*arguments)


@pytest.mark.parametrize("case", oracle_cases("empirical_bernstein_lower"))
def test_empirical_bernstein_agrees_with_oracles(case):
    given, expected = case["inputs"], case["expected"]["lower"]
    lower = empirical_bernstein_lower(given["mean"], given["var"], given["M"], given["beta"])
    assert lower == pytest.approx(expected, rel=1e-9)
    assert lower <= expected


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_empirical_bernstein_coverage_by_enumeration(alpha):
    n = 50
    k = np.arange(n + 1)
    lower = empirical_bernstein_lower(k / n, k * (n - k) / (n * (n - 1)), n, alpha)
    for p in (0.02, 0.2, 0.5, 0.9, 0.99):
        assert binom.pmf(k, n, p)[lower > p].sum() <= alpha
    # Planted: an upper bound for a lower one.
    assert binom.pmf(k, n, 0.5)[2 * k / n - lower > 0.5].sum() > alpha


def test_empirical_bernstein_edges():
    assert empirical_bernstein_lower(0.001, 0.0, 10, 0.01) == 0
    with pytest.raises(ValueError, match="n must be >= 2"):
        empirical_bernstein_lower(0.5, 0.1, 1, 0.1)
    with pytest.raises(ValueError, match="mean must lie in"):
        empirical_bernstein_lower(1.5, 0.1, 10, 0.1)
    with pytest.raises(ValueError, match="variance must be >= 0"):
        empirical_bernstein_lower(0.5, -0.1, 10, 0.1)


def test_interval_agrees_with_statsmodels():
    low, high = accuracy_interval([0, 3, 100], 100, confidence=0.9)
    np.testing.assert_allclose((low, high), proportion_confint([0, 3, 100], 100, alpha=0.1, method="beta"), rtol=1e-9)


@pytest.mark.parametrize(("b", "c"), [(10, 3), (3, 10), (0, 0), (0, 7), (200, 190)])
def test_paired_p_value_agrees_with_statsmodels(b, c):
    expected = 1.0 if b + c == 0 else mcnemar([[50, b], [c, 20]], exact=True).pvalue
    assert paired_p_value(b, c) == pytest.approx(expected, rel=1e-9)


def tango_by_optimisation(only_first: int, only_second: int, total: int, z: float) -> tuple[float, float]:
    """Both ends by solving the score test with a numerical maximum likelihood estimate."""

    def statistic(d: float) -> float:
        def loss(q: float) -> float:
            terms = [(only_first, q), (only_second, q + d), (total - only_first - only_second, 1 - 2 * q - d)]
            return -sum(k * math.log(p) for k, p in terms if k)

        ends = (max(0.0, -d) + 1e-13, (1 - d) / 2 - 1e-13)
        q = optimize.minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-14}).x
        return (only_second - only_first - total * d) / math.sqrt(total * (2 * q + d * (1 - d)))

    middle = (only_second - only_first) / total
    low = optimize.brentq(lambda d: statistic(d) - z, -1 + 1e-9, middle)
    return low, optimize.brentq(lambda d: statistic(d) + z, middle, 1 - 1e-9)


@pytest.mark.parametrize("case", [(3, 15, 200), (0, 1, 44), (5, 5, 50), (20, 1, 40), (0, 4, 30)])
def test_paired_interval_inverts_the_score_test(case: tuple[int, int, int]) -> None:
    expected = tango_by_optimisation(*case, z=stats.norm.isf(0.025))
    assert paired_difference_interval(*case) == pytest.approx(expected, abs=1e-7)
    swapped = paired_difference_interval(case[1], case[0], case[2])
    assert swapped == pytest.approx((-expected[1], -expected[0]), abs=1e-7)


def test_paired_interval_at_its_edges() -> None:
    low, high = paired_difference_interval([0, 0, 10], [0, 10, 0], [100, 10, 10])
    z = stats.norm.isf(0.025) ** 2
    assert high[0] == pytest.approx(z / (100 + z))  # no discordant image: Tango 1998, equation for b = c = 0
    assert (low[0], low[1], high[1]) == pytest.approx((-high[0], -high[2], 1.0))
    assert low[2] == -1
    wide = paired_difference_interval(3, 9, 60, confidence=0.999)
    narrow = paired_difference_interval(3, 9, 60, confidence=0.9)
    assert wide[0] < narrow[0] < 0.1 < narrow[1] < wide[1]
    with pytest.raises(ValueError, match="at least only_first \\+ only_second, got total=3"):
        paired_difference_interval(2, 2, 3)
    with pytest.raises(ValueError, match="confidence must lie in"):
        paired_difference_interval(2, 2, 30, confidence=1.0)


def test_paired_interval_covers() -> None:
    rng = np.random.default_rng(0)
    p = np.array([0.03, 0.08, 0.89])
    counts = rng.multinomial(120, p, size=20_000)
    low, high = paired_difference_interval(counts[:, 0], counts[:, 1], 120)
    missed = int(((low > 0.05) | (high < 0.05)).sum())
    # Score intervals are approximate: within half a per cent of the nominal five.
    assert abs(missed / 20_000 - 0.05) < 0.01
