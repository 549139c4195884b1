"""Gaussian noise, votes only: Cohen's l2 radius, its two-class form, and what they imply in l1 and l-infinity."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import numpy as np

from lightning_rs.certificates.base import Certificate, Radii, Setting, TopVoteCertificate, abstain_at_zero, at, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import (
    FloatArray,
    check_choice,
)
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.vote_radii import SLACK, gaussian_l2_radius
from lightning_rs.statistics.binomial import (
    TWO_CLASS_SHARES,
    Method,
    clopper_pearson_tail_upper,
    simultaneous_tail_bounds,
)


@usual_for(GaussianNoise)
class GaussianL2(TopVoteCertificate):
    """Cohen's certificate: "no l2 perturbation of norm < R changes the smoothed prediction".

    ``R = -sigma Phi^-1(q_upper)``, ``q_upper`` the one-sided Clopper-Pearson upper bound of the tail 1 - p at the
    whole alpha (Cohen et al. 2019, Theorem 1 and CERTIFY). Abstains where ``q_upper >= 1/2``. At most
    ``sigma Phi^-1(alpha^(1/n))``: 3.8115 sigma for n = 100,000 and alpha = 0.001.
    """

    norm: str = "l2"
    noises = (GaussianNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return :func:`gaussian_l2_radius`, in input units."""
        return gaussian_l2_radius(q_upper=q_upper, sigma=setting.noise.sigma)


class GaussianL1(GaussianL2):
    """Cohen's certificate read as an l1 certificate: the l1 ball of radius R lies inside the l2 ball.

    ``R_1 = R_2``, because ``||.||_2 <= ||.||_1``. Same event, same alpha, same abstention as :class:`GaussianL2`.
    """

    norm = "l1"


class GaussianLinf(GaussianL2):
    """Cohen's certificate read as an l-infinity certificate: ``R_inf = R_2 / sqrt(d)``, rounded down.

    Valid because ``||.||_2 <= sqrt(d) ||.||_inf``; d is the number of input coordinates. Same event, same alpha,
    same abstention as :class:`GaussianL2`.
    """

    norm = "linf"

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the l2 radius over sqrt(d), in input units."""
        return super().radius_of_tail(q_upper, setting) / np.sqrt(setting.dim) * (1 - SLACK)


class TwoClassCertificate(Certificate):
    """A Gaussian l2 radius from a lower bound on the top class and an upper bound on every other class.

    Args:
        method: how the two bounds share alpha; fixed before sampling.
            "partition": alpha / 2 for the top class; the other half shared by the classes that the selection samples
            leave near the runner-up, and all others together. See :mod:`lightning_rs.statistics.partition`.
            "bonferroni": alpha / 2 for the top class, alpha / (2 (C - 1)) for each other class.
            "grouped": alpha / 3 each for the top class, for the runner-up of the selection samples, and for the
            two together. See :func:`~lightning_rs.statistics.binomial.simultaneous_bounds`.
            "complement" (baselines only): the whole alpha for the top class, ``p_upper = 1 - p_lower``.

    Raises:
        ValueError: for an unknown method.
    """

    norm = "l2"
    noises = (GaussianNoise,)
    evidence = (Votes,)
    votes_only = True
    methods: ClassVar[tuple[str, ...]] = tuple(TWO_CLASS_SHARES)

    def __init__(self, method: str = "partition") -> None:
        check_choice("method", method, self.methods)
        self.method = method
        self.alpha_split = TWO_CLASS_SHARES.get(method, {"p_lower": 1.0})

    @abstractmethod
    def radius_of_bounds(self, q_upper: FloatArray, p_upper: FloatArray, sigma: float) -> FloatArray:
        """Return the radius certified by the tail of the top class and the bound on all others, in input units."""

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        q_upper, p_upper = self._bounds(read(evidence, Votes).counts, setting)
        radius = np.asarray(self.radius_of_bounds(q_upper, p_upper, setting.noise.sigma), dtype=np.float64)
        bounds = {"p_lower": 1.0 - q_upper, "q_upper": q_upper, "p_upper": p_upper}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)

    def _bounds(self, counts: np.ndarray, setting: Setting) -> tuple[FloatArray, FloatArray]:
        if self.method == "complement":
            q_upper = clopper_pearson_tail_upper(at(counts, setting.top), counts.sum(axis=1), setting.alpha)
            return q_upper, q_upper
        method = cast(Method, self.method)
        return simultaneous_tail_bounds(
            counts, setting.top, setting.alpha, method, setting.runner_up, setting.selection.counts
        )


class GaussianTwoClassL2(TwoClassCertificate):
    """Cohen's two-class certificate, ``R = sigma / 2 (Phi^-1(p_lower) - Phi^-1(p_upper))``.

    Statement and reference as :class:`GaussianL2`; can certify classes of probability below one half. The bounds
    hold simultaneously for finite n; alpha is shared as ``method`` says. Abstains where ``p_lower <= p_upper``.
    """

    def __init__(self, method: Literal["partition", "bonferroni", "grouped"] = "partition") -> None:
        super().__init__(method)

    def radius_of_bounds(self, q_upper: FloatArray, p_upper: FloatArray, sigma: float) -> FloatArray:
        """Return :func:`gaussian_l2_radius`, in input units."""
        return gaussian_l2_radius(q_upper=q_upper, sigma=sigma, p_upper=p_upper)
