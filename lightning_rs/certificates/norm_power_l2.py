"""The l2 family of Zhang et al.: its exact l2 radius from votes, and what that implies in l-infinity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.special import ndtr, ndtri

from lightning_rs.certificates.base import Certificate, Radii, Setting, TopVoteCertificate, abstain_at_zero, read
from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import (
    FloatArray,
    IntArray,
    check_at_least,
    check_choice,
    check_nonnegative,
    check_positive,
    check_probability,
    given,
    tail_of,
)
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.noise.norm_power import SMALLEST_GAP, NormPowerNoise, matched_sigma
from lightning_rs.numerics.norm_power_quadrature import QUADRATURE_ERROR, converged_law, increasing_root
from lightning_rs.numerics.norm_power_two_class import LARGEST, SMALLEST, two_class_table
from lightning_rs.statistics.binomial import TWO_CLASS_SHARES, Method, simultaneous_tail_bounds

SCORES = (1e-3, 8.3)  # the table spans Phi^-1(p) from 0.0004 above one half to 5e-17 below one
KNOTS = 257


def norm_power_l2_radius(
    p_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    k: float | None = None,
    dim: int | None = None,
    *,
    q_upper: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius under noise of density ~ ``||z||_2^-k exp(-||z||_2^2 / 2 sigma^2)``.

    Statement: if a class has probability at least ``p_lower`` at x, it has more than one half at every x' with
    ``||x - x'||_2 < R``. Exact given the probability (Zhang et al. 2020, Theorem 2 with strong duality, in
    Neyman-Pearson form): R solves ``p*(R / sigma) = p_lower`` with ``p*(r) = P_0(L <= -median(L))``, L the log
    likelihood ratio at ``delta = (r, 0, ..., 0)``. One table for each (d, k) holds p*; it depends on R / sigma
    alone. k = 0 is the Gaussian: R = sigma Phi^-1(p_lower), exactly.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        sigma: scale of the density, in input units (not the matched sigma_0, see ``matched_sigma``).
        k: power of the norm, 0 <= k <= d - 1/4.
        dim: number d >= 2 of input coordinates.
        q_upper: the tail ``1 - p_lower`` instead, exact near 0.
        p_upper: upper bound of the probability of every other class: the bilateral form (Appendix D), in which
            the ball holds while the least probability of the class exceeds the greatest of any other. Clipped to
            ``1 - p_lower``, at which the two forms agree. From a second table, see ``TwoClassTable``.

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is
        certified (and for Phi^-1(p_lower) < 0.001 if k > 0); infinite for a tail of exactly 0. For
        k > 0 the radius stops growing at a tail of 5e-17.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], ``sigma`` missing or not positive, k or dim missing or
            outside their ranges, or unless exactly one of ``p_lower`` and ``q_upper`` is given.
    """
    scale = check_positive("sigma", given("sigma", sigma))
    dim, k = _checked_law(given("dim", dim), given("k", k))
    if k == 0:
        return gaussian_l2_radius(p_lower, scale, p_upper, q_upper=q_upper)
    tail = tail_of(p_lower, q_upper)
    if p_upper is not None:
        tail, other = np.broadcast_arrays(tail, np.minimum(check_probability("p_upper", p_upper), tail))
        return (scale * _two_class_radius(tail, other, dim, k) * (1.0 - 2.0**-50))[()]
    return (scale * radius_table(dim, k).radius(tail) * (1.0 - 2.0**-50))[()]


