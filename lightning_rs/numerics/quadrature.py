"""Gaussian expectations of the first-order dual, with a bound on their numerical error.

Notation: X ~ N(0, 1); B(x) = e^{rx - r^2/2} - a - b x, convex; c > 0; h(B) = B Phi(B/c) + c phi(B/c), the mean of
max(B + c U, 0) over U ~ N(0, 1). The dual needs E h(B(X)) and its derivatives.

How. With k(u) = phi(u) - u Phi(-u), h(B) = B + c k(B/c) = c k(-B/c). Outside two points x1 <= x2 (the roots of B, but
any two points make an exact identity) the first form is used and E[B; outside] is in closed form; inside, the
second. What is left is c k(|B|/c), a bump around each root that decays like e^{-(B/c)^2/2}, integrated where
|B| < 9 c by 16-point Gauss-Legendre panels.

Error. On each panel the integrand is bounded on a rectangle around the Bernstein ellipse of parameter 4
(|Phi(u + iv) - Phi(u)| <= |v| phi(u) e^{v^2/2}; Re B and Im B bounded from their end values), which bounds the
quadrature error rigorously (Trefethen 2013, Theorem 19.3); panels are halved until that is negligible. The
pieces left out are bounded by k at their ends and Gaussian tails, the rounding by a multiple of the magnitudes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from lightning_rs.checks import FloatArray, IntArray
from lightning_rs.numerics.gaussian import EPS, SQRT_2PI, density

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(16)
_RHO = 4.0
_ELLIPSE_REAL, _ELLIPSE_IMAG = 0.5 * (_RHO + 1 / _RHO), 0.5 * (_RHO - 1 / _RHO)
_ELLIPSE_ERROR = 64 / 15 * _RHO ** (-2 * len(_NODES)) / (1 - _RHO**-2)
_REACH = 9.0  # k(9) < 2e-20
_SPLITS = np.linspace(0.0, 1.0, 4)
_PANEL_ERROR = 1e-17
_DEPTH, _CROWD = 40, 400


class Multipliers(NamedTuple):
    """The dual variables, each of shape (N,): b >= 0 and c > 0."""

    a: FloatArray
    b: FloatArray
    c: FloatArray


class Expectations(NamedTuple):
    """What one evaluation returns, leading axis N.

    Attributes:
        value: E h(B).
        error: bound on the absolute error of ``value``.
        gradient: E Phi(B/c), E X Phi(B/c), E phi(B/c); (N, 3): minus, minus and plus the derivatives of value.
        curvature: E (phi(B/c)/c) v v^T with v = (1, X, B/c), (N, 3, 3).
        shift: the derivative of ``value`` by r.
    """

    value: FloatArray
    error: FloatArray
    gradient: FloatArray
    curvature: FloatArray
    shift: FloatArray


def expectations(at: Multipliers, r: FloatArray, window: FloatArray) -> Expectations:
    """Evaluate the integrals for N problems at once.

    Args:
        at: multipliers, each (N,).
        r: distance in units of sigma, > 0, (N,).
        window: the integrals run over [-window, r + window]; what lies outside is added to the error, (N,).
    """
    # All panels of all problems lie in one flat list: problems need different numbers of them, and one array operation
    # over the list is what makes a batch cheap. ``index`` says whose panel it is, and _added puts the sums back.
    x1, x2, panels, error = _mesh(at, r, window)
    index, low, high, side = panels
    half, middle = 0.5 * (high - low), 0.5 * (high + low)
    x = middle[:, None] + half[:, None] * _NODES
    a, b, c, shift = (value[index][:, None] for value in (*at, r))
    likelihood = np.exp(shift * x - 0.5 * shift * shift)
    u = (likelihood - a - b * x) / c
    weight = half[:, None] * _WEIGHTS * density(x)
    bump = density(u)
    outward = side[:, None]
    # Phi(u) = 1 - Phi(-u) outside, where the 1 is integrated in closed form.
    step = -outward * ndtr(-outward * u)
    # Value, then the three moments of Phi(u) that make the gradient, then the derivative by r; phi(u) does the rest.
    sums: list[FloatArray] = [
        c * weight * (bump + u * step),
        weight * step,
        weight * x * step,
        weight * bump,
        weight * step * likelihood * (x - shift),
    ]
    # The Hessian is an average of outer products v v^T, so its six distinct entries need no further evaluation.
    density_c = weight * bump / c
    sums += [density_c, density_c * x, density_c * x * x, density_c * u, density_c * x * u, density_c * u * u]
    count = len(r)
    totals = [_added(index, part, count) for part in sums]
    value, mass, moment, slope, change, k00, k01, k11, k02, k12, k22 = totals
    outside, outside_moment, outside_shifted, outside_change = _outside(x1, x2, r)
    gradient = np.stack([outside + mass, outside_moment + moment, slope], axis=1)
    curvature = np.stack([k00, k01, k02, k01, k11, k12, k02, k12, k22], axis=1).reshape(count, 3, 3)
    total = outside_shifted - at.a * outside - at.b * outside_moment + value
    # Rounding is relative to what is added, not to the sum, in which large terms of both signs may cancel; the
    # exponent x^2/2 of a density loses another x^2 of relative accuracy.
    magnitude = outside_shifted + np.abs(at.a) * outside + at.b * np.abs(outside_moment) + at.c * slope + value
    square = np.minimum(np.maximum(x1 * x1, x2 * x2), window * window)
    error = error + EPS * (16 + square) * magnitude
    return Expectations(total, error, gradient, curvature, outside_change + change)


def _added(index: IntArray, parts: FloatArray, count: int) -> FloatArray:
    return np.asarray(np.bincount(index, weights=parts.sum(axis=1), minlength=count), dtype=np.float64)


def _outside(x1: FloatArray, x2: FloatArray, r: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    # Over x < x1 and x > x2: P, E X, E e^{rX - r^2/2}, and the derivative of the last by r.
    mass = ndtr(x1) + ndtr(-x2)
    moment = density(x2) - density(x1)
    shifted = ndtr(x1 - r) + ndtr(r - x2)
    return mass, moment, shifted, density(x2 - r) - density(x1 - r)


class _Panels(NamedTuple):
    """Intervals of one bump each: their problem, ends, and +1 if B > 0 (outside the roots) or -1."""

    problem: IntArray
    low: FloatArray
    high: FloatArray
    side: FloatArray

    def take(self, keep: NDArray[np.bool_]) -> _Panels:
        return _Panels(self.problem[keep], self.low[keep], self.high[keep], self.side[keep])

    def halved(self) -> _Panels:
        middle = 0.5 * (self.low + self.high)
        return _Panels.joined([self._replace(high=middle), self._replace(low=middle)])

    @staticmethod
    def joined(parts: list[_Panels]) -> _Panels:
        return _Panels(
            np.concatenate([part.problem for part in parts]),
            np.concatenate([part.low for part in parts]),
            np.concatenate([part.high for part in parts]),
            np.concatenate([part.side for part in parts]),
        )


def _mesh(at: Multipliers, r: FloatArray, window: FloatArray) -> tuple[FloatArray, FloatArray, _Panels, FloatArray]:
    # The window reaches to the right by r more: mass moves there under the shift. Bumps live where |B| < 9 c, around
    # each root of B: between the crossings of e^{rx - r^2/2} with the line moved up and down by 9 c. If the line is
    # never met, all of that collapses to the closest point, and the identity holds there as anywhere.
    left, right = -window, r + window
    levels = np.stack([at.a, at.a + _REACH * at.c, at.a - _REACH * at.c])
    (x1, outer1, inner1), (x2, outer2, inner2) = crossings(levels, at.b, r, left, right)
    # Clipping and rounding may have disturbed the order outer1 <= x1 <= inner1 <= inner2 <= x2 <= outer2.
    outer1, outer2 = np.minimum(outer1, x1), np.maximum(outer2, x2)
    inner1 = np.clip(inner1, x1, x2)
    inner2 = np.clip(inner2, inner1, x2)
    error = _neglected(at, r, window, np.stack([outer1, outer2, inner1, inner2]))
    # Four stretches, one at each side of each root, of three panels to begin with.
    low, high = np.stack([outer1, x1, inner2, x2]), np.stack([x1, inner1, x2, outer2])
    width = (high - low)[..., None]
    problem = np.broadcast_to(np.arange(len(r))[:, None], (*width.shape[:2], len(_SPLITS) - 1))
    side = np.broadcast_to(np.array([1.0, -1.0, -1.0, 1.0])[:, None, None], problem.shape)
    cuts = low[..., None] + width * _SPLITS
    panels = _Panels(problem.ravel(), cuts[..., :-1].ravel(), cuts[..., 1:].ravel(), side.ravel())
    return x1, x2, *_refine(at, r, panels, error)


def _refine(at: Multipliers, r: FloatArray, panels: _Panels, error: FloatArray) -> tuple[_Panels, FloatArray]:
    # The bound is made before the integrand is evaluated at all: only what is fine enough is ever integrated.
    done: list[_Panels] = []
    for depth in range(_DEPTH):
        bound = _panel_error(at, r, panels)
        fine = bound <= _PANEL_ERROR * (1 + at.c[panels.problem])
        # Giving up is sound (the bound counts as error); it happens for absurd multipliers only.
        fine |= (depth == _DEPTH - 1) | (np.bincount(panels.problem, minlength=len(r)) > _CROWD)[panels.problem]
        error = error + np.bincount(panels.problem[fine], weights=bound[fine], minlength=len(r))
        done.append(panels.take(fine & (panels.high > panels.low)))
        if fine.all():
            break
        panels = panels.take(~fine).halved()
    return _Panels.joined(done), error


def _panel_error(at: Multipliers, r: FloatArray, panels: _Panels) -> FloatArray:
    # The error of n Gauss points is at most 64/15 max|f| rho^{-2n} / (1 - rho^{-2}) on [-1, 1], the maximum over the
    # ellipse. The integrand is c k(u) phi(x) with u = +-B/c, both entire; the rectangle x in [low, high] + i [-y, y]
    # contains the ellipse, and each factor is bounded there by itself: loose by a little, cheap, and always true.
    a, b, c, shift = (value[panels.problem] for value in (*at, r))
    half = 0.5 * (panels.high - panels.low)
    y = _ELLIPSE_IMAG * half
    low, high = panels.low - (_ELLIPSE_REAL - 1) * half, panels.high + (_ELLIPSE_REAL - 1) * half
    with np.errstate(over="ignore", invalid="ignore"):
        start, end = (np.exp(np.minimum(shift * x - 0.5 * shift * shift, 600.0)) for x in (low, high))
        angle = shift * y
        # Im B = e^{...} sin(shift y) - b y. sin(t)/t over [0, angle] lies in [flat, 1]; cos(t) >= 1 - t^2/2.
        flat = np.where(angle < np.pi, np.sinc(angle / np.pi), -0.2173)
        imag = y / c * np.maximum(np.abs(shift * end - b), b - shift * np.minimum(start * flat, end * flat))
        # Re B = e^{...} cos(shift y) - a - b x: at least its real minimum less what the cosine takes, and at most the
        # larger of its ends, because B is convex.
        bottom = np.clip((np.log(np.maximum(b, 1e-300) / shift) + 0.5 * shift * shift) / shift, low, high)
        smallest = np.exp(np.minimum(shift * bottom - 0.5 * shift * shift, 600.0)) - a - b * bottom
        outward = smallest - 0.5 * end * angle * angle
        inward = -np.maximum(start - a - b * low, end - a - b * high)
        u = np.where(panels.side > 0, outward, inward) / c
        # k' = -Phi(-.), so |k(u + iv) - k(u)| <= |v| (Phi(-u) + |v| phi(u) e^{v^2/2}). k falls, so the least u is the
        # worst; k(u) <= phi(u) for u >= 0 and phi(0) + |u| below.
        grow = imag * imag * 0.5
        real = np.maximum(u, 0.0)
        bump = density(real)
        largest = bump + np.maximum(-u, 0.0) + imag * (ndtr(-u) + imag * bump * np.exp(np.minimum(grow, 600.0)))
        # |phi(x + iy)| = phi(x) e^{y^2/2}, largest at the point of the panel next to 0.
        nearest = np.where(low * high < 0, 0.0, np.minimum(np.abs(low), np.abs(high)))
        gauss = np.exp(np.minimum(0.5 * (y * y - nearest * nearest), 600.0)) / SQRT_2PI
        bound = half * _ELLIPSE_ERROR * c * gauss * largest
    return np.where(half > 0, np.where(np.isnan(bound), np.inf, bound), 0.0)


def _neglected(at: Multipliers, r: FloatArray, window: FloatArray, ends: FloatArray) -> FloatArray:
    # k(u) <= phi(u)/u^2 and B (or -B, between the inner ends) only grows away from the end.
    with np.errstate(over="ignore"):
        u = np.abs(np.exp(r * ends - 0.5 * r * r) - at.a - at.b * ends) / at.c
    # An end at the window's edge cuts nothing off: what lies beyond is paid for below, by Gaussian tails.
    clipped = (ends <= -window) | (ends >= r + window)
    cut = np.where(clipped, 0.0, density(u) / np.maximum(u * u, 1.0))
    empty = np.stack([np.zeros_like(r, dtype=bool)] * 2 + [ends[3] <= ends[2]] * 2)
    beyond = np.abs(at.a) * (ndtr(-window) + ndtr(-window - r)) + at.b * (density(window) + density(window + r))
    return at.c * (np.where(empty, 0.0, cut).sum(axis=0) + ndtr(-window)) + beyond


def crossings(
    level: FloatArray, b: FloatArray, r: FloatArray, left: FloatArray, right: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Return where e^{rx - r^2/2} meets level + b x, clipped to [left, right]; its closest point twice if nowhere.

    The arguments broadcast. Newton's method from outside: on the convex difference for the left root, on the
    concave difference of logarithms for the right one. Both approach monotonically.
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        positive = b > 0
        slope = np.where(positive, b, 1.0)
        # The two curves are closest where their slopes agree; whether they meet is decided there.
        bottom = np.where(positive, (np.log(slope / r) + 0.5 * r * r) / r, left)
        meets = np.where(positive, level + slope * bottom > slope / r, level > np.exp(r * left - 0.5 * r * r))
        x1 = np.where(meets & positive, np.minimum(-level / slope, bottom), left)
        x2 = np.where(meets, np.where(positive, bottom, left), bottom)
        moving = meets
        for _ in range(60):
            likelihood = np.exp(r * x1 - 0.5 * r * r)
            step1 = (likelihood - level - b * x1) / (b - r * likelihood)
            line = level + b * x2
            step2 = (np.log(line) - r * x2 + 0.5 * r * r) / (r - b / line)
            moves1 = moving & positive & np.isfinite(step1)
            moves2 = moving & np.isfinite(step2)
            x1 = np.where(moves1, np.minimum(x1 + step1, bottom), x1)
            x2 = np.where(moves2, np.maximum(x2 + step2, bottom), x2)
            steps = np.where(moves1, np.abs(step1), 0.0) + np.where(moves2, np.abs(step2), 0.0)
            moving = moving & (steps > 1e-13 * (1 + np.abs(x2)))
            if not moving.any():
                break
    x1 = np.clip(np.where(meets, x1, bottom), left, right)
    return x1, np.clip(np.where(meets, x2, bottom), x1, right)
