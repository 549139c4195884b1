"""What the votes of all outcomes of an enumerated law say of ranks and sets of labels: exact, whole numbers, no torch.

A perturbation changes the votes of at most D outcomes, in any way. Without a threshold an outcome casts one vote, so
that a changed one moves a vote from one class to another; with a threshold it may vote for several classes or for none,
so that a changed one takes a vote from any classes and gives one to any others at the same time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.checks import IntArray, as_count, check_at_least

_NEVER = np.iinfo(np.int64).max // 4


def topk_votes_distance(
    votes: ArrayLike, label: ArrayLike, k: int, *, several: bool = False, doubtful: ArrayLike = 0
) -> IntArray:
    r"""Return how many outcomes may change while a label stays among the k classes with most votes.

    Ranks are by votes, ties by the lower class. Class c passes label l when ``g_c = n_l - n_c - 1{c < l} < 0``. With
    one vote an outcome, m changed ones take m votes from l, which closes every gap by m, and give m votes: k classes
    pass iff ``sum_c max(g_c - m + 1, 0) <= m`` over the k smallest gaps. With ``several`` each changed outcome closes
    all k gaps by 2: they pass iff the k-th smallest gap is below 2 m. Either way the smallest such m, less one. k = 1
    is :func:`~lightning_rs.certificates.splitting.splitting_votes_distance` of the most frequent class. Ours; exact up
    to how many votes there are to take.

    Args:
        votes: number of outcomes that voted for each class, shape (..., C), C >= 2, all outcomes counted.
        label: l, shape (...); it may be chosen after looking, because nothing is sampled.
        k: how many classes count as the top, from 1 to C - 1.
        several: whether an outcome may vote for several classes or for none.
        doubtful: how many outcomes floating-point error could turn, shape (...): the distance drops by one for each.

    Returns:
        The distance, int64, shape (...); negative where not even the input itself is certain to have l in the top k.

    Raises:
        ValueError: for negative or fractional votes, fewer than two classes, or k outside 1..C - 1.

    >>> print(topk_votes_distance([40, 30, 10], 0, 2))
    15
    """
    counts, own = _checked(votes, label)
    if check_at_least("k", k, 1) > counts.shape[-1] - 1:
        raise ValueError(f"k must be at most {counts.shape[-1] - 1}, the number of other classes, got {k}")
    gaps = np.sort(_gaps(counts, own), axis=-1)[..., :k]  # its own is _NEVER
    return (_fewest(gaps, several) - 1 - as_count("doubtful", doubtful))[()]


def set_votes_distance(
    votes: ArrayLike, inside: ArrayLike, *, several: bool = False, doubtful: ArrayLike = 0
) -> IntArray:
    r"""Return how many outcomes may change while the class with most votes stays inside a set T of classes.

    It leaves T when a class c outside passes every t in T, that is when all gaps ``g_tc = n_t - n_c - 1{c < t}`` are
    negative: m changed outcomes give c as many votes, taken from T where the gaps are largest, so that they suffice iff
    ``sum_t max(g_tc - m + 1, 0) <= m``, and with ``several`` iff the largest gap is below 2 m. T = {A} is
    :func:`~lightning_rs.certificates.splitting.splitting_votes_distance`; T = all but c says "cannot become c". Ours.

    Args:
        votes: number of outcomes that voted for each class, shape (..., C), C >= 2, all outcomes counted.
        inside: which classes belong to T, bool, shape (..., C); neither none nor all of them.
        several: whether an outcome may vote for several classes or for none.
        doubtful: how many outcomes floating-point error could turn, shape (...): the distance drops by one for each.

    Returns:
        The distance, int64, shape (...); negative where the input itself is not certain to be inside.

    Raises:
        ValueError: for negative or fractional votes, fewer than two classes, or a set that is empty or everything.

    >>> print(set_votes_distance([40, 30, 10], [True, True, False]))
    17
    """
    counts, _ = _checked(votes, 0)
    member = np.broadcast_to(np.asarray(inside, dtype=bool), counts.shape)
    if not (member.any(axis=-1) & ~member.all(axis=-1)).all():
        raise ValueError("inside must hold some classes, and leave some out")
    doubt, fewest = as_count("doubtful", doubtful), np.full(counts.shape[:-1], _NEVER)
    for rival in range(counts.shape[-1]):
        # n_t - n_c - 1{c < t} for all t; those outside T need not be passed.
        gaps = counts - counts[..., rival : rival + 1] - (rival < np.arange(counts.shape[-1]))
        needed = _fewest(np.where(member, gaps, -_NEVER), several)
        fewest = np.where(member[..., rival], fewest, np.minimum(fewest, needed))
    return (fewest - 1 - doubt)[()]


def _checked(votes: ArrayLike, label: ArrayLike) -> tuple[IntArray, NDArray[np.int64]]:
    counts, own = as_count("votes", votes), np.asarray(label)
    if counts.ndim == 0 or counts.shape[-1] < 2:
        raise ValueError(f"votes must have at least 2 classes on the last axis, got shape {counts.shape}")
    if own.dtype.kind not in "iu" or ((own < 0) | (own >= counts.shape[-1])).any():
        raise ValueError(f"label must hold classes in [0, {counts.shape[-1]}), got {label!r}")
    return counts, np.broadcast_to(own, counts.shape[:-1]).astype(np.int64)


def _gaps(counts: IntArray, label: NDArray[np.int64]) -> IntArray:
    """Return n_l - n_c - 1{c < l} for every class, the label's own so large that it never passes."""
    own, classes = label[..., None], np.arange(counts.shape[-1])
    gaps = np.take_along_axis(counts, own, axis=-1) - counts - (classes < own)
    return np.where(classes == own, _NEVER, gaps)


def _fewest(gaps: IntArray, several: bool) -> IntArray:
    """Return the fewest changed outcomes that make all gaps of the last axis negative."""
    largest = gaps.max(axis=-1)
    if several:
        return np.maximum(largest // 2 + 1, 0)
    low, high = np.full(largest.shape, -1), np.maximum(largest + 1, 0)  # high: every gap is closed by itself
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = np.maximum(gaps - middle[..., None] + 1, 0).sum(axis=-1) <= middle
        moving = high - low > 1
        low, high = np.where(moving & ~enough, middle, low), np.where(moving & enough, middle, high)
    return high
