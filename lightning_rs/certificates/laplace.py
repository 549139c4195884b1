"""The l1 radius of Laplace noise."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import Setting, TopVoteCertificate
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import FloatArray, check_positive, given, tail_of
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.numerics.rounding import round_down


def laplace_l1_radius(
    p_lower: ArrayLike | None = None, scale: ArrayLike | None = None, *, q_upper: ArrayLike | None = None
) -> FloatArray:
    r"""Exact l1 radius of a classifier smoothed with iid Laplace noise: ``R = -scale log(2 (1 - p))``.

    Statement: if the smoothed probability of class A at x is at least ``p_lower > 1/2``, it exceeds 1/2 at
    every x' with ``||x - x'||_1 < R``. This is Theorem 1 of Teng, Lee and Yuan (2020), "l1 adversarial
    robustness certificates: a randomized smoothing approach", for the runner-up bound 1 - p_lower.

    Derivation. Noise has density prod_i exp(-|z_i| / b) / (2b), b = ``scale``. Shift it by delta, with
    r = ||delta||_1. By the triangle inequality the likelihood ratio of the shifted to the unshifted law is

        exp((||z||_1 - ||z - delta||_1) / b)  <=  exp(r / b)   for every z.

    So the event "not A", of probability at most q = 1 - p at x, has probability at most q exp(r / b) at
    x + delta, which is below 1/2 iff r < -b log(2 q) = R.

    Exact: the bound is attained, in every dimension, by the classifier "A iff z_1 <= x_1 + R" and
    delta = R e_1. Its tail at x is exp(-R / b) / 2 = q, and at x + delta it is P(z_1 > 0) = 1/2. The
    Neyman-Pearson set is this half-space because the ratio is largest, exp(r / b), on z_1 >= R. Hence no
    larger radius follows from p alone, whatever the dimension.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        scale: parameter b of the Laplace law, in input units; its standard deviation is sqrt(2) b.
        q_upper: the tail 1 - p_lower instead, exact near 0.

    Returns:
        Radius of the open l1 ball in input units, broadcast shape, float64; 0 for p_lower <= 1/2 and
        infinity for q_upper = 0.

    Raises:
        ValueError: for NaN, probabilities outside [0, 1] a scale that is not positive or left out.

    Example:
        >>> print(round(laplace_l1_radius(0.9, scale=0.5), 6))
        0.804719
    """
    tail, b = tail_of(p_lower, q_upper), check_positive("scale", given("scale", scale))
    with np.errstate(divide="ignore"):  # log(0): a tail of zero certifies every radius
        return round_down(-b * np.log(2.0 * tail))


@usual_for(LaplaceNoise)
class LaplaceL1(TopVoteCertificate):
    """Open l1 ball of :func:`laplace_l1_radius`, from the one-sided bound on the votes of the top class.

    With probability at least 1 - alpha over the sampling, the smoothed class is constant in the ball. Radius
    in input units; it abstains where the bound does not exceed 1/2.
    """

    norm = "l1"
    noises = (LaplaceNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units, shape of ``q_upper``."""
        assert isinstance(setting.noise, LaplaceNoise)
        return laplace_l1_radius(scale=setting.noise.scale, q_upper=q_upper)
