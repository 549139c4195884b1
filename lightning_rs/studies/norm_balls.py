"""How the balls of l-infinity and l2 lie to each other in many dimensions (Zhang et al. 2020, Figure 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import gammaln

from lightning_rs.checks import check_at_least
from lightning_rs.plots.style import COLOURS, finish
from lightning_rs.studies.base import Row, Say, Study, StudyResult

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class NormBalls(Study):
    """The cube [-1, 1]^d beside the l2 ball within it: how far its corners stand out, how much of it the ball is.

    Args:
        dims: numbers d of coordinates.
    """

    def __init__(self, dims: Sequence[int] = (2, 3, 5, 10, 100, 784, 3072, 150528)) -> None:
        self.dims = [check_at_least("dims", d, 1) for d in dims]

    def run(self, say: Say) -> StudyResult:
        """Tabulate distance of the corners and log10 of the ball's share of the volume; draw both."""
        rows: list[Row] = [
            {"dim": d, "face": 1.0, "corner": math.sqrt(d), "log10_share": log_share(d) / math.log(10)}
            for d in self.dims
        ]
        return StudyResult({"norm_balls": rows}, {"norm_balls": self._figure()})

    def _figure(self) -> Figure:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8.4, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        dims = np.unique(np.geomspace(1, max(self.dims), 200).astype(int))
        left.plot(dims, np.sqrt(dims), color=COLOURS[0], label="corner of the cube")
        left.plot(dims, np.ones(len(dims)), color=COLOURS[1], label="face of the cube, l2 ball within it")
        left.set_xscale("log")
        left.set_yscale("log")
        left.legend(fontsize=8, frameon=False)
        finish(left, "d", "distance from the centre", "corners stand out as sqrt(d)")
        few = np.arange(1, 31)
        right.plot(few, [log_share(int(d)) / math.log(10) for d in few], color=COLOURS[2])
        finish(right, "d", "log10 of the share", "share of the cube inside the ball")
        return figure


def log_share(dim: int) -> float:
    """Return the log of the volume of the unit l2 ball over that of the cube [-1, 1]^dim around it."""
    return 0.5 * dim * math.log(math.pi) - float(gammaln(0.5 * dim + 1)) - dim * math.log(2)
