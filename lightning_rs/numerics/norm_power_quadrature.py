"""Exact worst-case probabilities of the l2 family by one-dimensional quadrature, in units of sigma.

Let L(z) = log pi_0(z - delta) - log pi_0(z) with ||delta||_2 = r, and H(s) = P_0(L <= s). Because pi_0 is
symmetric, P_delta(L <= t) = P_0(L >= -t), so by Neyman and Pearson the smallest probability that a set of
pi_0-mass p can have under pi_delta is 1 - H(-s) with H(s) = p. It exceeds 1/2 iff p exceeds

    p*(r) = H(-m),   m the median of L under pi_0.

Given rho = ||z||_2, L falls with T = ||z - delta||^2 - ||z||^2 = r^2 - 2 r rho cos(theta), and
(1 + cos theta) / 2 ~ Beta((d-1)/2, (d-1)/2), so H is an integral over rho of an incomplete beta function.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import numpy as np
from scipy import special
from scipy.interpolate import make_interp_spline

from lightning_rs.checks import FloatArray, IntArray

NODES = 64  # Gauss-Legendre nodes a part
REACH = 12.0  # rho runs over Phi^-1(cumulative probability) in [-12, 12]: 2e-33 of the mass is left out
PIECES = 1200  # of the change of variables
QUADRATURE_ERROR = 1e-11  # relative, ten times what oracles and doubled quadratures show
SMOOTH_FROM = 40  # from this dimension on the integrand has no kink that quadrature could notice


@dataclass(frozen=True)
class LogRatioLaw:
    """The law of L under pi_0 for one (d, k) and any shift r.

    Attributes:
        dim: number d >= 2 of coordinates.
        k: power of the norm, 0 <= k < d.
        panels: parts into which each smooth piece is cut; k close to d needs many.
    """

    dim: int
    k: float
    panels: int = 1

    def cdf(self, s: FloatArray, r: FloatArray) -> FloatArray:
        """Return H(s) = P_0(L <= s), elementwise over s and r > 0 of one shape."""
        return self._average(s, r, upper=False)

    def tail(self, s: FloatArray, r: FloatArray) -> FloatArray:
        """Return 1 - H(s), with small relative error however small it is."""
        return self._average(s, r, upper=True)

    def quantile(self, score: FloatArray, r: FloatArray) -> FloatArray:
        """Return s with Phi^-1(H(s)) = score, elementwise over scores and r > 0 of one shape (n,)."""
        # Exact for k = 0, where L ~ N(-r^2/2, r^2); the factor is the Fisher information for small r.
        spread = np.maximum(r * math.sqrt(self.dim / (self.dim - self.k)), 1e-300)
        centre, width = -0.5 * spread**2, spread * (1.0 + np.abs(score))  # a guess; the solver widens it

        def excess(s: FloatArray, rows: IntArray) -> FloatArray:
            return self.score(s, r[rows], score[rows]) - score[rows]

        return increasing_root(excess, centre - width, centre + width, 2e-14 * spread)

    def score(self, s: FloatArray, r: FloatArray, near: FloatArray) -> FloatArray:
        """Return Phi^-1(H(s)) clipped to [-40, 40]; ``near`` says which tail has the digits."""
        # In normal scores H is nearly a straight line; where it is near 1 the tail has the digits.
        if (near <= 0.0).all():
            score = special.ndtri(self.cdf(s, r))
        elif (near > 0.0).all():
            score = -special.ndtri(self.tail(s, r))
        else:
            score = np.where(near <= 0.0, special.ndtri(self.cdf(s, r)), -special.ndtri(self.tail(s, r)))
        return np.clip(score, -40.0, 40.0)

    def median(self, r: FloatArray) -> FloatArray:
        """Return the median of L."""
        return self.quantile(np.zeros(r.shape), r)

    def tail_needed(self, r: FloatArray) -> FloatArray:
        """Return 1 - p*(r): the largest tail 1 - p that still certifies the ball of radius r."""
        return self.tail(-self.median(r), r)

    def score_needed(self, r: FloatArray) -> FloatArray:
        """Return Phi^-1(p*(r)); at most 40."""
        return np.minimum(-special.ndtri(self.tail_needed(r)), 40.0)

    def _average(self, s: FloatArray, r: FloatArray, *, upper: bool) -> FloatArray:
        # In low dimension {L <= s} begins to cut a sphere at radii where the incomplete beta function has a corner;
        # nodes must not straddle it. From dimension 40 on it leaves 0 like a 19th power or more: smooth enough.
        rho, weight = self._smooth_grid if self.dim >= SMOOTH_FROM else self._kinked_grid(s, r)
        cosine = self._cosine(rho, s[..., None], r[..., None])
        half = 0.5 * (self.dim - 1)
        # The share of the sphere beyond the cosine; 1 - H asks for the other cap itself, not for 1 minus this one.
        share = special.betainc(half, half, 0.5 * (1.0 - cosine if upper else 1.0 + cosine))
        return (share * weight).sum(-1)

    def _cosine(self, rho: FloatArray, s: FloatArray, r: FloatArray) -> FloatArray:
        """Return the cosine above which L exceeds s on the sphere of radius rho, clipped to [-1, 1]."""
        square = rho * rho
        if self.k == 0:
            t = -2.0 * s
        else:
            # (k/2) log(1 + t/rho^2) + t/2 = -s; with v = (rho^2 + t)/k this is v + log v = const.
            w = (square - 2.0 * s) / self.k + np.log(square / self.k)
            t = self.k * special.wrightomega(w) - square
            # t is a small difference of large numbers: two Newton steps on the form that does not cancel.
            for _ in range(2):
                t = np.maximum(t, (1e-14 - 1.0) * square)
                miss = 0.5 * self.k * np.log1p(t / square) + 0.5 * t + s
                t = t - miss / (0.5 * self.k / (square + t) + 0.5)
        return np.clip((r * r - t) / (2.0 * r * rho), -1.0, 1.0)

    @cached_property
    def _smooth_grid(self) -> tuple[FloatArray, FloatArray]:
        x, weight = _gauss_legendre()
        return self._grid(np.linspace(-REACH, REACH, self.panels + 1), x, weight)

    def _kinked_grid(self, s: FloatArray, r: FloatArray) -> tuple[FloatArray, FloatArray]:
        # Every pair (s, r) has pieces of its own, cut at its kinks; coinciding edges make pieces of no width and
        # weight.
        ends = np.full((*s.shape, 2), (-REACH, REACH))
        kinks = np.clip(self._to_normal(self._kinks(s, r)), -REACH, REACH)
        edges = np.sort(np.concatenate([ends, kinks], axis=-1), axis=-1)
        inner = edges[..., :-1, None] + np.diff(edges)[..., None] * np.arange(self.panels) / self.panels
        edges = np.concatenate([inner.reshape(*s.shape, -1), edges[..., -1:]], axis=-1)
        # At a kink the integrand can have a root singularity: x -> (3x - x^3)/2 clusters nodes there.
        x, weight = _gauss_legendre()
        return self._grid(edges, 0.5 * x * (3.0 - x * x), weight * 1.5 * (1.0 - x * x))

    def _grid(self, edges: FloatArray, x: FloatArray, weight: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return radii and weights, shape (..., pieces * nodes), from piece edges in the normal score of rho."""
        centre, half = 0.5 * (edges[..., 1:] + edges[..., :-1]), 0.5 * np.diff(edges)
        y = (centre[..., None] + half[..., None] * x).reshape(*edges.shape[:-1], -1)
        log_g, slope = self._log_quantile_and_slope(y)
        a = 0.5 * (self.dim - self.k)
        # rho^2 / 2 has a Gamma(a) law; its density over that of y, less constants, which the normalisation takes care
        # of.
        density = np.exp(a * (log_g - math.log(a)) - np.exp(log_g) + a) * slope
        weights = (half[..., None] * weight).reshape(y.shape) * density
        return np.sqrt(2.0) * np.exp(0.5 * log_g), weights / weights.sum(-1, keepdims=True)

    def _log_quantile_and_slope(self, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return log(rho^2 / 2), about at the cumulative probability Phi(y), and its derivative by y.

        Only a change of variables: the weights hold the exact density, whatever the map.
        """
        coefficients, step = self._log_quantile, 2.0 * REACH / PIECES
        where = np.clip(((y + REACH) / step).astype(np.int64), 0, PIECES - 1)
        x = y - (where * step - REACH)
        # Horner's scheme for value and slope together: much of a quadrature's time went into two calls of a spline.
        value, slope = np.take(coefficients[0], where), np.zeros(y.shape)
        for row in coefficients[1:]:
            slope = slope * x + value
            value = value * x + np.take(row, where)
        return value, slope

    @cached_property
    def _log_quantile(self) -> FloatArray:
        """Coefficients of the map's pieces on equal steps of y, highest power first, shape (8, PIECES)."""
        y = np.linspace(-REACH, REACH, PIECES + 1)
        a = 0.5 * (self.dim - self.k)
        # Each half in the tail that is small there, so that neither 1 - 1e-20 nor its inverse is ever formed.
        low, high = special.ndtr(np.minimum(y, 0.0)), special.ndtr(-np.maximum(y, 0.0))
        g = np.where(y < 0, special.gammaincinv(a, low), special.gammainccinv(a, high))
        # Below 1e-30 the distribution function is g^a / Gamma(a + 1), and g itself may underflow.
        small = (special.log_ndtr(y) + special.gammaln(a + 1.0)) / a
        spline = make_interp_spline(y, np.where(g < 1e-30, small, np.log(np.maximum(g, 1e-30))), k=7)
        starts = y[:-1]
        return np.stack([spline(starts, nu=n) / math.factorial(n) for n in range(7, -1, -1)])

    def _to_normal(self, rho: FloatArray) -> FloatArray:
        a, g = 0.5 * (self.dim - self.k), 0.5 * rho * rho
        low = special.gammainc(a, g)
        return np.where(low < 0.5, special.ndtri(low), -special.ndtri(special.gammaincc(a, g)))

    def _kinks(self, s: FloatArray, r: FloatArray) -> FloatArray:
        """Radii at which {L <= s} begins or ceases to cut the sphere, shape (..., 5).

        They solve L = s at the poles z = +-rho e_1. With g(rho) = L there, the northern g rises on (0, r), falls
        to its minimum at (r + sqrt(r^2 + 4k))/2 and rises again; the southern one rises to its maximum at
        (-r + sqrt(r^2 + 4k))/2 and falls. Each monotone stretch has at most one solution.
        """
        r, s = r[..., None], s[..., None]
        far, zero = 1e3 + 10.0 * r + math.sqrt(self.dim), np.full(r.shape, 1e-140)
        bottom, top = (0.5 * (sign * r + np.sqrt(r * r + 4.0 * self.k)) for sign in (1.0, -1.0))
        pole = np.array([1.0, 1.0, 1.0, -1.0, -1.0])
        # Ends of each stretch where L is smaller (a) and larger (b); bisection in log rho.
        a = np.log(np.maximum(np.concatenate([zero, bottom, bottom, zero, far], axis=-1), 1e-140))
        b = np.log(np.maximum(np.concatenate([r, r, far, top, top], axis=-1), 1e-140))
        with np.errstate(divide="ignore", invalid="ignore"):
            for _ in range(60):
                mid = 0.5 * (a + b)
                rho = np.exp(mid)
                below = pole * r * rho - 0.5 * r * r - self.k * np.log(np.abs(pole - r / rho)) < s
                a, b = np.where(below, mid, a), np.where(below, b, mid)
        return np.exp(0.5 * (a + b))


@lru_cache(maxsize=32)
def converged_law(dim: int, k: float) -> LogRatioLaw:
    """Return the law of the log likelihood ratio on a quadrature fine enough for (d, k)."""
    # The finer of two quadratures that agree is kept: its error is far below the difference that was seen.
    probes = np.geomspace(0.01, 7.0, 8) * math.sqrt((dim - k) / dim)
    law, scores = LogRatioLaw(dim, k), LogRatioLaw(dim, k).score_needed(probes)
    while law.panels <= 256:
        finer = LogRatioLaw(dim, k, 2 * law.panels)
        refined = finer.score_needed(probes)
        if (np.abs(refined - scores) <= 0.2 * QUADRATURE_ERROR * refined).all():
            return finer
        law, scores = finer, refined
    raise ValueError(f"k must be farther from dim for the quadrature to converge, got k={k} at dim={dim}")


def increasing_root(
    f: Callable[[FloatArray, IntArray], FloatArray], low: FloatArray, high: FloatArray, tolerance: FloatArray
) -> FloatArray:
    """Return the elementwise root of an increasing function; the brackets are widened until they hold it.

    Args:
        f: values at some points, given with their positions; shape (m,) each. Converged ones are not asked for.
        low: left ends, shape (n,).
        high: right ends.
        tolerance: width at which a root is found.
    """
    todo = np.arange(len(low))
    f_low, f_high = f(low, todo), f(high, todo)
    while ((f_low > 0) | (f_high < 0)).any():
        width = high - low
        low, high = np.where(f_low > 0, low - width, low), np.where(f_high < 0, high + width, high)
        f_low, f_high = f(low, todo), f(high, todo)
    x, was = low.copy(), np.zeros(len(low))
    for step in range(200):
        # Illinois: regula falsi that halves the weight of an end point that stays twice; bisection now and then.
        with np.errstate(divide="ignore", invalid="ignore"):
            secant = high - f_high * (high - low) / (f_high - f_low)
        middle = 0.5 * (low + high)
        trial = np.where(np.isfinite(secant) & (step % 16 != 15), np.clip(secant, low, high), middle)
        # Rows that have converged leave, so that no bit of a root depends on what was solved beside it.
        left = (np.abs(trial - x[todo]) > tolerance) & (high - low > tolerance)
        if not left.any():
            break
        todo, trial = todo[left], trial[left]
        low, high, f_low, f_high, was, tolerance = (a[left] for a in (low, high, f_low, f_high, was, tolerance))
        x[todo] = trial
        value = f(trial, todo)
        side = np.where(value < 0, 1.0, -1.0)
        again = np.where(side == was, 0.5, 1.0)
        f_low, f_high = np.where(side > 0, value, again * f_low), np.where(side > 0, again * f_high, value)
        low, high = np.where(side > 0, trial, low), np.where(side > 0, high, trial)
        was = side
    return x


@cache
def _gauss_legendre() -> tuple[FloatArray, FloatArray]:
    x, weight = np.polynomial.legendre.leggauss(NODES)
    return x, weight
