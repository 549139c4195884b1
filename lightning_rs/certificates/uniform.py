"""Radii of uniform and independent splitting noise: l1, l-infinity, and l1 inside the box [0, 1]^d."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import Certificate, Radii, Setting, TopVoteCertificate, abstain_at_zero, read
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import (
    FloatArray,
    as_float64,
    check_at_least,
    check_choice,
    check_positive,
    check_probability,
    given,
    tail_of,
)
from lightning_rs.evidence import Evidence, Votes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.splitting import SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.numerics.rounding import round_down
from lightning_rs.statistics.binomial import simultaneous_tail_bounds


def uniform_l1_radius(
    p_lower: ArrayLike | None = None,
    lam: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """l1 radius of uniform or splitting noise: ``2 lam (p - 1/2)``, or ``lam (p_lower - p_upper)``.

    Statement: if the smoothed probability of class A at x is at least ``p_lower`` (and, if ``p_upper`` is
    given, that of every other class at most ``p_upper``), then A stays the most probable class at every x'
    with ``||x - x'||_1 < R``. Reason: each smoothed probability is 1/(2 lam)-Lipschitz in l1. Lee, Yuan,
    Chang and Jaakkola (2019); Yang et al. (2020), for additive uniform noise on [-lam, lam]^d; Levine and
    Feizi (2021), Theorems 1 and 2, for the two-class form and for splitting noise.

    Assumes either additive uniform noise with independent coordinates, or splitting noise with any joint
    law of the s_i and x, x' in [0, 1]^d. Exact given the probabilities for x' in R^d; for x' in [0, 1]^d and
    independent coordinates :func:`uniform_box_l1_radius` is at least as large.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units; its standard deviation is lam / sqrt(3).
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower. It is clipped to
            1 - p_lower, which holds whenever ``p_lower`` does.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l1 ball in input units, broadcast shape, float64; 0 where nothing is certified,
        at most lam.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1] or ``lam`` left out or not positive.

    Example:
        >>> print(round(uniform_l1_radius(0.9, lam=0.5), 6))
        0.4
        >>> print(round(uniform_l1_radius(0.45, lam=0.5, p_upper=0.25), 6))
        0.1
    """
    budget = _budget(p_lower, p_upper, q_upper)
    return round_down(2.0 * check_positive("lam", given("lam", lam)) * budget)


def uniform_linf_radius(
    p_lower: ArrayLike | None = None,
    lam: ArrayLike | None = None,
    dim: ArrayLike | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
) -> FloatArray:
    """l-infinity radius of uniform noise: ``2 lam (1 - (1 - t)^(1/d))`` with ``t = p - 1/2``.

    Statement: as for :func:`uniform_l1_radius`, with ``||x - x'||_inf < R``. Shifting the uniform law on a
    cube of side 2 lam by delta leaves the fraction prod_i (1 - |delta_i| / (2 lam))_+ of it in place, where
    the density is unchanged; the rest, of mass TV(delta), is the most by which any probability can move.
    Over the ball of radius r the worst delta is a corner: TV = 1 - (1 - r / (2 lam))^d. R solves TV = t,
    with t = (p_lower - p_upper) / 2 in the two-class form. This is the exact Neyman-Pearson radius given
    the probabilities; it is an extension of Lee et al. (2019).

    Assumes independent coordinates: additive uniform noise, or splitting noise with independent s_i (there
    P(coordinate i changes) = |delta_i| / (2 lam) independently, and x, x' in [0, 1]^d). Not valid for
    splitting noise with a shared v.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units.
        dim: number d of coordinates, at least 1.
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l-infinity ball in input units, broadcast shape, float64; 0 where nothing is
        certified.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1], ``lam`` left out or not positive or ``dim`` < 1.

    Example:
        >>> print(f"{uniform_linf_radius(0.9, lam=0.5, dim=3072):.6e}")
        1.662706e-04
    """
    budget, width = _budget(p_lower, p_upper, q_upper), 2.0 * check_positive("lam", given("lam", lam))
    size = as_float64("dim", given("dim", dim))
    if not (size >= 1).all():
        raise ValueError(f"dim must be at least 1, got {dim!r}")
    return round_down(-width * np.expm1(np.log1p(-budget) / size))


def uniform_box_l1_radius(
    p_lower: ArrayLike | None = None,
    lam: float | None = None,
    dim: int | None = None,
    p_upper: ArrayLike | None = None,
    *,
    q_upper: ArrayLike | None = None,
    x: ArrayLike | None = None,
) -> FloatArray:
    r"""l1 radius of uniform or independent splitting noise against perturbed inputs that stay in [0, 1]^d.

    Statement: as for :func:`uniform_l1_radius`, for every x' in [0, 1]^d with ``||x - x'||_1 < R``. It uses
    that pixels live in [0, 1], as Voracek and Hein (2023), "Improving l1-certified robustness via
    randomized smoothing by leveraging box constraints".

    Derivation. The noise keeps the fraction prod_i (1 - t_i)_+, t_i = |delta_i| / (2 lam), of its mass in
    place (see :func:`uniform_linf_radius`), so A survives while the product exceeds 1 - t, t = p - 1/2 or
    (p_lower - p_upper) / 2. In the box |delta_i| <= c_i = max(x_i, 1 - x_i) <= 1. The sum of log(1 - t_i)_+
    is symmetric and concave, hence Schur-concave: over {sum_i |delta_i| = r, |delta_i| <= c_i} it is
    smallest at the vector that majorises all others, which fills the largest c_i one after the other.
    R is the r at which this greedy product reaches 1 - t. Exact given the probabilities.

    For 2 lam <= 1, or R <= max_i c_i, one coordinate suffices and R = 2 lam t as without the box. For large
    lam it tends to -2 lam log(1 - t): up to 2 ln 2 = 1.386 times larger. Without ``x`` all c_i are 1, the
    worst case over images; this needs only counts, and natural images with saturated pixels attain it.

    Not valid for splitting noise with a shared v (see
    :class:`lightning_rs.certificates.splitting.DeterministicSplittingL1`).

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        lam: half width of the noise, in input units.
        dim: number d of coordinates.
        p_upper: upper bound of the probability of every other class; None: 1 - p_lower.
        q_upper: the tail 1 - p_lower instead, exact near 0.
        x: one image in [0, 1]^d, any shape with ``dim`` entries, for the radius of this image.

    Returns:
        Radius in input units of the open l1 ball intersected with [0, 1]^d, shape of the probabilities,
        float64; 0 where nothing is certified; the distance sum_i c_i of the farthest corner if the whole
        box is.

    Raises:
        ValueError: for NaN, probabilities or ``x`` outside [0, 1], ``lam`` left out or not positive, ``dim`` < 1
            or an ``x`` with another number of entries.

    Example:
        >>> print(round(uniform_box_l1_radius(0.99, lam=6.0, dim=3072), 6), round(12 * 0.49, 6))
        7.746922 5.88
    """
    budget, width = _budget(p_lower, p_upper, q_upper), 2.0 * float(check_positive("lam", given("lam", lam)))
    reach = _reach(check_at_least("dim", given("dim", dim), 1), width, x)
    with np.errstate(divide="ignore"):  # a coordinate moved by the whole width leaves nothing: log(0)
        kept = np.log1p(-np.minimum(reach / width, 1.0))
    kept = np.concatenate([[0.0], np.cumsum(kept)])
    distance = np.concatenate([[0.0], np.cumsum(reach)])
    goal = np.log1p(-np.maximum(budget, 0.0))
    full = np.searchsorted(-kept, -goal, side="right") - 1  # coordinates moved to their wall
    rest = -width * np.expm1(goal - kept[full])
    radius = round_down(np.minimum(distance[full] + rest, distance[-1]), relative=1e-12)
    # The plain radius, rounded down less coarsely, is sound as well.
    return np.maximum(radius, np.minimum(round_down(width * budget), distance[-1]))


def _reach(dim: int, width: float, x: ArrayLike | None) -> FloatArray:
    if x is None:
        # (1 - 1 / width)^k < 1/2 for k = width: farther coordinates are never touched.
        return np.ones(min(dim, int(np.ceil(width)) + 1))
    image = check_probability("x", x).ravel()
    if image.size != dim:
        raise ValueError(f"x must have dim = {dim} entries, got {image.size}")
    return np.sort(np.maximum(image, 1.0 - image))[::-1]


def _budget(p_lower: ArrayLike | None, p_upper: ArrayLike | None, q_upper: ArrayLike | None) -> FloatArray:
    """Return how much total variation the prediction survives: (p_lower - max other) / 2."""
    tail = tail_of(p_lower, q_upper)
    other = tail if p_upper is None else np.minimum(check_probability("p_upper", p_upper), tail)
    return 0.5 - 0.5 * (tail + other)


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
    noises: ClassVar[tuple[type[Noise], ...]] = (UniformNoise,)

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
        method: "bonferroni" or "grouped", see
            :func:`lightning_rs.statistics.binomial.simultaneous_bounds`; to be chosen before looking.

    Raises:
        ValueError: for another method.
    """

    norm = "l1"
    noises = (UniformNoise, SplittingNoise)
    evidence = (Votes,)
    votes_only = True

    def __init__(self, method: Literal["bonferroni", "grouped"] = "bonferroni") -> None:
        check_choice("method", method, ("bonferroni", "grouped"))
        self.method = method
        events = ("p_lower", "p_upper") if method == "bonferroni" else ("p_lower", "p_runner_up", "p_top_two")
        self.alpha_split: Mapping[str, float] = {event: 1.0 / len(events) for event in events}

    def _radii(self, evidence: Mapping[type[Evidence], Evidence], setting: Setting) -> Radii:
        second = setting.runner_up if self.method == "grouped" else None
        counts = read(evidence, Votes).counts
        tail, other = simultaneous_tail_bounds(counts, setting.top, setting.alpha, self.method, second)
        radius = uniform_l1_radius(lam=_lam(setting.noise), p_upper=other, q_upper=tail)
        bounds = {"p_lower": 1.0 - tail, "q_upper": tail, "p_upper": other}
        return Radii(abstain_at_zero(radius, setting.top), radius, bounds)
