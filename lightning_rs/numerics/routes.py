"""Classifiers that choose among smoothed experts by a smoothed selector, and cascades of noise levels.

Deployed: h(x) = g_{s(x)}(x) with a selector s, smoothed at sigma_s over K routes, and experts g_1, ..., g_K, each
smoothed by itself. The selector and every expert that may be evaluated share alpha (union bound), fixed beforehand.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from lightning_rs.checks import (
    FloatArray,
    check_nonnegative,
    check_positive,
    check_probability,
)
from lightning_rs.numerics.vote_radii import gaussian_l2_radius

# More than the relative error of ``ndtri`` and of the few operations after it.
_SLACK = 2.0**-48


def route_distances(
    q_selector_upper: ArrayLike, pi_upper: ArrayLike, selected: ArrayLike, sigma_selector: ArrayLike
) -> FloatArray:
    """Distance before which no route but the selected one can be taken: 0 for the selected one itself.

    ``d_k = sigma_s / 2 (-Phi^-1(q_s) - Phi^-1(pi_k))``, Cohen, Rosenfeld and Kolter (2019), Theorem 1.

    Args:
        q_selector_upper: upper bound of one minus the selected route's probability, shape (...).
        pi_upper: upper bound of each route's probability, shape (..., K); the selected one's is not read.
        selected: the route chosen at x, shape (...).
        sigma_selector: the selector's noise, in input units, shape (...).

    Returns:
        Distances in input units, shape (..., K), rounded down, >= 0.

    Raises:
        ValueError: for probabilities outside [0, 1], a route outside 0..K - 1 or sigma not positive.
    """
    tail, upper = check_probability("q_selector_upper", q_selector_upper), check_probability("pi_upper", pi_upper)
    scale, route = check_positive("sigma_selector", sigma_selector), _routes(selected, upper)
    away = gaussian_l2_radius(q_upper=tail[..., None], sigma=scale[..., None], p_upper=upper)
    return np.where(np.arange(upper.shape[-1]) == route[..., None], 0.0, away)


def routed_radius(
    radii: ArrayLike, q_selector_upper: ArrayLike, pi_upper: ArrayLike, selected: ArrayLike, sigma_selector: ArrayLike
) -> FloatArray:
    r"""Certified l2 radius of a routed classifier, ``R = min_k max(R_k, d_k)``.

    Statement: let A be the class of the selected expert at x, R_k a radius within which expert k answers A (0 if it
    does not certify A at x), and d_k the distance before which route k cannot be taken (:func:`route_distances`). Then
    the routed classifier answers A at every x' with ``||x - x'||_2 < R``. Reason: if it takes route k at x', the
    distance is at least d_k, so R_k >= R exceeds it. Ours; never below the radius of dual randomized smoothing,
    min(R_selected, min d_k) (Sun, Mao and Vechev 2026); with K = 2 and R_2 = 0 it is that of ACES (Horvath et al.
    2022).

    Args:
        radii: radius R_k of every expert for the class A, shape (..., K), in input units, all in the l2 norm.
        q_selector_upper: upper bound of one minus the selected route's probability, shape (...).
        pi_upper: upper bound of each route's probability, shape (..., K); the selected one's is not read.
        selected: the route chosen at x, shape (...).
        sigma_selector: the selector's noise, in input units, shape (...).

    Returns:
        Radius of the open l2 ball in input units, shape (...), rounded down; 0 where nothing is certified.

    Raises:
        ValueError: for negative radii, probabilities outside [0, 1], a route outside 0..K - 1 or sigma not positive.

    >>> print(round(routed_radius([2.0, 0.0], 1e-5, [1.0, 1e-5], 0, 0.25), 6))
    1.066223
    """
    own = check_nonnegative("radii", radii)
    away = route_distances(q_selector_upper, pi_upper, selected, sigma_selector)
    if own.shape[-1:] != away.shape[-1:]:
        raise ValueError(f"radii must have one entry a route, {away.shape[-1]}, got shape {own.shape}")
    return np.maximum(own, away).min(axis=-1)[()]


def cascade_l2_radius(
    sigmas: ArrayLike, p0: float, p_lower_accepting: ArrayLike, p_other_upper: ArrayLike
) -> FloatArray:
    """Certified l2 radius of a cascade: noise levels are tried in turn, the first whose top class exceeds p0 answers.

    Statement, for the cascade with exact probabilities: if level k accepts A at x with probability at least
    ``p_lower_accepting`` there, and at every earlier level no other class exceeds ``p_other_upper``, then A is answered
    at every x' with ``||x - x'||_2 < R``,

        R = min( sigma_k (Phi^-1(p_A) - Phi^-1(p0)),  min_{j < k} sigma_j (Phi^-1(p0) - Phi^-1(p_other_j)) ),

    because before the first distance level k still accepts A, and before the others no earlier level accepts another
    class (it may accept A itself). Jeong and Shin (2023), with bounds that hold together for finite n.

    Args:
        sigmas: noise of each level in the order in which they are tried, in input units, shape (K,).
        p0: acceptance threshold, in [1/2, 1).
        p_lower_accepting: lower bound of p_A at the accepting level, shape (..., K): a number there, None or NaN
            elsewhere.
        p_other_upper: upper bound of every class but A at each earlier level, shape (..., K); later ones are not read.

    Returns:
        Radius of the open l2 ball in input units, shape (...), rounded down; 0 where nothing is certified.

    Raises:
        ValueError: for p0 outside [1/2, 1), bounds outside [0, 1], no or several accepting levels, or no bound of an
            earlier level.

    >>> print(round(cascade_l2_radius([1.0, 0.5], 0.5, [None, 0.97], [0.35, None]), 6))
    0.38532
    """
    if not 0.5 <= p0 < 1:
        raise ValueError(f"p0 must lie in [1/2, 1), got {p0!r}")
    scale = check_positive("sigmas", sigmas)
    own, other = (np.array(value, dtype=np.float64) for value in (p_lower_accepting, p_other_upper))
    for name, values in (("p_lower_accepting", own), ("p_other_upper", other)):
        if scale.ndim != 1 or values.shape[-1:] != scale.shape:
            raise ValueError(f"{name} must have one entry a level, {scale.shape}, got shape {values.shape}")
        check_probability(name, values[~np.isnan(values)])
    own, other = np.broadcast_arrays(own, other)
    accepting = ~np.isnan(own)
    if (accepting.sum(axis=-1) != 1).any():
        raise ValueError(f"p_lower_accepting must hold exactly one number, at the accepting level, got {own.tolist()}")
    level = accepting.argmax(axis=-1)[..., None]
    earlier = np.arange(len(scale)) < level
    if (earlier & np.isnan(other)).any():
        raise ValueError(f"p_other_upper must be given for every level before the accepting one, got {other.tolist()}")
    bar = ndtri(p0)
    # Lowered by more than the errors of both scores: their difference may be much smaller than either.
    stays = _lowered(ndtri(np.where(accepting, own, p0)), bar)
    never = _lowered(bar, ndtri(np.where(earlier, other, p0)))
    distances = np.where(accepting, scale * stays, np.where(earlier, scale * never, np.inf))
    return np.maximum(distances.min(axis=-1) * (1 - _SLACK), 0.0)[()]


def _lowered(larger: ArrayLike, smaller: ArrayLike) -> FloatArray:
    first, second = np.asarray(larger, dtype=np.float64), np.asarray(smaller, dtype=np.float64)
    error = _SLACK * (np.abs(first) + np.abs(second))
    return first - second - np.where(np.isfinite(error), error, 0.0)


def _routes(selected: ArrayLike, upper: FloatArray) -> NDArray[np.int64]:
    route = np.asarray(selected)
    if upper.ndim < 1 or route.dtype.kind not in "iu" or ((route < 0) | (route >= upper.shape[-1])).any():
        raise ValueError(
            f"selected must name a route in 0..{upper.shape[-1] - 1 if upper.ndim else 0}, got {selected!r}"
        )
    return route.astype(np.int64)
