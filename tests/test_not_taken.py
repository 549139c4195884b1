"""The reasons of docs/not_taken.md that a few lines can check."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom, chi2

from lightning_rs.functional import clopper_pearson_lower, gaussian_l2_radius


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
