"""Dipole and dipole + gradient radii against oracles, linear programs, closed forms and simulated pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom, binomtest, norm

from lightning_rs.certificates.dipole import (
    dipole_gradient_l2_radius,
    dipole_l2_radius,
    dipole_lower_bound,
    dipole_lower_bounds,
)
from lightning_rs.certificates.second_order import second_order_l2_radius
from lightning_rs.statistics.binomial import clopper_pearson_lower
from tests.certificates.gaussian_programs import Intervals, dipole_program, random_intervals
from tests.oracles import oracle_cases


@pytest.mark.parametrize("case", oracle_cases("dipole_radius"))
def test_radius_oracles(case: dict) -> None:
    given = case["inputs"]
    radius = dipole_l2_radius(given["CS"], given["CN"], given["sigma"])
    assert radius == pytest.approx(case["expected"]["R"], rel=case["rtol"])
    assert radius <= case["expected"]["R"]


@pytest.mark.parametrize("case", oracle_cases("dipole_bound"))
def test_bound_oracles(case: dict) -> None:
    given = case["inputs"]
    bound = dipole_lower_bound(given["CS"], given["CN"], given["r"])
    assert bound == pytest.approx(case["expected"]["bound"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("dipole_certify"))
def test_certify_oracles(case: dict) -> None:
    given, expected = case["inputs"], case["expected"]
    bounds = dipole_lower_bounds(given["k_both"], given["k_exactly_one"], given["n_pairs"], given["alpha"])
    assert bounds.symmetric_lower == pytest.approx(expected["CS_low"], rel=case["rtol"])
    assert bounds.asymmetric_lower == pytest.approx(expected["CN_low"], rel=case["rtol"])
    assert dipole_l2_radius(*bounds, given["sigma"]) == pytest.approx(expected["R"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("dipole_sos_radius"))
def test_combined_oracles(case: dict) -> None:
    given, expected = case["inputs"], case["expected"]
    radius = dipole_gradient_l2_radius(given["CS"], given["CN"], given["gs"], given["sigma"])
    assert radius == pytest.approx(expected["R"], rel=case["rtol"])
    assert radius <= expected["R"]
    bound = dipole_lower_bound(given["CS"], given["CN"], 1.0, given["gs"])
    assert bound == pytest.approx(expected["bound_at_r1"], rel=case["rtol"])


# All three regimes of the gradient bound: annulus, interval, half-line.
@pytest.mark.parametrize(
    ("cs", "cn", "gs", "r"),
    [
        (0.81, 0.09, 0.0, 1.2),
        (0.6, 0.1, 0.02, 0.7),
        (0.3, 0.3, 0.05, 0.5),
        (0.6, 0.1, 0.15, 0.7),
        (0.3, 0.3, 0.32, 0.4),
        (0.5, 0.05, 0.09, 0.6),
        (0.6, 0.1, 0.3, 0.7),
        (0.9, 0.045, np.inf, 1.5),
        (0.0, 0.49, 0.3, 0.3),
    ],
)
def test_equals_linear_program(cs: float, cn: float, gs: float, r: float) -> None:
    assert dipole_lower_bound(cs, cn, r, gs) == pytest.approx(dipole_program(cs, cn, gs, r), abs=3e-5)


def test_the_three_regimes_meet() -> None:
    """The bound is continuous and non-increasing in the gradient across its two switches."""
    for cs, cn in ((0.6, 0.1), (0.3, 0.3), (0.9, 0.001)):
        t1, t3 = norm.isf((1 - cs) / 2), norm.isf((1 - cs) / 2 - cn)
        switches = np.array([norm.pdf(t1) - norm.pdf(t3), norm.pdf(norm.ppf(cn))])
        below, above = (dipole_gradient_l2_radius(cs, cn, switches * s, 1.0) for s in (1 - 1e-9, 1 + 1e-9))
        assert below == pytest.approx(above, abs=1e-6)
        gradients = np.linspace(0, 0.4, 400)
        assert (np.diff(dipole_gradient_l2_radius(cs, cn, gradients, 1.0)) <= 1e-13).all()


def test_monotone_in_both_probabilities_and_in_distance() -> None:
    cs, cn = np.meshgrid(np.linspace(0.3, 0.98, 30), np.linspace(0, 1, 30))
    cn = cn * (1 - cs) / 2
    for gs in (0.0, 0.03, 0.2, np.inf):
        radius = dipole_gradient_l2_radius(cs, cn, gs, 1.0)
        more = dipole_gradient_l2_radius(cs + 1e-3, np.minimum(cn, (1 - cs - 1e-3) / 2), gs, 1.0)
        fixed = cn <= (1 - cs - 1e-3) / 2
        assert (more[fixed] >= radius[fixed] - 1e-12).all()
        assert (np.diff(radius, axis=0) >= -1e-12).all()
        r = np.linspace(0, 6, 100)[:, None, None]
        assert (np.diff(dipole_lower_bound(cs, cn, r, gs), axis=0) <= 1e-12).all()


def test_never_below_what_it_contains() -> None:
    """Population values: dipole >= Cohen, combined >= dipole, combined >= second order."""
    rng = np.random.default_rng(0)
    cs = rng.uniform(0.2, 0.999, 2000)
    cn = rng.uniform(0, 1, 2000) * (1 - cs) / 2
    keep = cs + cn > 0.5
    cs, cn = cs[keep], cn[keep]
    gs = rng.uniform(0, 0.4, len(cs))
    dipole = dipole_l2_radius(cs, cn, 1.0)
    combined = dipole_gradient_l2_radius(cs, cn, gs, 1.0)
    assert (dipole >= norm.ppf(cs + cn) - 1e-12).all()
    assert (combined >= dipole - 1e-12).all()
    assert (combined >= second_order_l2_radius(cs + cn, gs, 1.0) - 1e-9).all()
    assert (combined > second_order_l2_radius(cs + cn, gs, 1.0) + 0.01).mean() > 0.3


def test_gains_of_independent_members() -> None:
    """C_S = p^2, C_N = p(1 - p), gradient .4 of the maximum: the table of the derivation."""
    p = np.array([0.7, 0.9])
    gs = 0.4 * norm.pdf(norm.ppf(p))
    assert dipole_l2_radius(p * p, p * (1 - p), 1.0) == pytest.approx([0.598, 1.310], abs=5e-4)
    assert dipole_gradient_l2_radius(p * p, p * (1 - p), gs, 1.0) == pytest.approx([0.775, 1.511], abs=5e-4)
    # Zero gradient: more than any second-order radius for p = .9 can be.
    assert dipole_gradient_l2_radius(0.81, 0.09, 0.0, 1.0) == pytest.approx(1.712, abs=5e-4)


@pytest.mark.parametrize(("cs", "cn"), [(0.81, 0.09), (0.5, 0.1), (0.3, 0.3), (0.999, 0.0004)])
def test_tight_on_its_worst_classifiers(cs: float, cn: float) -> None:
    """The worst f of the dipole theorem, |z| < t1 or z < Phi^-1(C_N), and of the combined one, with its annulus."""
    t1 = float(norm.isf((1 - cs) / 2))
    worst = Intervals((-40.0, float(norm.ppf(cn))), (-t1, t1))
    assert worst.symmetric() == pytest.approx(cs)
    radius = dipole_l2_radius(cs, cn, 1.0)
    assert worst.distance() - 1e-6 <= radius <= worst.distance() + 1e-10
    t3 = float(norm.isf((1 - cs) / 2 - cn))
    for gs in (0.0, 0.5 * (norm.pdf(t1) - norm.pdf(t3))):
        t2 = math.sqrt(-2 * math.log(math.sqrt(2 * math.pi) * (norm.pdf(t1) + norm.pdf(t3) + gs) / 2))
        worst = Intervals((-t3, -t2), (-t1, t2))
        assert worst.gradient() == pytest.approx(gs, abs=1e-12)
        radius = dipole_gradient_l2_radius(cs, cn, gs, 1.0)
        assert worst.distance() - 1e-6 <= radius <= worst.distance() + 1e-10


def test_sound_on_random_two_region_classifiers() -> None:
    rng = np.random.default_rng(1)
    regions = [random_intervals(rng) for _ in range(100)]
    p = np.array([f.p() for f in regions])
    cs = np.array([f.symmetric() for f in regions])
    distance = np.array([f.distance() for f in regions])
    gradient = np.array([f.gradient() for f in regions])
    assert (dipole_l2_radius(cs, p - cs, 1.0) <= distance + 1e-12).all()
    combined = dipole_gradient_l2_radius(cs, p - cs, gradient, 1.0)
    assert (combined <= distance + 1e-12).all()
    assert (combined > norm.ppf(p) + 0.01).mean() > 0.5


def test_both_sides_of_a_pair_count() -> None:
    """The printed definition counts "first correct, second not" only: half the pairs, a smaller bound."""
    n, one = 50_000, 15_000
    bounds = dipole_lower_bounds(30_000, one, n, 0.001)
    assert bounds.asymmetric_lower == pytest.approx(clopper_pearson_lower(one, n, 0.0005) / 2, rel=1e-12)
    assert bounds.asymmetric_lower > clopper_pearson_lower(one // 2, n, 0.0005)


@pytest.mark.parametrize("alpha", [0.05, 0.001])
def test_pair_bounds_cover(alpha: float) -> None:
    """Simultaneous coverage over 20,000 multinomial draws; one-sided alpha for each of two events must fail."""
    rng = np.random.default_rng(2)
    n, cs, cn = 500, 0.7, 0.1
    both, one, _ = rng.multinomial(n, [cs, 2 * cn, 1 - cs - 2 * cn], size=20_000).T
    bounds = dipole_lower_bounds(both, one, n, alpha)
    misses = int(((bounds.symmetric_lower > cs) | (bounds.asymmetric_lower > cn)).sum())
    assert binomtest(misses, len(both), alpha, alternative="greater").pvalue > 1e-6
    if alpha == 0.05:
        greedy = dipole_lower_bounds(both, one, n, 2 * alpha)
        misses = int(((greedy.symmetric_lower > cs) | (greedy.asymmetric_lower > cn)).sum())
        assert binomtest(misses, len(both), alpha, alternative="greater").pvalue < 1e-6


def test_largest_radius_against_cohen() -> None:
    """All of 50,000 pairs correct costs 0.6 % of Cohen's radius for 100,000 independent votes."""
    bounds = dipole_lower_bounds(50_000, 0, 50_000, 0.001)
    assert dipole_l2_radius(*bounds, 1.0) == pytest.approx(3.788, abs=5e-4)
    assert norm.isf(-math.expm1(math.log(0.001) / 1e5)) == pytest.approx(3.8115, abs=5e-5)


