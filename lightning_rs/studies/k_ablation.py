"""What k does to certified radii at equal votes (Zhang et al. 2020, Table 4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import ndtr

from lightning_rs.certificates.norm_power_l2 import norm_power_l2_radius, radius_ratio_to_gaussian
from lightning_rs.checks import FloatArray, check_at_least, check_choice, check_positive
from lightning_rs.noise.norm_power import matched_sigma
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.records import read_records
from lightning_rs.studies.base import Row, Say, Study, StudyResult, check_powers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = (0.6, 0.7, 0.8, 0.9, 0.99, 0.999, 0.9999)


class KAblation(Study):
    """Certified l2 radius of the l2 family over the Gaussian's, at equal probability and matched norm, exactly.

    With records of runs under Gaussian noise, also the certified accuracy that Table 4 of the paper would show if the
    network gave the same votes under every k: the best run at each radius, as there. What differs between its rows is
    then the work of the certificate alone.

    Args:
        dim: number d of coordinates.
        powers: the k.
        rule: how the scale of the family follows from sigma, see ``matched_sigma``; the paper's is "mode".
        records: record files of runs with one l2 radius sigma Phi^-1(p_lower) an image (``GaussianL2``).
        radii: where certified accuracy is tabulated, in input units.
    """

    def __init__(
        self,
        dim: int = 3072,
        powers: Sequence[float] = (0, 100, 200, 500, 1000, 2000, 3000),
        rule: str = "mode",
        records: Sequence[str] = (),
        radii: Sequence[float] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25),
    ) -> None:
        check_choice("rule", rule, ("mode", "mean", "rms"))
        self.dim, self.powers, self.rule = check_at_least("dim", dim, 2), check_powers("powers", powers, dim), rule
        self.radii = [float(r) for r in check_positive("radii", list(radii))]
        self.records = [str(path) for path in records]

    def run(self, say: Say) -> StudyResult:
        """Tabulate the ratios, and the accuracies if there are records; draw both."""
        rows: list[Row] = []
        for k in self.powers:
            say(f"ablation over k: k = {k:g}")
            ratio = self._ratio(np.array(LEVELS), k)
            rows.append({"k": k, **{f"p={p:g}": float(x) for p, x in zip(LEVELS, ratio, strict=True)}})
        tables: dict[str, Sequence[Row]] = {"radius_ratio": rows}
        largest = max(abs(float(value) - 1) for row in rows for name, value in row.items() if name != "k")
        notes = [f"Largest deviation from the Gaussian's radius at these k and p: {largest:.2%}."]
        if self.records:
            tables["certified_accuracy"] = self._accuracies()
            notes.append(
                f"Certified accuracy of the best of {len(self.records)} runs at each radius; same votes for all k."
            )
        return StudyResult(tables, {"k_ablation": self._figure()}, notes)

    def _ratio(self, p: FloatArray, k: float) -> FloatArray:
        return radius_ratio_to_gaussian(p, k, self.dim, self.rule)

    def _accuracies(self) -> list[Row]:
        runs = [_right_tails(path) for path in self.records]
        rows: list[Row] = []
        for k in self.powers:
            certified = []
            for sigma, tails, images in runs:
                scale = matched_sigma(sigma, k, self.dim, self.rule)
                radius = norm_power_l2_radius(q_upper=tails, sigma=scale, k=k, dim=self.dim)
                # Published radii have three digits, so that many equal r: rounding in the last bit must not decide.
                certified.append([(radius >= r * (1 - 1e-9)).sum() / images for r in self.radii])
            best = np.max(certified, axis=0)
            rows.append({"k": k, **{f"r={r:g}": float(a) for r, a in zip(self.radii, best, strict=True)}})
        return rows

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.6, 4.2), layout="constrained")
        axes = figure.add_subplot()
        score = np.linspace(0.1, 4.5, 200)
        for number, k in enumerate(k for k in self.powers if k > 0):
            colour, style = COLOURS[number % len(COLOURS)], STYLES[number % len(STYLES)]
            axes.plot(score, self._ratio(ndtr(score), k), color=colour, ls=style, label=f"k = {k:g}")
        axes.axhline(1.0, color="black", lw=0.8)
        figure.legend(loc="outside right upper", fontsize=9, frameon=False)
        finish(axes, "score of the probability, Phi$^{-1}$(p)", "l2 radius over the Gaussian's", f"d = {self.dim}")
        return figure


def _right_tails(path: str) -> tuple[float, FloatArray, int]:
    """Return sigma, the tails 1 - p_lower of the images that are right and certified, and the number of all images."""
    header, records = read_records(path)
    noise = header.binding["noise"]
    if noise.get("class") != "GaussianNoise" or {record.norm for record in records} != {"l2"}:
        raise ValueError(f"records must be l2 radii under GaussianNoise, got {noise.get('class')} in {path}")
    sigma = float(noise["sigma"])
    radii = np.array([record.radius for record in records if record.correct])
    return sigma, ndtr(-radii / sigma), len(records)
