"""The base classifiers that make the bounds tight, in the plane (Levine et al. 2020, Figures 3 and 4b)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr, ndtri

from lightning_rs.checks import FloatArray, check_probability
from lightning_rs.numerics.gaussian import worst_interval
from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REACH = 3.2  # half the width of a picture, in units of sigma


class WorstCases(Study):
    """Where the worst base classifier answers with the class: a slab, given p and the norm of the gradient.

    Second order: ``z_lo < z_1 < z_hi``. Dipole (Theorem 3): the mass that is not reflected into itself fills a
    half-space and the rest a symmetric slab. Its picture shows both parts, which may overlap: the bound is their sum.

    Args:
        p: smoothed probability of the class.
        shares: gradient norms as shares of the largest possible one, one picture each.
        symmetric: share of p in points that are the class together with their reflection (C_S / p).
    """

    def __init__(self, p: float = 0.8, shares: Sequence[float] = (1.0, 0.5, 0.0), symmetric: float = 0.75) -> None:
        self.p = float(check_probability("p", p))
        if not 0.5 < self.p < 1:
            raise ValueError(f"p must lie between 1/2 and 1, got {p}")
        self.shares = np.atleast_1d(check_probability("shares", list(shares)))
        self.symmetric = float(check_probability("symmetric", symmetric))

    def run(self, say: Say) -> StudyResult:
        """Tabulate the planes and the probability and gradient that they give; draw the regions."""
        rows: list[Row] = []
        for share, (low, high) in zip(self.shares, self._slabs(), strict=True):
            gradient = (np.exp(-0.5 * low**2) - np.exp(-0.5 * high**2)) / np.sqrt(2 * np.pi)
            rows.append(
                {
                    "share": float(share),
                    "z_lo": float(low),
                    "z_hi": float(high),
                    "p": float(ndtr(high) - ndtr(low)),
                    "gradient": float(abs(gradient)),
                }
            )
        return StudyResult({"worst_cases": rows}, {"worst_cases": self._figure()})

    def _slabs(self) -> list[tuple[float, float]]:
        largest = float(np.exp(-0.5 * ndtri(self.p) ** 2) / np.sqrt(2 * np.pi))
        p, slope = np.full(len(self.shares), self.p), self.shares * largest
        low, high = worst_interval(p, 1 - p, slope)
        return [(float(a), float(b)) for a, b in zip(low, high, strict=True)]

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        slabs = self._slabs()
        figure = Figure(figsize=(2.6 * (len(slabs) + 1), 2.9), layout="constrained")
        cells = figure.subplots(1, len(slabs) + 1, squeeze=False)[0]
        angle: FloatArray = np.linspace(0, 2 * np.pi, 200)
        for axes, (low, high), share in zip(cells, slabs, self.shares, strict=False):
            axes.axvspan(max(low, -REACH), min(high, REACH), color=COLOURS[5], alpha=0.6, lw=0)
            finish(axes, "z$_1$ / sigma", "", f"gradient {share:g} of the largest")
        both = self.symmetric * self.p
        edge = float(ndtri((1 + both) / 2))
        cells[-1].axvspan(-edge, edge, color=COLOURS[5], alpha=0.6, lw=0)
        alone = float(ndtri(self.p - both)) if both < self.p else -REACH
        cells[-1].axvspan(-REACH, alone, color=COLOURS[4], alpha=0.5, lw=0)
        finish(cells[-1], "z$_1$ / sigma", "", "dipole: reflected, not reflected")
        for axes in cells:
            axes.plot(np.cos(angle), np.sin(angle), color="black", ls="--", lw=0.9)
            axes.plot(0, 0, "o", color="black", ms=4)
            axes.set_xlim(-REACH, REACH)
            axes.set_ylim(-REACH, REACH)
            axes.set_aspect("equal")
            axes.set_yticks([])
        return figure
