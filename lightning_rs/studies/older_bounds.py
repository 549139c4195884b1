"""How the older bounds depend on their free parameter (Cohen et al. 2019, Figure 16)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.lecuyer import lecuyer_l2_radius, radius_of_beta
from lightning_rs.certificates.renyi import radius_of_order, renyi_l2_radius
from lightning_rs.checks import FloatArray, check_positive, check_probability
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class OlderBounds(Study):
    """Radius of Lecuyer et al. (2019) over p at several beta, of Li et al. (2018) at several orders, and their suprema.

    Two classes, ``p_upper = 1 - p_lower``, sigma 1, beside Cohen's radius. The lower panels fix the bounds and vary the
    parameter, at the values of the paper.

    Args:
        betas: values of Lecuyer's parameter, in (0, 1].
        orders: Renyi orders.
        probabilities: the p_lower of the table.
        beta_at: ``(p_lower, p_upper)`` at which beta is varied.
        order_at: ``(p_lower, p_upper)`` at which the order is varied.
    """

    def __init__(
        self,
        betas: Sequence[float] = (0.1, 0.2, 0.5, 1.0),
        orders: Sequence[float] = (0.5, 0.9, 1.2, 2.0),
        probabilities: Sequence[float] = (0.6, 0.7, 0.8, 0.9, 0.99, 0.999),
        beta_at: Sequence[float] = (0.8, 0.2),
        order_at: Sequence[float] = (0.999, 0.0001),
    ) -> None:
        self.betas = check_positive("betas", list(betas))
        if (self.betas > 1).any():
            raise ValueError(f"betas must be <= 1, got {list(betas)}: the Gaussian mechanism needs it")
        self.orders = check_positive("orders", list(orders))
        self.probabilities = np.atleast_1d(check_probability("probabilities", list(probabilities)))
        self.beta_at = check_probability("beta_at", list(beta_at))
        self.order_at = check_probability("order_at", list(order_at))

    def run(self, say: Say) -> StudyResult:
        """Tabulate radii in units of sigma; draw the four panels."""
        p = self.probabilities
        rows: list[Row] = [
            {
                "p": float(p[i]),
                **{f"beta={b:g}": float(v[i]) for b, v in zip(self.betas, self._of_betas(p), strict=True)},
                "lecuyer": float(lecuyer_l2_radius(p, 1 - p, 1.0)[i]),
                **{f"order={a:g}": float(v[i]) for a, v in zip(self.orders, self._of_orders(p), strict=True)},
                "renyi": float(renyi_l2_radius(p, 1 - p, 1.0)[i]),
                "cohen": float(gaussian_l2_radius(p, 1.0)[i]),
            }
            for i in range(len(p))
        ]
        return StudyResult({"older_bounds": rows}, {"older_bounds": self._figure()})

    def _of_betas(self, p: FloatArray) -> list[FloatArray]:
        return [radius_of_beta(p, 1 - p, np.full_like(p, beta)) for beta in self.betas]

    def _of_orders(self, p: FloatArray) -> list[FloatArray]:
        return [radius_of_order(p, 1 - p, 1 - p, np.full_like(p, order)) for order in self.orders]

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.6, 6.8), layout="constrained")
        (beta, order), (one_beta, one_order) = figure.subplots(2, 2)
        p = np.linspace(0.501, 0.9995, 400)
        self._family(beta, p, self._of_betas(p), "beta", self.betas, lecuyer_l2_radius(p, 1 - p, 1.0))
        finish(beta, "p", "radius / sigma", "Lecuyer et al. (2019)")
        self._family(order, p, self._of_orders(p), "order", self.orders, renyi_l2_radius(p, 1 - p, 1.0))
        finish(order, "p", "radius / sigma", "Li et al. (2018)")
        likely, other = self.beta_at
        values = np.linspace(1e-3, min(1.0, 0.5 * np.log(likely / other)), 300)
        one_beta.plot(values, radius_of_beta(np.full(300, likely), np.full(300, other), values), color=COLOURS[0])
        finish(one_beta, "beta", "radius / sigma", f"p_lower {likely:g}, p_upper {other:g}")
        likely, other = self.order_at
        values = np.geomspace(0.05, 20, 300)
        at = radius_of_order(np.full(300, likely), np.full(300, other), np.full(300, 1 - likely), values)
        one_order.plot(values, at, color=COLOURS[0])
        one_order.set_xscale("log")
        finish(one_order, "order", "radius / sigma", f"p_lower {likely:g}, p_upper {other:g}")
        return figure

    @staticmethod
    def _family(
        axes: Axes, p: FloatArray, curves: list[FloatArray], name: str, values: FloatArray, best: FloatArray
    ) -> None:
        for i, (curve, value) in enumerate(zip(curves, values, strict=True)):
            style = STYLES[i // len(COLOURS) % len(STYLES)]
            axes.plot(p, curve, color=COLOURS[i % len(COLOURS)], ls=style, lw=1.2, label=f"{name} {value:g}")
        axes.plot(p, best, color="black", label="supremum")
        axes.plot(p, gaussian_l2_radius(p, 1.0), color="#888888", ls=STYLES[3], label="Cohen et al.")
        axes.set_ylim(0, 3)
        axes.legend(fontsize=8, frameon=False)
