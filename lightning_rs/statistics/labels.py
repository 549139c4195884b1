"""Bounds of all class probabilities at once, from the votes of one image: for statements about ranks and sets.

Which label is bounded from below must not depend on these votes: the true label, or a class of other samples.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.checks import FloatArray, IntArray, as_count, check_alpha
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, clopper_pearson_upper


def label_bounds(
    counts: ArrayLike,
    label: ArrayLike,
    alpha: float,
    against: ArrayLike | None = None,
    missing: ArrayLike = 0,
    gained: ArrayLike = 0,
) -> tuple[FloatArray, FloatArray]:
    """Return a bound of one label's tail and bounds of the other classes, which hold together.

    ``q_upper`` of the label takes ``alpha / 2``; each of the m classes that it is compared with takes
    ``alpha / (2 m)``, one-sided Clopper-Pearson each: together they fail with probability at most ``alpha``.

    Args:
        counts: votes of independent samples, shape (B, C) with C >= 2, at least one in each row.
        label: the label of each row, shape (B,), chosen without these votes.
        alpha: failure probability of all bounds of one row together, in (0, 1).
        against: which classes are bounded, shape (B, C), chosen without these votes; the label itself never is.
            None: all others.
        missing: votes that the label may have less, shape (B,).
        gained: votes that any other class may have more, shape (B,).

    Returns:
        ``q_upper`` >= 1 - p of the label, shape (B,), and upper bounds of shape (B, C), 0 where a class is not bounded;
        none exceeds ``q_upper``, because the label leaves no more.

    Raises:
        ValueError: for votes of another shape, a label outside 0..C - 1, a row without votes or alpha outside (0, 1).
    """
    votes, level = as_count("counts", counts), float(check_alpha(alpha))
    if votes.ndim != 2 or votes.shape[1] < 2:
        raise ValueError(f"counts must have shape (B, C) with C >= 2 classes, got shape {votes.shape}")
    own = np.asarray(label)
    if own.dtype.kind not in "iu" or own.shape != votes.shape[:1] or ((own < 0) | (own >= votes.shape[1])).any():
        raise ValueError(f"label must hold one class in [0, {votes.shape[1]}) a row, got {label!r}")
    n = votes.sum(axis=1)
    hits = np.maximum(np.take_along_axis(votes, own[:, None], 1)[:, 0] - as_count("missing", missing), 0)
    votes = np.minimum(votes + np.broadcast_to(as_count("gained", gained), n.shape)[:, None], n[:, None])
    tail = np.asarray(clopper_pearson_tail_upper(hits, n, 0.5 * level))
    bounded = np.ones(votes.shape, dtype=bool) if against is None else np.array(against, dtype=bool)
    np.put_along_axis(bounded, own[:, None], False, axis=1)
    upper = np.zeros(votes.shape)
    rivals = bounded.sum(axis=1)
    for many in np.unique(rivals[rivals > 0]).tolist():
        rows, classes = np.nonzero(bounded & (rivals == many)[:, None])
        upper[rows, classes] = _upper(votes[rows, classes], n[rows], 0.5 * level / many)
    return tail, np.minimum(upper, tail[:, None])


def _upper(counts: IntArray, n: IntArray, alpha: float) -> NDArray[np.float64]:
    """Return Clopper-Pearson bounds, solved once for each pair that occurs."""
    pairs, where = np.unique(np.stack([counts, n]), axis=1, return_inverse=True)
    return np.asarray(clopper_pearson_upper(pairs[0], pairs[1], alpha), dtype=np.float64)[where.ravel()]
