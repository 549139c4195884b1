"""The bilateral radius of the l2 family, looked up in one table.

With scores a = Phi^-1(p_lower) and b = Phi^-1(1 - p_upper), the radius R(a, b) is where the least probability of
the class meets the greatest of any other. It grows in both and is symmetric; R(a, a) is the one-class radius. For
the Gaussian R = sigma u with u = (a + b)/2, whatever v = (b - a)/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.interpolate import RectBivariateSpline
from scipy.special import ndtri

from lightning_rs.checks import FloatArray
from lightning_rs.numerics.norm_power_quadrature import (
    SMOOTH_FROM,
    LogRatioLaw,
    converged_law,
)

LARGEST = 5.5  # scores beyond it (a tail of 2e-8) count as it
SPREAD = 3.0  # so do differences v: with 1,000 classes v is below 2.8
SMALLEST = 2e-3  # mean scores below it have no two-class radius
MEETING = 4.5  # how far below one half the two probabilities may meet
CELLS = (128, 48)  # of the table, in log u and v
NOT_COVERED = 1e-6


@dataclass(frozen=True)
class TwoClassTable:
    """log(R / u) over (log u, v), and how far it may be off.

    Attributes:
        log_u: knots, increasing, equally spaced.
        v: knots, increasing from 0, equally spaced.
        log_ratio: spline of log(R / u).
        error: relative error of R within each cell of four knots: what the same construction with every other
            knot left out misses, about sixteen times the true error; 1 where the table does not reach.
    """

    log_u: FloatArray
    v: FloatArray
    log_ratio: RectBivariateSpline
    error: FloatArray

    def radius(self, tail: FloatArray, other: FloatArray) -> FloatArray:
        """Return R in units of sigma for 1 - p_lower and p_upper <= 1 - p_lower, never more than the exact one."""
        # R grows in both scores, so that lowering either is safe.
        top = np.clip(-ndtri(tail), -4.0 * LARGEST, LARGEST)
        rival = np.minimum(np.minimum(-ndtri(other), LARGEST), top + 2.0 * SPREAD)
        u, v = 0.5 * (top + rival), np.maximum(0.5 * (rival - top), 0.0)
        known = np.isfinite(u) & (u >= SMALLEST)
        x = np.log(np.where(known, u, 1.0))
        i, j = (_cell(knots, at) for knots, at in ((self.log_u, x), (self.v, np.where(known, v, 0.0))))
        ratio = np.exp(self.log_ratio.ev(x, np.where(known, v, 0.0)))
        return np.where(known, u * ratio * (1.0 - self.error[i, j]), 0.0)


@lru_cache(maxsize=16)
def two_class_table(dim: int, k: float, one_class: tuple[float, float]) -> TwoClassTable:
    """Return the table, built once: about a second, or five to ten below dimension 40.

    The radius r and the score y <= 0 at which the two probabilities meet give a and b without solving for anything
    but quantiles, ``a = Phi^-1(H(-s))`` with ``Phi^-1(H(s)) = -y`` and b likewise with y. So the surfaces u(r, y)
    and v(r, y) are computed on a grid and inverted as splines.

    Args:
        dim: number of coordinates.
        k: power of the norm.
        one_class: radii in units of sigma that the scores ``SMALLEST`` and ``LARGEST`` certify with one class.
    """
    law, low = converged_law(dim, k), dim < SMOOTH_FROM
    log_r = np.linspace(math.log(0.5 * one_class[0]), math.log(1.15 * one_class[1]), 33)
    y = np.linspace(-MEETING, 0.0, 17 if low else 13)
    u, v = _surfaces(law, np.exp(log_r), y)
    knots = np.linspace(math.log(SMALLEST), math.log(LARGEST), CELLS[0] + 1), np.linspace(0.0, SPREAD, CELLS[1] + 1)
    at = np.meshgrid(*knots, indexing="ij")
    fine, covered = _inverted(log_r, y, u, v, *at)
    coarse, also = _inverted(log_r[::2], y[::2], u[::2, ::2], v[::2, ::2], *at)
    ratio = fine - at[0]
    sparse = RectBivariateSpline(*(axis[::2] for axis in knots), ratio[::2, ::2])(*knots)
    missed = np.abs(np.expm1(coarse - fine)) + np.abs(np.expm1(sparse - ratio)) + 2e-9
    missed[~(covered & also)] = 1.0
    return TwoClassTable(*knots, RectBivariateSpline(*knots, ratio), _nearby(np.minimum(missed, 1.0)))


def _surfaces(law: LogRatioLaw, r: FloatArray, y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return u and v, shape (r, y), of the pairs whose probabilities meet at Phi(y) at distance r."""
    both = np.broadcast_arrays(r[:, None], y[None, :])
    radius, meeting = (part.ravel() for part in both)
    a, b = (law.score(-law.quantile(z, radius), radius, -z) for z in (-meeting, meeting))
    return (0.5 * (a + b)).reshape(both[0].shape), (0.5 * (b - a)).reshape(both[0].shape)


def _inverted(
    log_r: FloatArray, y: FloatArray, u: FloatArray, v: FloatArray, log_u: FloatArray, wanted: FloatArray
) -> tuple[FloatArray, np.ndarray]:
    """Return log r where the surfaces take the values (log_u, wanted), by Newton's method, and whether they do."""
    surfaces = RectBivariateSpline(log_r, y, np.log(u)), RectBivariateSpline(log_r, y, v)
    p = np.clip(log_u + log_r[0] - math.log(u[0, -1]), log_r[0], log_r[-1])
    q = np.clip(-wanted, y[0], y[-1])
    for _ in range(40):
        f, g = surfaces[0].ev(p, q) - log_u, surfaces[1].ev(p, q) - wanted
        (a, b), (c, d) = ((s.ev(p, q, dx=1), s.ev(p, q, dy=1)) for s in surfaces)
        determinant = a * d - b * c
        p = np.clip(p - (f * d - g * b) / determinant, log_r[0], log_r[-1])
        q = np.clip(q - (a * g - c * f) / determinant, y[0], y[-1])
    return p, np.abs(f) + np.abs(g) < NOT_COVERED


def _nearby(missed: FloatArray) -> FloatArray:
    """Return for each cell the largest value at its corners and at the knots around them."""
    padded = np.pad(missed, 1, mode="edge")
    n, m = missed.shape[0] - 1, missed.shape[1] - 1
    return np.max([padded[i : i + n, j : j + m] for i in range(4) for j in range(4)], axis=0)


def _cell(knots: FloatArray, at: FloatArray) -> np.ndarray:
    return np.clip(((at - knots[0]) / (knots[1] - knots[0])).astype(np.int64), 0, len(knots) - 2)
