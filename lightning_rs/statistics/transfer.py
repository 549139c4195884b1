"""What the samples of one classifier say of another that was run on the same noise; and order statistics of scores."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, ndtr, ndtri

from lightning_rs.checks import FloatArray, IntArray, check_alpha, check_at_least, check_nonnegative, tail_of
from lightning_rs.statistics.binomial import clopper_pearson_upper

# Of the binomial tail, and of the quantile in it: a relative error e of p moves the tail by at most n e.
_SLACK = 1e-9


def transfer_lower(
    p_lower: ArrayLike | None = None,
    harmful: ArrayLike | None = None,
    pairs: ArrayLike | None = None,
    alpha: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Lower bound on the probability of a class under another classifier, from paired samples.

    Statement: let f answer A with probability at least ``p_lower`` (failure probability alpha_1), and on ``pairs``
    fresh noisy copies, both classifiers on the same ones, let f answer A and f' not A ``harmful`` times. Then f'
    answers A with probability at least ``p_lower - CP_upper(harmful, pairs, alpha)``, failure probability alpha_1 +
    alpha. Ugare et al. (2024) count all disagreements; only the harmful ones can lower p. Worth it for p below about
    .99: above, the bound on the pairs alone is larger.

    Args:
        p_lower: lower bound for f, in [0, 1]; leave out if ``q_upper`` is given.
        harmful: pairs in which f answers A and f' does not.
        pairs: number of pairs, at least 1.
        alpha: failure probability of the paired bound, in (0, 1).
        q_upper: the tail ``1 - p_lower`` instead.

    Returns:
        The bound for f', rounded down, at least 0, broadcast shape.

    Raises:
        ValueError: for a missing argument, a count that exceeds ``pairs`` or probabilities out of range.

    >>> print(round(transfer_lower(0.9, 0, 1000, 1e-4), 6))
    0.890832
    """
    given = {"harmful": harmful, "pairs": pairs, "alpha": alpha}
    missing = [name for name, value in given.items() if value is None]
    if missing:
        raise ValueError(f"{missing[0]} must be given, got None")
    tail = tail_of(p_lower, q_upper)
    more = clopper_pearson_upper(harmful, pairs, alpha)  # type: ignore[arg-type]
    return np.maximum(1.0 - (tail + more) - 2.0**-51, 0.0)[()]


def percentile_ranks(n: int, q: ArrayLike, r: ArrayLike, alpha: ArrayLike) -> tuple[IntArray, IntArray]:
    """Ranks of the order statistics that bound the q-quantile of a score at every input within distance r.

    Statement: let h_(1) <= ... <= h_(n) be a scalar score (confidence, margin, a box coordinate) on n noisy copies of x
    under N(x, sigma^2 I). With probability at least 1 - alpha for each side, the q-quantile of the score under noise at
    every x' with ``||x - x'||_2 <= sigma r`` lies between h_(lower) and h_(upper); rank 0 is minus infinity and n + 1
    infinity. Chiang et al. (2020), Lemma 2, with exact binomial ranks:

        lower = max{k : P(Bin(n, Phi(Phi^-1(q) - r)) <= k - 1) <= alpha},
        upper = min{k : P(Bin(n, Phi(Phi^-1(q) + r)) >= k) <= alpha}.

    Args:
        n: number of samples, at least 1.
        q: the quantile, in (0, 1).
        r: distance in units of sigma, >= 0.
        alpha: failure probability of each side, in (0, 1).

    Returns:
        The two ranks, int64, broadcast shape.

    Raises:
        ValueError: for n < 1, q or alpha outside (0, 1), or r negative.

    >>> print(*percentile_ranks(1000, 0.5, 0.5, 0.001))
    264 737
    """
    size = check_at_least("n", n, 1)
    quantile = check_alpha(q, "q")
    distance, level = check_nonnegative("r", r), check_alpha(alpha)
    quantile, distance, level = np.broadcast_arrays(quantile, distance, level)
    score = ndtri(quantile)
    # P(Bin(n, p) <= k - 1) <= alpha, and the mirror image for the upper side.
    lower = _largest_rank(size, ndtr(distance - score), level)
    upper = size + 1 - _largest_rank(size, ndtr(distance + score), level)
    return lower[()], upper[()]


def _largest_rank(n: int, miss: FloatArray, alpha: FloatArray) -> IntArray:
    """Return max{k in 0..n : P(Bin(n, 1 - miss) <= k - 1) <= alpha}, by bisection; the tail is rounded up."""
    low, high = np.zeros(miss.shape, dtype=np.int64), np.full(miss.shape, n + 1)
    while (high - low > 1).any():
        k = (low + high) // 2
        # P(Bin(n, p) <= k - 1) = P(Bin(n, 1 - p) >= n - k + 1).
        fits = betainc(n - k + 1, np.maximum(k, 1), miss) * (1 + _SLACK) <= alpha
        moving = high - low > 1
        low, high = np.where(moving & fits, k, low), np.where(moving & ~fits, k, high)
    return low
