"""Radii from bounds of the probabilities alone, the formulas of the votes-only theorems: numpy, no torch.

Certificates apply them to votes as they come; records are read against them without the network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from lightning_rs.checks import (
    FloatArray,
    as_float64,
    check_at_least,
    check_positive,
    check_probability,
    given,
    tail_of,
)
from lightning_rs.numerics.rounding import round_down

#: More than the relative error of ``ndtri`` and of the few operations after it (both below 2 ulps each).
SLACK = 2.0**-49


def gaussian_l2_radius(
    p_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius of Gaussian smoothing, ``sigma / 2 (Phi^-1(p_lower) - Phi^-1(p_upper))``.

    Statement: if class A has probability at least ``p_lower`` at x under N(x, sigma^2 I), and every other class
    at most ``p_upper``, then A stays the most probable class at every x' with ``||x - x'||_2 < R``. Exact given
    the two probabilities. Cohen, Rosenfeld and Kolter (2019), Theorem 1.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        sigma: standard deviation of the noise, in input units.
        p_upper: upper bound of the probability of the runner-up; None: ``1 - p_lower``, for which
            ``R = sigma Phi^-1(p_lower)``. It is clipped to ``1 - p_lower``, which holds whenever ``p_lower`` does.
        q_upper: the tail ``1 - p_lower`` instead, exact near 0.

    Returns:
        Radius of the open l2 ball in input units, broadcast shape, float64, rounded down; 0 where nothing is
        certified; infinite for a tail (or ``p_upper``) of exactly 0.

    Raises:
        ValueError: for NaN, a probability outside [0, 1], ``sigma`` missing or not positive, or unless exactly one
            of ``p_lower`` and ``q_upper`` is given.

    >>> print(round(gaussian_l2_radius(0.9, 0.5), 6))
    0.640776
    >>> print(round(gaussian_l2_radius(0.45, 0.5, p_upper=0.2), 6))
    0.17899
    >>> print(round(gaussian_l2_radius(q_upper=1e-20, sigma=0.5), 6))
    4.63117
    """
    scale = check_positive("sigma", given("sigma", sigma))
    tail = tail_of(p_lower, q_upper)
    # Below one half p itself has more digits than 1 - p.
    score = -ndtri(tail) if p_lower is None else np.where(tail > 0.5, ndtri(p_lower), -ndtri(tail))
    other = score if p_upper is None else -ndtri(np.minimum(check_probability("p_upper", p_upper), tail))
    return (_scaled(scale, _lowered_mean(score, other)))[()]


