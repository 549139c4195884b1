"""From per-image statements to statements about a whole test set, and intervals for reported accuracies."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binom, norm

from lightning_rs.checks import as_count, check_alpha, check_choice, check_nonnegative, check_probability
from lightning_rs.statistics.binomial import clopper_pearson_lower, clopper_pearson_upper, top_class_p_value

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Method = Literal["bernstein", "exact", "uniform"]

_ROUNDING = 1e-14


def certified_accuracy_lower_bound(
    correct: ArrayLike, total: ArrayLike, alpha: ArrayLike, rho: ArrayLike, method: Method = "bernstein"
) -> FloatArray:
    """Return a lower bound on the true certified accuracy of this test set.

    Each of ``total`` certificates is wrong with probability at most ``alpha``; ``correct`` of them were correct
    with radius at least r. With probability at least ``1 - rho`` over the noise, the share of the test points
    on which the smoothed classifier is truly correct in the whole ball of radius r is at least

    - "bernstein" (Cohen et al. 2019, Theorem 5), a = alpha, m = total, L = log(1 / rho):
      ``(correct / m - a - sqrt(2 a (1 - a) L / m) - L / (3 m)) / (1 - a)``, at one r fixed in advance;
    - "exact": ``g / m`` with the smallest g such that ``g + Q(m - g) >= correct``, where ``Q(j)`` is the
      ``1 - rho`` quantile of ``Bin(j, a)``, at one r fixed in advance;
    - "uniform": ``(correct - Q(m)) / m``, for all r at once (a curve needs this one).

    Assumes independent noise across images. The statement is about this test set, not about the population.

    Args:
        correct: numbers of images correct at radius r, any shape (one entry a radius, say).
        total: number m >= 1 of images, broadcast.
        alpha: failure probability of every single certificate (its own joint alpha), broadcast against
            ``correct``; if the images have different ones, pass the largest. "bernstein" needs alpha <= 1/2.
        rho: failure probability of this bound, in (0, 1).
        method: "bernstein", "exact" or "uniform".

    Returns:
        The bound in [0, 1], rounded down.

    Raises:
        ValueError: if ``correct`` exceeds ``total``, a probability lies outside (0, 1), or the method is unknown.

    >>> float(certified_accuracy_lower_bound(330, 500, 0.001, 0.001, method="exact"))
    0.656
    """
    check_choice("method", method, ("bernstein", "exact", "uniform"))
    y, m, a, level = np.broadcast_arrays(
        as_count("correct", correct), as_count("total", total), check_alpha(alpha), check_alpha(rho, "rho")
    )
    if (m < 1).any() or (y > m).any():
        raise ValueError(f"correct must lie in [0, total] and total be >= 1, got correct={correct!r}, total={total!r}")
    if method == "exact":
        return (_fewest_true(y, m, a, level) / m)[()]
    if method == "uniform":
        return (np.maximum(y - _quantile(m, a, level), 0) / m)[()]
    if (a > 0.5).any():
        raise ValueError(f"alpha must be <= 1/2 for method 'bernstein', got {alpha!r}")
    log = -np.log(level)
    bound = (y / m - a - np.sqrt(2 * a * (1 - a) * log / m) - log / (3 * m)) / (1 - a)
    return np.maximum(bound - _ROUNDING, 0.0)[()]


def empirical_bernstein_lower(mean: ArrayLike, variance: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Return a lower confidence bound on the mean of independent values in [0, 1].

    ``mean - sqrt(2 V log(2 / alpha) / n) - 7 log(2 / alpha) / (3 (n - 1))``, one-sided, with probability at
    least ``1 - alpha`` (Maurer and Pontil 2009, Theorem 4).

    Args:
        mean: sample means, in [0, 1].
        variance: unbiased sample variances V (divisor n - 1).
        n: sample sizes, at least 2.
        alpha: failure probability in (0, 1).

    Returns:
        The bound, clipped at 0 and rounded down, of the broadcast shape.

    Raises:
        ValueError: for a mean outside [0, 1], a negative variance, ``n`` < 2 or alpha outside (0, 1).
    """
    average, spread = check_probability("mean", mean), check_nonnegative("variance", variance)
    size = as_count("n", n)
    if (size < 2).any():
        raise ValueError(f"n must be >= 2 for a sample variance, got {n!r}")
    log = np.log(2 / check_alpha(alpha))
    bound = average - np.sqrt(2 * spread * log / size) - 7 * log / (3 * (size - 1.0))
    return np.maximum(bound - _ROUNDING, 0.0)[()]


