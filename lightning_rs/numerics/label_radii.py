"""Votes only: a label stays among the k most probable ones, or in a set of labels. Numpy, no torch.

The theorems read nothing but class counts, so finished records yield them without the network. Gaussian and Laplace
noise move a probability by at most a shift of its score; laws of bounded overlap (uniform, splitting, ablation) move
all probabilities together by at most their total variation.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from lightning_rs.checks import FloatArray, check_at_least, check_positive, check_probability
from lightning_rs.numerics.vote_radii import gaussian_l2_radius

# More than the relative error of Phi(Phi^-1(q) + r) for scores up to 38.
_SLACK = 2.0**-40
# No pair of positive doubles has scores further apart: Phi^-1(5e-324) = -38.5.
_FARTHEST = 80.0


def topk_l2_radius(q_upper: ArrayLike, others_upper: ArrayLike, k: int, sigma: ArrayLike) -> FloatArray:
    r"""Certified l2 radius within which a label stays among the k most probable ones of the smoothed classifier.

    Statement: let the label have probability at least ``1 - q_upper`` at x under N(x, sigma^2 I) and the other labels
    at most ``others_upper``. Then for every x' with ``||x - x'||_2 < R`` fewer than k labels are at least as probable
    as it. R is ``sigma`` times the root of

        Phi(-Phi^-1(q) - r) = min_{t = 1..k} Phi(Phi^-1(S_t) + r) / t,    S_t = min(q, sum of the t smallest of the k
        largest others),

    because among k labels the least probable t share at most Phi(Phi^-1(S_t) + r). Jia, Cao, Wang and Gong (2020),
    Theorem 1, in the form that needs no search over sets. k = 1 is Cohen's two-class radius.

    Args:
        q_upper: upper bound of 1 - p of the label, shape (...). A label below one half is fine for k >= 2.
        others_upper: upper bounds of the other labels' probabilities, shape (..., C - 1), in any order; all bounds must
            hold together.
        k: how many labels count as the top, from 1 to C - 1.
        sigma: standard deviation of the noise, in input units, shape (...).

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is certified;
        infinite where the k-th other label has the bound 0 or ``q_upper`` is 0.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], ``sigma`` not positive, or k outside 1..C - 1.

    >>> print(round(topk_l2_radius(0.7, [0.3, 0.25, 0.15], 2, 1.0), 6))
    0.075045
    """
    return _shifted(ndtr, ndtri, _FARTHEST, q_upper, others_upper, k, check_positive("sigma", sigma))


def topk_laplace_l1_radius(q_upper: ArrayLike, others_upper: ArrayLike, k: int, scale: ArrayLike) -> FloatArray:
    r"""Certified l1 radius within which a label stays among the k most probable ones under Laplace noise.

    Statement: as :func:`topk_l2_radius` with ``||x - x'||_1 < R`` and F, the distribution function of the Laplace law
    of scale 1, in the place of Phi; R is ``scale`` times the root. Reason: moving one coordinate by r scales takes a
    probability p to ``F(F^-1(p) - r)`` at least and ``F(F^-1(p) + r)`` at most, because the likelihood ratio grows with
    that coordinate (Neyman and Pearson), and such moves add up along the coordinates to r = ||x - x'||_1 / scale.
    k = 1 with one other label of probability q is :func:`~lightning_rs.numerics.vote_radii.laplace_l1_radius`. Ours.

    Args:
        q_upper: upper bound of 1 - p of the label, shape (...).
        others_upper: upper bounds of the other labels' probabilities, shape (..., C - 1); all bounds hold together.
        k: how many labels count as the top, from 1 to C - 1.
        scale: parameter b of the Laplace law, in input units, shape (...).

    Returns:
        Radius of the open l1 ball in input units, broadcast shape, rounded down; edges as :func:`topk_l2_radius`.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], ``scale`` not positive, or k outside 1..C - 1.

    >>> print(round(topk_laplace_l1_radius(0.1, [0.1], 1, 0.5), 6))
    0.804719
    """
    far = 2000.0  # no pair of positive doubles has scores further apart: log(2 x 5e-324) = -744
    return _shifted(_laplace, _laplace_score, far, q_upper, others_upper, k, check_positive("scale", scale))


def topk_variation(q_upper: ArrayLike, others_upper: ArrayLike, k: int) -> FloatArray:
    r"""Return the total variation below which a label stays among the k most probable ones, whatever the noise.

    Statement: if moving from x to x' changes the law of the noisy input by a total variation less than the returned V,
    fewer than k labels are at least as probable as the label at x'. Reason: no set of labels gains or loses more than
    that, so that the least probable t of k labels share at most ``S_t + V`` there, and the label keeps ``1 - q - V``:

        V = max_{t = 1..k} (t (1 - q) - S_t) / (t + 1),    S_t as for :func:`topk_l2_radius`.

    Uniform and splitting noise move by ``||delta||_1 / (2 lam)`` at most, ablation by
    :func:`~lightning_rs.numerics.kept_pixels.ablation_discrepancy`. k = 1: (p - p_other) / 2. Ours.

    Args:
        q_upper: upper bound of 1 - p of the label, shape (...).
        others_upper: upper bounds of the other labels' probabilities, shape (..., C - 1); all bounds hold together.
        k: how many labels count as the top, from 1 to C - 1.

    Returns:
        V in [0, 1), broadcast shape, float64, rounded down; 0 where nothing is certified. A label with the bound 0 may
        still appear at x': such laws move mass to where there was none.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], or k outside 1..C - 1.

    >>> print(round(topk_variation(0.4, [0.4, 0.1], 1), 6), round(topk_variation(0.4, [0.4, 0.1], 2), 6))
    0.1 0.266667
    """
    tail, sums = _tails_and_sums(q_upper, others_upper, k)
    parts = np.arange(1, sums.shape[-1] + 1)
    value = ((parts * (1.0 - tail[..., None]) - sums) / (parts + 1)).max(axis=-1) - 2.0**-50
    return np.maximum(value, 0.0)[()]


def _tails_and_sums(q_upper: ArrayLike, others_upper: ArrayLike, k: int) -> tuple[FloatArray, FloatArray]:
    """Return the label's tail, (...), and S_1, ..., S_k, (..., k), rounded up."""
    tail, others = check_probability("q_upper", q_upper), check_probability("others_upper", others_upper)
    count = others.shape[-1] if others.ndim else 0
    if check_at_least("k", k, 1) > count:
        raise ValueError(f"k must be at most {count}, the number of other labels, got {k}")
    tail = np.broadcast_to(tail, np.broadcast_shapes(tail.shape, others.shape[:-1]))
    # Ascending sums of the k largest; rounded up, because a sum of t terms errs by less than t ulps.
    sums = np.cumsum(np.sort(others, axis=-1)[..., -k:], axis=-1) * (1 + k * 2.0**-52)
    return tail, np.minimum(np.broadcast_to(sums, (*tail.shape, k)), tail[..., None])


