"""l-infinity radii of the mixed-norm and the pure l-infinity family, sound, from one table for each noise."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.certificates.base import Setting, TopVoteCertificate
from lightning_rs.certificates.natural import usual_for
from lightning_rs.checks import (
    FloatArray,
    as_float64,
    check_alpha,
    check_at_least,
    check_nonnegative,
    check_positive,
    given,
    tail_of,
)
from lightning_rs.noise.norm_power import SMALLEST_GAP, MixedNormNoise, PureLinfNoise
from lightning_rs.numerics.linf_table import TableSettings, linf_table

BETA = 1e-4
DRAWS = 100_000
PATTERNS = 16


def mixed_norm_linf_radius(
    p_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    k_inf: float | None = None,
    dim: int | None = None,
    k_2: float = 0.0,
    *,
    q_upper: ArrayLike | None = None,
    beta: float = BETA,
    draws: int = DRAWS,
    patterns: int = PATTERNS,
    seed: int = 0,
    device: str = "cpu",
) -> FloatArray:
    """Certified l-infinity radius under noise ~ ``||z||_inf^-k_inf ||z||_2^-k_2 exp(-||z||_2^2 / 2 sigma^2)``.

    Statement: if a class has probability at least ``p_lower`` at x, it has more than one half at every x' with
    ``||x - x'||_inf < R``; with probability 1 - beta over the table's draws this holds for all p_lower, all
    sigma and all images at once. Zhang et al. (2020), Theorems 1, 5 and 6; the bound on the discrepancy is ours:
    dual value at a multiplier from a pilot, empirical Bernstein bound on fresh draws, union over the radii.

    At d = 3,072 and the paper's k_inf = 250 this radius is a quarter to a half *smaller* than R_2 / sqrt(d) of
    Gaussian noise of equal norm at the same probability.

    Args:
        p_lower: lower bound of the probability of the class, in [0, 1]; leave out if ``q_upper`` is given.
        sigma: scale of the density, in input units (not the matched sigma_0).
        k_inf: power of ||z||_inf, k_inf + k_2 <= d - 1/4.
        dim: number d >= 2 of input coordinates.
        k_2: power of ||z||_2; 0, as in the paper, where the law has no such factor.
        q_upper: the tail ``1 - p_lower`` instead, exact near 0.
        beta: failure probability of the table, shared by all that is certified with it.
        draws: independent Monte Carlo draws, at least 1000. 10^5 leave 0.01 or less of Phi^-1(p_lower) unused.
        patterns: sign patterns averaged within a draw.
        seed: seed of the table; choosing among seeds after the fact would void beta.
        device: where the table is drawn.

    Returns:
        Radius of the open l-infinity ball in input units, broadcast shape, float64, rounded down to a grid of
        1 % steps; 0 where nothing is certified, infinite for a tail of exactly 0, else at most the radius
        that Phi^-1(p) = 5.2 certifies.

    Raises:
        ValueError: for NaN, and arguments that are missing or outside these ranges.
    """
    settings = _settings("mixed", dim, k_inf, k_2, (beta, draws, patterns, seed, device))
    return _radius(settings, p_lower, sigma, q_upper)


def pure_linf_radius(
    p_lower: ArrayLike | None = None,
    sigma: ArrayLike | None = None,
    k: float | None = None,
    dim: int | None = None,
    *,
    q_upper: ArrayLike | None = None,
    beta: float = BETA,
    draws: int = 10 * DRAWS,
    seed: int = 0,
    device: str = "cpu",
) -> FloatArray:
    """Certified l-infinity radius under noise of density ~ ``||z||_inf^-k exp(-||z||_inf^2 / 2 sigma^2)``.

    As :func:`mixed_norm_linf_radius` (Zhang et al. 2020, equation (10) and Theorem 4); a draw costs two random
    numbers whatever the dimension. In high dimension the radius is negligible, which is what Theorem 4 says.
    """
    return _radius(_settings("pure", dim, given("k", k), 0.0, (beta, draws, 2, seed, device)), p_lower, sigma, q_upper)


def mixed_norm_log_ratio(z: ArrayLike, delta: ArrayLike, sigma: float, k_inf: float, k_2: float = 0.0) -> FloatArray:
    """Log likelihood ratio ``log pi_0(z - delta) - log pi_0(z)`` of the mixed-norm family (and the l2 family).

    For pi_0(z) ~ ||z||_inf^-k_inf ||z||_2^-k_2 exp(-||z||_2^2 / 2 sigma^2), Zhang et al. (2020), Appendix A.3::

        L = -k_inf log(||z - delta||_inf / ||z||_inf) - k_2 log(||z - delta||_2 / ||z||_2)
            + (2 z.delta - ||delta||_2^2) / (2 sigma^2)

    Args:
        z: points, shape (..., d).
        delta: shifts, broadcast against z.
        sigma: scale of the law, in the units of z.
        k_inf: power of ||z||_inf.
        k_2: power of ||z||_2.

    Returns:
        shape (...). -inf at z = 0 and +inf at z = delta if a power is positive; 0 where delta = 0.

    Raises:
        ValueError: for NaN, sigma <= 0 or a negative power.
    """
    z, delta, sigma = _log_ratio_arguments(z, delta, sigma, k_inf + k_2)
    check_nonnegative("k_2", k_2)
    exponent = (delta * (2.0 * z - delta)).sum(-1) / (2.0 * sigma * sigma)
    return exponent - _power_of_growth(k_inf, z, delta, np.inf) - _power_of_growth(k_2, z, delta, 2)


def pure_linf_log_ratio(z: ArrayLike, delta: ArrayLike, sigma: float, k: float) -> FloatArray:
    """Log likelihood ratio ``log pi_0(z - delta) - log pi_0(z)`` of the pure l-infinity family.

    For pi_0(z) ~ ||z||_inf^-k exp(-||z||_inf^2 / 2 sigma^2), Zhang et al. (2020), equation (10), with m and m'
    the l-infinity norms of z and z - delta: ``L = -k log(m' / m) - (m'^2 - m^2) / (2 sigma^2)``.
    Arguments, shapes, edges and errors as in :func:`mixed_norm_log_ratio`.
    """
    z, delta, sigma = _log_ratio_arguments(z, delta, sigma, k)
    before, after = (np.abs(v).max(-1) for v in np.broadcast_arrays(z, z - delta))
    return -_power_of_growth(k, z, delta, np.inf) - (after - before) * (after + before) / (2.0 * sigma * sigma)


class _TableCertificate(TopVoteCertificate):
    """A radius looked up in a Monte Carlo table.

    Args:
        beta: failure probability of the table, shared by all images: it adds to rho of a statement about the
            test set, not to alpha of an image.
        draws: Monte Carlo draws of the table.
        seed: seed of the table.
        device: where the table is drawn.
    """

    norm: str = "linf"

    def __init__(self, beta: float = BETA, draws: int = DRAWS, seed: int = 0, device: str = "cpu") -> None:
        self.beta = self.shared_failure = float(check_alpha(beta, "beta"))  # one event for all images
        self.draws = check_at_least("draws", draws, 1000)
        self.seed = check_at_least("seed", seed, 0)
        self.device = device


@usual_for(MixedNormNoise)
class MixedNormLinf(_TableCertificate):
    """l-infinity certificate of the mixed-norm family: :func:`mixed_norm_linf_radius` of the Clopper-Pearson bound.

    The table takes about half a minute of one CPU core at d = 3,072 with 10^5 draws and ten minutes at
    d = 150,528; it is stored and found again.
    """

    noises = (MixedNormNoise,)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units."""
        noise = setting.noise
        assert isinstance(noise, MixedNormNoise)
        law: dict[str, Any] = {"sigma": noise.scale, "k_inf": noise.k_inf, "dim": noise.dim, "k_2": noise.k_2}
        return mixed_norm_linf_radius(q_upper=q_upper, **law, **self.spec())


