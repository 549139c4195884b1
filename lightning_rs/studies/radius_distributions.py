"""How the norm of the noise changes with k and with sigma (Zhang et al. 2020, Figure 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln, poch

from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class RadiusDistributions(Study):
    """Law of ||z||_2 under ||z||_2^-k exp(-||z||_2^2 / 2 sigma^2), in closed form.

    The density of the norm is proportional to ``r^(d-1-k) exp(-r^2 / 2 sigma^2)``. Two ways lead from the Gaussian to
    smaller norms: a larger k, which leaves the variance nearly as it is, or a smaller sigma, which shrinks it.

    Args:
        dim: number d of coordinates.
        sigma: scale of the density at which k is varied.
        powers: the k.
        sigmas: scales of the Gaussian (k = 0) that are compared with them.
    """

    def __init__(
        self,
        dim: int = 100,
        sigma: float = 1.0,
        powers: Sequence[float] = (0, 20, 40, 60, 80, 95),
        sigmas: Sequence[float] = (1.0, 0.9, 0.8, 0.6, 0.4, 0.2),
    ) -> None:
        self.dim = check_at_least("dim", dim, 2)
        self.sigma = float(check_positive("sigma", sigma))
        self.powers = check_powers("powers", powers, dim)
        self.sigmas = [float(s) for s in check_positive("sigmas", list(sigmas))]

    def run(self, say: Say) -> StudyResult:
        """Tabulate mean and variance; draw the densities and the two paths."""
        rows = [self._row("k", k, self.sigma) for k in self.powers]
        rows += [self._row("sigma", 0.0, s) for s in self.sigmas]
        start, last = self._row("k", 0.0, self.sigma), rows[len(self.powers) - 1]
        equal = float(last["mean"]) / float(start["mean"]) * self.sigma
        other = self._row("sigma", 0.0, equal)
        note = (
            f"At the mean norm {last['mean']:.3f}, the law with k = {last['k']:g} has variance {last['variance']:.4f}; "
            f"the Gaussian that is scaled down to this mean (sigma = {equal:.4f}) has {other['variance']:.4f}."
        )
        return StudyResult({"radius_distributions": rows}, {"radius_distributions": self._figure()}, [note])

    def _row(self, changed: str, k: float, sigma: float) -> Row:
        mean, variance = norm_moments(self.dim, k, sigma)
        return {"changed": changed, "k": k, "sigma": sigma, "mean": mean, "variance": variance}

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 3.9), layout="constrained")
        left, right = figure.subplots(1, 2)
        reach = 1.25 * norm_moments(self.dim, 0.0, max(self.sigma, *self.sigmas))[0]
        r = np.linspace(1e-9, reach, 2000)
        # The Gaussian is the start of both paths and is drawn once.
        for k in self.powers:
            left.plot(r, norm_density(r, self.dim, k, self.sigma), color=COLOURS[2], lw=1.4)
        for sigma in self.sigmas:
            left.plot(r, norm_density(r, self.dim, 0.0, sigma), color=COLOURS[1], lw=1.1, ls=STYLES[1])
        left.set_xlim(0, reach)
        left.set_ylim(bottom=0)
        finish(left, "norm r = ||z||$_2$", "density", f"d = {self.dim}")
        self._paths(right)
        return figure

    def _paths(self, axes: Axes) -> None:
        ks = np.linspace(0.0, max(self.powers), 300)
        scales = np.linspace(min(self.sigmas), self.sigma, 300)
        paths = (
            ([norm_moments(self.dim, k, self.sigma) for k in ks], COLOURS[2], "solid", f"k from 0 to {ks[-1]:g}"),
            ([norm_moments(self.dim, 0.0, s) for s in scales], COLOURS[1], STYLES[1], f"sigma down to {scales[0]:g}"),
        )
        for path, colour, style, name in paths:
            axes.plot(*zip(*path, strict=True), color=colour, ls=style, label=name)
        axes.plot(*norm_moments(self.dim, 0.0, self.sigma), "*", color="black", ms=11, label="Gaussian")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, frameon=False)
        finish(axes, "mean of ||z||$_2$", "variance of ||z||$_2$", "two ways to smaller norms")


def norm_moments(dim: int, k: float, sigma: float) -> tuple[float, float]:
    """Return mean and variance of ||z||_2: ``sigma sqrt(2) Gamma((d-k+1)/2) / Gamma((d-k)/2)``, second moment d - k."""
    mean = sigma * math.sqrt(2.0) * float(poch(0.5 * (dim - k), 0.5))
    return mean, sigma * sigma * (dim - k) - mean * mean


def norm_density(r: FloatArray, dim: int, k: float, sigma: float) -> FloatArray:
    """Return the density of ||z||_2 at r > 0."""
    shape, t = 0.5 * (dim - k), r / sigma
    log = (dim - k - 1.0) * np.log(t) - 0.5 * t * t - (shape - 1.0) * math.log(2.0) - gammaln(shape)
    return np.exp(log) / sigma
