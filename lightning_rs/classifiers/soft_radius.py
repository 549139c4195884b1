"""The radius of a law as a differentiable function of the two largest soft votes.

A certificate of one number gives a radius rho(p) for p > 1/2; continued by rho(1 - p) = -rho(p), half the difference
(rho(G_1) - rho(G_2)) / 2 is a radius of two classes. For Gaussian, uniform and splitting noise that is the two-class
radius itself: sigma (Phi^-1(G_1) - Phi^-1(G_2)) / 2 and lam (G_1 - G_2). It is a training signal, no certificate.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from lightning_rs.certificates.base import Setting, TopVoteCertificate
from lightning_rs.certificates.natural import natural_certificate
from lightning_rs.noise import (
    DeterministicSplittingNoise,
    GaussianNoise,
    LaplaceNoise,
    Noise,
    SplittingNoise,
    UniformNoise,
)

_KNOTS = 23
_REACH = 5.5  # quantiles of the normal law up to which a radius is tabulated; float32 votes end at 5.4


@dataclass(frozen=True)
class SoftRadius:
    """Radius = ``unit`` (``score``(G_1) - ``score``(G_2)).

    Attributes:
        unit: input units of one unit of xi.
        score: non-decreasing and odd around 1/2, differentiable.
        most: largest difference of scores.
    """

    unit: float
    score: Callable[[Tensor], Tensor]
    most: float


def soft_radius(noise: Noise, shape: tuple[int, ...]) -> SoftRadius:
    """Return the soft radius of a law for inputs of ``shape``.

    Raises:
        ValueError: for a law whose usual certificate is no function of one vote share.
    """
    if isinstance(noise, GaussianNoise):
        return SoftRadius(0.5 * noise.sigma, gaussian_score, math.inf)
    if isinstance(noise, (UniformNoise, SplittingNoise, DeterministicSplittingNoise)):
        return SoftRadius(noise.lam, lambda p: p, 1.0)
    if isinstance(noise, LaplaceNoise):
        return SoftRadius(0.5 * noise.scale, _laplace_score, math.inf)
    certificate = natural_certificate(type(noise))()
    if not isinstance(certificate, TopVoteCertificate):
        raise ValueError(
            f"noise must have a radius that is a function of one vote share for MACER, got {noise!r}: that of "
            f"{certificate.name} is none"
        )
    return _tabulated(certificate, noise, shape)


def gaussian_score(p: Tensor) -> Tensor:
    """Return Phi^-1(p)."""
    return torch.special.ndtri(p)


def _laplace_score(p: Tensor) -> Tensor:
    # rho(p) = -scale log(2 (1 - p)) for p >= 1/2; its mirror image below. Clamped so that no branch is infinite.
    below, above = p.clamp(max=0.5), p.clamp(min=0.5)
    return torch.log(2.0 * below) - torch.log(2.0 * (1.0 - above))


def _tabulated(certificate: TopVoteCertificate, noise: Noise, shape: tuple[int, ...]) -> SoftRadius:
    z = np.linspace(0.0, _REACH, _KNOTS)
    setting = Setting(noise, 0.5, 1, shape)
    radius = np.asarray(certificate.radius_of_tail(special.ndtr(-z), setting), dtype=np.float64)
    # The score at Phi(1) is 1, as for Gaussian noise, so that gamma means the same.
    unit = 0.5 * float(np.interp(1.0, z, radius))
    table = torch.from_numpy(0.5 * radius / unit)

    def score(p: Tensor) -> Tensor:
        quantile = gaussian_score(p)
        place = (quantile.abs() * ((_KNOTS - 1) / _REACH)).clamp(max=_KNOTS - 1.001)
        low = place.detach().long()
        knots = table.to(device=p.device, dtype=p.dtype)
        value = knots[low] + (place - low) * (knots[low + 1] - knots[low])
        return value * quantile.detach().sign()

    return SoftRadius(unit, score, math.inf)
