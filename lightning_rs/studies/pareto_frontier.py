"""Accuracy against robustness in a few dimensions, for three families (Zhang et al. 2020, Figure 4)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.special import gammainc

from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy
from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.noise.norm_power import PureLinfNoise
from lightning_rs.numerics.linf_statistics import CornerFamily, MixedCorner, PureCorner
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.studies._corner import CornerSample
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FAMILIES = ("l2", "mixed", "pure")
NAMES = ("l2 family", "mixed norm", "pure l-infinity")
SCALES = 120  # values of sigma between 1/8 and 40 times the radius of the classifier's ball


@dataclass(frozen=True)
class Curve:
    """Accuracy and distance term of one family at one k, along increasing sigma; both arrays have one shape."""

    accuracy: FloatArray
    distance: FloatArray
    error: float

    def distance_at(self, accuracy: FloatArray) -> FloatArray:
        """Return the distance term where the accuracy is at least so large, between the values of sigma."""
        # Accuracy falls as sigma grows; np.interp wants it to rise. Left of the curve its largest sigma still serves.
        return np.interp(accuracy, self.accuracy[::-1], self.distance[::-1])


class ParetoFrontier(Study):
    """The two terms of ``lambda p - D(lambda pi_0 || pi_delta)`` at the centre of a ball that is class 1.

    The classifier is ``1{||x||_2 <= ball}``; the accuracy p is its probability under the noise at x = 0, the distance
    term D that of the corner of the l-infinity ball of radius ``radius``. For each family, over all k and sigma, the
    frontier is the smallest D at each p. The paper does not say which lambda and radius it takes.

    p of the l2 and of the mixed family is exact (their ||z||_2 has one law), D of the l2 family too; the rest is from
    draws. k = 0 is the Gaussian in both.

    Args:
        dim: number d of coordinates.
        ball: radius of the classifier's ball.
        radius: l-infinity radius of the shift.
        lam: the multiplier lambda.
        powers: the k that are tried; 0 is the Gaussian.
        accuracies: where the frontiers are tabulated.
        draws: Monte Carlo draws for each law.
        seed: their seed.
    """

    def __init__(
        self,
        dim: int = 5,
        ball: float = 0.65,
        radius: float = 0.2,
        lam: float = 1.0,
        powers: Sequence[float] = (0, 0.5, 1, 2, 3, 4, 4.5),
        accuracies: Sequence[float] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        draws: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.dim, self.powers = check_at_least("dim", dim, 2), check_powers("powers", powers, dim)
        self.ball, self.radius = float(check_positive("ball", ball)), float(check_positive("radius", radius))
        self.lam = float(check_positive("lam", lam))
        self.accuracies = np.asarray(accuracies, dtype=np.float64)
        if not ((self.accuracies > 0) & (self.accuracies < 1)).all() or not len(self.accuracies):
            raise ValueError(f"accuracies must lie in (0, 1), got {list(accuracies)}")
        self.draws, self.seed = check_at_least("draws", draws, 100), check_at_least("seed", seed, 0)
        self._sigma = np.geomspace(self.ball / 8.0, 40.0 * self.ball, SCALES)

    def run(self, say: Say) -> StudyResult:
        """Tabulate and draw the frontiers."""
        curves: dict[str, list[Curve]] = {name: [] for name in FAMILIES}
        for k in self.powers:
            say(f"Pareto frontier: k = {k:g}")
            for name, make in self._makers().items():
                curves[name].append(make(k))
        rows = [row for name in FAMILIES for row in self._rows(name, curves[name])]
        return StudyResult({"pareto_frontier": rows}, {"pareto_frontier": self._figure(curves)}, self._notes(rows))

    def _makers(self) -> dict[str, Callable[[float], Curve]]:
        return {"l2": self._l2, "mixed": self._mixed, "pure": self._pure}

    def _accuracy(self, k: float) -> FloatArray:
        # ||z||_2^2 / (2 sigma^2) ~ Gamma((d - k) / 2) in both families.
        return gammainc(0.5 * (self.dim - k), 0.5 * (self.ball / self._sigma) ** 2)

    def _l2(self, k: float) -> Curve:
        shift = self.radius * self.dim**0.5
        return Curve(self._accuracy(k), norm_power_discrepancy(self.lam, shift, self._sigma, k, self.dim), 0.0)

    def _mixed(self, k: float) -> Curve:
        if k == 0:  # the same law
            return self._l2(k)
        return Curve(self._accuracy(k), *self._sampled(MixedCorner(self.dim, k, 0.0)))

    def _pure(self, k: float) -> Curve:
        norms = torch.empty(20 * self.draws, self.dim)
        generator = torch.Generator().manual_seed(self.seed + 1)
        PureLinfNoise(1.0, k, self.dim, match="none").draw_(norms, generator)
        norm = np.sort(norms.double().norm(dim=1).numpy())
        accuracy = np.searchsorted(norm, self.ball / self._sigma) / len(norm)
        return Curve(accuracy, *self._sampled(PureCorner(self.dim, k)))

    def _sampled(self, law: CornerFamily) -> tuple[FloatArray, float]:
        sample = CornerSample(law, self.draws, self.seed)
        both = np.array([sample.discrepancy(self.lam, self.radius / s) for s in self._sigma])
        return both[:, 0], float(both[:, 1].max())

    def _frontier(self, curves: Sequence[Curve], accuracy: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the smallest distance at each accuracy and the k that has it."""
        distance = np.array([curve.distance_at(accuracy) for curve in curves])
        return distance.min(axis=0), np.array(self.powers)[distance.argmin(axis=0)]

    def _rows(self, family: str, curves: Sequence[Curve]) -> list[Row]:
        distance, best = self._frontier(curves, self.accuracies)
        gaussian = self._l2(0.0).distance_at(self.accuracies)
        error = max(c.error for c in curves)
        rows: list[Row] = []
        for p, d, k, g in zip(self.accuracies, distance, best, gaussian, strict=True):
            row = {"accuracy": float(p), "gaussian": float(g), "distance": float(d), "best_k": float(k)}
            rows.append({"family": family, **row, "standard_error": error})
        return rows

    def _notes(self, rows: Sequence[Row]) -> list[str]:
        notes = []
        for family, name in zip(FAMILIES, NAMES, strict=True):
            own = [row for row in rows if row["family"] == family]
            gaussian = ", ".join(f"{row['accuracy']:g}" for row in own if row["best_k"] == 0.0) or "none"
            notes.append(f"{name}: k = 0 is the best of all k at the accuracies {gaussian}.")
        return notes

    def _figure(self, curves: dict[str, list[Curve]]) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 4.1), layout="constrained")
        left, right = figure.subplots(1, 2)
        accuracy = np.linspace(0.25, 0.995, 300)
        for number, (family, name) in enumerate(zip(FAMILIES, NAMES, strict=True)):
            distance, best = self._frontier(curves[family], accuracy)
            look = {"color": COLOURS[number], "ls": STYLES[number], "label": name}
            left.plot(accuracy, self.lam - distance, lw=2.2 - 0.4 * number, **look)
            right.plot(accuracy, best, drawstyle="steps-mid", lw=2.2 - 0.4 * number, **look)
        gaussian = self._l2(0.0)
        left.plot(gaussian.accuracy, self.lam - gaussian.distance, ":", color="black", lw=1.2, label="Gaussian")
        left.set_xlim(0.25, 1.0)
        left.legend(fontsize=9, frameon=False)
        finish(left, "accuracy p", "robustness, lambda - D", f"frontiers, d = {self.dim}, shift {self.radius:g}")
        finish(right, "accuracy p", "k on the frontier", "which k is best")
        right.set_xlim(0.25, 1.0)
        return figure
