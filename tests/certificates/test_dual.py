"""The dual framework: exact discrepancies, bounds at every multiplier, Algorithm 2 with its alpha, two classes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import ArrayLike
from scipy import integrate, stats
from scipy.special import ndtr, ndtri

from lightning_rs.certificates.dual import (
    algorithm_two,
    dual_lower_bound,
    gaussian_discrepancy,
    log_ratio_draws,
    sampled_discrepancy_upper,
)
from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy, norm_power_l2_radius
from lightning_rs.checks import FloatArray, check_probability
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerNoise, PureLinfNoise
from lightning_rs.numerics.search import maximise


def worst_case_probability(
    p_lower: ArrayLike, discrepancy: Callable[[FloatArray], FloatArray], lam_range: tuple[float, float] = (1e-6, 1e6)
) -> FloatArray:
    """Smallest probability in the ball, ``max over lam of lam p_lower - D(lam)``, for an exact discrepancy.

    Args:
        p_lower: lower bound of the probability at the centre, any shape.
        discrepancy: D as a function of lam, elementwise; it is called with arrays of shape (m, *shape of p_lower).
        lam_range: where to look for the multiplier. What lies outside is lost, never unsound.

    Returns:
        The bound in [0, 1], shape of ``p_lower``.
    """
    p = check_probability("p_lower", p_lower)
    low, high = (np.full(p.shape, np.log(end)) for end in lam_range)

    def objective(log_lam: FloatArray) -> FloatArray:
        lam = np.exp(log_lam)
        return lam * p - discrepancy(lam)

    return np.clip(maximise(objective, low, high), 0.0, 1.0)[()]


def bilateral_gap(
    p_lower: ArrayLike, p_upper: ArrayLike, discrepancy: Callable[[FloatArray], FloatArray]
) -> FloatArray:
    """Least probability of the class minus greatest of any other in the ball; the class stays ahead if positive.

    Sufficient, and with two classes necessary (Zhang et al. 2020, Appendix D, say "necessary" of more than two).

    Args:
        p_lower: lower bound of the probability of the class at the centre.
        p_upper: upper bound of the probability of every other class at the centre.
        discrepancy: exact D as a function of lam, see :func:`worst_case_probability`.
    """
    rest = worst_case_probability(1.0 - check_probability("p_upper", p_upper), discrepancy)
    return worst_case_probability(p_lower, discrepancy) - (1.0 - rest)


@pytest.mark.parametrize("lam", [1e-4, 0.3, 1.0, 4.0, 1e3])
@pytest.mark.parametrize("r", [0.05, 1.0, 3.0])
def test_gaussian_discrepancy_against_quadrature(lam, r):
    def excess(x: float) -> float:
        return max(lam * math.exp(-x * x / 2) - math.exp(-((x - r) ** 2) / 2), 0.0) / math.sqrt(2 * math.pi)

    kink = math.log(lam) / r + r / 2
    wanted = integrate.quad(excess, -40, 40 + r, points=[kink] if abs(kink) < 40 else None, limit=400, epsabs=1e-14)[0]
    assert gaussian_discrepancy(lam, r, 1.0) == pytest.approx(wanted, rel=1e-8, abs=1e-13)
    assert gaussian_discrepancy(lam, 0.2 * r, 0.2) == pytest.approx(gaussian_discrepancy(lam, r, 1.0), rel=1e-12)


def test_gaussian_discrepancy_ends_and_errors():
    lam = np.array([0.0, 0.5, 1.0, 7.0])
    np.testing.assert_array_equal(gaussian_discrepancy(lam, 0.0, 1.0), [0, 0, 0, 6])
    np.testing.assert_allclose(gaussian_discrepancy(lam, 80.0, 1.0), lam)
    # lam = 1 is the total variation distance.
    assert gaussian_discrepancy(1.0, 1.0, 1.0) == pytest.approx(2 * ndtr(0.5) - 1)
    np.testing.assert_allclose(
        norm_power_discrepancy(lam, 0.7, 1.0, 1e-9, 50), gaussian_discrepancy(lam, 0.7, 1.0), atol=1e-9
    )
    with pytest.raises(ValueError, match="lam must be >= 0"):
        gaussian_discrepancy(-1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="sigma must be finite and > 0"):
        gaussian_discrepancy(1.0, 1.0, 0.0)


def test_gaussian_dual_is_cohen():
    p = np.array([0.51, 0.7, 0.9, 0.99, 0.999])
    for t in (0.1, 0.5, 1.0, 2.0):
        worst = worst_case_probability(p, lambda lam, t=t: gaussian_discrepancy(lam, t, 1.0))
        np.testing.assert_allclose(worst, ndtr(ndtri(p) - t), atol=1e-9)
    radius = float(gaussian_l2_radius(0.9, 0.25))
    assert worst_case_probability(0.9, lambda lam: gaussian_discrepancy(lam, radius, 0.25)) == pytest.approx(0.5)


@pytest.mark.parametrize(("k", "dim"), [(3.0, 5), (20.0, 49), (500.0, 3072)])
def test_norm_power_dual_agrees_with_the_radius(k, dim):
    """At the certified radius the best dual value is one half: duality and the Neyman-Pearson form are the same."""
    for p in (0.6, 0.95):
        radius = float(norm_power_l2_radius(p, 0.5, k, dim))
        got = worst_case_probability(p, lambda lam, r=radius: norm_power_discrepancy(lam, r, 0.5, k, dim), (0.01, 100))
        assert got == pytest.approx(0.5, abs=1e-6)


def test_every_multiplier_bounds_from_below():
    lam = np.geomspace(1e-3, 1e3, 200)
    values = dual_lower_bound(lam, 0.8, gaussian_discrepancy(lam, 0.4, 1.0))
    exact = ndtr(ndtri(0.8) - 0.4)
    assert (values <= exact + 1e-12).all()
    assert values.max() == pytest.approx(exact, abs=1e-3)
    assert values.min() == 0.0
    with pytest.raises(ValueError, match="p_lower must lie in"):
        dual_lower_bound(1.0, 1.1, 0.0)


def test_bilateral_gaussian_is_cohens_two_class_radius():
    p_lower, p_upper = np.array([0.45, 0.7]), np.array([0.2, 0.25])
    for r in (0.1, 0.4):
        gap = bilateral_gap(p_lower, p_upper, lambda lam, r=r: gaussian_discrepancy(lam, r, 1.0))
        np.testing.assert_allclose(gap, ndtr(ndtri(p_lower) - r) - ndtr(ndtri(p_upper) + r), atol=1e-9)
    radius = float(gaussian_l2_radius(0.45, 1.0, 0.2))
    assert bilateral_gap(0.45, 0.2, lambda lam: gaussian_discrepancy(lam, radius, 1.0)) == pytest.approx(0, abs=1e-9)


def test_bilateral_norm_power_agrees_with_the_two_class_radius():
    radius = float(norm_power_l2_radius(0.5, 1.0, 20.0, 49, p_upper=0.3))
    gap = bilateral_gap(0.5, 0.3, lambda lam: norm_power_discrepancy(lam, radius, 1.0, 20.0, 49))
    assert 0 <= gap + 1e-7 < 2e-6


# ---------------------------------------------------------------- from draws


def test_log_ratio_draws_of_the_gaussian_are_normal():
    noise = NormPowerNoise(0.5, 0.0, 30)
    for norm, radius, r in (("l2", 0.4, 0.8), ("linf", 0.1, 0.2 * math.sqrt(30))):
        draws = log_ratio_draws(noise, norm, radius, 20_000, torch.Generator().manual_seed(1))
        assert draws.shape == (20_000,)
        assert stats.kstest(draws, stats.norm(-r * r / 2, r).cdf).pvalue > 1e-6


def test_log_ratio_draws_in_several_chunks_and_of_other_laws(monkeypatch):
    noise = MixedNormNoise(1.0, 3.0, 400_000)
    assert log_ratio_draws(noise, "linf", 1e-4, 15, torch.Generator().manual_seed(1)).shape == (15,)
    with pytest.raises(ValueError, match="norm must be one of 'linf'"):
        log_ratio_draws(MixedNormNoise(1.0, 3.0, 40), "l2", 0.1, 5)
    with pytest.raises(ValueError, match="n must be a whole number >= 1"):
        log_ratio_draws(noise, "linf", 0.1, 0)


def test_sampled_discrepancy_is_an_upper_bound():
    """1,000 bounds at alpha = 0.05 fail at most 80 times (a correct one more often once in 10^5)."""
    rng, failures, truth = np.random.default_rng(0), 0, gaussian_discrepancy(1.5, 1.0, 1.0)
    for _ in range(1000):
        failures += sampled_discrepancy_upper(rng.normal(-0.5, 1.0, 500), 1.5, 0.05) < truth
    assert failures <= 80
    draws = rng.normal(-0.5, 1.0, 200_000)
    lam = np.array([0.0, 0.1, 1.0, 10.0])
    got = sampled_discrepancy_upper(draws, lam, 0.05)
    np.testing.assert_allclose(got, gaussian_discrepancy(lam, 1.0, 1.0), atol=0.06)
    assert (got <= lam).all()
    assert isinstance(sampled_discrepancy_upper(draws, 1.0, 0.05), np.float64)


def test_algorithm_two_is_below_the_exact_bound_and_close():
    rng, r, p = np.random.default_rng(0), 0.5, 0.9
    n, lams = 100_000, np.linspace(0.1, 6.0, 60)
    votes, pilot = (int(rng.binomial(n, p)), n), (int(rng.binomial(1000, p)), 1000)
    ratio = rng.normal(-r * r / 2, r, size=(2, n))
    got = algorithm_two(pilot, votes, ratio[0, :10_000], ratio[1], 0.001, lams)
    exact = ndtr(ndtri(p) - r)
    assert exact - 0.06 < got.bound < exact
    assert got.lam in lams
    assert got.p_lower < p
    assert got.discrepancy > gaussian_discrepancy(got.lam, r, 1.0)
    assert got.bound == pytest.approx(got.lam * got.p_lower - got.discrepancy)
    assert norm_power_l2_radius(got.p_lower, 1.0, k=0.0, dim=2) > r  # what the table certifies from the same votes


def test_algorithm_two_spends_alpha_once():
    """The two events together fail with probability at most alpha: half each, as the returned parts show."""
    ratio = np.zeros(1000)
    got = algorithm_two((900, 1000), (900, 1000), ratio, ratio, 0.02, [1.0])
    assert got.p_lower == pytest.approx(stats.beta(900, 101).ppf(0.01), rel=1e-9)
    assert got.discrepancy == pytest.approx(math.sqrt(math.log(100) / 2000))
    with pytest.raises(ValueError, match="alpha must lie in"):
        algorithm_two((900, 1000), (900, 1000), ratio, ratio, 2.0, [1.0])


def test_algorithm_two_coverage_over_many_runs():
    """2,000 runs at alpha = 0.1 on the worst classifier: the bound exceeds the exact value no more than it may."""
    rng, r, p, failures = np.random.default_rng(1), 0.5, 0.7, 0
    exact = ndtr(ndtri(p) - r)
    for _ in range(2000):
        ratio = rng.normal(-r * r / 2, r, size=(2, 400))
        votes = [(int(count), 400) for count in rng.binomial(400, p, size=2)]
        failures += algorithm_two(votes[0], votes[1], ratio[0], ratio[1], 0.1, [0.5, 1.0, 1.5, 2.0]).bound > exact
    assert failures <= stats.binom(2000, 0.1).isf(1e-6)


def test_framework_takes_any_law_with_a_density():
    """The pure family by brute force of draws: between the exact bound of two multipliers and consistent in sign."""
    noise = PureLinfNoise(1.0, 1.0, 3)
    ratio = log_ratio_draws(noise, "linf", 0.2, 20_000, torch.Generator().manual_seed(0))
    assert abs(np.exp(ratio).mean() - 1) < 6 * np.exp(ratio).std() / math.sqrt(20_000)
    got = algorithm_two((9900, 10_000), (9900, 10_000), ratio[:2000], ratio[2000:], 0.001, np.linspace(0.2, 5, 30))
    assert 0.5 < got.bound < 0.99
