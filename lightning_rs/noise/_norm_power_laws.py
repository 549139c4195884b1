"""Exact unit-scale draws of the norm-power families, without rejection.

With sigma = 1 and k = k_inf + k_2 < d the families of Zhang et al. (2020), equations (8)-(10), factorise:

* ``||z||_2^-k exp(-||z||_2^2 / 2)``: the direction is uniform on the sphere and ||z||_2^2 / 2 ~ Gamma((d - k) / 2).
* ``||z||_inf^-k_inf ||z||_2^-k_2 exp(-||z||_2^2 / 2)`` with k_2 = 0: the maximum t = ||z||_inf has density
  proportional to ``t^-k_inf exp(-t^2 / 2) erf(t / sqrt 2)^(d-1)``, one uniformly chosen coordinate is +-t and
  the others are independent normals truncated to [-t, t]. Direction and ||z||_2 are independent, so k_2 > 0
  only asks for a new ||z||_2^2 / 2 ~ Gamma((d - k) / 2).
* ``||z||_inf^-k exp(-||z||_inf^2 / 2)``: z = ||z||_inf s / ||s||_inf with s uniform on the cube and
  ||z||_inf^2 / 2 ~ Gamma((d - k) / 2).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from lightning_rs.checks import FloatArray

KNOTS = 1 << 17
DROPPED_NATS = 50.0  # the table leaves out where the density is below exp(-50) of its peak


class MaximumLaw:
    """The law of t = ||z||_inf / sigma under the mixed-norm family with k_2 = 0.

    The density of u = log t is log-concave. It is tabulated at 2^17 knots and taken as linear between them,
    which is off by less than 1e-6 in total variation (about 1e-9 at the dimensions of images).

    Args:
        dim: number d >= 1 of coordinates.
        k: power of ||z||_inf, 0 <= k < d.
    """

    def __init__(self, dim: int, k: float) -> None:
        self.dim = dim
        self.k = k
        mode = _bracketed_root(self._slope)
        self._peak = float(self._log_density(mode))
        low = optimize.brentq(self._above_floor, max(mode - 700.0, -740.0), mode) if self._left_open(mode) else -740.0
        high = optimize.brentq(self._above_floor, mode, mode + 20.0)
        self._u = np.linspace(low, high, KNOTS)
        self._density = np.exp(self._log_density(self._u) - self._peak)
        step = self._u[1] - self._u[0]
        mass = np.concatenate([[0.0], np.cumsum(0.5 * step * (self._density[1:] + self._density[:-1]))])
        self.log_mass = self._peak + math.log(mass[-1])
        """log of the integral of t^-k exp(-t^2/2) erf(t/sqrt 2)^(d-1) over t > 0."""
        self._density /= mass[-1]
        self._cdf = mass / mass[-1]
        self._on: dict[torch.device, tuple[Tensor, Tensor, Tensor]] = {}

    @property
    def support(self) -> tuple[float, float]:
        """Smallest and largest tabulated t."""
        return math.exp(self._u[0]), math.exp(self._u[-1])

    @property
    def mode(self) -> float:
        """The most likely t; 0 if the density of t falls from the start (k >= d - 1)."""
        if self.k >= self.dim - 1:
            return 0.0
        return math.exp(_bracketed_root(lambda u: self._slope(u) - 1.0))

    def cdf(self, t: float) -> float:
        """Return P(||z||_inf <= t sigma)."""
        u = math.log(t)
        i = int(np.clip(np.searchsorted(self._u, u) - 1, 0, KNOTS - 2))
        x = min(max(u - self._u[i], 0.0), self._u[i + 1] - self._u[i])
        step = self._u[1] - self._u[0]
        rise = (self._density[i + 1] - self._density[i]) / step
        return float(self._cdf[i] + x * (self._density[i] + 0.5 * rise * x))

    def quantile(self, probability: Tensor) -> Tensor:
        """Return t at cumulative probabilities in [0, 1], float64, on their device."""
        u, density, cdf = self._tables(probability.device)
        i = (torch.searchsorted(cdf, probability, right=True) - 1).clamp_(0, KNOTS - 2)
        step = self._u[1] - self._u[0]
        start, rise = density[i], (density[i + 1] - density[i]) / step
        wanted = (probability - cdf[i]).clamp_min_(0.0)
        root = (start.square() + 2.0 * rise * wanted).clamp_min_(0.0).sqrt_()
        x = 2.0 * wanted / (start + root).clamp_min_(1e-300)
        return torch.exp(u[i] + x.clamp_max_(step))

    def _tables(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        if device not in self._on:
            u, density, cdf = (torch.from_numpy(a).to(device) for a in (self._u, self._density, self._cdf))
            self._on[device] = (u, density, cdf)
        return self._on[device]

    def _log_density(self, u: FloatArray | float) -> FloatArray:
        t = np.exp(u)
        return (1.0 - self.k) * np.asarray(u) - 0.5 * t * t + (self.dim - 1) * log_erf(t / math.sqrt(2.0))

    def _slope(self, u: float) -> float:
        t = math.exp(u)
        return 1.0 - self.k - t * t + (self.dim - 1) * _erf_elasticity(t)

    def _left_open(self, mode: float) -> bool:
        return self._above_floor(max(mode - 700.0, -740.0)) < 0

    def _above_floor(self, u: float) -> float:
        return float(self._log_density(u)) - self._peak + DROPPED_NATS


@lru_cache(maxsize=16)
def maximum_law(dim: int, k: float) -> MaximumLaw:
    """Return the tabulated law of ||z||_inf, built once for each (d, k)."""
    return MaximumLaw(dim, k)


def fill_norm_power_(out: Tensor, k: float, generator: torch.Generator | None) -> None:
    """Fill ``out``, shape (m, d), with draws of the l2 family at sigma = 1."""
    out.normal_(generator=generator)
    out.mul_((_gamma_radius(out, k, generator) / _norm(out)).to(out.dtype)[:, None])


def fill_pure_linf_(out: Tensor, k: float, generator: torch.Generator | None) -> None:
    """Fill ``out``, shape (m, d), with draws of the pure l-infinity family at sigma = 1."""
    out.uniform_(-1.0, 1.0, generator=generator)
    largest = torch.linalg.vector_norm(out, math.inf, dim=1, dtype=torch.float64)
    out.mul_((_gamma_radius(out, k, generator) / largest).to(out.dtype)[:, None])


def fill_mixed_norm_(out: Tensor, k_inf: float, k_2: float, generator: torch.Generator | None) -> None:
    """Fill ``out``, shape (m, d), with draws of the mixed-norm family at sigma = 1."""
    rows, dim = out.shape
    law = maximum_law(dim, k_inf)
    largest = law.quantile(torch.rand(rows, dtype=torch.float64, device=out.device, generator=generator))
    inside = torch.erf(largest / math.sqrt(2.0))[:, None].to(out.dtype)
    edge = largest[:, None].to(out.dtype)
    out.uniform_(-1.0, 1.0, generator=generator).mul_(inside).erfinv_().mul_(math.sqrt(2.0))
    torch.minimum(torch.maximum(out, -edge, out=out), edge, out=out)
    where = torch.randint(dim, (rows, 1), device=out.device, generator=generator)
    sign = torch.randint(2, (rows, 1), device=out.device, generator=generator) * 2 - 1
    out.scatter_(1, where, edge * sign)
    if k_2 > 0:
        out.mul_((_gamma_radius(out, k_inf + k_2, generator) / _norm(out)).to(out.dtype)[:, None])


def single_precision_suffices(dim: int, k_inf: float) -> bool:
    """Whether 24-bit uniforms resolve the truncated normals of the mixed family.

    They step by 2^-24 in probability, so beyond a truncation point with tail 1e-4 (3.7 sigma) they are coarse;
    and a nearly singular law (k close to d) leaves the range of float32.
    """
    low, high = maximum_law(dim, k_inf).support
    return low > 1e-6 and float(special.ndtr(-high)) > 1e-4


def log_erf(x: FloatArray | float) -> FloatArray:
    """Return log erf(x) for x > 0, accurate in both tails."""
    x = np.asarray(x, dtype=np.float64)
    small = np.log(special.erf(np.minimum(x, 1.0)))
    return np.where(x < 1.0, small, np.log1p(-special.erfc(np.maximum(x, 1.0))))


def _erf_elasticity(t: float) -> float:
    # d log erf(t / sqrt 2) / d log t; it falls from 1 at t = 0 to 0.
    return math.sqrt(2.0 / math.pi) * t * math.exp(-0.5 * t * t) / math.erf(t / math.sqrt(2.0)) if t > 1e-8 else 1.0


def _bracketed_root(falling: object) -> float:
    return float(optimize.brentq(falling, -740.0, 20.0, xtol=1e-13))


def _gamma_radius(like: Tensor, k: float, generator: torch.Generator | None) -> Tensor:
    # torch.distributions.Gamma takes no generator; this is the function that it calls.
    shape = torch.full((like.shape[0],), 0.5 * (like.shape[1] - k), dtype=torch.float64, device=like.device)
    return (2.0 * torch._standard_gamma(shape, generator=generator)).sqrt_()


def _norm(rows: Tensor) -> Tensor:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
