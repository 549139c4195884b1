"""First-order certificates (Mohapatra et al. 2020, Theorem 3): l1, l-infinity and subspace radii from the gradient.

The theorem for k = 1, value and gradient of the smoothed probability at x, along one direction. A further local
constraint of their general framework (equation 2) would be one more multiplier in ``numerics.dual``; k = 0 is Cohen's
radius and the l2 radius for k = 1 is the second-order one (:mod:`lightning_rs.certificates.second_order`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lightning_rs.certificates.second_order import second_order_l2_radius, second_order_lower_bound
from lightning_rs.checks import FloatArray, IntArray, as_float64, check_nonnegative, check_positive, given
from lightning_rs.numerics.dual import LARGEST_RADIUS, Problem, dual_radius, solve, start
from lightning_rs.numerics.gaussian import bounded_tail, profile
from lightning_rs.numerics.rounding import round_down

#: Problems that are solved at once, to bound memory.
_BATCH = 1000


def first_order_lower_bound(
    p_lower: ArrayLike | None = None,
    m1: ArrayLike | None = None,
    m2: ArrayLike | None = None,
    r: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    r"""Lower bound of the smoothed probability at x + r sigma v from p and its gradient at x.

    The minimum of :math:`E[e^{rX - r^2/2} f]` over 0 <= f <= 1 with E f >= p, E[X f] >= m1 and E[U f] >= m2 for
    independent standard normal X (along v) and U (along the rest of the gradient). Mohapatra et al. 2020,
    Theorem 3, which states the conditions of the minimiser; the value is computed from the Lagrangian dual, where
    every feasible point is a lower bound, and quadrature and rounding errors are subtracted.

    Args:
        p_lower: lower bound of the smoothed probability at x.
        m1: lower bound of sigma v . grad p, for a unit vector v.
        m2: lower bound, >= 0, of sigma ||grad p - (v . grad p) v||_2; 0: nothing is known. Dropped, which is sound,
            where max(m1, 0)^2 + m2^2 exceeds the possible maximum phi(Phi^-1(p))^2: no classifier is like that.
        r: distance in units of sigma, >= 0. m2 is used for 1e-4 < r <= 30.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Bound in [0, 1], broadcast over all arguments; increasing in p, m1 and m2.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative m2 or negative r.
    """
    shape, (tail, along, across, shift) = _arguments(p_lower, q_upper, m1, m2, r, "r")
    slope = np.maximum(-along, 0.0)
    bound = np.array(second_order_lower_bound(q_upper=tail, scaled_gradient_upper=slope, r=shift))
    useful = _useful(tail, along, across) & (shift > 1e-4) & (shift <= LARGEST_RADIUS)
    along = np.maximum(along, -_largest(tail))
    for rows in _batches(useful):
        problem = Problem(tail[rows], along[rows], across[rows], shift[rows])
        bound[rows] = np.maximum(bound[rows], 1 - solve(problem, start(problem)).missing)
    return np.clip(bound, 0.0, 1.0).reshape(shape)[()]


def first_order_radius(
    p_lower: ArrayLike | None = None,
    m1: ArrayLike | None = None,
    m2: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified distance in one direction: sigma r with ``first_order_lower_bound(p_lower, m1, m2, r) = 1/2``.

    Mohapatra et al. 2020, Theorem 3 and Proposition 1. With m2 = 0 it is :func:`second_order_l2_radius` for the
    gradient bound max(0, -m1), which is also the fallback wherever m2 cannot help.

    Args:
        p_lower: lower bound of the top class's probability.
        m1: lower bound of sigma v . grad p for every direction v of the threat model.
        m2: lower bound of the norm of the rest of the scaled gradient, for every such v; see
            :func:`first_order_lower_bound`.
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Distance in input units, rounded down, broadcast; all smaller distances are certified as well. 0 where
        p_lower <= 1/2; at most the larger of 30 sigma and the radius without m2.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative m2 or sigma <= 0.
    """
    scales = check_positive("sigma", given("sigma", sigma))
    shape, (tail, along, across, scale) = _arguments(p_lower, q_upper, m1, m2, scales, "sigma")
    slope = np.maximum(-along, 0.0)
    radius = np.array(second_order_l2_radius(q_upper=tail, scaled_gradient_upper=slope, sigma=1.0))
    useful = _useful(tail, along, across) & (tail < 0.5)
    along = np.maximum(along, -_largest(tail))
    for rows in _batches(useful):
        radius[rows] = dual_radius(tail[rows], along[rows], across[rows], radius[rows])
    return round_down((radius * scale).reshape(shape))