def norm_power_discrepancy(lam: ArrayLike, r: ArrayLike, sigma: ArrayLike, k: float, dim: int) -> FloatArray:
    """Discrepancy ``D(lam pi_0 || pi_delta) = integral (lam pi_0 - pi_delta)_+`` of the l2 family.

    The shift is the worst in an l2 ball, ``||delta||_2 = r``:
    ``D = lam H(log lam) - 1 + H(-log lam)`` with H the distribution function of the log likelihood ratio under
    pi_0 (Zhang et al. 2020, Theorems 1 and 2). For every p, ``lam p - D`` bounds the smallest probability in the
    ball of radius r from below.

    Args:
        lam: multiplier >= 0.
        r: radius >= 0, in input units; in an l-infinity ball of radius e it is ``e sqrt(dim)`` (Theorem 3).
        sigma: scale of the density, in input units.
        k: power of the norm, 0 <= k <= d - 1/4.
        dim: number d >= 2 of input coordinates.

    Returns:
        D in [max(0, lam - 1), lam], broadcast shape, float64, absolute error below 1e-11 lam.

    Raises:
        ValueError: for NaN or arguments outside these ranges.
    """
    dim, k = _checked_law(dim, k)
    lam, ratio = check_nonnegative("lam", lam), check_nonnegative("r", r) / check_positive("sigma", sigma)
    if not (np.isfinite(lam).all() and np.isfinite(ratio).all()):
        raise ValueError(f"lam and r must be finite, got lam={lam!r}, r={r!r}")
    lam, ratio = np.broadcast_arrays(lam, ratio)
    d = np.array(np.maximum(lam - 1.0, 0.0))
    open_ = (lam > 0) & (ratio > 0)
    if open_.any():
        law, s, shift = converged_law(dim, k), np.log(lam[open_]), ratio[open_]
        value = lam[open_] * law.cdf(s, shift) - law.tail(-s, shift)
        d[open_] = np.clip(value, d[open_], lam[open_])
    return d[()]


def radius_ratio_to_gaussian(p_lower: ArrayLike, k: float, dim: int, rule: str = "mode") -> FloatArray:
    """Certified l2 radius of the family over that of the Gaussian whose norm it matches, at equal ``p_lower`` > 1/2.

    Both grow in proportion to sigma_0, so the ratio has no units. It is 1 to four digits for (d, k) = (3072, 500)
    and to five for (150528, 50000); only in low dimension is there something to choose.
    """
    sigma = matched_sigma(1.0, k, dim, rule)
    return norm_power_l2_radius(p_lower, sigma, k, dim) / gaussian_l2_radius(p_lower, 1.0)


@usual_for(NormPowerNoise)
class NormPowerL2(TopVoteCertificate):
    """The exact l2 certificate of the l2 family: :func:`norm_power_l2_radius` of the Clopper-Pearson bound.

    At the dimensions of images it certifies what Cohen's certificate does, to four digits; see
    :func:`radius_ratio_to_gaussian`.
    """

    norm: str = "l2"
    noises = (NormPowerNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units."""
        noise = _law(setting)
        return norm_power_l2_radius(q_upper=q_upper, sigma=noise.scale, k=noise.k, dim=noise.dim)


class NormPowerLinf(NormPowerL2):
    """The l2 certificate of the l2 family read in l-infinity: ``R_inf = R_2 / sqrt(d)``.

    This is not a loss: the corner of the cube is the worst shift, so no better l-infinity statement follows from
    the probability under this noise (Zhang et al. 2020, Theorem 3).
    """

    norm = "linf"

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the l2 radius over sqrt(d), in input units."""
        return super().radius_of_tail(q_upper, setting) / math.sqrt(setting.dim) * (1.0 - 2.0**-50)


class NormPowerTwoClassL2(Certificate):
    """The bilateral certificate of the l2 family: :func:`norm_power_l2_radius` with ``p_upper``.

    Can certify classes of probability below one half; abstains where ``p_lower <= p_upper``. Looked up in a table
    that is built once for (d, k): a second, five to ten below dimension 40.

    Args:
        method: "partition", "bonferroni" or "grouped"; which events share alpha, see
            :func:`~lightning_rs.statistics.binomial.simultaneous_tail_bounds`.
    """

    norm = "l2"
    noises = (NormPowerNoise,)
    evidence = (Votes,)
    votes_only = True

    def __init__(self, method: Method = "partition") -> None:
        check_choice("method", method, tuple(TWO_CLASS_SHARES))
        self.method = method
        self.alpha_split = TWO_CLASS_SHARES[method]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        noise, counts = _law(setting), read(evidence, Votes).counts
        top, second, first = setting.top, setting.runner_up, setting.selection.counts
        tails = simultaneous_tail_bounds(counts, top, setting.alpha, self.method, second, first)
        radius = norm_power_l2_radius(None, noise.scale, noise.k, noise.dim, q_upper=tails[0], p_upper=tails[1])
        bounds = {"p_lower": 1.0 - tails[0], "q_upper": tails[0], "p_upper": tails[1]}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)


