"""Lecuyer et al.'s radius by differential privacy: a baseline for Cohen's."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.gaussian_l2 import TwoClassCertificate
from lightning_rs.checks import FloatArray, as_float64, check_positive, check_probability, given, tail_of
from lightning_rs.numerics.rounding import round_down
from lightning_rs.numerics.search import maximise

_EPS = float(np.finfo(np.float64).eps)


def lecuyer_l2_radius(
    p_lower: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius of Lecuyer et al.: the best over beta of :func:`radius_of_beta`.

    ``sup of sigma beta / sqrt(2 log(1.25 (1 + e^beta) / (p_lower - e^(2 beta) p_upper)))`` over
    ``0 < beta <= min(1, log(p_lower / p_upper) / 2)``. Lecuyer et al. (2019), as stated in Cohen et al. (2019),
    appendix I.1; beta <= 1 is needed by the Gaussian mechanism. Never larger than :func:`gaussian_l2_radius`.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        p_upper: upper bound of the probability of every other class; clipped to ``1 - p_lower``.
        sigma: standard deviation of the Gaussian noise, in input units.
        q_upper: the tail ``1 - p_lower`` instead.

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is
        certified.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], a missing argument or ``sigma`` not positive.

    >>> print(round(lecuyer_l2_radius(0.9, 0.05, sigma=1.0), 6))
    0.479988
    """
    scale, likely, other, _ = two_class_arguments(p_lower, p_upper, sigma, q_upper)
    above = likely > other
    with np.errstate(divide="ignore"):
        limit = np.minimum(0.5 * np.log(np.where(above, likely, 1.0)) - 0.5 * np.log(np.where(above, other, 1.0)), 1.0)
    best = maximise(lambda beta: radius_of_beta(likely, other, beta), np.zeros_like(limit), limit)
    return round_down(scale * best)


def radius_of_beta(likely: FloatArray, other: FloatArray, beta: FloatArray) -> FloatArray:
    """Lecuyer's radius in units of sigma at one beta in (0, 1], valid at each, up to the rounding of its last step."""
    pushed = np.exp(2 * beta) * other
    # The difference loses digits where it is small: lower it by its own rounding error.
    gap = likely - pushed - 4 * _EPS * (likely + pushed)
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = beta / np.sqrt(2 * np.log(1.25 * (1 + np.exp(beta)) / gap))
    return np.where(gap > 0, radius, 0.0)


class Baseline(TwoClassCertificate):
    """A certificate from votes whose radius is never larger than Cohen's two-class radius.

    Args:
        method: how alpha is shared by the bounds on the top class and on the others, see
            :class:`~lightning_rs.certificates.gaussian_l2.TwoClassCertificate`. The default "complement" takes
            ``p_upper = 1 - p_lower`` at the whole alpha, as the comparison of Cohen et al. (2019) does.
    """

    methods = ("complement", "partition", "bonferroni", "grouped")

    def __init__(self, method: Literal["complement", "partition", "bonferroni", "grouped"] = "complement") -> None:
        super().__init__(method)


class LecuyerL2(Baseline):
    """Lecuyer's certificate from votes; arguments as :class:`Baseline`."""

    def radius_of_bounds(self, q_upper: FloatArray, p_upper: FloatArray, sigma: float) -> FloatArray:
        """Return :func:`lecuyer_l2_radius`, in input units."""
        return lecuyer_l2_radius(q_upper=q_upper, p_upper=p_upper, sigma=sigma)


def two_class_arguments(
    p_lower: ArrayLike | None, p_upper: ArrayLike | None, sigma: ArrayLike | None, q_upper: ArrayLike | None
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """Return checked ``(sigma, p_lower, min(p_upper, tail), tail)``, broadcast."""
    scale = check_positive("sigma", given("sigma", sigma))
    tail = tail_of(p_lower, q_upper)
    likely = 1.0 - tail if p_lower is None else as_float64("p_lower", p_lower)
    other = np.minimum(check_probability("p_upper", given("p_upper", p_upper)), tail)
    scale, likely, other, tail = np.broadcast_arrays(scale, likely, other, tail)
    return scale, likely, other, tail
