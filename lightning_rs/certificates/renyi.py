"""Li et al.'s radius by Renyi divergence: a baseline for Cohen's."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlog1py

from lightning_rs.certificates.lecuyer import Baseline, two_class_arguments
from lightning_rs.checks import FloatArray
from lightning_rs.numerics.search import maximise

_EPS = float(np.finfo(np.float64).eps)
#: A smaller ``p_upper`` is treated as this one: sound (the radius decreases in it), and the logarithms stay finite.
_SMALLEST = 1e-300
#: The best order lies in [0.9, 1.5] almost always, and in (0, 3) in all cases tried; order 0 is added as a limit.
_LOG_ORDERS = (np.log(0.02), np.log(50.0))


def renyi_l2_radius(
    p_lower: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius of Li et al.: the best over a of :func:`radius_of_order`.

    ``sup over a > 0 of sigma sqrt(-(2 / a) log(1 - p_lower - p_upper + 2 M_{1-a}))``, with ``M_s`` the power mean
    of order s of ``p_lower`` and ``p_upper``. Li, Chen, Wang and Carin (2019), as stated in Cohen et al. (2019),
    appendix I.2, with the exponent of the power mean corrected. Never larger than
    :func:`gaussian_l2_radius`; not smaller than :func:`lecuyer_l2_radius` unless ``p_lower`` is below about 0.1.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        p_upper: upper bound of the probability of every other class; clipped to ``1 - p_lower``.
        sigma: standard deviation of the Gaussian noise, in input units.
        q_upper: the tail ``1 - p_lower`` instead, exact near 0.

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is
        certified; finite (a ``p_upper`` below 1e-300 counts as 1e-300).

    Raises:
        ValueError: for NaN, a probability outside [0, 1], a missing argument or ``sigma`` not positive.

    >>> print(round(renyi_l2_radius(0.9, 0.05, sigma=1.0), 6))
    1.249374
    """
    scale, likely, other, tail = two_class_arguments(p_lower, p_upper, sigma, q_upper)
    low, high = (np.full(likely.shape, end) for end in _LOG_ORDERS)
    best = maximise(lambda log_order: radius_of_order(likely, other, tail, np.exp(log_order)), low, high)
    # Order one is a corner of the objective for a small p_upper: the search only comes close to it.
    one = radius_of_order(likely, other, tail, np.ones(likely.shape))
    return (scale * np.maximum(np.maximum(best, one), _order_zero(likely, other)))[()]


def radius_of_order(likely: FloatArray, other: FloatArray, tail: FloatArray, order: FloatArray) -> FloatArray:
    """Li's radius in units of sigma at one Renyi order a > 0, valid at each, lowered by more than its rounding error.

    sqrt(-(2 / a) log(1 - p_lower - p_upper + 2 M)), M the power mean of order 1 - a; a = 1 is the limit. With d =
    log(p_lower / p_upper) and lc = log cosh: M = sqrt(p_lower p_upper) exp(lc(s d / 2) / s), s = 1 - a, and p_lower
    + p_upper - 2 M = 2 M expm1(lc(d / 2) - lc(s d / 2) / s), which keeps its digits where the two probabilities are
    close; 1 - p_lower - p_upper + 2 M = (tail - p_upper) + 2 M keeps them where the tail is small.
    """
    floor = np.maximum(other, _SMALLEST)
    above = likely > floor
    high, s = np.where(above, likely, 0.5), 1.0 - order
    low = np.where(above, floor, 0.5)
    d = np.where(high < 2 * low, np.log1p((high - low) / low), np.log(high) - np.log(low))
    growth = np.where(np.abs(s) < 1e-6, s * d * d / 8, _log_cosh(s * d / 2) / np.where(s == 0, 1.0, s))
    twice_mean = 2 * np.sqrt(high) * np.sqrt(low) * np.exp(growth)
    loss = np.maximum(twice_mean * np.expm1(_log_cosh(d / 2) - growth), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        logarithm = np.where(loss < 0.5, np.log1p(-loss), np.log(tail - other + twice_mean))
    radius = np.sqrt(-2 / order * np.minimum(logarithm, 0.0))
    return np.where(above, radius * (1 - 32 * _EPS * (1 + d) * (1 + 1 / order)), 0.0)


class RenyiL2(Baseline):
    """Li's certificate from votes; arguments as :class:`~lightning_rs.certificates.lecuyer.Baseline`."""

    def radius_of_bounds(self, q_upper: FloatArray, p_upper: FloatArray, sigma: float) -> FloatArray:
        """Return :func:`renyi_l2_radius`, in input units."""
        return renyi_l2_radius(q_upper=q_upper, p_upper=p_upper, sigma=sigma)


def _order_zero(likely: FloatArray, other: FloatArray) -> FloatArray:
    """The limit of the objective for order 0: sqrt(S ((1 + u) log(1 + u) + (1 - u) log(1 - u)))."""
    total = likely + other
    u = np.clip((likely - other) / np.where(total > 0, total, 1.0), 0.0, 1.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        near = np.log1p(-u * u) + 2 * u * np.arctanh(u)
    value = np.where(u < 0.5, near, (1 + u) * np.log1p(u) + xlog1py(1 - u, -u))
    return np.sqrt(total * np.maximum(value, 0.0)) * (1 - 64 * _EPS)


def _log_cosh(x: FloatArray) -> FloatArray:
    """Log of cosh(x), accurate relative to its value, for small and for large x."""
    size = np.abs(x)
    small = np.minimum(size, 1.0)
    return np.where(size < 1, np.log1p(2 * np.sinh(small / 2) ** 2), size + np.log1p(np.exp(-2 * size)) - np.log(2.0))