@dataclass(frozen=True)
class RadiusTable:
    """Radii in units of sigma by the score Phi^-1(p) that they need, with sound interpolation.

    Attributes:
        scores: knots, increasing.
        radii: exact radius at each knot.
        log_ratio: spline of log(radius / score) over log(score) through all knots.
        error: relative error of the spline between a knot and the next, measured with every other knot left out.
    """

    scores: FloatArray
    radii: FloatArray
    log_ratio: CubicSpline
    error: FloatArray

    def radius(self, tail: FloatArray) -> FloatArray:
        """Return the radius for tails 1 - p, never more than the exact one; at least the knot below it."""
        score = -ndtri(tail)
        cell = np.searchsorted(self.scores, score, side="right") - 1
        i = np.clip(cell, 0, len(self.scores) - 2)
        inside = np.clip(score, self.scores[0], self.scores[-1])
        r = inside * np.exp(self.log_ratio(np.log(inside))) * (1.0 - self.error[i])
        floor = np.where(cell > i, self.radii[-1], self.radii[i]) * (1.0 - QUADRATURE_ERROR)
        r = np.clip(r, floor, np.maximum(self.radii[i + 1], floor))
        return np.where(tail == 0.0, np.inf, np.where(cell < 0, 0.0, r))


@lru_cache(maxsize=32)
def radius_table(dim: int, k: float) -> RadiusTable:
    """Return the table of the l2 family with power k in dimension d, built once."""
    law = converged_law(dim, k)
    unit = math.log(math.sqrt((dim - k) / dim))
    goal = np.array(SCORES)

    def excess(log_r: FloatArray, rows: IntArray) -> FloatArray:
        return law.score_needed(np.exp(log_r)) - goal[rows]

    ends = increasing_root(excess, unit + np.log(goal) - 2.0, unit + np.log(goal) + 2.0, np.full(2, 1e-6))
    radii = np.exp(np.linspace(ends[0], ends[1], KNOTS))
    scores = law.score_needed(radii)
    x, y = np.log(scores), np.log(radii / scores)
    missed = np.abs(np.expm1(CubicSpline(x[::2], y[::2])(x[1::2]) - y[1::2]))
    # A cell is charged the largest miss of its own pair of cells and of the two beside it.
    nearby = np.max([np.pad(missed, 1, mode="edge")[j : j + len(missed)] for j in range(3)], axis=0)
    return RadiusTable(scores, radii, CubicSpline(x, y), np.repeat(nearby, 2) + QUADRATURE_ERROR)


def _two_class_radius(tail: FloatArray, other: FloatArray, dim: int, k: float) -> FloatArray:
    """Return the two-class radius in units of sigma, never less than that of one class, which needs less."""
    table = radius_table(dim, k)
    one_class = table.radius(tail)
    ends = table.radius(ndtr(-np.array([SMALLEST, LARGEST])))
    return np.maximum(one_class, two_class_table(dim, k, (float(ends[0]), float(ends[1]))).radius(tail, other))


def _checked_law(dim: int, k: float) -> tuple[int, float]:
    dim, power = check_at_least("dim", dim, 2), float(check_nonnegative("k", k))
    if not power <= dim - SMALLEST_GAP:
        raise ValueError(f"k must be at most dim - {SMALLEST_GAP}, got {k} at dim {dim}")
    return dim, power


def _law(setting: Setting) -> NormPowerNoise:
    assert isinstance(setting.noise, NormPowerNoise)
    return setting.noise
