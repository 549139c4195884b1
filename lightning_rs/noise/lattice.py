"""Noise and images as integers on one lattice, so that the law at x' is the exact translate of the law at x.

In floating point x + w carries x: the sums that x can give are not those that x' can give, and a network that looks
for the difference is certified falsely. Here an image is X = x / h in whole numbers, the noise is a whole number
W = round(V), V the real noise in units of h, and the network sees J h, J = X + W. Because X is whole,
J = round(x / h + V) exactly: J is a function of the real sum, "round, then answer" is an ordinary base classifier, and
every certificate for the real law holds between all images on the lattice. Rounding J h to the network's dtype is a
function of J.

Where data are multiples of 1/q, h = 1 / (q 2^bits). Elsewhere h = 2^-bits is so fine that rounding the images costs
little: x is moved by ||x - X h||, any other image by at most half a step in each coordinate, and both are taken off
the radius (the distance of two rounded images is at most the distance of the images plus both).

W is drawn from its exact law by integer thresholds; what the draws are off in total variation, times all coordinates of
all samples, is taken off alpha by :meth:`LatticeNoise.level`: the one place where it is.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.noise._integer_laws import (
    TABLE_VERSION,
    IntegerLaw,
    gaussian_levels,
    rounded_gaussian,
    rounded_laplace,
    signed_geometric,
    truncated_geometric,
    uniform_integers,
)
from lightning_rs.noise._tables import Scratch, Table

_LARGEST_TABLE = 1024  # steps of the lattice in one scale of the law: beyond, two tables of fewer cells are faster
_FEWEST_STEPS = 32  # so many steps at least in one scale of the law: rounding adds 1e-4 to the variance
_MOST_BITS = 6
_FINE_BITS = 17  # off the grid: steps in one scale of the law, as a power of two
_EXACT_IN_FLOAT32 = 1 << 24
_LIMIT = 1 << 30


@dataclass(frozen=True)
class Lattice:
    """The points k / ``scale``, k whole.

    Attributes:
        scale: number of lattice steps in one input unit.
        grid: number q of steps of the data's own grid, of which ``scale`` is a multiple, or None.
        bits: scale = stride q 2^bits, or stride 2^bits off the grid.
        stride: images lie on every ``stride``-th point: 2 for uniform noise, whose values are half steps.
    """

    scale: int | float
    grid: int | None
    bits: int
    stride: int = 1

    def place(self, x: Tensor) -> Tensor:
        """Return the nearest lattice points of inputs, in steps, float64 of the same shape."""
        whole = x.double()
        if self.grid is None:
            return torch.round(whole * (self.scale / self.stride)) * self.stride
        return torch.round(whole * self.grid) * (self.scale / self.grid)

    def rounding(self, x: Tensor, norm: str) -> FloatArray:
        """Return how much is to be taken off a radius around each row of ``x``, (B, ...) -> (B,); 0 on a grid.

        The distance of x from the lattice, and the largest that any other image can have.
        """
        if self.grid is not None:
            return np.zeros(len(x))
        flat = x.detach().cpu().double().flatten(1)
        own = (flat - self.place(flat) / self.scale).abs()
        moved = {"l1": own.sum(1), "l2": own.square().sum(1).sqrt(), "linf": own.amax(1)}[norm]
        # 1e-9 for the rounding errors of these sums.
        return (moved.numpy() * (1 + 1e-9) + self.worst(norm, flat.shape[1])) * (1 + 1e-9)

    def worst(self, norm: str, dim: int) -> float:
        """Return the largest distance of an input with ``dim`` coordinates from the lattice; 0 on a grid."""
        if self.grid is not None:
            return 0.0
        return {"l1": float(dim), "l2": math.sqrt(dim), "linf": 1.0}[norm] * 0.5 * self.stride / float(self.scale)


class LatticeNoise(ABC):
    """A law whose variates are whole numbers of lattice steps.

    Attributes:
        lattice: the points that noisy copies lie on, before they are rounded to the network's dtype.
        dtype: integers that hold W: int16 or int32.
        largest: bound on |W|.
    """

    exact: ClassVar[bool] = True

    def __init__(self, lattice: Lattice, dtype: torch.dtype, largest: int) -> None:
        self.lattice = lattice
        self.dtype = dtype
        self.largest = largest

    @property
    @abstractmethod
    def distance(self) -> float:
        """Bound on the total variation between one drawn coordinate and its law."""

    @abstractmethod
    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch, means: Tensor | None = None) -> None:
        """Fill ``out``, :attr:`dtype` of shape (m, d), contiguous, on the CPU, with fresh W, one row a noisy copy.

        Args:
            out: to be filled.
            generator: a CPU generator: streams are the same whatever the device of the network.
            scratch: buffers of this thread.
            means: float64, shape (m, d): filled with E[V | W] in input units, what gradient evidence uses in place of
                the noise. E[f(J) V] = E[f(J) E[V | W]], because J is a function of W; and for every convex function,
                exp above all, that of a conditional mean is at most that of V in expectation (Jensen).
        """

    def place(self, x: Tensor) -> Tensor:
        """Return inputs (m, d) in lattice steps: float32, where sums are exact there, else int32.

        Raises:
            ValueError: if an input is so large that sums with the noise would leave the integers.
        """
        steps = self.lattice.place(x)
        limit = (_EXACT_IN_FLOAT32 if self.dtype == torch.int16 else _LIMIT) - self.largest
        if steps.numel() and float(steps.abs().max()) > limit:
            raise ValueError(
                f"images must lie within +-{limit / float(self.lattice.scale):g} for noise on a lattice of step "
                f"{1 / float(self.lattice.scale):g}, got {float(x.flatten()[steps.abs().argmax()])!r}"
            )
        return steps.to(torch.float32 if self.dtype == torch.int16 else torch.int32)

    def apply(self, placed: Tensor, w: Tensor, out: Tensor) -> None:
        """Write J h, J = X + W, into ``out``: a function of the whole number J, rounded to the dtype of ``out`` last.

        Args:
            placed: X as :meth:`place` gives it, (d,) or (m, d).
            w: what :meth:`draw_` filled, (m, d), on the device of ``out``.
            out: shape (m, d), floating point.
        """
        if out.dtype != torch.float32:
            exact = torch.empty(out.shape, dtype=torch.float32, device=out.device)
            self.apply(placed, w, exact)
            out.copy_(exact)
            return
        if placed.dtype == torch.float32:
            torch.add(w, placed, out=out)
        else:
            out.copy_(w + placed)
        out.div_(self.lattice.scale)

    def level(self, alpha: float, n: int, dim: int) -> float:
        """Return what is left of alpha for the statistics of n samples after the total variation of the noise.

        Raises:
            ValueError: if nothing is left.
        """
        spent = self.spent(n, dim)
        if spent >= alpha:
            raise ValueError(f"alpha must exceed the error {spent:g} of the noise law at n = {n}, got {alpha:g}")
        return alpha - spent

    def spent(self, n: int, dim: int) -> float:
        """Return the total variation between n drawn samples of ``dim`` coordinates and their law."""
        return n * dim * self.distance * (1 + 1e-9)

    def describe(self) -> dict[str, Any]:
        """Return what decides the draws, as plain values: it binds a record file."""
        return {
            "grid": self.lattice.grid,
            "bits": self.lattice.bits,
            "scale": self.lattice.scale,
            "table": TABLE_VERSION,
        }

    def statement(self, n: int, dim: int) -> str:
        """Return what is exact in a certificate from n samples of ``dim`` coordinates."""
        return f"the arithmetic is exact up to the network's input, the noise law to {self.spent(n, dim):.1e}"


class OneTable(LatticeNoise):
    """iid coordinates from one table."""

    def __init__(self, lattice: Lattice, law: IntegerLaw) -> None:
        self._table = Table(law)
        self._means = torch.from_numpy(law.means / float(lattice.scale))
        self._first = int(law.values[0])
        self._stride = int(law.values[-1] - law.values[0]) // max(len(law.values) - 1, 1)
        super().__init__(lattice, self._table.dtype, law.largest)

    @property
    def distance(self) -> float:
        """Number of cells times 2^-64."""
        return self._table.law.distance

    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch, means: Tensor | None = None) -> None:
        """One look-up a coordinate."""
        self._table.draw_(out, generator, scratch)
        if means is not None:
            means.copy_(self._means[(out.long() - self._first) // self._stride])


class TwoTables(LatticeNoise):
    """iid coordinates, each put together from two independent whole numbers."""

    def __init__(
        self,
        lattice: Lattice,
        laws: tuple[IntegerLaw, IntegerLaw],
        join: Callable[[Tensor, Tensor], Tensor],
        reach: int,
    ) -> None:
        self._tables = tuple(Table(law) for law in laws)
        self._join = join
        super().__init__(lattice, torch.int32, reach)

    @property
    def distance(self) -> float:
        """Number of cells of both tables times 2^-64; 2^-100 for the convolution of two Gaussians."""
        return sum(table.law.distance for table in self._tables) + 2.0**-100

    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch, means: Tensor | None = None) -> None:
        """Two look-ups a coordinate, the coarse one first."""
        coarse, fine = (self._part(i, out, generator, scratch) for i in (0, 1))
        out.copy_(self._join(coarse, fine))
        if means is not None:
            self._fill_means(means, out, fine)

    def _part(self, i: int, out: Tensor, generator: torch.Generator, scratch: Scratch) -> Tensor:
        table = self._tables[i]
        drawn = scratch.get(f"part {i}", out.numel(), table.dtype).view(out.shape)
        table.draw_(drawn, generator, scratch)
        return drawn.to(torch.int32)

    def _fill_means(self, means: Tensor, w: Tensor, fine: Tensor) -> None:
        # E[V | W1, W2] = 2^shift W1 + E[s Z | W2]: the correction of the fine part alone.
        law = self._tables[1].law
        correction = torch.from_numpy(law.means - law.values)
        means.copy_((w + correction[fine.long() - int(law.values[0])]) / self.lattice.scale)


class RoundedNoise(LatticeNoise):
    """Coordinates of a law that is drawn in floating point, each rounded to the lattice.

    The law at x' is the translate of the law at x all the same; how far it is from that of the theorem is not bounded.
    """

    exact = False

    def __init__(self, lattice: Lattice, fill: Callable[[Tensor, torch.Generator], None]) -> None:
        self._fill = fill
        super().__init__(lattice, torch.int32, _LIMIT // 2)

    @property
    def distance(self) -> float:
        """Not bounded, and not part of alpha."""
        return 0.0

    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch, means: Tensor | None = None) -> None:
        """Draw in floating point, round to nearest."""
        real = scratch.get("real", out.numel(), torch.float32).view(out.shape)
        self._fill(real, generator)
        out.copy_(real.mul_(self.lattice.scale).round_().clamp_(-self.largest, self.largest))
        if means is not None:
            means.copy_(out).div_(self.lattice.scale)

    def statement(self, n: int, dim: int) -> str:
        """Return what is exact."""
        del n, dim
        return (
            "the arithmetic is exact up to the network's input, the noise law is that of a floating-point generator, "
            "rounded to the lattice"
        )


def _lattice(scale: float, grid: int | None) -> Lattice:
    """Return the lattice for a law of this scale, in input units."""
    if grid is None:
        bits = _FINE_BITS - math.floor(math.log2(scale))
        return Lattice(2.0**bits, None, bits)
    check_at_least("grid", grid, 1)
    bits = next((b for b in range(_MOST_BITS) if scale * grid * 2**b >= _FEWEST_STEPS), _MOST_BITS)
    return Lattice(grid << bits, grid, bits)


def _in_steps(scale: float, steps: int | float) -> Fraction:
    return Fraction(scale) * Fraction(steps)


def _shift(steps: Fraction) -> int:
    return max(0, math.ceil(math.log2(float(steps) / _LARGEST_TABLE)))


def gaussian_on_lattice(sigma: float, grid: int | None) -> LatticeNoise:
    """Return N(0, sigma^2) in each coordinate, on the lattice of the data."""
    lattice = _lattice(sigma, grid)
    steps = _in_steps(sigma, lattice.scale)
    shift = _shift(steps)
    if not shift:
        return OneTable(lattice, rounded_gaussian(steps))
    laws = gaussian_levels(steps, shift)
    reach = (laws[0].largest << shift) + laws[1].largest
    return TwoTables(lattice, laws, lambda coarse, fine: (coarse << shift) + fine, reach)


def laplace_on_lattice(scale: float, grid: int | None) -> LatticeNoise:
    """Return the Laplace law of this scale in each coordinate, on the lattice of the data.

    Beyond one table: with G = floor(2 |V|) geometric, round(|V|) = (G + 1) >> 1, and the high and the low digits of a
    geometric number are independent.
    """
    lattice = _lattice(scale, grid)
    steps = _in_steps(scale, lattice.scale)
    shift = _shift(2 * steps)
    if not _shift(steps):
        return OneTable(lattice, rounded_laplace(steps))
    laws = signed_geometric(2 * steps / (1 << shift)), truncated_geometric(2 * steps, 1 << shift)
    return TwoTables(lattice, laws, lambda high, low: _laplace_digits(high, low, shift), laws[0].largest << shift)


def _laplace_digits(high: Tensor, low: Tensor, shift: int) -> Tensor:
    magnitude = (((high.abs() - 1) << shift) + low + 1) >> 1
    return magnitude * high.sign()


def uniform_on_lattice(lam: float, grid: int | None) -> LatticeNoise:
    """Return the uniform law on the lattice of the data, on K whole numbers in a row, K >= 2 lam h^-1.

    On a grid one step of one pixel moves the K numbers by 2^bits, so that p changes by at most 2^bits / K, which is at
    most (1/q) / (2 lam): exactly the Lipschitz constant of the theorem where K = 2 lam q 2^bits is whole. Where it is
    not, K is the next whole number: the noise is a little wider, and the theorem holds for lam all the more. Noisy
    copies lie at half steps where K is even, so that the law is symmetric: ``scale`` counts half steps.
    """
    check_positive("lam", lam)
    if grid is None:
        bits = _FINE_BITS - math.floor(math.log2(lam))
        return _UniformBits(Lattice(2.0 ** (bits + 1), None, bits, 2), math.ceil(2 * _in_steps(lam, 2.0**bits)))
    steps = [2 * _in_steps(lam, grid << bits) for bits in range(_MOST_BITS + 1)]
    # A lam that is the nearest double to K / (2 q 2^bits), or a few roundings away, counts as that number.
    whole = [bits for bits, k in enumerate(steps) if abs(k - round(k)) <= k / (1 << 50)]
    bits = whole[0] if whole else 2
    size = round(steps[bits]) if whole else math.ceil(steps[bits])
    return OneTable(Lattice(2 * (grid << bits), grid, bits, 2), uniform_integers(size))


class _UniformBits(LatticeNoise):
    """Uniform on ``size`` whole numbers two apart, many more than a table holds: 63 bits times ``size``, 2^63rds."""

    def __init__(self, lattice: Lattice, size: int) -> None:
        self._size = size
        super().__init__(lattice, torch.int32, size)

    @property
    def distance(self) -> float:
        """Each of ``size`` values has a number of the 2^63 that differs by less than one from its share."""
        return self._size * 2.0**-64

    def draw_(self, out: Tensor, generator: torch.Generator, scratch: Scratch, means: Tensor | None = None) -> None:
        """The remainder of 63 random bits."""
        words = scratch.get("words", out.numel(), torch.int64).view(out.shape)
        words.random_(0, None, generator=generator)
        out.copy_(words.remainder_(self._size).mul_(2).sub_(self._size - 1))
        if means is not None:
            means.copy_(out).div_(self.lattice.scale)


def rounded_to_lattice(sigma: float, grid: int | None, fill: Callable[[Tensor, torch.Generator], None]) -> LatticeNoise:
    """Return a law that is drawn in floating point, float32 (m, d), rounded to the lattice of the data."""
    return RoundedNoise(_lattice(sigma, grid), fill)