def uniform_l1_radius(
    p_lower: ArrayLike | None = None,
    lam: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """l1 radius of uniform or splitting noise: ``2 lam (p - 1/2)``, or ``lam (p_lower - p_upper)``.

    Statement: if the smoothed probability of class A at x is at least ``p_lower`` (and, if ``p_upper`` is
    given, that of every other class at most ``p_upper``), then A stays the most probable class at every x'
    with ``||x - x'||_1 < R``. Reason: each smoothed probability is 1/(2 lam)-Lipschitz in l1. Lee, Yuan,
    Chang and Jaakkola (2019); Yang et al. (2020), for additive uniform noise on [-lam, lam]^d; Levine and
    Feizi (2021), Theorems 1 and 2, for the two-class form and for splitting noise.

    Assumes either additive uniform noise with independent coordinates, or splitting noise with any joint
    law of the s_i and x, x' in [0, 1]^d. Exact given the probabilities for x' in R^d; for x' in [0, 1]^d and
    independent coordinates :func:`uniform_box_l1_radius` is at least as large.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units; its standard deviation is lam / sqrt(3).
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower. It is clipped to
            1 - p_lower, which holds whenever ``p_lower`` does.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l1 ball in input units, broadcast shape, float64; 0 where nothing is certified,
        at most lam.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1] or ``lam`` left out or not positive.

    Example:
        >>> print(round(uniform_l1_radius(0.9, lam=0.5), 6))
        0.4
        >>> print(round(uniform_l1_radius(0.45, lam=0.5, p_upper=0.25), 6))
        0.1
    """
    budget = _budget(p_lower, p_upper, q_upper)
    return round_down(2.0 * check_positive("lam", given("lam", lam)) * budget)


def uniform_linf_radius(
    p_lower: ArrayLike | None = None,
    lam: ArrayLike | None = None,
    dim: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """l-infinity radius of uniform noise: ``2 lam (1 - (1 - t)^(1/d))`` with ``t = p - 1/2``.

    Statement: as for :func:`uniform_l1_radius`, with ``||x - x'||_inf < R``. Shifting the uniform law on a
    cube of side 2 lam by delta leaves the fraction prod_i (1 - |delta_i| / (2 lam))_+ of it in place, where
    the density is unchanged; the rest, of mass TV(delta), is the most by which any probability can move.
    Over the ball of radius r the worst delta is a corner: TV = 1 - (1 - r / (2 lam))^d. R solves TV = t,
    with t = (p_lower - p_upper) / 2 in the two-class form. This is the exact Neyman-Pearson radius given
    the probabilities; it is an extension of Lee et al. (2019).

    Assumes independent coordinates: additive uniform noise, or splitting noise with independent s_i (there
    P(coordinate i changes) = |delta_i| / (2 lam) independently, and x, x' in [0, 1]^d). Not valid for
    splitting noise with a shared v.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units.
        dim: number d of coordinates, at least 1.
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l-infinity ball in input units, broadcast shape, float64; 0 where nothing is
        certified.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], ``lam`` left out or not positive or ``dim`` < 1.

    Example:
        >>> print(f"{uniform_linf_radius(0.9, lam=0.5, dim=3072):.6e}")
        1.662706e-04
    """
    budget, width = _budget(p_lower, p_upper, q_upper), 2.0 * check_positive("lam", given("lam", lam))
    size = as_float64("dim", given("dim", dim))
    if not (size >= 1).all():
        raise ValueError(f"dim must be at least 1, got {dim!r}")
    return round_down(-width * np.expm1(np.log1p(-budget) / size))


def uniform_box_l1_radius(
    p_lower: ArrayLike | None = None,
    lam: float | None = None,
    dim: int | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
    x: ArrayLike | None = None,
) -> FloatArray:
    r"""l1 radius of uniform or independent splitting noise against perturbed inputs that stay in [0, 1]^d.

    Statement: as for :func:`uniform_l1_radius`, for every x' in [0, 1]^d with ``||x - x'||_1 < R``. It uses
    that pixels live in [0, 1], as Voracek and Hein (2023), "Improving l1-certified robustness via
    randomized smoothing by leveraging box constraints".

    Derivation. The noise keeps the fraction prod_i (1 - t_i)_+, t_i = |delta_i| / (2 lam), of its mass in
    place (see :func:`uniform_linf_radius`), so A survives while the product exceeds 1 - t, t = p - 1/2 or
    (p_lower - p_upper) / 2. In the box |delta_i| <= c_i = max(x_i, 1 - x_i) <= 1. The sum of log(1 - t_i)_+
    is symmetric and concave, hence Schur-concave: over {sum_i |delta_i| = r, |delta_i| <= c_i} it is
    smallest at the vector that majorises all others, which fills the largest c_i one after the other.
    R is the r at which this greedy product reaches 1 - t. Exact given the probabilities.

    For 2 lam <= 1, or R <= max_i c_i, one coordinate suffices and R = 2 lam t as without the box. For large
    lam it tends to -2 lam log(1 - t): up to 2 ln 2 = 1.386 times larger. Without ``x`` all c_i are 1, the
    worst case over images; this needs only counts, and natural images with saturated pixels attain it.

    Not valid for splitting noise with a shared v (see
    :class:`lightning_rs.certificates.splitting.DeterministicSplittingL1`).

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units.
        dim: number d of coordinates.
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower.
        q_upper: the tail 1 - p_lower instead, exact near 0.
        x: one image in [0, 1]^d, any shape with ``dim`` entries, for the radius of this image.

    Returns:
        Radius in input units of the open l1 ball intersected with [0, 1]^d, shape of the probabilities,
        float64; 0 where nothing is certified; the distance sum_i c_i of the farthest corner if the whole
        box is.

    Raises:
        ValueError: for NaN, probabilities or ``x`` outside [0, 1], ``lam`` left out or not positive, ``dim`` < 1
            or an ``x`` with another number of entries.

    Example:
        >>> print(round(uniform_box_l1_radius(0.99, lam=6.0, dim=3072), 6), round(12 * 0.49, 6))
        7.746922 5.88
    """
    budget, width = _budget(p_lower, p_upper, q_upper), 2.0 * float(check_positive("lam", given("lam", lam)))
    reach = _reach(check_at_least("dim", given("dim", dim), 1), width, x)
    with np.errstate(divide="ignore"):  # a coordinate moved by the whole width leaves nothing: log(0)
        kept = np.log1p(-np.minimum(reach / width, 1.0))
    kept = np.concatenate([[0.0], np.cumsum(kept)])
    distance = np.concatenate([[0.0], np.cumsum(reach)])
    goal = np.log1p(-np.maximum(budget, 0.0))
    full = np.searchsorted(-kept, -goal, side="right") - 1  # coordinates moved to their wall
    rest = -width * np.expm1(goal - kept[full])
    radius = round_down(np.minimum(distance[full] + rest, distance[-1]), relative=1e-12)
    # The plain radius, rounded down less coarsely, is sound as well.
    return np.maximum(radius, np.minimum(round_down(width * budget), distance[-1]))


def laplace_l1_radius(
    p_lower: ArrayLike | None = None, scale: ArrayLike | None = None, *, q_upper: ArrayLike | None = None
) -> FloatArray:
    r"""Exact l1 radius of a classifier smoothed with iid Laplace noise: ``R = -scale log(2 (1 - p))``.

    Statement: if the smoothed probability of class A at x is at least ``p_lower > 1/2``, it exceeds 1/2 at
    every x' with ``||x - x'||_1 < R``. This is Theorem 1 of Teng, Lee and Yuan (2020), "l1 adversarial
    robustness certificates: a randomized smoothing approach", for the runner-up bound 1 - p_lower.

    Derivation. Noise has density prod_i exp(-|z_i| / b) / (2b), b = ``scale``. Shift it by delta, with
    r = ||delta||_1. By the triangle inequality the likelihood ratio of the shifted to the unshifted law is

        exp((||z||_1 - ||z - delta||_1) / b)  <=  exp(r / b)   for every z.

    So the event "not A", of probability at most q = 1 - p at x, has probability at most q exp(r / b) at
    x + delta, which is below 1/2 iff r < -b log(2 q) = R.

    Exact: the bound is attained, in every dimension, by the classifier "A iff z_1 <= x_1 + R" and
    delta = R e_1. Its tail at x is exp(-R / b) / 2 = q, and at x + delta it is P(z_1 > 0) = 1/2. The
    Neyman-Pearson set is this half-space because the ratio is largest, exp(r / b), on z_1 >= R. Hence no
    larger radius follows from p alone, whatever the dimension.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        scale: parameter b of the Laplace law, in input units; its standard deviation is sqrt(2) b.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l1 ball in input units, broadcast shape, float64; 0 for p_lower <= 1/2 and
        infinity for q_upper = 0.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1] a scale that is not positive or left out.

    Example:
        >>> print(round(laplace_l1_radius(0.9, scale=0.5), 6))
        0.804719
    """
    tail, b = tail_of(p_lower, q_upper), check_positive("scale", given("scale", scale))
    with np.errstate(divide="ignore"):  # log(0): a tail of zero certifies every radius
        return round_down(-b * np.log(2.0 * tail))


def _reach(dim: int, width: float, x: ArrayLike | None) -> FloatArray:
    if x is None:
        # (1 - 1 / width)^k < 1/2 for k = width: farther coordinates are never touched.
        return np.ones(min(dim, int(np.ceil(width)) + 1))
    image = check_probability("x", x).ravel()
    if image.size != dim:
        raise ValueError(f"x must have dim = {dim} entries, got {image.size}")
    return np.sort(np.maximum(image, 1.0 - image))[::-1]


def _budget(p_lower: ArrayLike | None, p_upper: ArrayLike | None, q_upper: ArrayLike | None) -> FloatArray:
    """Return how much total variation the prediction survives: (p_lower - max other) / 2."""
    tail = tail_of(p_lower, q_upper)
    other = tail if p_upper is None else np.minimum(check_probability("p_upper", p_upper), tail)
    return 0.5 - 0.5 * (tail + other)


def _lowered_mean(first: FloatArray, second: FloatArray) -> FloatArray:
    """Return (first + second) / 2, lowered by its rounding error; 0 where negative or inf - inf."""
    with np.errstate(invalid="ignore"):
        mean = 0.5 * first + 0.5 * second
        error = SLACK * (0.5 * np.abs(first) + 0.5 * np.abs(second))
        lowered = np.where(np.isfinite(error), mean - error, mean)
    return np.maximum(np.nan_to_num(lowered, nan=0.0, posinf=np.inf, neginf=0.0), 0.0)


def _scaled(sigma: FloatArray, radius: FloatArray) -> FloatArray:
    return sigma * radius * (1 - SLACK)
