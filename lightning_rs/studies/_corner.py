"""Discrepancies at the corner of an l-infinity ball, for the laws that have no quadrature: from draws shared by all."""

from __future__ import annotations

import torch

from lightning_rs.numerics.linf_statistics import CornerFamily, sign_patterns

PATTERNS = 8
AT_A_TIME = 4_000_000


class CornerSample:
    """Draws of one law at sigma = 1; every radius and scale reads the same draws, so that curves are smooth.

    Args:
        law: the law.
        draws: number of independent draws, each under 8 sign patterns.
        seed: seed of the draws.
    """

    def __init__(self, law: CornerFamily, draws: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        signs = sign_patterns(law.dim, PATTERNS, generator)
        self.law = law
        self.seen = law.draw_in_parts(draws, signs, generator, AT_A_TIME)

    def discrepancy(self, lam: float, r: float) -> tuple[float, float]:
        """Return ``D(lam pi_0 || pi_delta)`` at delta = (r, ..., r), in units of sigma, and its standard error."""
        ratio = torch.exp(torch.clamp_max(self.law.log_ratio(self.seen, r), 50.0))
        value = torch.clamp_min(lam - ratio, 0.0).mean(1)
        return float(value.mean()), float(value.std()) / len(value) ** 0.5

    def tail_needed(self, r: float) -> float:
        """Return about 1 - p*(r): the tail below which a probability stays above one half in the whole ball."""
        ratio = self.law.log_ratio(self.seen, r)
        m = ratio.median()
        weight = torch.exp(torch.clamp_max(ratio - m, 0.0)).mean()
        return max(0.0, float(torch.exp(m) * (weight - 0.5)))
