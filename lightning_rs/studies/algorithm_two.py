"""The paper's own certification algorithm beside the exact radius (Zhang et al. 2020, Algorithm 2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from lightning_rs.certificates.dual import algorithm_two, log_ratio_draws
from lightning_rs.certificates.norm_power_l2 import norm_power_l2_radius
from lightning_rs.checks import FloatArray, as_count, check_alpha, check_at_least, check_positive
from lightning_rs.noise.norm_power import NormPowerNoise
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper
from lightning_rs.studies.base import Say, Study, StudyResult

LAMBDAS = np.geomspace(0.2, 2e4, 120)


class AlgorithmTwo(Study):
    """Certified l2 radius by Algorithm 2, with alpha accounted for, and by the exact table, from the same votes.

    Algorithm 2 decides one radius from n fresh draws of the log likelihood ratio, with Hoeffding's bound, after a pilot
    of n / 10 has chosen lambda. It is asked at radii step, 2 step, ... until it first says no, which needs no further
    correction: a fixed sequence of tests.

    Args:
        dim: number d of coordinates.
        k: power of the norm.
        sigma: standard deviation of the Gaussian that the law is matched to ("rms").
        counts: votes for the class of n, one image each; the pilot has the same share of n / 10.
        n: votes of an image, and draws for a radius.
        alpha: failure probability of an image.
        step: distance between the radii, in input units.
        seed: seed of the draws.
    """

    def __init__(
        self,
        dim: int = 784,
        k: float = 128.0,
        sigma: float = 0.5,
        counts: Sequence[int] = (60_000, 90_000, 99_000, 100_000),
        n: int = 100_000,
        alpha: float = 0.001,
        step: float = 0.05,
        seed: int = 0,
    ) -> None:
        self.noise = NormPowerNoise(sigma, k, dim)
        self.n, self.alpha = check_at_least("n", n, 100), float(check_alpha(alpha))
        self.counts = as_count("counts", list(counts))
        if (self.counts > self.n).any() or not len(self.counts):
            raise ValueError(f"counts must hold numbers of votes of at most n = {n}, got {list(counts)}")
        self.step, self.seed = float(check_positive("step", step)), check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Tabulate both radii, in input units."""
        tails = clopper_pearson_tail_upper(self.counts, self.n, self.alpha)
        exact = norm_power_l2_radius(q_upper=tails, sigma=self.noise.scale, k=self.noise.k, dim=self.noise.dim)
        theirs = self._by_algorithm_two(float(np.max(exact)), say)
        rows = [
            {"votes": int(c), "n": self.n, "algorithm_two": float(a), "exact": float(e)}
            for c, a, e in zip(self.counts, theirs, exact, strict=True)
        ]
        return StudyResult({"algorithm_two": rows}, notes=[f"Radii of Algorithm 2 are multiples of {self.step:g}."])

    def _by_algorithm_two(self, largest: float, say: Say) -> FloatArray:
        generator, certified = torch.Generator().manual_seed(self.seed), np.zeros(len(self.counts))
        going = np.ones(len(self.counts), dtype=bool)
        # Beyond the exact radius nothing can be certified.
        for r in np.arange(1, int(largest / self.step) + 2) * self.step:
            say(f"Algorithm 2: radius {r:g}, {going.sum()} images left")
            pilot, fresh = (log_ratio_draws(self.noise, "l2", r, m, generator) for m in (self.n // 10, self.n))
            for i in np.flatnonzero(going):
                count = int(self.counts[i])
                found = algorithm_two((count // 10, self.n // 10), (count, self.n), pilot, fresh, self.alpha, LAMBDAS)
                going[i] = found.bound > 0.5
                certified[i] = r if going[i] else certified[i]
            if not going.any():
                break
        return certified