@usual_for(PureLinfNoise)
class PureLinf(_TableCertificate):
    """l-infinity certificate of the pure l-infinity family: :func:`pure_linf_radius` of the Clopper-Pearson bound."""

    noises = (PureLinfNoise,)

    def __init__(self, beta: float = BETA, draws: int = 10 * DRAWS, seed: int = 0, device: str = "cpu") -> None:
        super().__init__(beta, draws, seed, device)

    def radius_of_tail(self, q_upper: FloatArray, setting: Setting) -> FloatArray:
        """Return the radius in input units."""
        noise = setting.noise
        assert isinstance(noise, PureLinfNoise)
        return pure_linf_radius(q_upper=q_upper, sigma=noise.scale, k=noise.k, dim=noise.dim, **self.spec())


def _log_ratio_arguments(
    z: ArrayLike, delta: ArrayLike, sigma: float, power: float
) -> tuple[FloatArray, FloatArray, float]:
    check_nonnegative("k", power)
    return as_float64("z", z), as_float64("delta", delta), float(check_positive("sigma", sigma))


def _power_of_growth(k: float, z: FloatArray, delta: FloatArray, order: float) -> FloatArray:
    """Return ``k log(||z - delta|| / ||z||)``, 0 where the norms are equal or k is 0."""
    before, after = (np.linalg.norm(v, order, axis=-1) for v in np.broadcast_arrays(z, z - delta))
    if k == 0:
        return np.zeros(before.shape)[()]
    with np.errstate(divide="ignore", invalid="ignore"):
        return k * np.where(before == after, 0.0, np.log(after) - np.log(before))


def _settings(
    family: str, dim: int | None, k_inf: float | None, k_2: float, knobs: tuple[float, int, int, int, str]
) -> TableSettings:
    beta, draws, patterns, seed, device = knobs
    size, power = check_at_least("dim", given("dim", dim), 2), given("k_inf", k_inf)
    total = float(check_nonnegative("k_inf", power)) + float(check_nonnegative("k_2", k_2))
    if not total <= size - SMALLEST_GAP:
        raise ValueError(f"k_inf + k_2 must be at most dim - {SMALLEST_GAP}, got {total} at dim {size}")
    numbers = (check_at_least("draws", draws, 1000), check_at_least("patterns", patterns, 1))
    return TableSettings(
        family, size, float(power), float(k_2), float(check_alpha(beta, "beta")), *numbers, int(seed), device
    )


def _radius(
    settings: TableSettings, p_lower: ArrayLike | None, sigma: ArrayLike | None, q_upper: ArrayLike | None
) -> FloatArray:
    scale = check_positive("sigma", given("sigma", sigma))
    tail = tail_of(p_lower, q_upper)
    return (scale * linf_table(settings).radius(tail) * (1.0 - 2.0**-50))[()]
