"""Non-Gaussian smoothing laws whose density is a power of a norm times a Gaussian-like factor."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor

from lightning_rs.checks import FloatArray, as_float64, check_at_least, check_choice, check_nonnegative, check_positive
from lightning_rs.noise._norm_power_laws import (
    fill_mixed_norm_,
    fill_norm_power_,
    fill_pure_linf_,
    maximum_law,
    single_precision_suffices,
)
from lightning_rs.noise.base import AdditiveNoise

Match = Literal["rms", "mode", "mean", "none"]
SMALLEST_GAP = 0.25  # d - k: closer to the singular law, norms leave the range of floating point


def matched_sigma(sigma0: ArrayLike, k: ArrayLike, dim: ArrayLike, rule: str = "mode") -> FloatArray:
    """Scale of ``||z||^-k exp(-||z||_2^2 / 2 sigma^2)`` whose l2 norm is as large as that of N(0, sigma0^2 I).

    Holds for the l2 family and, with k = k_inf + k_2, for the mixed-norm family: both have the same ||z||_2.

    * ``"mode"``: sigma0 sqrt((d - 1) / (d - 1 - k)), the most likely norm (the rule of Zhang et al. 2020, who
      call it the expectation); needs k < d - 1.
    * ``"mean"``: sigma0 Gamma((d+1)/2) Gamma((d-k)/2) / (Gamma(d/2) Gamma((d-k+1)/2)), the expected norm.
    * ``"rms"``: sigma0 sqrt(d / (d - k)), the expected squared norm, so the standard deviation of a coordinate.

    Args:
        sigma0: standard deviation of the Gaussian, in input units.
        k: power of the norm, 0 <= k < d.
        dim: number d of coordinates.
        rule: one of the three above.

    Returns:
        sigma in input units, broadcast over the arguments.

    Raises:
        ValueError: for arguments outside these ranges or an unknown rule.
    """
    check_choice("rule", rule, ("mode", "mean", "rms"))
    sigma0, k, dim = check_positive("sigma0", sigma0), check_nonnegative("k", k), as_float64("dim", dim)
    limit = dim - 1.0 if rule == "mode" else dim
    if not (k < limit).all():
        bound = "dim - 1" if rule == "mode" else "dim"
        raise ValueError(f"k must be < {bound} for rule {rule!r}, got {k!r} at dim {dim!r}")
    if rule == "mean":
        # poch(x, 1/2) = Gamma(x + 1/2) / Gamma(x) keeps the digits that a difference of gammaln loses.
        return sigma0 * special.poch(0.5 * dim, 0.5) / special.poch(0.5 * (dim - k), 0.5)
    return sigma0 * np.sqrt(limit / (limit - k))


class NormPowerFamily(AdditiveNoise):
    """Base of the three families: matching, shape check, float64 log density and worst shift.

    All are invariant under sign flips of single coordinates and their densities fall in every |z_i|. Along one
    coordinate the level sets of pi_0 and of a shifted copy are then centred intervals, whose overlap shrinks as
    the centres separate: the discrepancy grows in every |delta_i|, so the worst shift in an l-infinity ball is
    its corner (Zhang et al. 2020, Theorems 5 and 6).
    """

    def __init__(self, sigma: float, dim: int, match: Match, powers: dict[str, float]) -> None:
        self._sigma = float(check_positive("sigma", sigma))
        self.dim = check_at_least("dim", dim, 2)
        for name, power in powers.items():
            check_nonnegative(name, power)
        self._total = float(sum(powers.values()))
        if not self._total <= self.dim - SMALLEST_GAP:
            names = " + ".join(powers)
            raise ValueError(f"{names} must be at most dim - {SMALLEST_GAP}, got {self._total} at dim {dim}")
        self.match = match
        self.scale = self._sigma if match == "none" else self._matched(self._sigma)

    @property
    def sigma(self) -> float:
        """Standard deviation of one coordinate, in input units (equal to the argument if ``match`` is "rms")."""
        return self._sigma if self.match == "rms" else self.scale * math.sqrt(self._unit_variance)

    @property
    def _unit_variance(self) -> float:
        """Variance of one coordinate at scale 1."""
        return 1.0 - self._total / self.dim

    def _matched(self, sigma0: float) -> float:
        return float(matched_sigma(sigma0, self._total, self.dim, self.match))

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raise ``ValueError`` unless inputs of this shape have ``dim`` coordinates."""
        if math.prod(shape) != self.dim:
            raise ValueError(f"dim must be the number of input coordinates, got {self.dim} for inputs of shape {shape}")

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """Return the normalised log density at the rows of ``z``, shape (..., d) -> (...), float64."""

    def worst_shift(self, norm: str, radius: float) -> Tensor:
        """Return a shift of maximal discrepancy in the closed ball, shape (d,), float64.

        Raises:
            ValueError: for a norm in which the worst shift of this law is not known.
        """
        check_choice("norm", norm, ("linf",))
        return torch.full((self.dim,), radius, dtype=torch.float64)


