"""Lower confidence bounds on 1 - p*, the tail that certifies one radius, from draws of the log likelihood ratio.

L is the log ratio at the worst shift, drawn under a symmetric pi_0; 1 - p* = E_0[e^L 1{L < median}].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from lightning_rs.checks import FloatArray, as_float64, check_alpha, check_at_least
from lightning_rs.statistics.accuracy import empirical_bernstein_lower


def one_step_tail_lower(
    mean: ArrayLike, variance: ArrayLike, n: ArrayLike, beta: ArrayLike, m: ArrayLike
) -> FloatArray:
    """Bound ``1 - p* >= e^m (E[min(1, e^(L - m))] - 1/2)``, which is sharp at the median of L and flat around it.

    Args:
        mean: sample mean of ``min(1, e^(L - m))``, in [0, 1].
        variance: its unbiased sample variance.
        n: number of independent values.
        beta: failure probability, in (0, 1).
        m: any number chosen without these draws; best an estimate of the median.

    Returns:
        The bound, 0 where the data say nothing, broadcast shape.
    """
    lower = empirical_bernstein_lower(mean, variance, n, beta)
    return (np.exp(as_float64("m", m)) * np.maximum(lower - 0.5, 0.0))[()]


def median_order_index(n: int, beta: float) -> int:
    """Return the largest j with ``P(Bin(n, 1/2) <= j - 1) <= beta``.

    The j-th smallest of n independent draws is at most the median with probability at least 1 - beta.

    Returns:
        j in 1..n, or 0 if no order statistic is that certain.
    """
    n, level = check_at_least("n", n, 1), float(check_alpha(beta, "beta"))
    j = int(binom.ppf(level, n, 0.5))
    # ppf is the smallest x with cdf >= level; step to the largest j with cdf(j - 1) <= level.
    while j > 0 and binom.cdf(j - 1, n, 0.5) > level:
        j -= 1
    while binom.cdf(j, n, 0.5) <= level:
        j += 1
    return j


def two_step_tail_lower(first: ArrayLike, second: ArrayLike, beta: float) -> float:
    """Bound 1 - p* in two steps, for comparison: the median from below, then the truncated mean.

    With probability 1 - beta/2 an order statistic m of ``first`` is at most the median; then an empirical Bernstein
    bound on the mean of ``e^(L - m) 1{L < m}`` over ``second`` fails with probability beta/2. Two to five times
    looser than :func:`one_step_tail_lower`, because an error of m enters in first order.

    Args:
        first: draws of L, shape (n1,).
        second: independent draws of L, shape (n2,).
        beta: failure probability of the whole.
    """
    ratio = as_float64("second", second)
    j = median_order_index(np.size(first), 0.5 * beta)
    if j == 0:
        return 0.0
    m = float(np.sort(as_float64("first", first))[j - 1])
    value = np.where(ratio < m, np.exp(np.minimum(ratio - m, 0.0)), 0.0)
    return float(np.exp(m) * empirical_bernstein_lower(value.mean(), value.var(ddof=1), ratio.size, 0.5 * beta))
