"""Second-order smoothing (Levine et al. 2020, Theorem 1): an l2 radius from p and an upper bound on its gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates._gradient_evidence import GradientMeans, gradient_notes, top_tail
from lightning_rs.certificates.base import Certificate, Radii, Setting, abstain_at_zero, read
from lightning_rs.checks import FloatArray, check_choice, check_nonnegative, check_positive, check_probability, given
from lightning_rs.evidence import Evidence, GradientSums, PairProducts, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.gaussian import (
    SMALLEST_TAIL,
    Term,
    bounded_tail,
    half_line_radius,
    largest_radius,
    profile,
    tail_value,
    worst_interval,
)
from lightning_rs.numerics.regions import qualified
from lightning_rs.numerics.rounding import round_down
from lightning_rs.statistics.gradient import ALPHA_SHARES, levine_scaled_gradient_upper


def second_order_lower_bound(
    p_lower: ArrayLike | None = None,
    scaled_gradient_upper: ArrayLike | None = None,
    r: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    r"""Lower bound of the smoothed probability at l2 distance r sigma.

    :math:`\Phi(z_{hi} - r) - \Phi(z_{lo} - r)` with :math:`\Phi(z_{hi}) - \Phi(z_{lo}) = p` and
    :math:`\phi(z_{hi}) - \phi(z_{lo}) = g`: the worst classifier is the slab z_lo < z < z_hi.
    Arguments and edges as in :func:`second_order_l2_radius`; r in units of sigma. Shapes broadcast.
    """
    tail, slope, shift = _arguments(p_lower, q_upper, scaled_gradient_upper, r)
    return np.clip(1 - tail_value(_missing(tail, slope), shift), 0.0, 1.0)[()]


def second_order_l2_radius(
    p_lower: ArrayLike | None = None,
    scaled_gradient_upper: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    r"""Certified l2 radius of Gaussian smoothing from the top probability and its gradient norm.

    R = sigma r with :math:`\Phi(z_{hi} - r) - \Phi(z_{lo} - r) = 1/2`, z_lo and z_hi as in
    :func:`second_order_lower_bound`. Levine, Singla and Feizi 2020, Theorem 1 (the same theorem as Mohapatra
    et al. 2020, Corollary 3.1 with the sign of its gradient term corrected). The radius *decreases* with
    the gradient: an upper bound is needed, not a lower one as the paper's section 3.1 says.

    Args:
        p_lower: lower bound of the top class's probability.
        scaled_gradient_upper: upper bound of sigma ||grad p||_2 (dimensionless). At or above the maximum
            phi(Phi^-1(p)), infinity included, it says nothing and Cohen's radius results.
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Radius of the open ball in input units, rounded down, broadcast over all arguments; 0 where
        p_lower <= 1/2. Tails below 1e-300 count as 1e-300, so the radius is finite.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], a negative gradient bound or sigma <= 0.
    """
    scale = check_positive("sigma", given("sigma", sigma))
    tail, slope, scale = _arguments(p_lower, q_upper, scaled_gradient_upper, scale)
    certifiable = tail < 0.5
    tail = np.where(certifiable, tail, 0.25)
    terms = _missing(tail, slope)
    upper = -terms[0].offset
    lower = np.minimum(half_line_radius(tail), upper)
    return round_down(np.where(certifiable, largest_radius(terms, 0.5, lower, upper), 0.0) * scale)


def second_order_two_class_l2_radius(
    p_lower: ArrayLike | None = None,
    scaled_gradient_upper: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    scaled_gradient_upper_other: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius against one other class, each with its probability and gradient bound.

    Root of (lower bound of the top class at r) = (upper bound of the other class at r), each by Theorem 1.
    Sound, not tight jointly. Every other class must be tried: the certified radius is the minimum, and a
    class with a smaller probability but a larger gradient can be the binding one.

    Args:
        p_lower: lower bound of the top class's probability; it may be below 1/2.
        scaled_gradient_upper: upper bound of sigma ||grad p_top||_2.
        p_upper: upper bound of the other class's probability; clipped to 1 - p_lower.
        scaled_gradient_upper_other: upper bound of sigma ||grad p_other||_2.
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Radius of the open ball in input units, rounded down, broadcast; 0 where p_lower <= p_upper.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative gradient bounds or sigma <= 0.
    """
    scale = check_positive("sigma", given("sigma", sigma))
    other = check_probability("p_upper", given("p_upper", p_upper))
    slope_other = check_nonnegative(
        "scaled_gradient_upper_other", given("scaled_gradient_upper_other", scaled_gradient_upper_other)
    )
    tail, slope, scale, other, slope_other = np.broadcast_arrays(
        *_arguments(p_lower, q_upper, scaled_gradient_upper, scale), other, slope_other
    )
    other = np.clip(other, SMALLEST_TAIL, tail)
    certifiable = (1 - tail > other) & (tail < 1)
    tail, other = np.where(certifiable, tail, 0.25), np.where(certifiable, other, 0.25)
    terms = (*_missing(tail, slope), *_missing(other, slope_other))
    # At the mean of the two upper ends the two bounds have crossed.
    upper = -0.5 * (terms[0].offset + terms[2].offset)
    radius = largest_radius(terms, 1.0, np.zeros(upper.shape), np.maximum(upper, 0.0))
    return round_down(np.where(certifiable, radius, 0.0) * scale)


