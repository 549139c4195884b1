"""Radii of uniform and independent splitting noise: l1, l-infinity, and l1 inside the box [0, 1]^d."""

from __future__ import annotations

from collections.abc import Mapping

from lightning_rs.certificates.base import Certificate, Radii, Setting, TopVoteCertificate, abstain_at_zero, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import (
    FloatArray,
    check_choice,
)
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.numerics.vote_radii import uniform_box_l1_radius, uniform_l1_radius, uniform_linf_radius
from lightning_rs.statistics.binomial import TWO_CLASS_SHARES, Method, simultaneous_tail_bounds


def _lam(noise: Noise) -> float:
    assert isinstance(noise, UniformNoise | SplittingNoise)
    return noise.lam


@usual_for(UniformNoise)
class UniformL1(TopVoteCertificate):
    """Open l1 ball of :func:`uniform_l1_radius`, from the one-sided bound on the votes of the top class.

    With probability at least 1 - alpha over the sampling, the smoothed class is constant in the ball. Radius
    in input units, at most lam; it abstains where the bound does not exceed 1/2. Splitting noise has the same
    radius: :class:`lightning_rs.certificates.splitting.SplittingL1`.
    """

    norm = "l1"
    noises: tuple[type[Noise], ...] = (UniformNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        return uniform_l1_radius(lam=_lam(setting.noise), q_upper=q_upper)


class UniformLinf(TopVoteCertificate):
    """Open l-infinity ball of :func:`uniform_linf_radius`; otherwise as :class:`UniformL1`.

    Holds for uniform noise and for splitting noise with independent splits.
    """

    norm = "linf"
    noises = (UniformNoise, SplittingNoise)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        return uniform_linf_radius(lam=_lam(setting.noise), dim=setting.dim, q_upper=q_upper)


class UniformBoxL1(TopVoteCertificate):
    """l1 ball of :func:`uniform_box_l1_radius`, cut with [0, 1]^d; otherwise as :class:`UniformL1`.

    The statement is about perturbed inputs in [0, 1]^d only, and assumes that the image lies there. Holds for
    uniform noise and for splitting noise with independent splits. Never smaller than :class:`UniformL1`.

    Attributes:
        domain: where inputs must lie.
    """

    norm = "l1:box"
    noises = (UniformNoise, SplittingNoise)
    domain = (0.0, 1.0)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        return uniform_box_l1_radius(lam=_lam(setting.noise), dim=setting.dim, q_upper=q_upper)


class UniformTwoClassL1(Certificate):
    """Open l1 ball of radius lam (p_lower - p_upper), from simultaneous bounds on all classes.

    The two-class form of :func:`uniform_l1_radius`: it can certify where no class has half of the votes.
    With probability at least 1 - alpha over the sampling, the smoothed class is constant in the ball; it
    abstains where the bounds overlap. Holds for uniform noise and for splitting noise.

    Args:
        method: "partition", "bonferroni" or "grouped", see
            :func:`lightning_rs.statistics.binomial.simultaneous_tail_bounds`; to be chosen before looking.

    Raises:
        ValueError: for another method.
    """

    norm = "l1"
    noises = (UniformNoise, SplittingNoise)
    evidence = (Votes,)
    votes_only = True

    def __init__(self, method: Method = "partition") -> None:
        check_choice("method", method, tuple(TWO_CLASS_SHARES))
        self.method = method
        self.alpha_split = TWO_CLASS_SHARES[method]

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        second = setting.runner_up if self.method == "grouped" else None
        counts = read(evidence, Votes).counts
        tail, other = simultaneous_tail_bounds(
            counts, setting.top, setting.alpha, self.method, second, setting.selection.counts
        )
        radius = uniform_l1_radius(lam=_lam(setting.noise), p_upper=other, q_upper=tail)
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "p_upper": other}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)
