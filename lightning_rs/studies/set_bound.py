"""Certified accuracy of a sample of certifications beside its lower bound (Cohen et al. 2019, Figure 14)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_rs.checks import FloatArray, check_alpha, check_at_least
from lightning_rs.metrics import certified_counts
from lightning_rs.plots.style import COLOURS, STYLES, finish
from lightning_rs.records import Certification, read_records
from lightning_rs.statistics.accuracy import certified_accuracy_lower_bound
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class SetBound(Study):
    """Approximate certified accuracy over r, and Theorem 5's bounds: as printed, and by the exact tail.

    Both bounds hold at each radius by itself with probability 1 - rho, over independent noise of every image.

    Args:
        records: record file of one certificate.
        rho: failure probability of the bound.
        points: number of radii, from 0 to the largest.
    """

    def __init__(self, records: str, rho: float = 0.001, points: int = 13) -> None:
        self.records, self.rho = str(records), float(check_alpha(rho, "rho"))
        self.points = check_at_least("points", points, 2)

    def run(self, say: Say) -> StudyResult:
        """Tabulate and draw the three curves."""
        _, records = read_records(self.records)
        if not records:
            raise ValueError(f"records must hold at least one image, got {self.records}")
        alpha, total = records[0].alpha, len(records)
        radii = np.linspace(0.0, max(record.radius for record in records), self.points)
        rows: list[Row] = [
            {"r": float(r), "accuracy": float(y), "printed": float(low), "exact": float(exact)}
            for r, y, low, exact in zip(radii, *self._curves(radii, records, alpha), strict=True)
        ]
        gap = max(float(row["accuracy"]) - float(row["printed"]) for row in rows)
        note = f"{total} images: accuracy less its bound is at most {gap:.4f} (as printed) at these radii."
        return StudyResult({"set_bound": rows}, {"set_bound": self._figure(radii, records, alpha)}, [note])

    def _curves(
        self, radii: FloatArray, records: Sequence[Certification], alpha: float
    ) -> tuple[FloatArray, FloatArray, FloatArray]:
        counts, total = certified_counts(records, list(radii)), len(records)
        printed = certified_accuracy_lower_bound(counts, total, alpha, self.rho, method="bernstein")
        exact = certified_accuracy_lower_bound(counts, total, alpha, self.rho, method="exact")
        return counts / total, printed, exact

    def _figure(self, radii: FloatArray, records: Sequence[Certification], alpha: float) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5.6, 3.8), layout="constrained")
        axes = figure.subplots()
        dense = np.linspace(0.0, radii[-1] * 1.02, 400)
        names = ("approximate", "bound, as printed", "bound, exact tail")
        for i, (name, curve) in enumerate(zip(names, self._curves(dense, records, alpha), strict=True)):
            axes.plot(dense, curve, color=COLOURS[i], ls=STYLES[i], label=name)
        axes.set_ylim(0, 1)
        axes.legend(fontsize=8, frameon=False)
        finish(axes, "radius", "certified accuracy", f"{len(records)} images")
        return figure
