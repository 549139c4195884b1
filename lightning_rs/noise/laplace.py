"""Additive Laplace noise."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from lightning_rs.checks import check_positive
from lightning_rs.noise.base import AdditiveNoise
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.noise.lattice_laws import laplace_on_lattice


class LaplaceNoise(AdditiveNoise):
    """Additive noise with iid Laplace coordinates, density exp(-|z| / scale) / (2 scale).

    Args:
        scale: the parameter b of the law, in input units.

    Raises:
        ValueError: unless ``scale`` is finite and positive.
    """

    def __init__(self, scale: float) -> None:
        self.scale = float(check_positive("scale", scale))

    @property
    def sigma(self) -> float:
        """Standard deviation sqrt(2) scale of one coordinate, in input units."""
        return math.sqrt(2.0) * self.scale

    def spec(self) -> dict[str, Any]:
        """Return the parameter."""
        return {"scale": self.scale}

    def exact_on_lattice(self, grid: int | None) -> LatticeNoise:
        """Return the law rounded to the lattice of the data, with exact draws."""
        return laplace_on_lattice(self.scale, grid)

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with independent Laplace draws: with U uniform on (-1, 1), sign(U) log(1 - |U|)."""
        out.uniform_(-1.0, 1.0, generator=generator)
        # float32 uniforms take the value -1, once in 2^24 draws, which would be infinite noise.
        out.clamp_(min=-1.0 + 2.0**-24)
        magnitude = out.abs().neg_().log1p_()
        out.sign_().mul_(magnitude).mul_(self.scale)
