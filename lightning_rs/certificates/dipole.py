"""Gaussian dipole smoothing (Levine et al. 2020, Theorem 3), alone and combined with a gradient bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from lightning_rs.certificates._gradient_evidence import GradientMeans, gradient_notes
from lightning_rs.certificates.base import Certificate, Radii, Setting, abstain_at_zero, at, read
from lightning_rs.checks import FloatArray, as_count, check_alpha, check_nonnegative, check_positive, check_probability
from lightning_rs.evidence import Evidence, PairGradientSums, PairVotes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.gaussian import (
    EPS,
    SMALLEST_TAIL,
    SQRT_2PI,
    Term,
    density,
    largest_radius,
    profile,
    tail_value,
    worst_interval,
)
from lightning_rs.numerics.rounding import round_down
from lightning_rs.statistics.binomial import clopper_pearson_lower
from lightning_rs.statistics.gradient import ALPHA_SHARES


class DipoleBounds(NamedTuple):
    """Lower bounds of C_S = P(both members of a pair correct) and C_N = P(first correct, second not)."""

    symmetric_lower: FloatArray
    asymmetric_lower: FloatArray


def dipole_lower_bounds(both: ArrayLike, exactly_one: ArrayLike, n_pairs: ArrayLike, alpha: ArrayLike) -> DipoleBounds:
    """Simultaneous lower bounds of C_S and C_N from the counts of antithetic pairs.

    C_S = P(f(x+w) and f(x-w)) and C_N = P(f(x+w) and not f(x-w)), so p = C_S + C_N. ``exactly_one`` counts
    pairs with *either* member correct: its probability is 2 C_N, and halving its Clopper-Pearson bound uses
    twice the information of the one-sided count that the paper's definition suggests.

    Args:
        both: number of pairs with both members in the class.
        exactly_one: number of pairs with exactly one member in the class, on either side.
        n_pairs: number of independent pairs (half the number of evaluations).
        alpha: failure probability of the two bounds together, half for each.

    Returns:
        ``(symmetric_lower, asymmetric_lower)``, broadcast over all arguments.

    Raises:
        ValueError: for counts that are negative, not whole or add up to more than ``n_pairs``, or alpha
            outside (0, 1).
    """
    if (as_count("both", both) + as_count("exactly_one", exactly_one) > as_count("n_pairs", n_pairs)).any():
        raise ValueError(f"both + exactly_one must be <= n_pairs, got {both!r} + {exactly_one!r} > {n_pairs!r}")
    half = 0.5 * check_alpha(alpha)
    symmetric = clopper_pearson_lower(both, n_pairs, half)
    either = clopper_pearson_lower(exactly_one, n_pairs, half)
    return DipoleBounds(symmetric, 0.5 * either)


def dipole_lower_bound(
    symmetric_lower: ArrayLike, asymmetric_lower: ArrayLike, r: ArrayLike, scaled_gradient_upper: ArrayLike = np.inf
) -> FloatArray:
    """Lower bound of the smoothed probability at l2 distance r sigma; the bound that the radii below invert.

    Arguments as in :func:`dipole_gradient_l2_radius`, r in units of sigma; result in [0, 1].
    """
    symmetric, asymmetric, slope, shift = np.broadcast_arrays(
        check_probability("symmetric_lower", symmetric_lower),
        check_probability("asymmetric_lower", asymmetric_lower),
        check_nonnegative("scaled_gradient_upper", scaled_gradient_upper),
        check_nonnegative("r", r),
    )
    return np.clip(1 - tail_value(_missing(symmetric, asymmetric, slope), shift), 0.0, 1.0)[()]


def dipole_l2_radius(symmetric_lower: ArrayLike, asymmetric_lower: ArrayLike, sigma: ArrayLike) -> FloatArray:
    r"""Certified l2 radius of Gaussian smoothing from antithetic pairs.

    R = sigma r with :math:`\Phi(\Phi^{-1}(C_N) - r) + \Phi(z_S - r) - \Phi(-z_S - r) = 1/2`,
    :math:`z_S = \Phi^{-1}((1 + C_S)/2)`. Levine, Singla and Feizi 2020, Theorem 3. The bound increases in
    C_S and in C_N, so a lower bound of each suffices. Given the true C_S and C_N it is at least Cohen's
    radius for p = C_S + C_N; estimated from the same number of evaluations it can be smaller, and taking
    the larger of the two costs both failure probabilities.

    Args:
        symmetric_lower: lower bound of C_S = P(f(x+w) and f(x-w)).
        asymmetric_lower: lower bound of C_N = P(f(x+w) and not f(x-w)), half of "exactly one".
        sigma: standard deviation of the noise in input units.

    Returns:
        Radius of the open ball in input units, rounded down, broadcast; 0 where C_S + C_N <= 1/2. Tails
        below 1e-300 count as 1e-300, so the radius is finite.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1] or sigma <= 0.
    """
    return dipole_gradient_l2_radius(symmetric_lower, asymmetric_lower, np.inf, sigma)


def dipole_gradient_l2_radius(
    symmetric_lower: ArrayLike, asymmetric_lower: ArrayLike, scaled_gradient_upper: ArrayLike, sigma: ArrayLike
) -> FloatArray:
    """Certified l2 radius from antithetic pairs and an upper bound on the gradient norm.

    The tight combination of the dipole and second-order theorems. The part of f that is true on both
    members of a pair is even and has no gradient, so the bound restricts the asymmetric part alone. With
    t1 = z_S the worst f is 1 on |z| < t1 (both members) and, on one member only, by size of the bound g:

    * g >= phi(Phi^-1(C_N)): the half-line z < Phi^-1(C_N), which is the dipole theorem;
    * g >= phi(t1) - phi(t3), Phi(t3) = Phi(t1) + C_N: an interval left of -t1, mass C_N, slope g;
    * otherwise t1 < z < t2 and -t3 < z < -t2 with phi(t2) = (phi(t1) + phi(t3) + g) / 2.

    In all three the bound decreases with r.

    Args:
        symmetric_lower: lower bound of C_S.
        asymmetric_lower: lower bound of C_N; clipped to (1 - C_S) / 2, its largest possible value, when the
            gradient bound is used.
        scaled_gradient_upper: upper bound of sigma ||grad p||_2; infinity: nothing is known.
        sigma: standard deviation of the noise in input units.

    Returns:
        Radius of the open ball in input units, rounded down, broadcast; 0 where C_S + C_N <= 1/2.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], a negative gradient bound or sigma <= 0.
    """
    symmetric, asymmetric, slope, scale = np.broadcast_arrays(
        check_probability("symmetric_lower", symmetric_lower),
        check_probability("asymmetric_lower", asymmetric_lower),
        check_nonnegative("scaled_gradient_upper", scaled_gradient_upper),
        check_positive("sigma", sigma),
    )
    certifiable = (1 - symmetric) - asymmetric < 0.5
    symmetric = np.where(certifiable, symmetric, 0.75)
    terms = _missing(symmetric, asymmetric, slope)
    # The positive terms of the bound are at most 2 Phi(end - r), which is 1/2 at end - Phi^-1(1/4).
    upper = np.maximum(-terms[0].offset, terms[2].offset) + 0.675
    radius = largest_radius(terms, 0.5, np.zeros(upper.shape), np.maximum(upper, 0.0))
    return round_down(np.where(certifiable, radius, 0.0) * scale)


class DipoleL2(Certificate):
    """Gaussian dipole smoothing: an l2 radius from antithetic pairs x + w, x - w.

    :func:`dipole_l2_radius` at the bounds of :func:`dipole_lower_bounds`, alpha / 2 each, from n / 2 pairs: n
    evaluations, as many as n independent samples cost. Abstains where C_S + C_N <= 1/2. The pairs' votes are not
    independent, so certificates for independent votes cannot share the pass.
    """

    norm = "l2"
    noises = (GaussianNoise,)
    evidence = (PairVotes,)
    alpha_split = ALPHA_SHARES["dipole"]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        found = _pair_bounds(evidence, setting, setting.alpha)
        radius = dipole_l2_radius(*found, setting.noise.sigma)
        return Radii(abstain_at_zero(radius, setting.top), radius, found._asdict())


class DipoleGradientL2(Certificate):
    """Dipole and second-order smoothing combined: :func:`dipole_gradient_l2_radius` from antithetic pairs.

    Three confidence events: C_S, C_N and the gradient norm, estimated from the same pairs. Where the gradient
    bound is not below the maximum for C_N, the dipole radius at the same bounds results, and the record says so.
    """

    norm = "l2"
    noises = (GaussianNoise,)
    evidence = (PairVotes, PairGradientSums)
    alpha_split = ALPHA_SHARES["dipole_gradient"]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        shares, sigma = self.alpha_split, setting.noise.sigma
        found = _pair_bounds(
            evidence, setting, setting.alpha * (shares["symmetric_lower"] + shares["asymmetric_lower"])
        )
        means = GradientMeans(read(evidence, PairGradientSums), sigma)
        slope = means.l2(setting.alpha * shares["gradient_upper"]).upper
        radius = dipole_gradient_l2_radius(*found, slope, sigma)
        tail = 1 - (found.symmetric_lower + found.asymmetric_lower)
        notes = gradient_notes(tail, slope, profile(found.asymmetric_lower))
        return Radii(abstain_at_zero(radius, setting.top), radius, {**found._asdict(), "gradient_upper": slope}, notes)


def _pair_bounds(evidence: Mapping[type[Evidence], Evidence], setting: Setting, alpha: float) -> DipoleBounds:
    votes = read(evidence, PairVotes)
    both, one = at(votes.both, setting.top), at(votes.exactly_one, setting.top)
    return dipole_lower_bounds(both, one, setting.n // 2, alpha)


def _missing(symmetric: FloatArray, asymmetric: FloatArray, slope: FloatArray) -> tuple[Term, Term, Term, Term]:
    """1 - bound = Phi(r - A) + Phi(-t1 - r) - Phi(B - r) + Phi(C - r): f is 1 on (-t1, A) and on (C, B)."""
    outside = np.maximum(0.5 * (1 - symmetric), SMALLEST_TAIL)
    t1 = -ndtri(outside)
    clipped = np.minimum(asymmetric, outside)
    t3 = -ndtri(outside - clipped)
    annulus = slope < density(t1) - density(t3)
    interval = ~annulus & (slope < profile(asymmetric))
    z_lo, z_hi = worst_interval(np.where(interval, clipped, 0.25), np.where(interval, 1 - clipped, 0.75), slope)
    # Raised by a few ulps: a larger slope is the sound side.
    height = 0.5 * (density(t1) + density(t3) + slope) * (1 + EPS * (8 + t1 * t1))
    t2 = np.sqrt(np.maximum(-2 * np.log(SQRT_2PI * height), 0.0))
    t2 = np.where(annulus, np.clip(t2, t1, t3), 0.0)
    right = np.where(annulus, t2, t1)
    high = np.where(annulus, -t2, np.where(interval, z_hi, ndtri(asymmetric)))
    low = np.where(annulus, -t3, np.where(interval, z_lo, -np.inf))
    return Term(1.0, 1.0, -right), Term(1.0, -1.0, -t1), Term(-1.0, -1.0, high), Term(1.0, -1.0, low)
