"""From sampled evidence to the confidence bounds that the gradient certificates share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_rs.certificates.base import Setting, at, read
from lightning_rs.checks import FloatArray
from lightning_rs.evidence import Evidence, GradientSums, Votes
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper
from lightning_rs.statistics.gradient import Interval, scaled_gradient_l2_interval

NO_GAIN = "upper gradient bound not below the maximum for this p: radius without it"
INFEASIBLE = "lower gradient bound above the maximum for this p: radius without it"


class GradientMeans:
    """Half-sample means X, Y of z = (w / sigma)(f - 1/2), each (B, d), and their sample sizes."""

    def __init__(self, sums: GradientSums, sigma: float) -> None:
        self.first, self.second = sums.means(sigma)
        self.sizes = sums.sizes
        if min(self.sizes) < 1:
            raise ValueError(f"gradient evidence needs samples in both halves, got sizes {self.sizes}")

    @property
    def mean(self) -> FloatArray:
        """Mean over all samples, (B, d)."""
        first, second = self.sizes
        return (first * self.first + second * self.second) / (first + second)

    def l2(self, alpha: float, mask: NDArray[np.bool_] | None = None) -> Interval:
        """Bounds of the norm of the scaled gradient on some coordinates; each fails with probability <= alpha."""
        first, second = (half if mask is None else columns(half, mask) for half in (self.first, self.second))
        return l2_bounds(first, second, self.sizes, alpha)


def columns(values: FloatArray, mask: NDArray[np.bool_]) -> FloatArray:
    """Return some columns, each row in one piece: a mask alone gives a layout, hence sums, that depend on the rows."""
    return np.ascontiguousarray(values[:, mask])


def l2_bounds(first: FloatArray, second: FloatArray, sizes: tuple[int, int], alpha: float) -> Interval:
    """Return the bounds of :func:`scaled_gradient_l2_interval` from means of shape (B, k), in C order."""
    product = (first * second).sum(axis=1)
    return scaled_gradient_l2_interval(product, np.sqrt((second * second).sum(axis=1)), *sizes, alpha)


def top_tail(evidence: Mapping[type[Evidence], Evidence], setting: Setting, share: float) -> FloatArray:
    """Clopper-Pearson upper bound of 1 - p of the selected class at ``share`` of alpha, (B,)."""
    count = at(read(evidence, Votes).counts, setting.top)
    return np.asarray(clopper_pearson_tail_upper(count, setting.n, share * setting.alpha), dtype=np.float64)


def gradient_notes(
    tail: FloatArray, upper: FloatArray, largest: FloatArray, lower: FloatArray | float = 0.0
) -> dict[int, str]:
    """Return a remark for each image with tail < 1/2 whose gradient bounds were not used.

    Args:
        tail: upper bound of 1 - p, (B,).
        upper: upper bound on the gradient; not below ``largest`` it says nothing.
        largest: the largest gradient that is possible.
        lower: lower bound on the gradient; above ``largest`` its confidence event has failed.
    """
    notes = dict.fromkeys(map(int, np.flatnonzero((tail < 0.5) & (upper >= largest))), NO_GAIN)
    return {**notes, **dict.fromkeys(map(int, np.flatnonzero((tail < 0.5) & (lower > largest))), INFEASIBLE)}
