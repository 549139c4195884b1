"""Clopper-Pearson bounds, simultaneous bounds on class probabilities, and the test of prediction.

Every bound is rounded the safe way. SciPy's inverse incomplete beta functions are off by up to 2e-9
(relative) in the unsafe direction for n = 1e8, so each solution is checked against the distribution function
itself and moved outward until it satisfies the defining inequality with a relative slack of 1e-11 in alpha,
which exceeds the error of the distribution function (3e-12 at n = 1e8).
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, betainccinv, betaincinv

from lightning_rs.checks import as_count, check_alpha, check_choice, check_probability

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Method = Literal["partition", "bonferroni", "grouped"]

#: The events of :func:`simultaneous_bounds`, by method, and the share of alpha of each: the one place where they are
#: set. All events may use the same samples, and the shares add up to one (union bound).
TWO_CLASS_SHARES: Mapping[str, Mapping[str, float]] = MappingProxyType(
    {
        "partition": {"p_lower": 1 / 2, "p_upper": 1 / 2},
        "bonferroni": {"p_lower": 1 / 2, "p_upper": 1 / 2},
        "grouped": {"p_lower": 1 / 3, "runner_up_upper": 1 / 3, "others_upper": 1 / 3},
    }
)

_SLACK = 1e-11
_FIRST_STEP = 2.0**-52


def clopper_pearson_lower(count: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Return the one-sided lower confidence bound on a success probability.

    ``p_lower`` solves ``P(Bin(n, p) >= count) = alpha``; it is 0 for ``count = 0``. The true probability is
    at least ``p_lower`` with probability at least ``1 - alpha`` (Clopper and Pearson 1934). Near one use
    :func:`clopper_pearson_tail_upper`: the tail keeps its digits there.

    Args:
        count: successes, any shape; ``n`` and ``alpha`` broadcast against it.
        n: independent trials, at least 1.
        alpha: failure probability in (0, 1), one-sided. The two-sided interval of other libraries at level
            ``2 * alpha`` has the same lower end.

    Returns:
        The bound, rounded down, of the broadcast shape.

    Raises:
        ValueError: if a count exceeds ``n``, ``n`` < 1 or ``alpha`` lies outside (0, 1).

    >>> round(float(clopper_pearson_lower(99, 100, 0.001)), 6)
    0.911373
    """
    hits, trials, level = _checked(count, n, alpha)
    some = np.maximum(hits, 1)
    fails = trials - some + 1
    start = np.nan_to_num(betaincinv(some, fails, level * (1 - 2 * _SLACK)), nan=0.0)
    return np.where(hits == 0, 0.0, _outward(start, -1, betainc, some, fails, level))[()]


