"""The reasons of docs/not_taken.md that a few lines can check."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri
from scipy.stats import beta, binom, chi2, norm

from lightning_rs.functional import clopper_pearson_lower, gaussian_l2_radius
from tests.oracles import oracle_cases


def test_a_noise_level_of_its_own_at_every_input_is_unsound() -> None:
    """f(z) = 1{|z| <= 1/2}, sigma(0) = 1/4, sigma(0.1) = 1."""

    def inside(x: float, sigma: float) -> float:
        return float(ndtr((0.5 - x) / sigma) - ndtr((-0.5 - x) / sigma))

    assert gaussian_l2_radius(inside(0.0, 0.25), 0.25) > 0.4
    assert inside(0.1, 1.0) < 0.5  # the deployed classifier answers the other class at distance 0.1


@pytest.mark.parametrize("n", [200, 1000])
def test_a_class_chosen_on_the_estimation_samples_needs_half_of_alpha(n: int) -> None:
    """p = 1/2 for both of two classes: any certificate is false."""
    alpha = 0.05
    counts = np.arange(n + 1)
    larger = np.maximum(counts, n - counts)

    def failure(level: float) -> float:
        return float(binom.pmf(counts, n, 0.5)[clopper_pearson_lower(larger, n, level) > 0.5].sum())

    assert failure(alpha) > 1.5 * alpha
    assert failure(alpha / 2) <= alpha


def test_the_largest_of_several_radii_at_the_whole_alpha_fails_too_often() -> None:
    """Ten classifiers of the same p, independent votes: the largest lower bound exceeds p for one of them."""
    rng, alpha, p, n = np.random.default_rng(0), 0.05, 0.8, 500
    bounds = clopper_pearson_lower(rng.binomial(n, p, (4000, 10)), n, alpha)
    paid = clopper_pearson_lower(rng.binomial(n, p, (4000, 10)), n, alpha / 10)
    assert (bounds.max(axis=1) > p).mean() > 4 * alpha
    assert (paid.max(axis=1) > p).mean() <= alpha + 4 * math.sqrt(alpha / 4000)


def test_goodman_intervals_fail_far_above_alpha_for_rare_classes() -> None:
    """At alpha / C for one of C classes, as the multi-scale code uses them; exact probability of failure."""
    n, alpha, classes = 100, 0.001, 10
    quantile = chi2.ppf(1 - alpha / classes, 1)
    counts = np.arange(n + 1)
    centre = quantile + 2 * counts
    upper = (centre + np.sqrt(quantile * (quantile + 4 * counts * (n - counts) / n))) / (2 * (n + quantile))
    lower = (centre - np.sqrt(quantile * (quantile + 4 * counts * (n - counts) / n))) / (2 * (n + quantile))
    worst = max(float(binom.pmf(counts, n, p)[(upper < p) | (lower > p)].sum()) for p in np.geomspace(1e-4, 0.5, 400))
    assert worst > 20 * alpha / classes


def test_weights_from_another_sigma_leave_no_samples() -> None:
    """Effective share of the samples 1 / E[w^2], w = density at sigma' over density at sigma, in 784 dimensions."""
    sigma, other, dim = 0.5, 0.45, 784
    second_moment = sigma**2 / (other * math.sqrt(2 * sigma**2 - other**2))
    assert second_moment**-dim < 1e-6


def lipschitz_radius(p: float, lipschitz: float, sigma: float) -> float:
    """Return the radius of a soft score of this Lipschitz constant: Psi^-1(p) - 1 / (2 L)."""

    def smoothed(s: float) -> float:
        def psi(t: float) -> float:
            return float(t * ndtr(t) + norm.pdf(t))

        return lipschitz * sigma * (psi(s / sigma) - psi((s - 1 / lipschitz) / sigma))

    return float(brentq(lambda s: smoothed(s) - p, -50 * sigma, 50 * sigma + 1 / lipschitz)) - 0.5 / lipschitz


@pytest.mark.parametrize("case", oracle_cases("lipschitz_radius"), ids=str)
def test_a_lipschitz_constant_helps_only_where_no_ordinary_network_has_one(case: dict) -> None:
    inputs = case["inputs"]
    assert lipschitz_radius(inputs["p"], inputs["L"], inputs["sigma"]) == pytest.approx(case["expected"], rel=1e-6)
    cohen = float(gaussian_l2_radius(inputs["p"], inputs["sigma"]))
    assert lipschitz_radius(inputs["p"], 1000.0, inputs["sigma"]) == pytest.approx(cohen, rel=1e-4)
    assert lipschitz_radius(inputs["p"], 0.5 / inputs["sigma"], inputs["sigma"]) > 1.02 * cohen


def test_the_normaliser_of_a_truncated_prior_underflows_and_decides() -> None:
    """An informed prior of the selection votes, cut to p > p0, far from which they lie: the e-value divides by zero."""
    p0, votes, n0 = 0.99, 20, 400
    assert beta.sf(p0, votes + 1, n0 - votes + 1) == 0.0, "whatever is divided by it is no e-value"


def test_a_constant_classifier_has_the_largest_average_radius_and_it_grows_with_n() -> None:
    """Right on a tenth of the images, with p = 1 at every one of them."""
    average = [0.1 * float(gaussian_l2_radius(clopper_pearson_lower(n, n, 0.001), 1.0)) for n in (10**3, 10**5, 10**7)]
    assert average[0] < average[1] < average[2]
    scaled = [0.1 * float(gaussian_l2_radius(clopper_pearson_lower(1000, 1000, 0.001), sigma)) for sigma in (1, 100)]
    assert scaled[1] == pytest.approx(100 * scaled[0])


def test_strata_of_equal_accuracy_gain_nothing_and_noisy_ones_fake_a_gain() -> None:
    """q -> Phi(Phi^-1(q) - r) is convex: the mean over strata is at least the value of the mean, with noise more."""
    r, q = 1.2, np.full(4, 0.9)
    value = float(ndtr(ndtri(0.9) - r))
    assert ndtr(ndtri(q) - r).mean() == pytest.approx(value)
    noisy = np.random.default_rng(0).binomial(100, 0.9, (2000, 4)).clip(1, 99) / 100
    assert (ndtr(ndtri(noisy) - r).mean() - value) > 0.002


def test_strata_are_valid_for_clopper_pearson_and_gain_nothing() -> None:
    """Half of the samples at p = .7 and half at .9, beside all at .8: covered, by a bound that is no better."""
    n, alpha = 100, 0.05
    half = np.arange(n // 2 + 1)
    together = np.convolve(binom.pmf(half, n // 2, 0.7), binom.pmf(half, n // 2, 0.9))
    counts = np.arange(n + 1)
    wrong = clopper_pearson_lower(counts, n, alpha) > 0.8
    assert together[wrong].sum() <= binom.pmf(counts, n, 0.8)[wrong].sum() <= alpha
    bounds = clopper_pearson_lower(counts, n, alpha)
    assert together @ bounds == pytest.approx(binom.pmf(counts, n, 0.8) @ bounds, abs=2e-3)
