"""Second-order smoothing of several classes: top class and runner-up each with a gradient bound."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from lightning_rs.certificates._gradient_evidence import GradientMeans, top_tail
from lightning_rs.certificates.base import Certificate, Radii, Setting, abstain_at_zero, at, read
from lightning_rs.certificates.second_order import second_order_l2_radius, second_order_two_class_l2_radius
from lightning_rs.checks import FloatArray
from lightning_rs.evidence import Evidence, GradientSums, RunnerUpGradientSums, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.gaussian import profile
from lightning_rs.statistics.binomial import clopper_pearson_upper
from lightning_rs.statistics.gradient import ALPHA_SHARES

TOO_LARGE = "not below the maximum for its probability: radius without it"


class SecondOrderTwoClassL2(Certificate):
    """Second-order smoothing against every other class; it can certify classes of probability below one half.

    The radius is the least of :func:`second_order_two_class_l2_radius` over all other classes: the runner-up of the
    selection samples with an upper bound of its own gradient, each class beyond it with the largest gradient that its
    probability allows (a class of smaller probability but larger gradient can be the binding one, so none may be left
    out). Where :func:`second_order_l2_radius` at the same two bounds of the top class is larger, it is the radius:
    that is the same event. Abstains where both are 0. Needs a number of samples fixed in advance.

    alpha is shared among five events: the probability and the gradient of the top class, those of the runner-up, and
    the probabilities of all further classes, among which that share is divided evenly (Clopper-Pearson and union
    bound; :func:`~lightning_rs.statistics.gradient.scaled_gradient_l2_interval` for the gradients).
    """

    norm = "l2"
    noises = (GaussianNoise,)
    evidence = (Votes, GradientSums, RunnerUpGradientSums)
    alpha_split = ALPHA_SHARES["second_order_two_class"]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        sigma, share = setting.noise.sigma, {name: s * setting.alpha for name, s in self.alpha_split.items()}
        tail = top_tail(evidence, setting, self.alpha_split["p_lower"])
        slope = GradientMeans(read(evidence, GradientSums), sigma).l2(share["gradient_upper"]).upper
        counts = read(evidence, Votes).counts
        second = clopper_pearson_upper(at(counts, setting.runner_up), setting.n, share["runner_up_upper"])
        other_sums = read(evidence, RunnerUpGradientSums)
        second_slope = GradientMeans(other_sums, sigma).l2(share["runner_up_gradient_upper"]).upper
        others = _others_upper(counts, setting, share["others_upper"])
        against = [
            second_order_two_class_l2_radius(None, slope, bound, steepness, sigma, q_upper=tail)
            for bound, steepness in ((second, second_slope), (others, np.inf))
        ]
        alone = second_order_l2_radius(q_upper=tail, scaled_gradient_upper=slope, sigma=sigma)
        radius = np.maximum(np.minimum(*against), alone)
        bounds = {
            "p_lower": 1.0 - tail,
            "q_upper": tail,
            "gradient_upper": slope,
            "runner_up_upper": np.asarray(second, dtype=np.float64),
            "runner_up_gradient_upper": second_slope,
            "others_upper": others,
        }
        useless = {"the top class": slope >= profile(tail), "the runner-up": second_slope >= profile(second)}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds, _notes(radius, useless))


def _notes(radius: FloatArray, useless: Mapping[str, NDArray[np.bool_]]) -> dict[int, str]:
    """Say for each image with a radius which gradient bounds say nothing, and are as good as unknown."""
    named = {int(row): [who for who, rows in useless.items() if rows[row]] for row in np.flatnonzero(radius > 0)}
    return {row: f"upper gradient bound of {' and of '.join(who)} {TOO_LARGE}" for row, who in named.items() if who}


def _others_upper(counts: np.ndarray, setting: Setting, alpha: float) -> FloatArray:
    """Return a bound of every probability beyond top class and runner-up, (B,); 0 where there is no such class."""
    further = counts.shape[1] - 2
    if further < 1:
        return np.zeros(len(counts))
    rest = counts.copy()
    for known in (setting.top, setting.runner_up):
        np.put_along_axis(rest, known[:, None], 0, axis=1)
    # The bound grows with the count: the largest count has the largest bound.
    return np.asarray(clopper_pearson_upper(rest.max(axis=1), setting.n, alpha / further), dtype=np.float64)