def test_edges() -> None:
    assert dipole_l2_radius([0.5, 0.0, 0.2], [0.0, 0.5, 0.3], 1.0) == pytest.approx(0.0, abs=0.0)
    assert dipole_l2_radius(0.6, 0.0, 1.0) > 0
    for gs in (0.0, 1e-300, 0.1, np.inf):
        assert 37.0 < dipole_gradient_l2_radius(1.0, 0.0, gs, 1.0) < 37.1
        assert np.isfinite(dipole_gradient_l2_radius([0.5, 0.9, 0.0, 1 - 1e-16], [0.25, 0.05, 0.6, 0.0], gs, 1.0)).all()
    assert isinstance(dipole_l2_radius(0.8, 0.1, 1.0), np.float64)
    assert dipole_l2_radius(np.full((3, 1), 0.8), np.array([0.1, 0.0]), 1.0).shape == (3, 2)
    assert dipole_l2_radius(0.8, 0.05, 0.25) == pytest.approx(0.25 * dipole_l2_radius(0.8, 0.05, 1.0))


def test_independent_pairs_are_binomial() -> None:
    """The level of the combined events never exceeds alpha: exact enumeration for few pairs."""
    n, cs, alpha = 30, 0.8, 0.05
    counts = np.arange(n + 1)
    missed = dipole_lower_bounds(counts, 0, n, alpha).symmetric_lower > cs
    assert binom.pmf(counts[missed], n, cs).sum() <= alpha / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((1.2, 0.1, 1.0), "symmetric_lower must lie in"),
        ((0.8, math.nan, 1.0), "asymmetric_lower must not be NaN"),
        ((0.8, 0.1, -1.0), "sigma must be finite and > 0"),
    ],
)
def test_refusals(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dipole_l2_radius(*arguments)


def test_counts_must_add_up() -> None:
    with pytest.raises(ValueError, match="must be <= n_pairs"):
        dipole_lower_bounds(40, 20, 50, 0.001)
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\)"):
        dipole_lower_bounds(40, 5, 50, 1.5)
