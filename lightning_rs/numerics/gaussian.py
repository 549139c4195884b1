"""Gaussian building blocks shared by the second-order and dipole theorems: no theorem of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from lightning_rs.checks import FloatArray, tail_of

SQRT_2PI = math.sqrt(2 * math.pi)
EPS = float(np.finfo(np.float64).eps)
#: A smaller tail is treated as this one. That is sound (a larger tail) and keeps every radius below 37.1 sigma.
SMALLEST_TAIL = 1e-300


class Term(NamedTuple):
    """``weight * Phi(offset + direction * r)`` with weight and direction +1 or -1."""

    weight: float
    direction: float
    offset: FloatArray


def bounded_tail(p_lower: ArrayLike | None, q_upper: ArrayLike | None) -> FloatArray:
    """Return q = 1 - p from whichever was given, at least ``SMALLEST_TAIL``."""
    return np.maximum(tail_of(p_lower, q_upper), SMALLEST_TAIL)


def density(z: FloatArray) -> FloatArray:
    """Standard normal density; 0 at +-inf."""
    return np.exp(-0.5 * z * z) / SQRT_2PI


def profile(x: FloatArray) -> FloatArray:
    """phi(Phi^-1(x)): the largest scaled gradient that a smoothed probability x can have."""
    return density(ndtri(x))


def half_line_radius(tail: FloatArray) -> FloatArray:
    """-Phi^-1(tail), rounded down, 0 for tail >= 1/2: the radius that needs no gradient, in units of sigma."""
    return np.maximum(-ndtri(tail), 0.0) * (1 - 8 * EPS)


def worst_interval(mass: FloatArray, tail: FloatArray, slope: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return (z_lo, z_hi) with Phi(z_hi) - Phi(z_lo) = mass and phi(z_hi) - phi(z_lo) = slope.

    ``tail`` is 1 - mass, given separately so that either may be tiny. ``slope`` is raised by a few ulps and
    the solver approaches the root a = Phi(z_lo) from below: an unfinished iteration errs to the sound side,
    towards the half-line z_lo = -inf, which is also the answer for slope >= phi(Phi^-1(mass)).

    With I = ``profile``, F(a) = I(mass + a) - I(a) - slope is convex and decreasing, so Newton's method from
    F >= 0 never passes the root. Start: I(mass + a) >= (1 - a/tail) I(mass) and I(a) >= (a/tail) I(mass)
    give I(a) >= (I(mass) - slope) / 2 at the root.
    """
    small = np.minimum(mass, tail)
    z_small = ndtri(small)
    peak = density(z_small)
    slope = slope + EPS * (8 + z_small * z_small) * peak
    gap = np.maximum(peak - slope, 0.0)
    with np.errstate(divide="ignore"):
        start = ndtr(-np.sqrt(-2 * np.log(0.5 * SQRT_2PI * gap)))
    a = np.minimum(start, 0.5 * tail)
    moving = a > 0  # what has converged is left alone: no bit of a result depends on its companions
    for _ in range(60):
        z_lo, z_hi = _ends(a, mass, tail)
        excess = np.where(moving, density(z_hi) - density(z_lo) - slope, 0.0)
        step = np.maximum(excess, 0.0) / (z_hi - z_lo)
        a = np.minimum(a + step, 0.5 * tail)
        moving = moving & (step > 4 * EPS * a)
        if not moving.any():
            break
    return _ends(a, mass, tail)


def _ends(a: FloatArray, mass: FloatArray, tail: FloatArray) -> tuple[FloatArray, FloatArray]:
    # Phi(z_hi) = mass + a or 1 - Phi(z_hi) = tail - a, whichever keeps the smaller of mass and tail exact.
    low = mass < tail
    z = ndtri(np.where(low, mass + a, tail - a))
    return ndtri(a), np.where(low, z, -z)


def tail_value(terms: Sequence[Term], r: FloatArray) -> FloatArray:
    """Return the sum of the terms at r."""
    return sum((t.weight * ndtr(t.offset + t.direction * r) for t in terms), np.zeros(np.shape(r)))


def largest_radius(terms: Sequence[Term], level: float, lower: FloatArray, upper: FloatArray) -> FloatArray:
    """Return, rounded down, the largest r with ``sum of terms at r <= level``, for a sum that increases in r.

    Newton's method kept inside a shrinking bracket; afterwards r is lowered until the sum, evaluated afresh,
    stays below the level by more than its rounding error. ``lower`` must be a sound answer by itself.
    """
    low, high = np.copy(lower), np.copy(upper)
    r = 0.5 * (low + high)
    moving = np.ones(np.shape(r), dtype=bool)
    for _ in range(100):
        excess = tail_value(terms, r) - level
        slope = sum(t.weight * t.direction * density(t.offset + t.direction * r) for t in terms)
        low = np.where(excess <= 0, r, low)
        high = np.where(excess > 0, r, high)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = r - excess / slope
        inside = (newton > low) & (newton < high)
        step = np.where(moving, np.where(inside, newton, 0.5 * (low + high)) - r, 0.0)
        r = r + step
        moving = moving & (np.abs(step) > 2 * EPS * (1 + r))
        if not moving.any():
            break
    return np.maximum(_step_down(terms, level, r), lower)


def _step_down(terms: Sequence[Term], level: float, r: FloatArray) -> FloatArray:
    slack = 4 * EPS * len(terms)
    step = 2 * EPS * (1 + r)
    for _ in range(60):
        above = tail_value(terms, r) > level - slack
        if not above.any():
            break
        r = np.where(above, np.maximum(r - step, 0.0), r)
        step = 2 * step
        if (~above | (r == 0)).all():
            break
    return r
