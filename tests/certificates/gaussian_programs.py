"""Independent references for the gradient certificates: linear programs on a discretised Gaussian, and intervals.

The programs minimise over classifiers that are constant on cells, with exact cell probabilities and moments. That
restricts the true problem, so their value is at least the true one, and the gap is O(cell size squared).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.optimize import linprog
from scipy.special import ndtr
from scipy.stats import norm

Array = NDArray[np.float64]


def _cells(edges: Array, shift: float = 0.0) -> tuple[Array, Array]:
    """Probability of each cell under N(shift, 1), and first moment under N(0, 1) if the shift is 0."""
    z = edges - shift
    mass = np.where(z[:-1] > 0, norm.sf(z[:-1]) - norm.sf(z[1:]), norm.cdf(z[1:]) - norm.cdf(z[:-1]))
    return mass, norm.pdf(z[:-1]) - norm.pdf(z[1:])


def _minimum(cost: Array, at_least: list[tuple[Array, float]], at_most_one: sparse.spmatrix | None = None) -> float:
    matrix = sparse.csr_matrix(np.stack([-row for row, _ in at_least]))
    limits = np.array([-limit for _, limit in at_least])
    if at_most_one is not None:
        matrix = sparse.vstack([matrix, at_most_one]).tocsr()
        limits = np.concatenate([limits, np.ones(at_most_one.shape[0])])
    found = linprog(cost, A_ub=matrix, b_ub=limits, bounds=(0, 1), method="highs")
    assert found.status == 0, found.message
    return float(found.fun)


def second_order_program(p: float, gs: float, r: float) -> float:
    """Least E f(X + r) with E f >= p and E X f >= -gs, f on a line."""
    edges = np.linspace(-9, 9 + r, 4001)
    mass, moment = _cells(edges)
    return _minimum(_cells(edges, r)[0], [(mass, p), (moment, -gs)])


def dipole_program(cs: float, cn: float, gs: float, r: float) -> float:
    """Least E f(X + r) with C_S >= cs, C_N >= cn and E X f >= -gs, f given on pairs z, -z."""
    edges = np.linspace(0, 9 + r, 2501)
    mass, moment = _cells(edges)
    right, left = _cells(edges, r)[0], _cells(edges, -r)[0]
    zero, identity = np.zeros_like(mass), sparse.identity(len(mass))
    # On each cell z > 0: the probability that both members are true, only z, only -z.
    cost = np.concatenate([right + left, right, left])
    at_least = [
        (np.concatenate([2 * mass, zero, zero]), cs),
        (np.concatenate([zero, mass, mass]), cn),
        (np.concatenate([zero, moment, -moment]), -min(gs, 1.0)),
    ]
    return _minimum(cost, at_least, sparse.hstack([identity, identity, identity]))


def first_order_program(q: float, m1: float, m2: float, r: float) -> float:
    """Least E f(X + r, U) with E f >= q, E X f >= m1 and E U f >= m2, f on a plane."""
    x, u = np.linspace(-7, 7 + r, 141), np.linspace(-6, 6, 91)
    (mass_x, moment_x), (mass_u, moment_u) = _cells(x), _cells(u)
    cost = np.outer(_cells(x, r)[0], mass_u).ravel()
    rows = [np.outer(mass_x, mass_u), np.outer(moment_x, mass_u), np.outer(mass_x, moment_u)]
    return _minimum(cost, [(row.ravel(), limit) for row, limit in zip(rows, (q, m1, m2), strict=True)])


class Intervals:
    """The classifier on a line that is true on disjoint intervals: everything is known in closed form."""

    def __init__(self, *intervals: tuple[float, float]) -> None:
        self.low, self.high = np.array(sorted(intervals)).T

    def p(self, r: float = 0.0) -> float:
        """Smoothed probability at distance r, in units of sigma."""
        return float((ndtr(self.high - r) - ndtr(self.low - r)).sum())

    def gradient(self) -> float:
        """Absolute value of the scaled gradient at 0."""
        return abs(float((norm.pdf(self.low) - norm.pdf(self.high)).sum()))

    def symmetric(self) -> float:
        """C_S, the probability that z and -z are both inside."""
        low = np.maximum(self.low[:, None], -self.high)
        high = np.minimum(self.high[:, None], -self.low)
        return float(np.where(high > low, ndtr(high) - ndtr(low), 0.0).sum())

    def distance(self) -> float:
        """Distance to the nearest point with p <= 1/2, found by a fine scan and bisection, to 1e-13."""
        best = np.inf
        for sign in (1.0, -1.0):
            scan = sign * np.linspace(0, 14, 3001)
            values = (ndtr(self.high[:, None] - scan) - ndtr(self.low[:, None] - scan)).sum(axis=0)
            first = int(np.argmax(values <= 0.5))
            if not values[first] <= 0.5:
                continue
            low, high = (abs(scan[first - 1]), abs(scan[first])) if first else (0.0, 0.0)
            for _ in range(50):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if self.p(sign * middle) > 0.5 else (low, middle)
            best = min(best, high)
        return float(best)


def random_intervals(rng: np.random.Generator) -> Intervals:
    """Two random disjoint intervals with p > 1/2."""
    while True:
        a, b, c, d = np.sort(rng.normal(scale=2.0, size=4))
        found = Intervals((a, b), (c, d))
        if 0.505 < found.p() < 1 - 1e-9:
            return found
