"""What a certificate asserts of the smoothed probability at another point: a number, not only a class."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from lightning_rs.certificates.dipole import dipole_lower_bound
from lightning_rs.certificates.first_order import first_order_lower_bound
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy
from lightning_rs.certificates.second_order import second_order_lower_bound
from lightning_rs.checks import FloatArray, check_nonnegative, check_probability
from lightning_rs.noise.ablation import AblationNoise
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import NormPowerNoise
from lightning_rs.noise.splitting import SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.numerics.kept_pixels import ablation_discrepancy

#: More than the relative errors of ``ndtri``, ``ndtr`` and the subtraction between them, for a score of order 1.
_SLACK = 2.0**-48


def gaussian_value_lower(q_upper: ArrayLike, r: ArrayLike) -> FloatArray:
    """Return ``Phi(Phi^-1(1 - q_upper) - r)``, what Gaussian smoothing asserts of a class at distance r.

    Statement: if a class has probability at least 1 - ``q_upper`` at x under N(x, sigma^2 I), then it has at least the
    returned probability at every x' with ``||x - x'||_2 = r sigma``. Attained by half-spaces (Cohen,
    Rosenfeld and Kolter 2019, Lemma 3: Neyman and Pearson).

    Args:
        q_upper: upper bound of the tail 1 - p, in [0, 1].
        r: distance in units of sigma, >= 0.

    Returns:
        Lower bound, float64, broadcast shape, rounded down.

    Raises:
        ValueError: for NaN or values out of range.

    Example:
        >>> print(round(gaussian_value_lower(0.0069, 0.5), 6))
        0.975144
    """
    tail, distance = np.broadcast_arrays(check_probability("q_upper", q_upper), check_nonnegative("r", r))
    with np.errstate(invalid="ignore"):
        score = np.where(tail == 0, np.where(np.isinf(distance), -np.inf, np.inf), -ndtri(tail) - distance)
    size = np.minimum(np.abs(score), 40.0) + np.minimum(distance, 40.0)
    value = ndtr(score)
    return np.where(np.isinf(score), value, value * (1 - _SLACK * (1 + size) ** 2))[()]


def law_value_lower(noise: Noise, q_upper: float, delta: FloatArray) -> float | None:
    """Return what a law of noise asserts of a class at x + delta, from its tail at x; None if there is no closed form.

    Gaussian: :func:`gaussian_value_lower`. Uniform and splitting noise with independent coordinates: p falls by at most
    the total variation ``1 - prod_i (1 - |delta_i| / (2 lam))_+``. Laplace: the density ratio is at most
    ``exp(||delta||_1 / b)``. Ablation: p falls by at most the probability that a changed pixel is kept. The l2 family
    of powers of norms: ``lam p - D(lam, ||delta||_2)`` for the best multiplier (Zhang et al. 2020, Theorem 1), which
    every multiplier bounds from below. Every law: at x itself nothing is lost.

    Args:
        noise: the law.
        q_upper: upper bound of 1 - p at x.
        delta: the perturbation, float64, any shape.
    """
    size = np.abs(np.asarray(delta, dtype=np.float64))
    if not size.any():
        return float(1.0 - q_upper)
    if isinstance(noise, GaussianNoise):
        return float(gaussian_value_lower(q_upper, np.sqrt(np.square(size).sum()) * (1 + 1e-12) / noise.sigma))
    if isinstance(noise, (UniformNoise, SplittingNoise)):
        with np.errstate(divide="ignore"):
            variation = -np.expm1(np.log1p(-np.minimum(size / (2 * noise.lam), 1.0)).sum())
        return float(max(1.0 - q_upper - variation - 1e-12, 0.0))
    if isinstance(noise, AblationNoise):
        changed = int((size.reshape(noise.shape) > 0).any(axis=0).sum())
        lost = float(ablation_discrepancy(changed, noise.k, noise.pixels))
        return max(1.0 - q_upper - lost - 1e-12, 0.0)
    if isinstance(noise, LaplaceNoise):
        ratio = np.exp(size.sum() / noise.scale)
        return float(max(max(1.0 - ratio * q_upper, (1.0 - q_upper) / ratio) - 1e-12, 0.0))
    if isinstance(noise, NormPowerNoise):
        return _norm_power_value(noise, 1.0 - q_upper, float(np.sqrt(np.square(size).sum())) * (1 + 1e-12))
    return None


def _norm_power_value(noise: NormPowerNoise, p: float, r: float) -> float:
    """Return the largest ``lam p - D(lam, r)``, concave in lam, over ever finer grids around the best multiplier."""
    best, value = 0.0, 0.0
    for width in 32.0 / 4.0 ** np.arange(8):
        logs = best + np.linspace(-width, width, 9)
        lam = np.exp(logs)
        # More than the absolute error of D, 1e-11 lam.
        found = lam * p - norm_power_discrepancy(lam, r, noise.scale, noise.k, noise.dim) - 1e-10 * lam - 1e-12
        best, value = float(logs[found.argmax()]), max(value, float(found.max()))
    return value


def evidence_value_lower(bounds: Mapping[str, float], sigma: float, delta: FloatArray) -> float | None:
    """Return what bounds of gradients or of antithetic pairs assert of a class at x + delta; None without such bounds.

    The bound that the certificate inverts, at this very perturbation. With v = delta / ||delta||_2 the slope along v is
    at most ``gradient_upper``, ``linf_upper ||v||_1``, ``l1_upper ||v||_inf`` or ``inside_upper``, and what the
    gradient has beside it at least ``outside_lower`` or the rest of ``l2_lower``.

    Args:
        bounds: of scaled quantities under Gaussian noise, by the names that records have.
        sigma: standard deviation of the noise.
        delta: the perturbation, float64, inside the threat set of the certificate.
    """
    size = np.abs(np.asarray(delta, dtype=np.float64)).ravel()
    length = float(np.sqrt(np.square(size).sum())) * (1 + 1e-12)
    r, slope = length / sigma, float(bounds.get("gradient_upper", np.inf))
    if "symmetric_lower" in bounds:
        value = dipole_lower_bound(bounds["symmetric_lower"], bounds["asymmetric_lower"], r, slope)
        return max(float(value) - 1e-12, 0.0)
    tail = bounds.get("q_upper")
    if tail is None or length == 0:
        return None
    along = {"linf_upper": size.sum() / length, "l1_upper": size.max() / length, "inside_upper": 1.0}
    steepest = [float(bounds[name]) * share * (1 + 1e-9) for name, share in along.items() if name in bounds]
    if steepest:
        whole = float(bounds.get("l2_lower", 0.0))
        rest = float(bounds.get("outside_lower", np.sqrt(max(whole**2 - steepest[0] ** 2, 0.0)) * (1 - 1e-12)))
        return max(float(first_order_lower_bound(q_upper=tail, m1=-steepest[0], m2=rest, r=r)) - 1e-12, 0.0)
    if "gradient_upper" in bounds:
        value = second_order_lower_bound(q_upper=tail, scaled_gradient_upper=slope, r=r)
        return max(float(value) - 1e-12, 0.0)
    return None
