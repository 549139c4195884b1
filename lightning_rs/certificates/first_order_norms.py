"""The l1 and l-infinity certificates that first-order information gives for Gaussian noise."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_rs.certificates._gradient_evidence import GradientMeans, columns, gradient_notes, top_tail
from lightning_rs.certificates.base import Certificate, Radii, Setting, abstain_at_zero, read
from lightning_rs.certificates.first_order import first_order_l1_radius, first_order_linf_radius
from lightning_rs.checks import FloatArray
from lightning_rs.evidence import Evidence, GradientSums, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.gaussian import profile
from lightning_rs.numerics.regions import check_region, qualified, region_mask
from lightning_rs.statistics.gradient import (
    ALPHA_SHARES,
    scaled_gradient_l1_deviation,
    scaled_gradient_linf_deviation,
)


class FirstOrderL1(Certificate):
    """An l1 radius from p, the largest coordinate of its gradient and, optionally, the gradient's l2 norm.

    :func:`~lightning_rs.certificates.first_order.first_order_l1_radius` at a Clopper-Pearson bound of the tail, an
    upper bound of the l-infinity norm and a lower bound of the l2 norm of the scaled gradient, all from the same
    samples. Never below Cohen's radius at the same tail. Abstains where q_upper >= 1/2.

    Args:
        with_l2: use the l2 norm; without it most of the gain remains, at one confidence event less.
        region: None, or the coordinates that may be perturbed: a colour, a channel number, or a half of the
            image ("top", "bottom", "left", "right").
    """

    noises = (GaussianNoise,)
    evidence = (Votes, GradientSums)

    def __init__(self, with_l2: bool = True, region: str | int | None = None) -> None:
        check_region(region)
        self.with_l2 = with_l2
        self.region = region
        self.norm = qualified("l1", region)
        self.alpha_split = ALPHA_SHARES["first_order_l1" if with_l2 else "first_order_l1_without_l2"]

    @property
    def name(self) -> str:
        """The class, and the region if there is one: several regions can be listed in one run."""
        return qualified(type(self).__name__, self.region)

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        shares, sigma = self.alpha_split, setting.noise.sigma
        tail = top_tail(evidence, setting, shares["p_lower"])
        means = GradientMeans(read(evidence, GradientSums), sigma)
        inside = means.mean[:, region_mask(self.region, setting.shape)]
        deviation = scaled_gradient_linf_deviation(setting.n, inside.shape[1], setting.alpha * shares["linf_upper"])
        upper = np.abs(inside).max(axis=1) + deviation
        lower = means.l2(setting.alpha * shares["l2_lower"]).lower if self.with_l2 else np.zeros(len(tail))
        radius = first_order_l1_radius(q_upper=tail, linf_upper=upper, l2_lower=lower, sigma=sigma)
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "linf_upper": upper, "l2_lower": lower}
        return Radii(
            abstain_at_zero(radius, setting.top), radius, bounds, gradient_notes(tail, upper, profile(tail), lower)
        )


class FirstOrderLinf(Certificate):
    """An l-infinity radius from p and the l1 and l2 norms of its gradient.

    :func:`~lightning_rs.certificates.first_order.first_order_linf_radius` at a Clopper-Pearson bound of the tail, an
    upper bound of the l1 norm and a lower bound of the l2 norm of the scaled gradient. The l1 norm is bounded
    directly and by sqrt(d) times an upper bound of the l2 norm; the smaller one counts (both pay). So the radius
    is never below the second-order l2 radius over sqrt(d) at the same bounds.

    Args:
        with_l2: use the lower bound of the l2 norm.
        region: as in :class:`FirstOrderL1`.
    """

    noises = (GaussianNoise,)
    evidence = (Votes, GradientSums)

    def __init__(self, with_l2: bool = True, region: str | int | None = None) -> None:
        check_region(region)
        self.with_l2 = with_l2
        self.region = region
        self.norm = qualified("linf", region)
        self.alpha_split = ALPHA_SHARES["first_order_linf" if with_l2 else "first_order_linf_without_l2"]

    @property
    def name(self) -> str:
        """The class, and the region if there is one: several regions can be listed in one run."""
        return qualified(type(self).__name__, self.region)

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        shares, sigma = self.alpha_split, setting.noise.sigma
        tail = top_tail(evidence, setting, shares["p_lower"])
        means = GradientMeans(read(evidence, GradientSums), sigma)
        mask = region_mask(self.region, setting.shape)
        size = int(mask.sum())
        upper = self._l1_upper(means, mask, setting)
        lower = means.l2(setting.alpha * shares["l2_lower"]).lower if self.with_l2 else np.zeros(len(tail))
        radius = first_order_linf_radius(q_upper=tail, l1_upper=upper, l2_lower=lower, dim=size, sigma=sigma)
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "l1_upper": upper, "l2_lower": lower}
        notes = gradient_notes(tail, upper / np.sqrt(size), profile(tail), lower)
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds, notes)

    def _l1_upper(self, means: GradientMeans, mask: NDArray[np.bool_], setting: Setting) -> FloatArray:
        size = int(mask.sum())
        deviation = scaled_gradient_l1_deviation(setting.n, size, setting.alpha * self.alpha_split["l1_upper"])
        direct = np.abs(columns(means.mean, mask)).sum(axis=1) + deviation
        through_l2 = np.sqrt(size) * means.l2(setting.alpha * self.alpha_split["l2_upper"], mask).upper
        return np.minimum(direct, through_l2)
