"""The exact l2 radius of the l2 family against Monte Carlo over (norm, angle)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.special import ndtr, ndtri

from lightning_rs.certificates.norm_power_l2 import norm_power_l2_radius
from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.numerics.norm_power_quadrature import converged_law
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

CHUNK = 200_000


class NormAngleCheck(Study):
    """Draws of ||z||_2 and of the angle to the shift give 1 - p* at each radius, with a standard error.

    The estimate ``e^m (mean of min(1, e^(L - m)) - 1/2)`` is flat at the median of L, which a pilot of 200,000 draws
    gives well enough, so that nothing is shared with the quadrature. The radius that the estimate stands for follows
    through the exact table.

    Args:
        dim: number d of coordinates.
        k: power of the norm.
        scores: Phi^-1(p) at which the exact radius is checked.
        draws: number of draws.
        seed: their seed.
    """

    def __init__(
        self,
        dim: int = 150528,
        k: float = 50000.0,
        scores: Sequence[float] = (0.5, 1.0, 2.0, 3.0),
        draws: int = 10_000_000,
        seed: int = 0,
    ) -> None:
        self.dim, self.k = check_at_least("dim", dim, 2), check_powers("k", [k], dim)[0]
        if self.k == 0:
            raise ValueError("k must be > 0: at 0 the law is Gaussian and there is no table to check")
        self.scores = np.atleast_1d(check_positive("scores", list(scores)))
        self.draws, self.seed = check_at_least("draws", draws, 1000), check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Compare, in units of sigma."""
        radii = np.asarray(norm_power_l2_radius(q_upper=ndtr(-self.scores), sigma=1.0, k=self.k, dim=self.dim))
        law = converged_law(self.dim, self.k)
        exact = law.tail_needed(radii)
        mean, error = self._estimates(radii, say)
        seen = norm_power_l2_radius(q_upper=mean, sigma=1.0, k=self.k, dim=self.dim)
        rows: list[Row] = []
        for i, r in enumerate(radii):
            # Between score and radius the table is nearly a straight line through the origin.
            slack = error[i] / mean[i] * abs(_score_slope(mean[i])) * r / self.scores[i]
            rows.append(
                {
                    "radius": float(r),
                    "tail_exact": float(exact[i]),
                    "tail_drawn": float(mean[i]),
                    "standard_errors_off": float((mean[i] - exact[i]) / error[i]),
                    "radius_drawn": float(seen[i]),
                    "radius_standard_error": float(slack),
                }
            )
        worst = max(abs(float(row["standard_errors_off"])) for row in rows)
        return StudyResult({"norm_angle_check": rows}, notes=[f"Largest deviation: {worst:.2f} standard errors."])

    def _estimates(self, radii: FloatArray, say: Say) -> tuple[FloatArray, FloatArray]:
        """Return the estimate of 1 - p* and its standard error, one for each radius."""
        rng, left = np.random.default_rng(self.seed), self.draws
        medians = np.array([np.median(each) for each in self._log_ratios(rng, radii, CHUNK)])
        total, square = np.zeros(len(radii)), np.zeros(len(radii))
        while left > 0:
            size = min(CHUNK, left)
            left -= size
            for i, log_ratio in enumerate(self._log_ratios(rng, radii, size)):
                weight = np.exp(np.minimum(log_ratio - medians[i], 0.0))
                total[i] += weight.sum()
                square[i] += (weight * weight).sum()
            if left % (10 * CHUNK) == 0:
                say(f"norm and angle: {self.draws - left:,} of {self.draws:,} draws")
        mean, factor = total / self.draws, np.exp(medians)
        return factor * (mean - 0.5), factor * np.sqrt((square / self.draws - mean**2) / self.draws)

    def _log_ratios(self, rng: np.random.Generator, radii: FloatArray, size: int) -> Iterator[FloatArray]:
        """Yield draws of L under pi_0 for each radius, from the same norms and angles."""
        norm2 = 2.0 * rng.gamma(0.5 * (self.dim - self.k), size=size)
        cosine = 2.0 * rng.beta(0.5 * (self.dim - 1), 0.5 * (self.dim - 1), size=size) - 1.0
        for r in radii:
            t = r * r - 2.0 * r * np.sqrt(norm2) * cosine
            yield -0.5 * self.k * np.log1p(t / norm2) - 0.5 * t


def _score_slope(tail: float) -> float:
    """Return d Phi^-1(1 - tail) / d log tail."""
    score = -float(ndtri(tail))
    return -tail * math.sqrt(2.0 * math.pi) * math.exp(0.5 * score * score)
