"""Additive noise that is uniform on a cube."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_rs.checks import check_positive
from lightning_rs.noise.base import AdditiveNoise
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.noise.lattice_laws import uniform_on_lattice


class UniformNoise(AdditiveNoise):
    """Additive noise, uniform on [-lam, lam]^d, independent in every coordinate and every noisy copy.

    There is no argument for a seeded vector v that several copies or coordinates share, unlike for
    :class:`lightning_rs.noise.splitting.DeterministicSplittingNoise`: with correlated coordinates the
    certificates of this noise are false. Levine and Feizi (2021), Proposition 1: let eps_1 = eps_2 be
    uniform on [-1/2, 1/2] and f(z) = 1{z_1 > 0.4 + z_2}. Then x = (.8, .2) has probability 1 and
    x' = (.6, .4), at l1 distance .4, has probability 0, although a radius of 1/2 would be "certified".

    Args:
        lam: half width of the cube, in input units.
        sigma: the standard deviation lam / sqrt(3) of one coordinate, instead of ``lam``.

    Raises:
        ValueError: unless exactly one of the two is given, finite and positive.
    """

    def __init__(self, lam: float | None = None, sigma: float | None = None) -> None:
        self.lam = half_width(lam, sigma)

    @property
    def sigma(self) -> float:
        """Standard deviation lam / sqrt(3) of one coordinate, in input units."""
        return self.lam / math.sqrt(3.0)

    def spec(self) -> dict[str, Any]:
        """Return the canonical parameter."""
        return {"lam": self.lam}

    def exact_on_lattice(self, grid: int | None) -> LatticeNoise:
        """Return the law rounded to the lattice of the data, with exact draws."""
        return uniform_on_lattice(self.lam, grid)

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with independent draws from U[-lam, lam]."""
        out.uniform_(-self.lam, self.lam, generator=generator)


def half_width(lam: float | None, sigma: float | None) -> float:
    """Return lam from exactly one of lam and the standard deviation sigma = lam / sqrt(3)."""
    if (lam is None) == (sigma is None):
        raise ValueError(f"give exactly one of lam and sigma (= lam / sqrt(3)), got lam={lam}, sigma={sigma}")
    if lam is not None:
        return float(check_positive("lam", lam))
    return math.sqrt(3.0) * float(check_positive("sigma", sigma if sigma is not None else math.nan))
