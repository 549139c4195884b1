"""The dual of adversarial certification: ``lambda p - D(lambda pi_0 || pi_delta)``, for any noise with a density.

Over all classifiers with values in [0, 1] and probability at least p under pi_0, the smallest probability under a
shifted copy pi_delta is

    max over lambda >= 0 of  lambda p - D(lambda),     D(lambda) = integral (lambda pi_0 - pi_delta)_+

(Zhang et al. 2020, Theorem 1); every single lambda gives a lower bound. If the law is symmetric and delta is the
shift of largest discrepancy in a ball, the bound holds in the whole ball.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtr
from torch import Tensor

from lightning_rs.checks import (
    FloatArray,
    as_float64,
    check_alpha,
    check_at_least,
    check_nonnegative,
    check_positive,
    check_probability,
)
from lightning_rs.statistics.binomial import clopper_pearson_lower


class DensityNoise(Protocol):
    """A law with a density and a known worst shift: the norm-power noises (k = 0 is the Gaussian), or one's own."""

    dim: int

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out``, shape (m, d), with draws."""

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log density up to a constant, shape (m, d) -> (m,), float64."""

    def worst_shift(self, norm: str, radius: float) -> Tensor:
        """Return a shift of largest discrepancy in the closed ball, shape (d,), float64."""


