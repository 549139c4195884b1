"""What the log likelihood ratio at the corner delta = r (1, ..., 1) needs to know of a draw, at sigma = 1.

For the mixed-norm and the pure family, L(z) depends on z through its largest and smallest coordinate, its sum and
its norms only, so one draw serves every radius r. Both laws are invariant under flips of single signs: a fixed
set of sign patterns s_1, ..., s_B turns one draw z into B exact draws s_b * z, whose mean over b is one
independent value with a much smaller variance.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lightning_rs.noise._norm_power_laws import fill_mixed_norm_

CANDIDATES = 64  # the extremes of s * z are looked for among this many largest |z_i|


@dataclass(frozen=True)
class CornerStatistics:
    """Statistics of ``rows`` draws under B sign patterns, float64.

    Attributes:
        high: largest coordinate, shape (rows, B).
        low: smallest coordinate, shape (rows, B).
        total: sum of the coordinates, shape (rows, B); zeros where the family does not use it.
        largest: ||z||_inf, shape (rows, 1).
        square: ||z||_2^2, shape (rows, 1); zeros where the family does not use it.
    """

    high: Tensor
    low: Tensor
    total: Tensor
    largest: Tensor
    square: Tensor

    @classmethod
    def joined(cls, parts: Sequence[CornerStatistics]) -> CornerStatistics:
        """Return the statistics of all draws of the parts."""
        return cls(*(torch.cat([getattr(part, each.name) for part in parts]) for each in fields(cls)))


class CornerFamily(ABC):
    """One law at sigma = 1: how to draw the statistics and how L follows from them."""

    dim: int

    @abstractmethod
    def draw(self, rows: int, signs: Tensor, generator: torch.Generator) -> CornerStatistics:
        """Return the statistics of fresh independent draws under the patterns ``signs``, shape (d, B)."""

    @abstractmethod
    def log_ratio(self, seen: CornerStatistics, r: float) -> Tensor:
        """Return L at the corner r (1, ..., 1), shape (rows, B)."""

    def draw_in_parts(self, rows: int, signs: Tensor, generator: torch.Generator, coordinates: int) -> CornerStatistics:
        """Draw as ``draw`` does, never more than about ``coordinates`` numbers at a time."""
        most = max(1, coordinates // self.dim)
        sizes = [most] * (rows // most) + [rows % most] * (rows % most > 0)
        return CornerStatistics.joined([self.draw(size, signs, generator) for size in sizes])


@dataclass(frozen=True)
class MixedCorner(CornerFamily):
    """The law ~ ||z||_inf^-k_inf ||z||_2^-k_2 exp(-||z||_2^2 / 2)."""

    dim: int
    k_inf: float
    k_2: float

    def draw(self, rows: int, signs: Tensor, generator: torch.Generator) -> CornerStatistics:
        """Draw all d coordinates in float64."""
        z = torch.empty(rows, self.dim, dtype=torch.float64, device=signs.device)
        fill_mixed_norm_(z, self.k_inf, self.k_2, generator)
        high, low = signed_extremes(z, signs)
        largest = z.abs().amax(1, keepdim=True)
        return CornerStatistics(high, low, z @ signs, largest, z.square().sum(1, keepdim=True))

    def log_ratio(self, seen: CornerStatistics, r: float) -> Tensor:
        """Return ``-k_inf log(m'/m) - (k_2/2) log(||z - delta||^2/||z||^2) + r sum z - d r^2 / 2``."""
        shift = r * seen.total - 0.5 * self.dim * r * r
        ratio = shift - self.k_inf * torch.log(torch.maximum(seen.high - r, r - seen.low) / seen.largest)
        if self.k_2 > 0:
            ratio -= 0.5 * self.k_2 * torch.log1p(torch.clamp_min(-2.0 * shift / seen.square, -1.0 + 1e-15))
        return ratio


@dataclass(frozen=True)
class PureCorner(CornerFamily):
    """The law ~ ||z||_inf^-k exp(-||z||_inf^2 / 2), of which two numbers a draw are enough."""

    dim: int
    k: float

    def draw(self, rows: int, signs: Tensor, generator: torch.Generator) -> CornerStatistics:
        """Draw ||z||_inf and the extreme on the other side; the patterns are z and -z, whatever ``signs`` is."""
        device = signs.device
        shape = torch.full((rows, 1), 0.5 * (self.dim - self.k), dtype=torch.float64, device=device)
        largest = (2.0 * torch._standard_gamma(shape, generator=generator)).sqrt_()
        uniform = torch.rand(rows, 1, dtype=torch.float64, device=device, generator=generator)
        # Given max z = m, the other coordinates are uniform on [-m, m]; their minimum is m (1 - 2 U^(1/(d-1))).
        other = largest * (-1.0 - 2.0 * torch.expm1(torch.log(uniform) / (self.dim - 1)))
        high, low = torch.cat([largest, -other], dim=1), torch.cat([other, -largest], dim=1)
        unused = torch.zeros_like(largest)
        return CornerStatistics(high, low, unused, largest, unused)

    def log_ratio(self, seen: CornerStatistics, r: float) -> Tensor:
        """Return ``-k log(m'/m) - (m'^2 - m^2)/2``."""
        after = torch.maximum(seen.high - r, r - seen.low)
        return -self.k * torch.log(after / seen.largest) - 0.5 * (after - seen.largest) * (after + seen.largest)


def signed_extremes(z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
    """Return largest and smallest coordinate of ``z * signs[:, b]``, each of shape (rows, B).

    If both signs occur among the largest |z_i|, the extremes are there. Rows for which some pattern gives one sign
    to all 64 of them (about one in 10^18) are looked at in full.
    """
    count = min(CANDIDATES, z.shape[1])
    where = z.abs().topk(count, dim=1).indices
    signed = z.gather(1, where)[:, :, None] * signs[where]
    high, low = signed.amax(1), signed.amin(1)
    if count < z.shape[1]:
        rest = ((high < 0) | (low > 0)).any(1).nonzero()[:, 0]
        for row in rest.tolist():
            full = z[row, :, None] * signs
            high[row], low[row] = full.amax(0), full.amin(0)
    return high, low


def sign_patterns(dim: int, patterns: int, generator: torch.Generator) -> Tensor:
    """Return ``patterns`` fair sign vectors, shape (d, B), float64; independent of every draw."""
    flips = torch.randint(2, (dim, patterns), device=generator.device, generator=generator)
    return flips.double() * 2.0 - 1.0
