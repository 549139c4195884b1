"""What the norm-power families certify at the dimensions of images: the claims of Zhang et al. (2020), Section 5."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import ndtr

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import norm_power_l2_radius
from lightning_rs.certificates.norm_power_linf import mixed_norm_linf_radius
from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.noise.norm_power import matched_sigma
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Case = tuple[int, float]


class ImageDimensions(Study):
    """Certified radius over that of Gaussian noise of equal norm, at equal probability, for image dimensions.

    l2: the l2 family, exact. l-infinity: the mixed-norm family from its sound table, against R_2 / sqrt(d) of the
    Gaussian; a table loses about 0.01 of the score with 100,000 draws. The scale is matched as in the paper (rule
    "mode").

    Args:
        l2_dims: dimensions of the l2 panel.
        l2_powers: one k for each.
        linf_dims: dimensions of the l-infinity panel.
        linf_powers: one k_inf for each.
        scores: the Phi^-1(p) of the table.
        draws: draws of each l-infinity table, at least 1000.
        seed: their seed.
    """

    def __init__(
        self,
        l2_dims: Sequence[int] = (3072, 3072, 150528),
        l2_powers: Sequence[float] = (500, 2000, 50000),
        linf_dims: Sequence[int] = (3072, 3072, 3072, 3072),
        linf_powers: Sequence[float] = (10, 20, 100, 250),
        scores: Sequence[float] = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 3.8),
        draws: int = 100_000,
        seed: int = 0,
    ) -> None:
        self.l2 = _cases("l2_powers", l2_dims, l2_powers)
        self.linf = _cases("linf_powers", linf_dims, linf_powers)
        self.scores = np.atleast_1d(check_positive("scores", list(scores)))
        self.draws, self.seed = check_at_least("draws", draws, 1000), check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Tabulate the ratios at the scores; draw them against the score."""
        rows: list[Row] = []
        for norm, cases in (("l2", self.l2), ("linf", self.linf)):
            for dim, k in cases:
                say(f"image dimensions: {norm}, d = {dim}, k = {k:g}")
                rows.append({"norm": norm, "dim": dim, "k": k, **self._row(norm, dim, k)})
        notes = [self._note(row) for row in rows]
        return StudyResult({"radius_ratio": rows}, {"image_dimensions": self._figure()}, notes)

    def _row(self, norm: str, dim: int, k: float) -> dict[str, float]:
        return {f"z={z:g}": float(x) for z, x in zip(self.scores, self._ratio(norm, dim, k, self.scores), strict=True)}

    def _ratio(self, norm: str, dim: int, k: float, scores: FloatArray) -> FloatArray:
        tail, scale = ndtr(-scores), matched_sigma(1.0, k, dim)
        gaussian = gaussian_l2_radius(q_upper=tail, sigma=1.0)
        if norm == "l2":
            return norm_power_l2_radius(q_upper=tail, sigma=scale, k=k, dim=dim) / gaussian
        radius = mixed_norm_linf_radius(q_upper=tail, sigma=scale, k_inf=k, dim=dim, draws=self.draws, seed=self.seed)
        return radius / (gaussian / math.sqrt(dim))

    def _note(self, row: Row) -> str:
        name = f"{row['norm']}, d = {row['dim']}, k = {row['k']:g}"
        ratios = self._ratio(str(row["norm"]), int(row["dim"]), float(row["k"]), self.scores)
        return f"{name}: {ratios.min():.5f} to {ratios.max():.5f} times the radius of the Gaussian."

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9.8, 4.3), layout="constrained")
        left, right = figure.subplots(1, 2)
        self._panel(left, "l2", self.l2, "l2 radius, l2 family")
        self._panel(right, "linf", self.linf, "l-infinity radius, mixed norm")
        right.set_ylim(0, 1.1)
        return figure

    def _panel(self, axes: Axes, norm: str, cases: Sequence[Case], title: str) -> None:
        scores = np.linspace(self.scores.min(), self.scores.max(), 120)
        for number, (dim, k) in enumerate(cases):
            look: dict[str, Any] = {"color": COLOURS[number % len(COLOURS)], "ls": STYLES[number % len(STYLES)]}
            axes.plot(scores, self._ratio(norm, dim, k, scores), label=f"d = {dim}, k = {k:g}", **look)
        axes.axhline(1.0, color="black", lw=0.8)
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.legend(fontsize=9, frameon=False)
        finish(axes, "score of the probability, Phi$^{-1}$(p)", "radius over the Gaussian's", title)


def _cases(name: str, dims: Sequence[int], powers: Sequence[float]) -> list[Case]:
    if len(dims) != len(powers) or not dims:
        raise ValueError(f"{name} must hold one k for each dimension, got {list(powers)} for {list(dims)}")
    return [(int(d), check_powers(name, [k], int(d))[0]) for d, k in zip(dims, powers, strict=True)]