def clopper_pearson_upper(count: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Return the one-sided upper confidence bound on a success probability.

    ``p_upper`` solves ``P(Bin(n, p) <= count) = alpha``; it is 1 for ``count = n``. Accurate near zero.
    Arguments, shapes, rounding (up) and errors as in :func:`clopper_pearson_lower`.

    >>> round(float(clopper_pearson_upper(0, 100, 0.001)), 6)
    0.066746
    """
    hits, trials, level = _checked(count, n, alpha)
    misses = np.maximum(trials - hits, 1)
    start = np.nan_to_num(betainccinv(hits + 1, misses, level * (1 - 2 * _SLACK)), nan=1.0)
    return np.where(hits == trials, 1.0, _outward(start, 1, betaincc, hits + 1, misses, level))[()]


def clopper_pearson_tail_upper(count: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> FloatArray:
    """Return the upper bound on the tail ``q = 1 - p``: ``1 - clopper_pearson_lower``, with all its digits.

    It is the upper bound on the probability of failure. Feed it to ``q_upper`` of the radius functions.
    Arguments, shapes, rounding (up) and errors as in :func:`clopper_pearson_lower`.

    >>> f"{clopper_pearson_tail_upper(10**8, 10**8, 0.001):.6e}"
    '6.907755e-08'
    """
    hits, trials, level = _checked(count, n, alpha)
    return clopper_pearson_upper(trials - hits, trials, level)


def randomized_clopper_pearson_tail(count: ArrayLike, n: ArrayLike, alpha: ArrayLike, u: ArrayLike) -> FloatArray:
    """Return the randomized Clopper-Pearson upper bound on the tail ``q = 1 - p``.

    ``p_lower = 1 - q`` solves ``P(Bin(n, p) > count) + u P(Bin(n, p) = count) = alpha``. With ``u`` uniform on
    (0, 1), drawn once for each image and stored, the bound fails with probability exactly ``alpha``
    (Stevens 1950; Voracek 2024). It is never larger than the deterministic bound, which is ``u = 1``.

    Args:
        count: successes, any shape; the others broadcast against it.
        n: independent trials, at least 1.
        alpha: failure probability in (0, 1).
        u: the draws, in [0, 1].

    Returns:
        The bound, rounded up. It is 0 if ``count = n`` and ``u <= alpha``: whoever turns it into a radius
        must cap that radius. It is 1 if ``count = 0`` and ``u >= alpha``.

    Raises:
        ValueError: as in :func:`clopper_pearson_lower`, or if ``u`` lies outside [0, 1].
    """
    hits, trials, level, draw = np.broadcast_arrays(*_checked(count, n, alpha), check_probability("u", u))
    goal = level * (1 - _SLACK)
    high = np.asarray(clopper_pearson_tail_upper(hits, trials, level))
    # u = 0 would be the deterministic bound for one more success.
    low = np.where(hits == trials, 0.0, clopper_pearson_tail_upper(np.minimum(hits + 1, trials), trials, level))
    low = low * (1 - 2 * _SLACK)
    some, misses = np.maximum(hits, 1), np.maximum(trials - hits, 1)
    moving = np.ones(np.shape(high), dtype=bool)  # what has converged is left alone, whatever its companions do
    for _ in range(60):
        middle = 0.5 * (low + high)
        at_least = np.where(hits == 0, 1.0, betaincc(trials - some + 1, some, middle))
        more = np.where(hits == trials, 0.0, betaincc(misses, hits + 1, middle))
        rejected = (1 - draw) * more + draw * at_least <= goal
        low, high = np.where(moving & ~rejected, middle, low), np.where(moving & rejected, middle, high)
        moving = moving & (high - low > 1e-14 * high)
        if not moving.any():
            break
    return np.where((hits == trials) & (draw <= goal), 0.0, high)[()]


def top_class_p_value(count_top: ArrayLike, count_second: ArrayLike) -> FloatArray:
    """Return the p-value of "the most frequent class is not the most probable one".

    Two-sided binomial test of the two largest counts, ``min(1, 2 P(Bin(count_top + count_second, 1/2) >=
    count_top))`` (Hung and Fithian 2019, used by PREDICT of Cohen et al. 2019). Return the class if the value
    is at most alpha, abstain otherwise; with several classes the test must stay two-sided.

    Args:
        count_top: largest count, any shape.
        count_second: second largest count, broadcast against it.

    Returns:
        The p-value, rounded up; 1 if the counts are equal.

    Raises:
        ValueError: if a count is negative or ``count_second`` exceeds ``count_top``.

    >>> float(round(top_class_p_value(38, 12), 6))
    0.000306
    """
    top, second = np.broadcast_arrays(as_count("count_top", count_top), as_count("count_second", count_second))
    if (second > top).any():
        raise ValueError(f"count_second must not exceed count_top, got {_first(second, second > top)}")
    tied = top == second
    one_sided = betainc(np.maximum(top, 1), second + 1, 0.5)
    return np.where(tied, 1.0, np.minimum(1.0, 2 * one_sided * (1 + _SLACK)))[()]


def simultaneous_bounds(
    counts: ArrayLike,
    top: ArrayLike,
    alpha: ArrayLike,
    method: Method = "bonferroni",
    runner_up: ArrayLike | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return ``(p_lower, p_upper)``: a lower bound on the top class and an upper bound on every other class.

    Both hold together with probability at least ``1 - alpha``, for finite n (the intervals of Goodman and of
    Sison and Glaz are asymptotic). ``top`` and ``runner_up`` must come from other samples than ``counts``, and
    the method must be chosen before looking at them.

    - "bonferroni": ``p_lower`` at ``alpha / 2``; each of the C - 1 other classes at ``alpha / (2 (C - 1))``.
    - "grouped": three events at ``alpha / 3``: the top class, the runner-up, and the two together (any third
      class has at most what those two leave). Independent of C; lumps all classes beyond the runner-up.

    Args:
        counts: votes, shape (..., C) with C >= 2, each row with at least one vote.
        top: class index, shape (...).
        alpha: joint failure probability in (0, 1), shape (...).
        method: "bonferroni" or "grouped".
        runner_up: class index, shape (...), other than ``top``; needed by "grouped", unused by "bonferroni".

    Returns:
        Two arrays of shape (...); ``p_upper`` is at most ``1 - p_lower`` (no further event is needed for it).

    Raises:
        ValueError: for an unknown method, indices outside [0, C), or a missing runner-up.
    """
    votes, first, level, second = _checked_votes(counts, top, alpha, method, runner_up)
    hits, n = _pick(votes, first), votes.sum(axis=-1)
    p_lower = clopper_pearson_lower(hits, n, level * _share(method))
    return p_lower, _others_upper(votes, first, second, level, method)


def simultaneous_tail_bounds(
    counts: ArrayLike,
    top: ArrayLike,
    alpha: ArrayLike,
    method: Method = "bonferroni",
    runner_up: ArrayLike | None = None,
    selection: ArrayLike | None = None,
) -> tuple[FloatArray, FloatArray]:
    """Return ``(q_upper, p_upper)``: :func:`simultaneous_bounds` with the tail of the top class, exact near one.

    "partition" reads the votes of the selection samples, ``selection``, shape (B, C): see
    :func:`~lightning_rs.statistics.partition.partition_tail_bounds`. Without them it is "bonferroni", whose classes all
    have a bound of their own.
    """
    if method == "partition":
        if selection is not None:
            from lightning_rs.statistics.partition import partition_tail_bounds

            votes, first, level, _ = _checked_votes(counts, top, alpha, "bonferroni", None)
            rows = (-1, votes.shape[-1])
            chosen = np.broadcast_to(as_count("selection", selection), votes.shape).reshape(rows)
            found = partition_tail_bounds(votes.reshape(rows), first.ravel(), level.ravel(), chosen)
            return found[0].reshape(first.shape)[()], found[1].reshape(first.shape)[()]
        method = "bonferroni"
    votes, first, level, second = _checked_votes(counts, top, alpha, method, runner_up)
    hits, n = _pick(votes, first), votes.sum(axis=-1)
    q_upper = clopper_pearson_tail_upper(hits, n, level * _share(method))
    return q_upper, _others_upper(votes, first, second, level, method)


def _others_upper(
    votes: IntArray, top: IntArray, runner_up: IntArray | None, alpha: FloatArray, method: str
) -> FloatArray:
    n, share = votes.sum(axis=-1), alpha * _share(method)
    hits = _pick(votes, top)
    if runner_up is None:
        others = np.where(np.arange(votes.shape[-1]) == top[..., None], -1, votes).max(axis=-1)
        upper = clopper_pearson_upper(others, n, share / (votes.shape[-1] - 1))
    else:
        second = _pick(votes, runner_up)
        left = clopper_pearson_tail_upper(hits + second, n, share)
        upper = np.maximum(clopper_pearson_upper(second, n, share), left)
    return np.minimum(upper, clopper_pearson_tail_upper(hits, n, share))[()]


def _share(method: str) -> float:
    share = TWO_CLASS_SHARES[method]["p_lower"]
    # Slightly less than a third, so that three of them never exceed the whole.
    return share if method == "bonferroni" else np.nextafter(share, 0)


def _pick(votes: IntArray, index: IntArray) -> IntArray:
    return np.take_along_axis(votes, index[..., None], axis=-1)[..., 0]


def _checked(count: ArrayLike, n: ArrayLike, alpha: ArrayLike) -> tuple[IntArray, IntArray, FloatArray]:
    hits, trials, level = np.broadcast_arrays(as_count("count", count), as_count("n", n), check_alpha(alpha))
    if (trials < 1).any():
        raise ValueError("n must be >= 1, got 0: a bound needs at least one sample")
    if (hits > trials).any():
        wrong = hits > trials
        raise ValueError(f"count must not exceed n = {_first(trials, wrong)}, got {_first(hits, wrong)}")
    return hits, trials, level


def _checked_votes(
    counts: ArrayLike, top: ArrayLike, alpha: ArrayLike, method: Method, runner_up: ArrayLike | None
) -> tuple[IntArray, IntArray, FloatArray, IntArray | None]:
    check_choice("method", method, ("bonferroni", "grouped"))
    votes = as_count("counts", counts)
    if votes.ndim < 1 or votes.shape[-1] < 2:
        raise ValueError(f"counts must have shape (..., C) with C >= 2 classes, got shape {votes.shape}")
    first = _index("top", top, votes)
    level = np.broadcast_to(check_alpha(alpha), votes.shape[:-1])
    if method == "bonferroni":
        return votes, first, level, None
    if runner_up is None:
        raise ValueError("runner_up is needed by method 'grouped': the second class of the selection samples")
    second = _index("runner_up", runner_up, votes)
    if (second == first).any():
        raise ValueError(f"runner_up must differ from top, got {_first(second, second == first)} for both")
    return votes, first, level, second


def _index(name: str, index: ArrayLike, votes: IntArray) -> IntArray:
    chosen = np.asarray(index)
    if chosen.dtype.kind not in "iu" or ((chosen < 0) | (chosen >= votes.shape[-1])).any():
        raise ValueError(f"{name} must hold class indices in [0, {votes.shape[-1]}), got {index!r}")
    return np.broadcast_to(chosen.astype(np.int64), votes.shape[:-1])


def _outward(start: FloatArray, sign: int, tail: np.ufunc, a: IntArray, b: IntArray, alpha: FloatArray) -> FloatArray:
    """Move bounds in the direction ``sign``, in growing steps, until ``tail(a, b, bound) <= alpha`` beyond rounding."""
    bound = np.array(start, dtype=np.float64).ravel()
    first, second, goal = a.ravel(), b.ravel(), (alpha * (1 - _SLACK)).ravel()
    todo = np.flatnonzero(tail(first, second, bound) > goal)
    step = _FIRST_STEP
    while todo.size:
        bound[todo] = np.clip(bound[todo] * (1 + sign * step), 0.0, 1.0)
        todo = todo[tail(first[todo], second[todo], bound[todo]) > goal[todo]]
        step = min(4 * step, 1.0)
    return bound.reshape(start.shape)


def _first(values: IntArray, mask: NDArray[np.bool_]) -> int:
    return int(values[mask].flat[0])