def first_order_l1_radius(
    p_lower: ArrayLike | None = None,
    linf_upper: ArrayLike | None = None,
    l2_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l1 radius of Gaussian smoothing from p and two norms of its gradient.

    The certified set is convex (Proposition 1), so the vertices +-R e_i of the l1 ball suffice; there
    m1 = -linf_upper and m2 = sqrt(l2_lower^2 - linf_upper^2), 0 if negative. Mohapatra et al. 2020, Corollary 3.3.

    Args:
        p_lower: lower bound of the top class's probability.
        linf_upper: upper bound of sigma ||grad p||_inf.
        l2_lower: lower bound of sigma ||grad p||_2; 0 gives the radius that needs no such bound, as does a value
            above the maximum phi(Phi^-1(p)).
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Radius of the open l1 ball in input units, rounded down, broadcast; 0 where p_lower <= 1/2. On a set of
        coordinates: give linf_upper of the gradient on it, and l2_lower of the whole gradient.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative norms or sigma <= 0.
    """
    largest = check_nonnegative("linf_upper", given("linf_upper", linf_upper))
    rest = _rest(l2_lower, largest, p_lower, q_upper)
    return first_order_radius(p_lower, -largest, rest, sigma, q_upper=q_upper)


def first_order_linf_radius(
    p_lower: ArrayLike | None = None,
    l1_upper: ArrayLike | None = None,
    l2_lower: ArrayLike | None = None,
    dim: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l-infinity radius of Gaussian smoothing from p and two norms of its gradient.

    As :func:`first_order_l1_radius` with the vertices R (+-1, ..., +-1) of l2 length R sqrt(d): m1 = -l1_upper /
    sqrt(d), m2 = sqrt(l2_lower^2 - m1^2). On a set of d coordinates: l1_upper of the gradient on it, l2_lower of
    the whole gradient; the factor 1/sqrt(d) is missing in the printed Corollary 3.4.

    Args:
        p_lower: lower bound of the top class's probability.
        l1_upper: upper bound of sigma ||grad p||_1.
        l2_lower: lower bound of sigma ||grad p||_2; 0: nothing is known.
        dim: number d of coordinates that may be perturbed.
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Radius of the open l-infinity ball in input units, rounded down, broadcast; 0 where p_lower <= 1/2.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative norms, dim < 1 or sigma <= 0.
    """
    size = check_positive("dim", given("dim", dim))
    if (size < 1).any():
        raise ValueError(f"dim must be >= 1, got {dim!r}")
    steepest = check_nonnegative("l1_upper", given("l1_upper", l1_upper)) / np.sqrt(size) * (1 + 1e-15)
    rest = _rest(l2_lower, steepest, p_lower, q_upper)
    return round_down(first_order_radius(p_lower, -steepest, rest, sigma, q_upper=q_upper) / np.sqrt(size))


def first_order_subspace_l2_radius(
    p_lower: ArrayLike | None = None,
    inside_upper: ArrayLike | None = None,
    outside_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """Certified l2 radius against perturbations in a linear subspace S, for instance one colour channel.

    m1 = -inside_upper, m2 = outside_lower. Mohapatra et al. 2020, Corollary 3.4 for p = 2; any subspace.

    Args:
        p_lower: lower bound of the top class's probability.
        inside_upper: upper bound of sigma ||P grad p||_2, P the orthogonal projector onto S.
        outside_lower: lower bound of sigma ||(I - P) grad p||_2; 0: nothing is known.
        sigma: standard deviation of the noise in input units.
        q_upper: instead of ``p_lower``: upper bound of 1 - p.

    Returns:
        Radius of the open l2 ball in S in input units, rounded down, broadcast; 0 where p_lower <= 1/2.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], negative norms or sigma <= 0.
    """
    inside = check_nonnegative("inside_upper", given("inside_upper", inside_upper))
    outside = check_nonnegative("outside_lower", given("outside_lower", outside_lower))
    return first_order_radius(p_lower, -inside, outside, sigma, q_upper=q_upper)


def _rest(
    l2_lower: ArrayLike | None, part: FloatArray, p_lower: ArrayLike | None, q_upper: ArrayLike | None
) -> FloatArray:
    """sqrt(l2_lower^2 - part^2), rounded down; 0 where it is not real or l2_lower is impossible for this p."""
    length = check_nonnegative("l2_lower", given("l2_lower", l2_lower))
    possible = length <= _largest(bounded_tail(p_lower, q_upper)) * (1 + 1e-12)
    length, part, possible = np.broadcast_arrays(length, part, possible)
    use = possible & (length > part)
    length, part = np.where(use, length, 1.0), np.where(use, part, 1.0)
    return np.sqrt((length - part) * (length + part)) * (1 - 1e-15)


def _largest(tail: FloatArray) -> FloatArray:
    """Return the largest scaled gradient of a probability that is at least 1 - tail."""
    return profile(np.minimum(tail, 0.5))


def _useful(tail: FloatArray, m1: FloatArray, m2: FloatArray) -> NDArray[np.bool_]:
    # A negative m1 restricts nothing that m2 needs: the gradient along v may be anything above it.
    largest = _largest(tail)
    feasible = np.hypot(np.maximum(m1, 0.0), m2) <= largest * (1 + 1e-12)
    return feasible & (m2 > 1e-6 * largest) & (tail > 1e-100)


def _batches(useful: NDArray[np.bool_]) -> list[IntArray]:
    rows = np.flatnonzero(useful)
    return [rows[k : k + _BATCH] for k in range(0, len(rows), _BATCH)]


def _arguments(
    p_lower: ArrayLike | None,
    q_upper: ArrayLike | None,
    m1: ArrayLike | None,
    m2: ArrayLike | None,
    last: ArrayLike | None,
    name: str,
) -> tuple[tuple[int, ...], list[FloatArray]]:
    arrays = np.broadcast_arrays(
        bounded_tail(p_lower, q_upper),
        as_float64("m1", given("m1", m1)),
        check_nonnegative("m2", given("m2", m2)),
        check_nonnegative(name, given(name, last)),
    )
    return arrays[0].shape, [array.ravel() for array in arrays]
