"""The laws of noise on a lattice: exact by tables, or rounded from floating point."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

from lightning_rs.checks import check_at_least, check_positive
from lightning_rs.noise._integer_laws import (
    IntegerLaw,
    gaussian_levels,
    rounded_gaussian,
    rounded_laplace,
    signed_geometric,
    truncated_geometric,
    uniform_integers,
)
from lightning_rs.noise._tables import Scratch, Table
from lightning_rs.noise.lattice import LIMIT, Lattice, LatticeNoise

_LARGEST_TABLE = 1024  # steps of the lattice in one scale of the law: beyond, two tables of fewer cells are faster
_FEWEST_STEPS = 32  # so many steps at least in one scale of the law: rounding adds 1e-4 to the variance
_MOST_BITS = 6
_FINE_BITS = 17  # off the grid: steps in one scale of the law, as a power of two


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

    def __init__(self, lattice: Lattice, fill: Callable[[Tensor, torch.Generator], None]) -> None:
        self._fill = fill
        super().__init__(lattice, torch.int32, LIMIT // 2)

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
