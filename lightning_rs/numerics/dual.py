"""The dual of the first-order problem: damped Newton on three multipliers, for many problems at once.

Primal: the smallest E[e^{rX - r^2/2} f] over 0 <= f <= 1 with E f >= 1 - tail, E[X f] >= m1, E[U f] >= m2, where X, U
are independent N(0, 1). By weak duality, for any a, b >= 0 and c > 0,

    1 - value  <=  D(a, b, c) = a tail - b m1 - c m2 + E h(B),      B(x) = e^{rx - r^2/2} - a - b x,

(the multipliers of the three constraints; h as in ``quadrature``). D is convex. It is written in the tail, so that
nothing cancels for p near 1. Whatever the solver returns, D plus the quadrature's error bound is sound.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lightning_rs.checks import FloatArray
from lightning_rs.numerics.gaussian import EPS, density, worst_interval
from lightning_rs.numerics.quadrature import Expectations, Multipliers, crossings, expectations

#: Radii above this many sigma are reported as this many (the theorem's radius is unbounded for extreme gradients).
LARGEST_RADIUS = 30.0
_DECREMENT = 1e-15
#: How far inside value = 1/2 a radius is aimed; rounding moves the value by less.
_MARGIN = 1e-13


class Problem(NamedTuple):
    """Data of N problems, each field of shape (N,); m2 > 0 and m1^2 + m2^2 <= phi(Phi^-1(tail))^2."""

    tail: FloatArray
    m1: FloatArray
    m2: FloatArray
    r: FloatArray


class Solution(NamedTuple):
    """Minimiser, bound and slope of N problems.

    Attributes:
        at: the multipliers.
        missing: upper bound of 1 - value, numerical error included.
        error: the numerical error that was added.
        slope: derivative of ``missing`` by r.
    """

    at: Multipliers
    missing: FloatArray
    error: FloatArray
    slope: FloatArray


def start(problem: Problem) -> Multipliers:
    """Return the multipliers of the problem without m2, and the c at which they would give m2.

    There B is zero at the ends of the worst interval, and E phi(B/c) = c * (sum of phi / |B'| over its ends) + O(c^2).
    """
    # Without the constraint on m2 (c -> 0) the worst f is the indicator of an interval, and a and b make B vanish at
    # its two ends. With c > 0 the edges blur: to first order by just as much as phi(B/c) has mass there.
    m1 = np.minimum(problem.m1, 0.0)
    z_lo, z_hi = worst_interval(1 - problem.tail, problem.tail, -m1)
    z_lo = np.maximum(z_lo, z_hi - 40.0)  # -inf where the gradient says nothing; the slope below needs a number
    r = problem.r
    low, high = np.exp(r * z_lo - 0.5 * r * r), np.exp(r * z_hi - 0.5 * r * r)
    b = (high - low) / (z_hi - z_lo)
    width = density(z_lo) / np.maximum(b - r * low, EPS * b) + density(z_hi) / np.maximum(r * high - b, EPS * b)
    return Multipliers(np.maximum(high - b * z_hi, 0.0), b, problem.m2 / width)


def carry(at: Multipliers, old: FloatArray, new: FloatArray) -> Multipliers:
    """Return a start at distance ``new`` from the solution at distance ``old``: the right root of B is kept."""
    # Likelihoods grow like e^{r x}; scaling all multipliers by their growth at the root leaves B zero there.
    _, root = crossings(at.a, at.b, old, np.full(old.shape, -40.0), old + 40.0)
    scale = np.exp((new - old) * root - 0.5 * (new * new - old * old))
    return Multipliers(*(scale * value for value in at))


def solve(problem: Problem, at: Multipliers, iterations: int = 80) -> Solution:
    """Minimise D from the given multipliers; problems that have converged are left alone."""
    state = _State(problem, at)
    for _ in range(iterations):
        if not state.active.any():
            break
        state.step()
    return state.solution()


def dual_radius(tail: FloatArray, m1: FloatArray, m2: FloatArray, lower: FloatArray) -> FloatArray:
    """Return radii r, in units of sigma, at which the dual bound of the value is at least 1/2, all arguments (N,).

    Newton's method in r inside a bracket. Every radius returned was itself evaluated with the numerical error
    added, or is ``lower``, which must be sound; larger than ``LARGEST_RADIUS`` none is tried. One r suffices: the
    worst f is the indicator of a convex set, so its shifted probability is log-concave in r, and from above 1/2
    at 0 to at least 1/2 at r it stays above 1/2 in between.
    """
    low, high = lower.copy(), np.full(lower.shape, np.inf)
    r = np.clip(lower, 1e-3, LARGEST_RADIUS)
    at = np.stack(start(Problem(tail, m1, m2, r)))
    active = np.ones(r.shape, dtype=bool)
    for _ in range(60):
        rows = np.flatnonzero(active)
        problem = Problem(tail[rows], m1[rows], m2[rows], r[rows])
        found = solve(problem, Multipliers(*at[:, rows]))
        inside = found.missing <= 0.5
        low[rows] = np.where(inside, np.maximum(low[rows], r[rows]), low[rows])
        high[rows] = np.where(inside, high[rows], np.minimum(high[rows], r[rows]))
        # Aimed a little inside, so that the last step lands where the bound, its error included, already holds.
        newton = _newton(r[rows], found.missing + 2 * found.error + _MARGIN, found.slope)
        # Newton is only a proposal: outside the bracket bisection takes over, and only evaluated radii enter ``low``.
        bracketed = (newton > low[rows]) & (newton < high[rows])
        middle = 0.5 * (low[rows] + np.minimum(high[rows], LARGEST_RADIUS))
        done = inside & (np.abs(newton - r[rows]) <= 1e-11 * (1 + r[rows]))
        done |= (low[rows] >= LARGEST_RADIUS) | (high[rows] - low[rows] <= 1e-12)
        r[rows] = np.where(bracketed, newton, middle)
        at[:, rows] = carry(found.at, problem.r, r[rows])
        active[rows] = ~done
        if not active.any():
            break
    return low


def _newton(r: FloatArray, missing: FloatArray, slope: FloatArray) -> FloatArray:
    """Newton's step for Phi^-1(value) = 0; that function is nearly linear in r."""
    z = -ndtri(np.clip(missing, 1e-300, 1 - 1e-15))
    with np.errstate(divide="ignore", invalid="ignore"):
        step = np.where(slope > 0, z * density(z) / slope, np.inf)
    return np.clip(r + step, 0.0, np.minimum(2 * r + 1, LARGEST_RADIUS))


class _State:
    """Iterates of one batch of minimisations."""

    def __init__(self, problem: Problem, at: Multipliers) -> None:
        self.problem = problem
        # The Gaussian tails beyond the window must be small against the tail itself.
        self.window = np.sqrt(ndtri(problem.tail) ** 2 + 100.0)
        self.linear = np.stack([problem.tail, -problem.m1, -problem.m2], axis=1)
        self.at = np.stack(at, axis=1)
        self.active = np.ones(len(problem.r), dtype=bool)
        self.now = self._evaluate(self.at, self.active)
        self.value = self._value(self.at, self.now)
        self.direction, self.decrement = self._newton()
        self.scale = self._longest(self.active)
        self.rejected = np.zeros(len(problem.r), dtype=np.int64)

    def step(self) -> None:
        """Try one step for every active problem; accept those that decrease D enough."""
        # Only active rows are evaluated; the others keep every number they had, so that no bit of a result depends on
        # its companions.
        keep = self.active
        trial = self.at + self.scale[:, None] * self.direction
        trial[:, :2] = np.maximum(trial[:, :2], 0.0)  # projection on a, b >= 0; c stays inside by the step's length
        found = self._evaluate(trial[keep], keep)
        value = np.full(len(keep), np.inf)
        value[keep] = self._value(trial[keep], found, keep)
        accept = keep & (value <= self.value - 1e-4 * self.scale * self.decrement)
        chosen = accept[keep]
        self.at[accept], self.value[accept] = trial[accept], value[accept]
        for old, new in zip(self.now, found, strict=True):
            old[accept] = new[chosen]
        self.scale[keep & ~accept] *= 0.25
        self.rejected = np.where(accept, 0, self.rejected + 1)
        direction, decrement = self._newton()
        self.direction = np.where(accept[:, None], direction, self.direction)
        self.decrement = np.where(accept, decrement, self.decrement)
        self.scale[accept] = self._longest(accept)
        # The decrement says how much lower D can get; twelve rejections mean that rounding is all there is left.
        self.active = keep & (self.decrement > _DECREMENT) & (self.rejected < 12)

    def solution(self) -> Solution:
        """Return the iterates with their error bounds."""
        a, b, c = self.at.T
        rounding = 16 * EPS * np.abs(self.linear * self.at).sum(axis=1)
        error = self.now.error + rounding
        return Solution(Multipliers(a, b, c), self.value + error, error, self.now.shift)

    def _evaluate(self, at: FloatArray, rows: NDArray[np.bool_]) -> Expectations:
        return expectations(Multipliers(*at.T), self.problem.r[rows], self.window[rows])

    def _value(self, at: FloatArray, found: Expectations, rows: NDArray[np.bool_] | slice = slice(None)) -> FloatArray:
        return (self.linear[rows] * at).sum(axis=1) + found.value

    def _newton(self) -> tuple[FloatArray, FloatArray]:
        # Signs as in Expectations: minus the derivatives by a and b, plus that by c.
        gradient = self.linear + self.now.gradient * np.array([-1.0, -1.0, 1.0])
        curvature = self.now.curvature
        fixed = (self.at <= 0) & (gradient >= 0)
        gradient[fixed] = 0.0
        # Scaled to a unit diagonal: the multipliers differ by many orders of magnitude for small tails.
        root = np.sqrt(np.maximum(np.diagonal(curvature, axis1=1, axis2=2), 1e-200))
        scaled = curvature / (root[:, :, None] * root[:, None, :])
        # Fixed variables (a or b at zero) drop out; the ridge keeps nearly parallel constraints solvable.
        scaled *= ~(fixed[:, :, None] | fixed[:, None, :])
        scaled += np.eye(3) * np.where(fixed, 1.0, 1e-13)[:, :, None]
        direction = -np.linalg.solve(scaled, (gradient / root)[..., None])[..., 0] / root
        return direction, -(gradient * direction).sum(axis=1)

    def _longest(self, rows: NDArray[np.bool_]) -> FloatArray:
        # c must stay positive: go at most 90 % of the way to the boundary.
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = -0.9 * self.at[rows, 2] / self.direction[rows, 2]
        return np.where(self.direction[rows, 2] < 0, np.minimum(ratio, 1.0), 1.0)