def gaussian_discrepancy(lam: ArrayLike, r: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """Discrepancy ``D(lam pi_0 || pi_delta)`` of N(0, sigma^2 I) at ``||delta||_2 = r``.

    ``lam Phi(log(lam)/t + t/2) - Phi(log(lam)/t - t/2)`` with ``t = r / sigma`` (Zhang et al. 2020, Appendix A.2);
    maximising ``lam p - D`` gives ``Phi(Phi^-1(p) - t)``, Cohen's bound.

    Args:
        lam: multiplier >= 0.
        r: radius >= 0, in input units.
        sigma: standard deviation of the noise, in input units.

    Returns:
        D in [max(0, lam - 1), lam], broadcast shape, float64.

    Raises:
        ValueError: for NaN or arguments outside these ranges.
    """
    lam, t = check_nonnegative("lam", lam), check_nonnegative("r", r) / check_positive("sigma", sigma)
    with np.errstate(divide="ignore", invalid="ignore"):
        at = np.log(lam) / t
        value = lam * ndtr(at + 0.5 * t) - ndtr(at - 0.5 * t)
    # Exact bounds of any discrepancy; at lam = 0 or t = 0 the lower one is attained, and the formula is 0/0.
    floor = np.maximum(lam - 1.0, 0.0)
    return np.where((lam > 0) & (t > 0), np.clip(value, floor, lam), floor)[()]


def dual_lower_bound(lam: ArrayLike, p_lower: ArrayLike, discrepancy: ArrayLike) -> FloatArray:
    """Lower bound ``max(0, lam p_lower - D)`` on the probability of a class anywhere in the ball.

    Zhang et al. (2020), Theorem 1. Valid for every lam. A maximum over several lam is valid if the D are exact or
    hold together; each Monte Carlo bound on a D is an event of its own.

    Args:
        lam: multiplier >= 0.
        p_lower: lower bound of the probability of the class at the centre.
        discrepancy: D(lam) at the worst shift of the ball, or an upper bound on it.

    Returns:
        The bound in [0, 1], broadcast shape.

    Raises:
        ValueError: for NaN or arguments outside their ranges.
    """
    lam, p = check_nonnegative("lam", lam), check_probability("p_lower", p_lower)
    return np.clip(lam * p - check_nonnegative("discrepancy", discrepancy), 0.0, 1.0)[()]


def log_ratio_draws(
    noise: DensityNoise, norm: str, radius: float, n: int, generator: torch.Generator | None = None
) -> FloatArray:
    """Draw n values of ``log pi_delta(z) / pi_0(z)``, z from the noise, at its worst shift in the ball.

    Args:
        noise: the law.
        norm: "l2" or "linf".
        radius: radius of the ball, in input units.
        n: number of draws.
        generator: random stream.

    Returns:
        shape (n,), float64.
    """
    # In parts, because a draw has d coordinates of which only one number is kept.
    delta = noise.worst_shift(norm, float(check_nonnegative("radius", radius)))
    left, parts = check_at_least("n", n, 1), []
    while left > 0:
        z = torch.empty(min(left, max(1, 4_000_000 // noise.dim)), noise.dim)
        noise.draw_(z, generator)
        parts.append(noise.log_density(z.double() - delta) - noise.log_density(z.double()))
        left -= len(z)
    return torch.cat(parts).numpy()


def sampled_discrepancy_upper(log_ratio: ArrayLike, lam: ArrayLike, alpha: float) -> FloatArray:
    """Upper confidence bound on D(lam) from draws of the log ratio under pi_0, one-sided, for one lam.

    Mean of ``(lam - e^L)_+ in [0, lam]`` plus Hoeffding's ``lam sqrt(log(1 / alpha) / (2 n))`` (Zhang et al. 2020,
    Theorem 7, in the one-sided form in which its constant is right).

    Args:
        log_ratio: independent draws, shape (n,).
        lam: multiplier >= 0 chosen without these draws, any shape; each entry is an event of its own.
        alpha: failure probability.

    Returns:
        The bound, at most lam, shape of ``lam``.
    """
    ratio, lam = as_float64("log_ratio", log_ratio), check_nonnegative("lam", lam)
    excess = np.sqrt(-np.log(check_alpha(alpha)) / (2.0 * ratio.size))
    # Values beyond e^700 would overflow, and count as zero long before.
    mean = np.maximum(lam[..., None] - np.exp(np.minimum(ratio, 700.0)), 0.0).mean(-1)
    return np.minimum(mean + lam * excess, lam)[()]


@dataclass(frozen=True)
class DualBound:
    """Result of Algorithm 2.

    Attributes:
        bound: lower bound of the probability in the ball, in [0, 1]; the class is certified if it exceeds 1/2.
        lam: the multiplier that the pilot chose.
        p_lower: lower bound of the probability at the centre, failing with probability alpha / 2.
        discrepancy: upper bound of D(lam), failing with probability alpha / 2.
    """

    bound: float
    lam: float
    p_lower: float
    discrepancy: float


def algorithm_two(
    pilot_votes: tuple[int, int],
    votes: tuple[int, int],
    pilot_log_ratio: ArrayLike,
    log_ratio: ArrayLike,
    alpha: float,
    lams: ArrayLike,
) -> DualBound:
    """The practical certification algorithm of Zhang et al. (2020, Algorithm 2), with alpha accounted for.

    A pilot chooses lambda on a grid; fresh votes bound p and fresh draws bound D(lambda). In the paper each of the
    two bounds fails with probability alpha, so the result with 2 alpha; here each gets alpha / 2. One image, one
    radius: for comparison with the tables, which decide all radii at once and need no draws for an image.

    Args:
        pilot_votes: (count, n) of the class in the pilot.
        votes: (count, n) of the class in fresh, independent samples.
        pilot_log_ratio: draws for the choice of lambda, see :func:`log_ratio_draws`.
        log_ratio: fresh draws at the same shift.
        alpha: failure probability of the whole statement.
        lams: grid of multipliers, shape (m,).

    Returns:
        The bound and what it is made of.

    Raises:
        ValueError: for alpha outside (0, 1) or counts outside [0, n].
    """
    # Two events, half of alpha each. The pilot may be as rough as it likes: it only picks lam, which any value serves.
    share = 0.5 * float(check_alpha(alpha))
    grid = np.atleast_1d(check_positive("lams", lams))
    rough = float(clopper_pearson_lower(*pilot_votes, share))
    pilot = np.exp(np.minimum(as_float64("pilot_log_ratio", pilot_log_ratio), 700.0))
    guess = grid * rough - np.array([np.maximum(lam - pilot, 0.0).mean() for lam in grid])
    lam = float(grid[guess.argmax()])
    p_lower = float(clopper_pearson_lower(*votes, share))
    discrepancy = float(sampled_discrepancy_upper(log_ratio, lam, share))
    return DualBound(float(dual_lower_bound(lam, p_lower, discrepancy)), lam, p_lower, discrepancy)
