"""Slices of the certified region with and without the gradient (Mohapatra et al. 2020, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtri

from lightning_rs.certificates.first_order import first_order_radius
from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.checks import FloatArray, check_at_least, check_probability
from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    pass


class SafetyRegions(Study):
    """Certified distance in every direction, sigma 1, for a probability p and a gradient along the negative first axis.

    Without the gradient the region is the ball of Cohen's radius; with it the distance depends on the angle between the
    direction and the gradient and is smallest against it.

    Args:
        probabilities: values of p, one row of pictures each.
        shares: norms of the gradient as shares of the largest possible one, one column each.
        directions: number of angles between 0 and pi; the region is symmetric about the axis.
        reach: half the width of a picture, in units of sigma; longer distances leave it.
    """

    def __init__(
        self,
        probabilities: Sequence[float] = (0.6, 0.75, 0.9),
        shares: Sequence[float] = (0.25, 0.5, 0.9),
        directions: int = 37,
        reach: float = 4.0,
    ) -> None:
        self.probabilities = np.atleast_1d(check_probability("probabilities", list(probabilities)))
        self.shares = np.atleast_1d(check_probability("shares", list(shares)))
        self.angles = np.linspace(0, np.pi, check_at_least("directions", directions, 3))
        self.reach = float(reach)

    def run(self, say: Say) -> StudyResult:
        """Tabulate the distances against, across and along the gradient; draw the regions."""
        from matplotlib.figure import Figure

        size = (len(self.probabilities), len(self.shares))
        figure = Figure(figsize=(2.5 * size[1] + 0.4, 2.5 * size[0] + 0.3), layout="constrained")
        cells = figure.subplots(*size, squeeze=False)
        rows: list[Row] = []
        for i, p in enumerate(self.probabilities):
            say(f"certified regions: p = {p:g}")
            ball = float(gaussian_l2_radius(p, 1.0))
            for j, share in enumerate(self.shares):
                distance = self._distances(float(p), float(share))
                axes = cells[i, j]
                # The gradient points to the left: the angle to it is measured from there.
                x, y = -distance * np.cos(self.angles), distance * np.sin(self.angles)
                axes.fill(np.r_[x, x[::-1]], np.r_[y, -y[::-1]], color=COLOURS[5], alpha=0.7, lw=0)
                turn = np.linspace(0, 2 * np.pi, 100)
                axes.fill(ball * np.cos(turn), ball * np.sin(turn), color=COLOURS[2], alpha=0.7, lw=0)
                axes.plot(0, 0, "o", color="black", ms=3)
                axes.set_xlim(-self.reach, self.reach)
                axes.set_ylim(-self.reach, self.reach)
                axes.set_aspect("equal")
                finish(axes, "", "", f"p = {p:g}, gradient {share:g}")
                middle = float(np.interp(np.pi / 2, self.angles, distance))
                rows.append(
                    {
                        "p": float(p), "share": float(share), "without": ball, "against": float(distance[-1]),
                        "across": middle, "along": float(distance[0]),
                    }
                )  # fmt: skip
        return StudyResult({"safety_regions": rows}, {"safety_regions": figure})

    def _distances(self, p: float, share: float) -> FloatArray:
        largest = float(np.exp(-0.5 * ndtri(p) ** 2) / np.sqrt(2 * np.pi))
        along, across = np.cos(self.angles), np.abs(np.sin(self.angles))
        # A norm a hair below its largest value: at it, rounding leaves no classifier with these two numbers.
        length = share * largest * (1 - 1e-12)
        distance = np.atleast_1d(first_order_radius(p, length * along, length * across, 1.0))
        # Proposition 2: what holds at a larger angle to the gradient holds at a smaller one.
        return np.maximum.accumulate(distance[::-1])[::-1]
