"""l-infinity against l2 distance terms: how far a shift separates the three laws (Zhang et al. 2020, Figure 3)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from lightning_rs.certificates.dual import gaussian_discrepancy
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy
from lightning_rs.checks import FloatArray, check_at_least, check_positive
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerFamily, NormPowerNoise, PureLinfNoise
from lightning_rs.numerics.linf_statistics import MixedCorner, PureCorner
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.studies._corner import CornerSample
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LAWS = ("gaussian", "l2", "mixed", "pure")
NAMES = ("Gaussian", "l2 family", "mixed norm", "pure l-infinity")
PLANE_SHIFT = 1.0  # in units of sigma / sqrt(2), in the picture of the plane


class DistanceTerms(Study):
    """Total variation between a law and its copy at the corner of an l-infinity ball, ``D(pi_0 || pi_delta)``.

    All laws have coordinates of equal variance sigma^2, and the shift is ``f sigma / sqrt(d)`` in every coordinate, so
    that the Gaussian gives the same curve in every dimension. The Gaussian and the l2 family are exact, the other two
    from draws. Figure 3 of the paper says that the mixed norm separates less than the l2 family.

    Args:
        dims: dimensions, one panel each.
        powers: the k of the three families in each of them.
        fractions: the f.
        plane_k: the k of the picture in the plane.
        draws: Monte Carlo draws.
        seed: their seed.
    """

    def __init__(
        self,
        dims: Sequence[int] = (2, 5, 3072),
        powers: Sequence[float] = (1, 3, 250),
        fractions: Sequence[float] = (0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0),
        plane_k: float = 1.0,
        draws: int = 20_000,
        seed: int = 0,
    ) -> None:
        if len(dims) != len(powers) or not dims:
            raise ValueError(f"powers must hold one k for each of dims, got {list(powers)} for {list(dims)}")
        self.cases = [(int(d), check_powers("powers", [k], int(d))[0]) for d, k in zip(dims, powers, strict=True)]
        self.fractions = [float(f) for f in check_positive("fractions", list(fractions))]
        self.plane_k = check_powers("plane_k", [plane_k], 2)[0]
        self.draws, self.seed = check_at_least("draws", draws, 100), check_at_least("seed", seed, 0)

    def run(self, say: Say) -> StudyResult:
        """Tabulate the distances; draw them, and the two laws in the plane."""
        rows: list[Row] = []
        for dim, k in self.cases:
            say(f"distance terms: d = {dim}, k = {k:g}")
            rows += self._rows(dim, k)
        notes = []
        for dim, k in self.cases:
            own = [row for row in rows if row["dim"] == dim and row["k"] == k]
            gaps = [float(r["mixed"]) - float(r["l2"]) for r in own]
            low, high = min(gaps), max(gaps)
            error = max(float(row["standard_error"]) for row in own)
            notes.append(f"d = {dim}, k = {k:g}: mixed norm minus l2 family {low:+.4f} to {high:+.4f} (+-{error:.4f}).")
        figures = {"distance_terms": self._figure(rows), "distance_terms_plane": self._plane()}
        return StudyResult({"distance_terms": rows}, figures, notes)

    def _rows(self, dim: int, k: float) -> list[Row]:
        scale = NormPowerNoise(1.0, k, dim).scale
        mixed = CornerSample(MixedCorner(dim, k, 0.0), self.draws, self.seed)
        pure = CornerSample(PureCorner(dim, k), self.draws, self.seed)
        rows: list[Row] = []
        for f in self.fractions:
            r = f / math.sqrt(dim)
            sampled = mixed.discrepancy(1.0, r / scale), pure.discrepancy(1.0, r / PureLinfNoise(1.0, k, dim).scale)
            exact = gaussian_discrepancy(1.0, f, 1.0), norm_power_discrepancy(1.0, f, scale, k, dim)
            values = dict(zip(LAWS, (*map(float, exact), sampled[0][0], sampled[1][0]), strict=True))
            error = max(sampled[0][1], sampled[1][1])
            rows.append({"dim": dim, "k": k, "fraction": f, **values, "standard_error": error})
        return rows

    def _figure(self, rows: Sequence[Row]) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.6 * len(self.cases) + 0.4, 3.9), layout="constrained")
        panels = figure.subplots(1, len(self.cases), sharey=True, squeeze=False)[0]
        for (dim, k), axes in zip(self.cases, panels, strict=True):
            own = [row for row in rows if row["dim"] == dim and row["k"] == k]
            for number, law in enumerate(LAWS):
                x, y = [row["fraction"] for row in own], [row[law] for row in own]
                axes.plot(x, y, color=COLOURS[number], ls=STYLES[number], label=NAMES[number], lw=1.7)
            axes.set_ylim(0, 1.02)
            first = axes is panels[0]
            label = "total variation to the shifted law" if first else ""
            finish(axes, "shift of each coordinate, units of sigma / sqrt(d)", label, f"d = {dim}, k = {k:g}")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False)
        return figure

    def _plane(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.6, 4.2), layout="constrained")
        laws = NormPowerNoise(1.0, self.plane_k, 2), MixedNormNoise(1.0, self.plane_k, 2)
        for law, name, axes in zip(laws, NAMES[1:3], figure.subplots(1, 2, sharey=True), strict=True):
            _overlap(axes, law, name)
        figure.suptitle("law (solid), shifted law (dashed), overlap (grey)", fontsize=10)
        return figure


def _overlap(axes: Axes, law: NormPowerFamily, name: str) -> None:
    """Fill where the density and its shifted copy overlap, and draw level lines of both."""
    delta = law.worst_shift("linf", PLANE_SHIFT / math.sqrt(2.0))
    x = np.linspace(-2.2, 3.0, 400)
    z = torch.from_numpy(np.stack(np.meshgrid(x, x), axis=-1))
    here, there = (law.log_density(point).exp().numpy() for point in (z, z - delta))
    levels: FloatArray = np.geomspace(0.02, 0.6, 6)
    axes.contourf(
        x,
        x,
        np.minimum(here, there),
        levels=levels[:4],
        colors=["#E4E4E4", "#C8C8C8", "#ABABAB", "#8E8E8E"],
        extend="max",
    )
    for density, colour, style in ((here, COLOURS[0], "solid"), (there, COLOURS[1], "dashed")):
        axes.contour(x, x, density, levels=levels, colors=colour, linestyles=style, linewidths=1.1)
    axes.set_aspect("equal")
    finish(axes, "z$_1$", "z$_2$", name)