def _shifted(
    cdf: Callable[[FloatArray], FloatArray],
    score_of: Callable[[FloatArray], FloatArray],
    farthest: float,
    q_upper: ArrayLike,
    others_upper: ArrayLike,
    k: int,
    scale: FloatArray,
) -> FloatArray:
    """Return the radius of a law that moves scores by at most r / scale: see :func:`topk_l2_radius`."""
    tail, sums = _tails_and_sums(q_upper, others_upper, k)
    shape = np.broadcast_shapes(tail.shape, scale.shape)
    tails, sums = np.broadcast_to(tail, shape), np.broadcast_to(sums, (*shape, k))
    score, rivals = -score_of(tails), score_of(sums)
    parts = np.arange(1, k + 1)

    def holds(r: FloatArray) -> np.ndarray:
        own = cdf(score - r) * (1 - _SLACK)
        return own > (cdf(rivals + r[..., None]) / parts).min(axis=-1) * (1 + _SLACK)

    low, high = np.zeros(shape), np.full(shape, farthest)
    for _ in range(64):  # the interval is one ulp long after 60
        middle = 0.5 * (low + high)
        inside = holds(middle)
        low, high = np.where(inside, middle, low), np.where(inside, high, middle)
    endless = (sums == 0).any(axis=-1)
    return np.where(endless, np.inf, scale * low * (1 - _SLACK))[()]


def _laplace(score: FloatArray) -> FloatArray:
    small = 0.5 * np.exp(-np.abs(score))
    return np.where(score < 0, small, 1.0 - small)


def _laplace_score(p: FloatArray) -> FloatArray:
    with np.errstate(divide="ignore"):
        return np.where(p < 0.5, np.log(2.0 * p), -np.log(2.0 * (1.0 - p)))


def label_set_l2_radius(p_lower_inside: ArrayLike, p_upper_outside: ArrayLike, sigma: ArrayLike) -> FloatArray:
    """Certified l2 radius within which the smoothed prediction stays inside a set T of labels.

    Statement: if some label of T has probability at least ``p_lower_inside`` at x under N(x, sigma^2 I), and every
    label outside at most ``p_upper_outside``, then the prediction lies in T at every x' with ``||x - x'||_2 < R``,
    ``R = sigma / 2 (Phi^-1(p_lower_inside) - Phi^-1(p_upper_outside))``: Cohen, Rosenfeld and Kolter (2019), Theorem
    1, for the strongest label of T at x. T may be a superclass; T = all labels but c says "cannot become c".

    Args:
        p_lower_inside: the largest lower bound of a label of T, in [0, 1].
        p_upper_outside: the largest upper bound of a label outside T, in [0, 1]; all bounds must hold together.
        sigma: standard deviation of the noise, in input units.

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is certified.

    Raises:
        ValueError: for NaN, a probability outside [0, 1] or ``sigma`` not positive.

    >>> print(round(label_set_l2_radius(0.45, 0.2, 0.5), 6))
    0.17899
    """
    return gaussian_l2_radius(p_lower_inside, sigma, p_upper_outside)
