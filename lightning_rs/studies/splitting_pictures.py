"""Splitting noise in one and two coordinates (Levine and Feizi 2021, Figures 4 and 5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_rs.checks import FloatArray, as_float64, check_at_least, check_positive
from lightning_rs.noise.splitting import splitting_noise
from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SplittingPictures(Study):
    """Two points of the plane under additive and splitting noise with one draw for both coordinates; cells of an axis.

    Correlated uniform noise moves a point along a diagonal, so that two points need never meet; correlated splits meet
    with probability at least ``1 - ||x - x'||_1 / (2 lam)``, which the table holds against the draws.

    Args:
        x: first point, in [0, 1]^2.
        other: second point.
        lam: half the width of a cell in the plane.
        split: the split s of the picture of one coordinate.
        narrow: half the width of a cell there, below 1/2.
        draws: draws of the table.
        seed: their seed.
    """

    def __init__(
        self,
        x: Sequence[float] = (0.8, 0.2),
        other: Sequence[float] = (0.6, 0.4),
        lam: float = 0.5,
        split: float = 0.15,
        narrow: float = 0.15,
        draws: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.x, self.other = as_float64("x", list(x)), as_float64("other", list(other))
        self.lam, self.narrow = float(check_positive("lam", lam)), float(check_positive("narrow", narrow))
        self.split, self.draws = float(split), check_at_least("draws", draws, 100)
        self.seed = check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Tabulate how often the two points become one; draw what they become."""
        rng = np.random.default_rng(self.seed)
        one = rng.uniform(0, 2 * self.lam, (self.draws, 1))
        two = rng.uniform(0, 2 * self.lam, (self.draws, 2))
        promised = max(0.0, 1 - float(np.abs(self.x - self.other).sum()) / (2 * self.lam))
        rows: list[Row] = [
            {"splits": name, "equal": self._equal(s), "at least": promised}
            for name, s in (("one for both", one), ("independent", two))
        ]
        return StudyResult({"splitting_pictures": rows}, {"joint_laws": self._plane(), "cells": self._axis()})

    def _equal(self, s: FloatArray) -> float:
        same = splitting_noise(self.x, s, self.lam) == splitting_noise(self.other, s, self.lam)
        return float(np.all(same, axis=1).mean())

    def _plane(self) -> Figure:
        from matplotlib.figure import Figure
        from matplotlib.patches import Rectangle

        figure = Figure(figsize=(9.0, 3.3), layout="constrained")
        cells = figure.subplots(1, 3)
        lam = self.lam
        t = np.linspace(0, 2 * lam, 2001)[:, None]
        for point, colour in ((self.x, COLOURS[0]), (self.other, COLOURS[1])):
            corner = (point[0] - lam, point[1] - lam)
            cells[0].add_patch(Rectangle(corner, 2 * lam, 2 * lam, color=colour, alpha=0.4, lw=0))
            cells[1].plot(*(point + t - lam).T, color=colour)
            cells[2].plot(*(2 * splitting_noise(point, t, lam) - 0.5).T, ".", color=colour, ms=3, alpha=0.6)
            for axes in cells:
                axes.plot(*point, "o", color=colour, ms=5, mec="black")
        names = ("additive, independent", "additive, one draw", "splitting, one draw")
        for axes, name in zip(cells, names, strict=True):
            axes.add_patch(Rectangle((0, 0), 1, 1, fill=False, color="black"))
            axes.set_xlim(-0.6, 1.6)
            axes.set_ylim(-0.6, 1.6)
            axes.set_aspect("equal")
            finish(axes, "", "", name)
        return figure

    def _axis(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 3.2), layout="constrained")
        axes = figure.subplots()
        x = np.linspace(0, 1, 2001)
        seen = splitting_noise(x, self.split, self.narrow)
        for value in np.unique(seen):
            axes.plot(x[seen == value], seen[seen == value], color=COLOURS[0])
        for edge in np.arange(self.split, 1, 2 * self.narrow):
            axes.axvline(edge, color="#888888", ls="--", lw=0.8)
        axes.plot(x, x, color="#BBBBBB", lw=0.8)
        finish(axes, "pixel x", "what the network sees", f"s = {self.split:g}, lam = {self.narrow:g}")
        return figure