class SecondOrderL2(Certificate):
    """Second-order smoothing: a larger l2 radius than Cohen's where the gradient of p is known to be small.

    :func:`second_order_l2_radius` at a Clopper-Pearson bound of the tail and an upper bound of the gradient norm
    from the same samples. Where that bound is not below the maximum for this p, Cohen's radius at the same tail
    results, and the record says so. Abstains where q_upper >= 1/2. Needs a number of samples fixed in advance.

    Args:
        estimator: "local", the dimension-free bound of
            :func:`~lightning_rs.statistics.gradient.scaled_gradient_l2_interval`; or "levine", Theorem 2 of the
            paper with alpha/2 for each event, for reproduction.
    """

    norm = "l2"
    noises = (GaussianNoise,)

    def __init__(self, estimator: Literal["local", "levine"] = "local") -> None:
        check_choice("estimator", estimator, ("local", "levine"))
        self.estimator = estimator
        local = estimator == "local"
        self.evidence = (Votes, GradientSums if local else PairProducts)
        self.alpha_split = ALPHA_SHARES["second_order" if local else "second_order_levine"]

    @property
    def name(self) -> str:
        """The class, and the estimator if it is not the default: both can be listed in one run."""
        return qualified(type(self).__name__, None if self.estimator == "local" else self.estimator)

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        tail = top_tail(evidence, setting, self.alpha_split["p_lower"])
        slope = self._gradient_upper(evidence, setting, setting.alpha * self.alpha_split["gradient_upper"])
        radius = second_order_l2_radius(q_upper=tail, scaled_gradient_upper=slope, sigma=setting.noise.sigma)
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "gradient_upper": slope}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds, gradient_notes(tail, slope, profile(tail)))

    def _gradient_upper(
        self, evidence: Mapping[type[Evidence], Evidence], setting: Setting, alpha: float
    ) -> FloatArray:
        sigma = setting.noise.sigma
        if self.estimator == "local":
            return GradientMeans(read(evidence, GradientSums), sigma).l2(alpha).upper
        products = read(evidence, PairProducts)
        return levine_scaled_gradient_upper(products.mean, products.pairs, setting.dim, sigma, alpha)


def _missing(tail: FloatArray, slope: FloatArray) -> tuple[Term, Term]:
    # 1 - bound = Phi(r - z_hi) + Phi(z_lo - r), free of cancellation for tiny tails.
    z_lo, z_hi = worst_interval(1 - tail, tail, slope)
    return Term(1.0, 1.0, -z_hi), Term(1.0, -1.0, z_lo)


def _arguments(
    p_lower: ArrayLike | None, q_upper: ArrayLike | None, slope: ArrayLike | None, last: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    slopes = check_nonnegative("scaled_gradient_upper", given("scaled_gradient_upper", slope))
    tail, slopes, other = np.broadcast_arrays(
        bounded_tail(p_lower, q_upper), slopes, check_nonnegative("r", given("r", last))
    )
    return tail, slopes, other