class NormPowerNoise(NormPowerFamily):
    """The l2 family: density proportional to ``||z||_2^-k exp(-||z||_2^2 / 2 scale^2)`` (Zhang et al. 2020, (8)).

    Args:
        sigma: standard deviation of the Gaussian that the law is matched to, in input units.
        k: power of the norm, 0 <= k <= dim - 0.25; 0 is the Gaussian.
        dim: number of input coordinates.
        match: how ``scale`` follows from sigma, see :func:`matched_sigma`; "none": scale = sigma.

    Raises:
        ValueError: for arguments outside these ranges.
    """

    def __init__(self, sigma: float, k: float, dim: int, match: Match = "rms") -> None:
        self.k = float(k)
        super().__init__(sigma, dim, match, {"k": self.k})

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"sigma": self._sigma, "k": self.k, "dim": self.dim, "match": self.match}

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with draws: a uniform direction times an independent radius."""
        fill_norm_power_(out, self.k, generator)
        out.mul_(self.scale)

    def log_density(self, z: Tensor) -> Tensor:
        """Return the normalised log density, shape (..., d) -> (...), float64."""
        square = (z.double() / self.scale).square().sum(-1)
        return -0.5 * square - _power_log(square.sqrt(), self.k) - self._log_volume

    @property
    def _log_volume(self) -> float:
        return _log_gaussian_volume(self.dim, self.scale) + _log_radial_change(self.dim, 0.0, self.k)

    def worst_shift(self, norm: str, radius: float) -> Tensor:
        """Return ``(radius, 0, ..., 0)`` for "l2" (Theorem 2) and the corner of the cube for "linf" (Theorem 3)."""
        check_choice("norm", norm, ("l2", "linf"))
        if norm == "linf":
            return super().worst_shift(norm, radius)
        return torch.nn.functional.one_hot(torch.tensor(0), self.dim).double() * radius


class MixedNormNoise(NormPowerFamily):
    """The mixed-norm family ``||z||_inf^-k_inf ||z||_2^-k_2 exp(-||z||_2^2 / 2 scale^2)`` (Zhang et al. 2020, (9)).

    No l2 certificate follows for it: the worst direction in an l2 ball is not known.

    Args:
        sigma: standard deviation of the Gaussian that the law is matched to, in input units.
        k_inf: power of ||z||_inf.
        dim: number of input coordinates.
        k_2: power of ||z||_2; k_inf + k_2 <= dim - 0.25.
        match: how ``scale`` follows from sigma, see :func:`matched_sigma`; "none": scale = sigma.

    Raises:
        ValueError: for arguments outside these ranges.
    """

    def __init__(self, sigma: float, k_inf: float, dim: int, k_2: float = 0.0, match: Match = "rms") -> None:
        self.k_inf = float(k_inf)
        self.k_2 = float(k_2)
        super().__init__(sigma, dim, match, {"k_inf": self.k_inf, "k_2": self.k_2})

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        names = {"sigma": self._sigma, "k_inf": self.k_inf, "dim": self.dim}
        return {**names, "k_2": self.k_2, "match": self.match}

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with draws; in float64 inside where float32 uniforms are too coarse for the tails."""
        if single_precision_suffices(self.dim, self.k_inf):
            fill_mixed_norm_(out, self.k_inf, self.k_2, generator)
            out.mul_(self.scale)
        else:
            fine = torch.empty(out.shape, dtype=torch.float64, device=out.device)
            fill_mixed_norm_(fine, self.k_inf, self.k_2, generator)
            out.copy_(fine.mul_(self.scale))

    def log_density(self, z: Tensor) -> Tensor:
        """Return the normalised log density, shape (..., d) -> (...), float64."""
        unit = z.double() / self.scale
        square = unit.square().sum(-1)
        powers = _power_log(unit.abs().amax(-1), self.k_inf) + _power_log(square.sqrt(), self.k_2)
        return -0.5 * square - powers - self._log_volume

    @property
    def _log_volume(self) -> float:
        along = math.log(2.0 * self.dim) + maximum_law(self.dim, self.k_inf).log_mass
        across = 0.5 * (self.dim - 1) * math.log(2.0 * math.pi)
        change = _log_radial_change(self.dim, self.k_inf, self.k_2)
        return along + across + change + self.dim * math.log(self.scale)


