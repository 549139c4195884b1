"""Bounds on the accuracy of a whole test set: oracles, exact enumeration, planted mistakes."""

import numpy as np
import pytest
from scipy.stats import binom
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint

from lightning_rs.statistics.accuracy import (
    accuracy_interval,
    certified_accuracy_lower_bound,
    empirical_bernstein_lower,
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
