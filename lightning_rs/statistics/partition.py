"""Two-class bounds from a partition of the other classes that the selection samples choose.

Bounding all C - 1 other classes one by one costs each of them 1 / (C - 1) of their share of alpha. Classes that are far
below the runner-up need no bound of their own: one for all of them together is enough, since none exceeds the sum.
Delattre et al. (2025), section 4, bound such buckets; here the first bucket is the top class at half of alpha, as in
"bonferroni", so that its bound stays what it was.
"""

from __future__ import annotations

import numpy as np

from lightning_rs.checks import FloatArray, IntArray
from lightning_rs.statistics.binomial import clopper_pearson_lower, clopper_pearson_tail_upper, clopper_pearson_upper

# How sure the selection must be that classes together stay below the runner-up before they share a bound. It decides
# which sound bound is used, not whether it is sound.
_DOUBT = 1e-5


def bounded_alone(selection: IntArray, top: IntArray) -> IntArray:
    """Return how many of the other classes, by their selection votes, get a bound of their own, shape (B,).

    The fewest for which the rest together is surely below the runner-up; C - 1, all, where that is not sure.

    Args:
        selection: votes of the selection samples, shape (B, C).
        top: class of each row, shape (B,).
    """
    ranked = np.take_along_axis(selection, _others(selection, top), axis=1)
    n = selection.sum(axis=1)
    rest = ranked.sum(axis=1)[:, None] - np.cumsum(ranked, axis=1)
    some = np.maximum(n, 1)[:, None]
    surely = np.asarray(clopper_pearson_lower(ranked[:, :1], some, _DOUBT))
    below = (np.asarray(clopper_pearson_upper(rest, some, _DOUBT)) <= surely) & (n[:, None] > 0)
    below[:, -1] = True  # nothing is left
    return below.argmax(axis=1) + 1


def partition_tail_bounds(
    counts: IntArray, top: IntArray, alpha: FloatArray, selection: IntArray
) -> tuple[FloatArray, FloatArray]:
    """Return ``(q_upper, p_upper)``: a bound of one minus the top class, and one of every other class.

    ``q_upper`` takes ``alpha / 2``; the m classes with a bound of their own and the rest as a whole take
    ``alpha / (2 (m + 1))`` each (``alpha / (2 m)`` where no rest is left). Never above "bonferroni" unless the rest
    together has more votes than the first of the other classes.

    Args:
        counts: votes of the estimation samples, shape (B, C), C >= 2.
        top: class of each row from the selection samples, shape (B,).
        alpha: joint failure probability of each row, shape (B,).
        selection: votes of the selection samples, shape (B, C): they alone choose the buckets.
    """
    n = counts.sum(axis=1)
    hits = np.take_along_axis(counts, top[:, None], axis=1)[:, 0]
    tail = np.asarray(clopper_pearson_tail_upper(hits, n, 0.5 * alpha), dtype=np.float64)
    alone = bounded_alone(selection, top)
    ranked = np.take_along_axis(counts, _others(selection, top), axis=1)
    own = np.arange(ranked.shape[1]) < alone[:, None]
    # The bound grows with the count: the largest bucket has the largest bound.
    largest = np.maximum(np.where(own, ranked, 0).max(axis=1), np.where(own, 0, ranked).sum(axis=1))
    buckets = alone + (alone < ranked.shape[1])
    upper = np.asarray(clopper_pearson_upper(largest, n, 0.5 * alpha / buckets), dtype=np.float64)
    return tail, np.minimum(upper, tail)


def _others(selection: IntArray, top: IntArray) -> IntArray:
    """Return the classes other than the top one, by falling selection votes, shape (B, C - 1)."""
    votes = selection.astype(np.int64).copy()
    np.put_along_axis(votes, top[:, None], -1, axis=1)
    return np.argsort(-votes, axis=1, kind="stable")[:, :-1]