class PureLinfNoise(NormPowerFamily):
    """The pure l-infinity family ``||z||_inf^-k exp(-||z||_inf^2 / 2 scale^2)`` (Zhang et al. 2020, (10)).

    Args:
        sigma: standard deviation of one coordinate, in input units, if ``match`` is "rms".
        k: power of ||z||_inf, 0 <= k <= dim - 0.25.
        dim: number of input coordinates.
        match: "rms", with E||z||_2^2 = scale^2 (d - k)(d + 2) / 3, or "none": scale = sigma.

    Raises:
        ValueError: for arguments outside these ranges.
    """

    def __init__(self, sigma: float, k: float, dim: int, match: Literal["rms", "none"] = "rms") -> None:
        check_choice("match", match, ("rms", "none"))
        self.k = float(k)
        super().__init__(sigma, dim, match, {"k": self.k})

    def spec(self) -> dict[str, Any]:
        """Return the parameters."""
        return {"sigma": self._sigma, "k": self.k, "dim": self.dim, "match": self.match}

    @property
    def _unit_variance(self) -> float:
        # E m^2 = d - k; given m, one coordinate is +-m and the d - 1 others are uniform with variance m^2 / 3.
        return (self.dim - self.k) * (self.dim + 2.0) / (3.0 * self.dim)

    def _matched(self, sigma0: float) -> float:
        return sigma0 / math.sqrt(self._unit_variance)

    def draw_(self, out: Tensor, generator: torch.Generator | None = None) -> None:
        """Fill ``out`` with draws: a uniform point of the cube's surface times an independent radius."""
        fill_pure_linf_(out, self.k, generator)
        out.mul_(self.scale)

    def log_density(self, z: Tensor) -> Tensor:
        """Return the normalised log density, shape (..., d) -> (...), float64."""
        largest = (z.double() / self.scale).abs().amax(-1)
        return -0.5 * largest.square() - _power_log(largest, self.k) - self._log_volume

    @property
    def _log_volume(self) -> float:
        # The cube's surface is 2^d d m^(d-1); the integral over m is 2^(a-1) Gamma(a) with a = (d - k) / 2.
        a = 0.5 * (self.dim - self.k)
        surface = self.dim * math.log(2.0) + math.log(self.dim)
        return surface + (a - 1.0) * math.log(2.0) + math.lgamma(a) + self.dim * math.log(self.scale)


def _power_log(norm: Tensor, k: float) -> Tensor:
    return k * torch.log(norm) if k > 0 else torch.zeros_like(norm)


def _log_gaussian_volume(dim: int, scale: float) -> float:
    return 0.5 * dim * math.log(2.0 * math.pi) + dim * math.log(scale)


def _log_radial_change(dim: int, k: float, extra: float) -> float:
    """Return log of the ratio of the integrals of r^(d-1-k-extra) e^(-r^2/2) and of r^(d-1-k) e^(-r^2/2)."""
    after = math.lgamma(0.5 * (dim - k - extra)) - math.lgamma(0.5 * (dim - k))
    return after - 0.5 * extra * math.log(2.0)
