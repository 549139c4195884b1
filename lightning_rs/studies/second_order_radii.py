"""What a gradient norm adds to a radius, known and estimated (Levine et al. 2020, Figures 1b and 4a)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.second_order import second_order_l2_radius
from lightning_rs.checks import FloatArray, check_alpha, check_at_least, check_probability
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.statistics.binomial import clopper_pearson_lower
from lightning_rs.statistics.gradient import levine_scaled_gradient_upper
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SecondOrderRadii(Study):
    """Certified l2 radius over p at several shares of the largest possible gradient norm, sigma 1.

    With ``n``, what is left when p and the gradient are estimated from n samples by Clopper-Pearson and by Theorem 2 of
    the paper, at alpha / 2 each, beside Cohen's radius at alpha: the estimates are those of a sample that comes out as
    expected.

    Args:
        shares: gradient norms as shares of the largest possible one, phi(Phi^-1(p)) / sigma.
        probabilities: the p of the table.
        n: samples; None: everything is known.
        dim: number d of coordinates, which Theorem 2 needs.
        alpha: failure probability.
    """

    def __init__(
        self,
        shares: Sequence[float] = (0.0, 0.25, 0.5, 0.75, 1.0),
        probabilities: Sequence[float] = (0.55, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99),
        n: int | None = None,
        dim: int = 49,
        alpha: float = 0.001,
    ) -> None:
        self.shares = np.atleast_1d(check_probability("shares", list(shares)))
        self.probabilities = np.atleast_1d(check_probability("probabilities", list(probabilities)))
        self.n = None if n is None else check_at_least("n", n, 2)
        self.dim, self.alpha = check_at_least("dim", dim, 1), float(check_alpha(alpha))

    def run(self, say: Say) -> StudyResult:
        """Tabulate and draw radii in units of sigma."""
        p = self.probabilities
        columns = {"cohen": self._cohen(p)} | {f"share={s:g}": self._radius(p, s) for s in self.shares}
        rows: list[Row] = [
            {"p": float(p[i]), **{name: float(v[i]) for name, v in columns.items()}} for i in range(len(p))
        ]
        return StudyResult({"second_order_radii": rows}, {"second_order_radii": self._figure()})

    def _cohen(self, p: FloatArray) -> FloatArray:
        if self.n is None:
            return gaussian_l2_radius(p, 1.0)
        return gaussian_l2_radius(clopper_pearson_lower(np.floor(p * self.n), self.n, self.alpha), 1.0)

    def _radius(self, p: FloatArray, share: float) -> FloatArray:
        gradient = share * np.exp(-0.5 * ndtri(p) ** 2) / np.sqrt(2 * np.pi)
        if self.n is None:
            return second_order_l2_radius(p, gradient, 1.0)
        known = clopper_pearson_lower(np.floor(p * self.n), self.n, self.alpha / 2)
        upper = levine_scaled_gradient_upper(gradient**2, self.n // 2, self.dim, 1.0, self.alpha / 2)
        return second_order_l2_radius(known, upper, 1.0)

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 4.2), layout="constrained")
        axes = figure.subplots()
        p = np.linspace(0.501, 0.99, 200)
        for i, share in enumerate(self.shares):
            colour, style = COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % len(STYLES)]
            axes.plot(p, self._radius(p, share), color=colour, ls=style, label=f"gradient {share:g} of the largest")
        axes.plot(p, self._cohen(p), color="black", ls=STYLES[3], label="p alone")
        axes.legend(fontsize=8, frameon=False)
        title = "known exactly" if self.n is None else f"estimated: n = {self.n:,}, d = {self.dim}"
        finish(axes, "p", "certified radius / sigma", title)
        return figure
