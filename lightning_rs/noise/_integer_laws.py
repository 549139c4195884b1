"""Exact laws on the integers, as 63-bit thresholds from high-precision arithmetic.

A law of W is the list of its values v_0 < v_1 < ... and of the numbers T_i = floor(2^63 P(W <= v_i)): with U uniform on
{0, ..., 2^63 - 1}, v_j with j = #{i: T_i <= U} has the law of W up to a total variation of (number of values) 2^-64,
because every probability is off by less than 2^-63. Built once for each parameter, in integers with
160 bits behind the point, from a few constants that mpmath gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from mpmath import mp
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_ndtr, ndtr

from lightning_rs.checks import FloatArray, as_float64, check_nonnegative, check_positive

TABLE_VERSION = 1
"""Changes whenever the same parameters would give other draws: part of what binds a record file."""
UNIT = 1 << 63
_FRACTION = 160  # bits behind the point
_SMOOTHING = Fraction(9, 4)


@dataclass(frozen=True)
class IntegerLaw:
    """A law on the integers that can be drawn exactly up to a stated total variation.

    Attributes:
        values: int32, increasing, shape (cells,).
        thresholds: int64, T_i for all values but the last, whose is 2^63; shape (cells - 1,).
        means: conditional mean of the real variable behind W given W, in lattice steps, shape (cells,); for other laws
            than the Gaussian, which have no gradient evidence, W itself.
    """

    values: NDArray[np.int32]
    thresholds: NDArray[np.int64]
    means: FloatArray

    @property
    def distance(self) -> float:
        """Bound on the total variation between the draws and the law."""
        return len(self.values) * 2.0**-64

    @property
    def largest(self) -> int:
        """The largest |W|."""
        return int(np.abs(self.values).max())


def _fixed(number: Any) -> int:
    """Return a number as a multiple of 2^-160, rounded to nearest; call it at a working precision beyond that."""
    return int(mp.nint(mp.ldexp(number, _FRACTION)))


def _exponential(power: Fraction) -> int:
    """Return exp(power) in fixed point."""
    with mp.workprec(_FRACTION + 40):
        return _fixed(mp.exp(mp.mpf(power.numerator) / power.denominator))


def _times(a: int, b: int) -> int:
    return (a * b) >> _FRACTION


def _floors(numbers: Sequence[int]) -> list[int]:
    """Return the floors of 2^63 p for probabilities p in fixed point; refuse to guess next to a whole number."""
    # The fixed-point number may be off by some units of 2^-160. Its floor is certain unless it lies that close to a
    # whole multiple of 2^-63; 2^-50 of one is far more than that error, and chance comes as near once in 2^49 numbers.
    shift = _FRACTION - 63
    margin, whole = 1 << (shift - 50), 1 << shift
    for number in numbers:
        if number > margin and not margin < number % whole < whole - margin:
            raise ArithmeticError(f"threshold within 2^-50 of a whole number: {number} / 2^{shift}")
    return [number >> shift for number in numbers]


def _symmetric(tails: Sequence[int], means: FloatArray) -> IntegerLaw:
    """Return the law of a symmetric W from tails[w] = P(W > w) and the conditional means for w = 0, 1, ..."""
    # From the tails, not from the distribution function: both halves come from the same numbers.
    low = _floors(tails)
    last = next((w for w, floor in enumerate(low) if floor == 0), len(low) - 1) + 1  # beyond: less than 2^-63
    low, upper = low[:last], means[: last + 1]
    # P(W <= -w - 1) = P(W > w): floor(2^63 t) below zero, 2^63 - ceil(2^63 t) above.
    thresholds = [*reversed(low), *(UNIT - 1 - floor for floor in low)]
    values = np.arange(-last, last + 1, dtype=np.int32)
    return IntegerLaw(values, np.array(thresholds, dtype=np.int64), np.concatenate([-upper[:0:-1], upper]))


@lru_cache(maxsize=64)
def rounded_gaussian(scale: Fraction) -> IntegerLaw:
    """Return the law of W = round(M Z), Z ~ N(0, 1): P(W = w) = Phi((w + 1/2)/M) - Phi((w - 1/2)/M), M = ``scale``.

    ``means`` are M E[Z | W].
    """
    last = int(9.5 * scale) + 2
    tails = _gaussian_tails(scale, last)
    return _symmetric(tails, rounded_gaussian_means(np.arange(last + 1), float(scale)))


def _gaussian_tails(scale: Fraction, last: int) -> list[int]:
    """Return P(M Z > w + 1/2), w = 0, ..., last - 1, in fixed point."""
    # Few cells: ask mpmath for each. Many narrow ones (the scale is q 2^bits sigma, thousands): a recurrence in
    # integers.
    if scale < 8:
        with mp.workprec(_FRACTION + 40):
            step = mp.mpf(scale.denominator) / (scale.numerator * mp.sqrt(2))
            return [_fixed(mp.erfc((w + mp.mpf(0.5)) * step) / 2) for w in range(last)]
    # The cell around z = w / M has the mass phi(z) sum_j He_2j(z) 2 e^(2j+1) / (2j+1)!, e = 1 / (2 M). Because
    # phi |He_n| <= sqrt(n!) (Cramer), the terms from j = 20 on are below 2^-160.
    with mp.workprec(_FRACTION + 40):
        density = _fixed(1 / mp.sqrt(2 * mp.pi))
        half = mp.mpf(scale.denominator) / (2 * scale.numerator)
        factors = [_fixed(2 * half ** (2 * j + 1) / mp.factorial(2 * j + 1)) for j in range(20)]
    square = 1 / scale**2
    # phi((w+1)/M) / phi(w/M) = e^{-(2w+1)/(2 M^2)}: each density from the one before by a ratio that shrinks by a
    # constant.
    ratio, step = _exponential(-square / 2), _exponential(-square)
    factors = [factor for factor in factors if factor]
    tail, tails = 1 << (_FRACTION - 1), []
    for w in range(last):
        z = w * scale.denominator * (1 << _FRACTION) // scale.numerator
        before, hermite, mass = 0, 1 << _FRACTION, 0  # He_n+1 = z He_n - n He_n-1; two steps a term, which are even
        for j, factor in enumerate(factors):
            mass += _times(hermite, factor)
            for n in (2 * j, 2 * j + 1):
                before, hermite = hermite, _times(z, hermite) - n * before
        cell = _times(density, mass)
        tail -= cell if w else cell // 2  # the cell around 0 is half on this side
        tails.append(tail)
        density, ratio = _times(density, ratio), _times(ratio, step)
    return tails


def rounded_gaussian_means(w: NDArray[np.int64], scale: float) -> FloatArray:
    """Return M E[Z | round(M Z) = w] for w >= 0, in lattice steps: M (phi(a) - phi(b)) / (Phi(b) - Phi(a))."""
    cell = w.astype(np.float64)
    a, b = (cell - 0.5) / scale, (cell + 0.5) / scale
    mass = _cell_mass(a, b)
    # phi(a) - phi(b) = phi(a) (1 - e^(-(b-a)(a+b)/2)): no cancellation.
    slope = -np.exp(-0.5 * a * a) * np.expm1(-0.5 * (b - a) * (b + a)) / np.sqrt(2 * np.pi)
    return np.asarray(np.where(w == 0, 0.0, scale * slope / mass), dtype=np.float64)


def _cell_mass(a: FloatArray, b: FloatArray) -> FloatArray:
    """Return Phi(b) - Phi(a) for -1 <= a < b, with the digits that tails close to each other would lose."""
    far = -np.exp(log_ndtr(-a)) * np.expm1(log_ndtr(-b) - log_ndtr(-a))
    return np.asarray(np.where(a < 1.0, ndtr(b) - ndtr(a), far), dtype=np.float64)


def integer_gaussian_pmf(w: ArrayLike, sigma: ArrayLike, q: ArrayLike, bits: ArrayLike) -> FloatArray:
    """Probability of whole-number noise: P(W = w) = Phi((w + 1/2) / M) - Phi((w - 1/2) / M), M = q 2^bits sigma.

    W = round(M Z) with Z ~ N(0, 1) is N(0, sigma^2) noise on the lattice of step 1 / (q 2^bits).

    Args:
        w: whole numbers.
        sigma: standard deviation in input units.
        q: number of grid steps of the data in [0, 1].
        bits: number of fraction bits of a lattice step, >= 0.

    Returns:
        Probabilities, broadcast over the arguments.

    Raises:
        ValueError: for w or bits that are not whole, sigma or q <= 0, or bits < 0.

    Example:
        >>> print(f"{integer_gaussian_pmf(0, sigma=0.25, q=255, bits=0):.6f}")
        0.006258
    """
    whole = np.abs(as_float64("w", w))
    power = check_nonnegative("bits", bits)
    for name, given, values in (("w", w, whole), ("bits", bits, power)):
        if (values != np.round(values)).any():
            raise ValueError(f"{name} must be whole, got {given!r}")
    scale = check_positive("q", q) * check_positive("sigma", sigma) * 2.0**power
    return _cell_mass((whole - 0.5) / scale, (whole + 0.5) / scale)[()]


@lru_cache(maxsize=64)
def discrete_gaussian(variance: Fraction) -> IntegerLaw:
    """Return the law with P(W = w) proportional to exp(-w^2 / (2 variance)), on all integers."""
    last = int(9.5 * float(variance) ** 0.5) + 2
    ratio, step = _exponential(-1 / (2 * variance)), _exponential(-1 / variance)
    # Weights by the same recurrence; what lies beyond the last is below 2^-64 of the sum and is left out.
    weight, weights = 1 << _FRACTION, []
    for _ in range(last + 1):
        weights.append(weight)
        weight, ratio = _times(weight, ratio), _times(ratio, step)
    above = list(accumulate(reversed(weights[1:])))[::-1]  # sums of the weights beyond w = 0, 1, ...
    total = 2 * above[0] + weights[0]
    tails = [(part << _FRACTION) // total for part in above[1:]]
    return _symmetric([(above[0] << _FRACTION) // total, *tails], np.arange(last + 1, dtype=np.float64))


def gaussian_levels(scale: Fraction, shift: int) -> tuple[IntegerLaw, IntegerLaw]:
    """Return laws of W1, W2 with 2^shift W1 + W2 = round(V), V ~ N(0, scale^2) up to a total variation of 1e-40.

    V = 2^shift W1 + s Z with s = 9/4 2^shift and W1 a discrete Gaussian of variance scale^2 / 4^shift - (9/4)^2. The
    density of V at t is that of N(0, scale^2) times sum_w exp(-(w - mu(t))^2 / 2 tau^2) over its mean value, with tau
    close to 9/4; by Poisson summation that is 1 up to 4 exp(-2 pi^2 tau^2) < 1e-40 (Micciancio and Walter 2017,
    convolution of discrete Gaussians). 2^shift W1 is a whole number, so that round(V) = 2^shift W1 + round(s Z).
    """
    coarse = scale / (1 << shift)
    if coarse < 64:
        raise ValueError(f"scale must be at least 64 * 2^shift, got {float(scale)} with shift {shift}")
    return discrete_gaussian(coarse**2 - _SMOOTHING**2), rounded_gaussian(_SMOOTHING * (1 << shift))


@lru_cache(maxsize=64)
def rounded_laplace(scale: Fraction) -> IntegerLaw:
    """Return the law of W = round(V) for V with density exp(-|v| / scale) / (2 scale)."""
    tails = _geometric(_exponential(-1 / (2 * scale)) >> 1, scale)
    return _symmetric(tails, np.arange(len(tails) + 1, dtype=np.float64))


@lru_cache(maxsize=64)
def signed_geometric(scale: Fraction) -> IntegerLaw:
    """Return the law of sign * (G + 1): the sign fair, P(G >= g) = exp(-g / scale)."""
    low = _floors(_geometric(_exponential(-1 / scale) >> 1, scale))  # P(W > g + 1), g = 0, 1, ...
    kept = next(g for g, floor in enumerate(low) if floor == 0) + 1
    low = low[:kept]
    thresholds = [*reversed(low), UNIT // 2, *(UNIT - 1 - floor for floor in low)]
    positive = np.arange(1, kept + 2, dtype=np.int32)
    values = np.concatenate([-positive[::-1], positive])
    return IntegerLaw(values, np.array(thresholds, dtype=np.int64), values.astype(np.float64))


def _geometric(first: int, scale: Fraction) -> list[int]:
    """Return first exp(-w / scale), w = 0, 1, ..., in fixed point, until it is below 2^-63."""
    step, tails = _exponential(-1 / scale), [first]
    while tails[-1] >> (_FRACTION - 64):
        tails.append(_times(tails[-1], step))
    return tails


@lru_cache(maxsize=64)
def truncated_geometric(scale: Fraction, size: int) -> IntegerLaw:
    """Return the law on 0..size-1 with P(W = w) proportional to exp(-w / scale)."""
    step = _exponential(-1 / scale)
    weights = [1 << _FRACTION]
    for _ in range(size - 1):
        weights.append(_times(weights[-1], step))
    total = sum(weights)
    low = _floors([(part << _FRACTION) // total for part in accumulate(weights)][:-1])
    values = np.arange(size, dtype=np.int32)
    return IntegerLaw(values, np.array(low, dtype=np.int64), values.astype(np.float64))


@lru_cache(maxsize=64)
def uniform_integers(size: int) -> IntegerLaw:
    """Return the uniform law on -(size - 1), -(size - 3), ..., size - 1: ``size`` values, two apart."""
    values = (2 * np.arange(size) - (size - 1)).astype(np.int32)
    thresholds = [(UNIT * (i + 1)) // size for i in range(size - 1)]
    return IntegerLaw(values, np.array(thresholds, dtype=np.int64), values.astype(np.float64))
