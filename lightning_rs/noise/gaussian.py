"""Isotropic Gaussian noise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_rs.checks import check_positive
from lightning_rs.noise.base import AdditiveNoise
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.noise.lattice_laws import gaussian_on_lattice


class GaussianNoise(AdditiveNoise):
    """Additive N(0, sigma^2 I).

    Args:
        sigma: standard deviation of each coordinate, in the units of the input.

    Raises:
        ValueError: unless ``sigma`` is finite and positive.
    """

    def __init__(self, sigma: float) -> None:
        self._sigma = float(check_positive("sigma", sigma))

    @property
    def sigma(self) -> float:
        """Standard deviation of each coordinate, in input units."""
        return self._sigma

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"sigma": self.sigma}

    def exact_on_lattice(self, grid: int | None) -> LatticeNoise:
        """Return the law rounded to the lattice of the data, with exact draws."""
        return gaussian_on_lattice(self.sigma, grid)

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with independent N(0, sigma^2) draws."""
        out.normal_(0.0, self.sigma, generator=generator)