def accuracy_interval(correct: ArrayLike, total: ArrayLike, confidence: float = 0.95) -> tuple[FloatArray, FloatArray]:
    """Return the two-sided Clopper-Pearson interval for an accuracy measured on ``total`` random images.

    It speaks about the population from which the images were drawn, and takes the certificates as given.

    Args:
        correct: numbers of correct images, any shape.
        total: number of images, at least 1.
        confidence: coverage in (0, 1); each side gets half of the rest.

    Returns:
        Lower and upper ends, rounded outward.
    """
    side = (1 - check_alpha(confidence, "confidence")) / 2
    return clopper_pearson_lower(correct, total, side), clopper_pearson_upper(correct, total, side)


def paired_p_value(only_first: ArrayLike, only_second: ArrayLike) -> FloatArray:
    """Return the exact McNemar p-value of "both runs are equally accurate" on the same images.

    Args:
        only_first: numbers of images that only the first run has right, any shape.
        only_second: numbers of images that only the second run has right.

    Returns:
        The two-sided p-value (McNemar 1947, exact binomial form); 1 if the runs never differ.
    """
    first, second = as_count("only_first", only_first), as_count("only_second", only_second)
    return top_class_p_value(np.maximum(first, second), np.minimum(first, second))


def paired_difference_interval(
    only_first: ArrayLike, only_second: ArrayLike, total: ArrayLike, confidence: float = 0.95
) -> tuple[FloatArray, FloatArray]:
    """Return the score interval for a difference of two accuracies measured on the same random images.

    All differences ``second - first`` that the paired score test does not reject (Tango 1998, Statistics in Medicine
    17). Approximate, unlike the intervals of single accuracies: near its nominal coverage also for few discordant
    images, where the Wald interval is too short. It speaks about the population of images.

    Args:
        only_first: numbers of images that only the first run has right, any shape.
        only_second: numbers of images that only the second run has right.
        total: numbers of images that both runs cover, at least 1.
        confidence: coverage in (0, 1).

    Returns:
        Lower and upper ends of (accuracy of the second - accuracy of the first), in [-1, 1].

    Raises:
        ValueError: if more images differ than there are, or confidence lies outside (0, 1).
    """
    b, c, n = np.broadcast_arrays(
        as_count("only_first", only_first), as_count("only_second", only_second), as_count("total", total)
    )
    if (n < 1).any() or (b + c > n).any():
        raise ValueError(f"total must be >= 1 and at least only_first + only_second, got total={total!r}")
    z = float(norm.isf((1 - check_alpha(confidence, "confidence")) / 2))
    upper = _tango_upper(b.astype(np.float64), c.astype(np.float64), n.astype(np.float64), z)
    lower = -_tango_upper(c.astype(np.float64), b.astype(np.float64), n.astype(np.float64), z)
    return lower[()], upper[()]


def _tango_upper(b: FloatArray, c: FloatArray, n: FloatArray, z: float) -> FloatArray:
    """Largest difference d in [-1, 1] whose score statistic is at least -z; the statistic falls as d grows."""
    low, high = (c - b) / n, np.ones_like(n)
    for _ in range(60):
        d = (low + high) / 2
        # Maximum likelihood estimate of P(only the first is right), given the difference d.
        linear, constant = (2 * n + b - c) * d - b - c, -b * d * (1 - d)
        q = (np.sqrt(np.maximum(linear**2 - 8 * n * constant, 0.0)) - linear) / (4 * n)
        kept = c - b - n * d >= -z * np.sqrt(np.maximum(n * (2 * q + d * (1 - d)), 0.0))
        low, high = np.where(kept, d, low), np.where(kept, high, d)
    return high


def _fewest_true(y: IntArray, m: IntArray, a: FloatArray, rho: FloatArray) -> IntArray:
    # g + Q(m - g) never decreases in g (one more trial adds at most one to a quantile): bisect.
    low, high = np.maximum(y - _quantile(m, a, rho), 0), y.copy()
    while (low < high).any():
        middle = (low + high) // 2
        enough = middle + _quantile(m - middle, a, rho) >= y
        low, high = np.where(enough, low, middle + 1), np.where(enough, middle, high)
    return high


def _quantile(trials: IntArray, a: FloatArray, rho: FloatArray) -> IntArray:
    """Smallest q with P(Bin(trials, a) > q) <= rho, not smaller for rounding."""
    # One trial is exceeded with probability a, without rounding: a = rho, the usual choice, is a tie.
    goal = rho * (1 - 1e-11)
    q = np.maximum(binom.isf(goal, trials, a), 0).astype(np.int64)
    while (short := binom.sf(q, trials, a) > goal).any():
        q = q + short
    return np.where(trials == 1, a > rho, q)
