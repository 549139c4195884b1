"""Radii of smoothing by dropping pixels, from votes and probabilities: numpy, no torch."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.checks import FloatArray, IntArray, check_at_least, check_probability

Kind = Literal["band", "block"]


def patch_side(distance: ArrayLike, kept: int, room: int, kind: Kind) -> IntArray:
    """Return the side of the largest patch that touches at most ``distance`` positions of a band or block.

    Args:
        distance: number D of positions, whole numbers, shape (...); below 0 counts as 0.
        kept: b, the width of the band or the side of the block, pixels.
        room: largest b there is.
        kind: "band" (a patch of side m touches m + b - 1) or "block" ((m + b - 1)^2).

    Returns:
        Pixels, int64, shape (...); 0 where no patch is certified.
    """
    touched = np.maximum(distance, 0)
    if kind == "block":
        touched = _whole_root(touched)
    # A patch wider than this touches every position, which no majority survives.
    return np.asarray(np.clip(touched - kept + 1, 0, room - kept + 1))[()]


def ablation_discrepancy(rho: ArrayLike, k: int, dim: int) -> FloatArray:
    """Largest change of a probability when rho of ``dim`` pixels change and k random pixels are kept.

    ``Delta(rho) = 1 - C(dim - rho, k) / C(dim, k)``, the probability that a changed pixel is kept; tight. Levine and
    Feizi (2020), Robustness certificates for sparse adversarial attacks by randomized ablation, Theorem 1.

    Args:
        rho: number of changed pixels, whole numbers >= 0.
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Delta in [0, 1], rounded up, shape of ``rho``.

    Raises:
        ValueError: for k outside 1..dim or rho that is no whole number >= 0.

    >>> print(round(ablation_discrepancy(2, 2, 6), 6))
    0.6
    """
    table = _discrepancies(k, dim)
    changed = np.asarray(rho)
    if changed.dtype.kind not in "iu" or (changed < 0).any():
        raise ValueError(f"rho must hold whole numbers >= 0, got {rho!r}")
    return table[np.minimum(changed, dim)][()]


def ablation_l0_radius(q_upper: ArrayLike, k: int, dim: int) -> IntArray:
    """Certified number of changed pixels of randomized ablation: the largest rho with Delta(rho) < 1/2 - q.

    Statement: if the class has probability at least ``1 - q_upper`` when k random pixels are kept, it stays the most
    probable one for every x' that differs from x in at most rho pixels (closed ball). The same samples serve every
    rho. Levine and Feizi (2020), Corollary 1. See :func:`ablation_discrepancy`.

    Args:
        q_upper: upper bound of one minus the probability of the class, in [0, 1].
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Number of pixels, int64, shape of ``q_upper``; 0 where nothing is certified.

    Raises:
        ValueError: for NaN, a probability outside [0, 1] or k outside 1..dim.

    >>> int(ablation_l0_radius(0.0069, 45, 784))
    11
    """
    spare = np.nextafter(0.5 - check_probability("q_upper", q_upper), -1.0)
    return ablation_variation_radius(np.maximum(spare, 0.0), k, dim)


def ablation_variation_radius(variation: ArrayLike, k: int, dim: int) -> IntArray:
    """Return how many pixels may change before the law of the kept pixels moves by a total variation.

    The largest rho with :func:`ablation_discrepancy` below ``variation``, 0 where there is none. No label, and no set
    of labels, gains or loses more.

    Args:
        variation: in [0, 1], shape (...).
        k: number of kept pixels, 1 <= k <= dim.
        dim: number of pixels (all channels of one count once).

    Returns:
        Number of pixels, int64, shape of ``variation``.

    Raises:
        ValueError: for NaN, a variation outside [0, 1] or k outside 1..dim.
    """
    # Delta increases: the number of rho >= 0 below the bound, of which rho = 0 is one.
    spare = check_probability("variation", variation)
    return np.maximum(np.searchsorted(_discrepancies(k, dim), spare, side="left") - 1, 0)[()]


def _discrepancies(k: int, dim: int) -> FloatArray:
    """Return Delta(0), ..., Delta(dim), rounded up, Delta(0) = 0 exactly."""
    pixels = check_at_least("dim", dim, 1)
    if check_at_least("k", k, 1) > pixels:
        raise ValueError(f"k must be at most dim = {pixels}, got {k}")
    i = np.arange(pixels)
    missed = np.cumprod(np.maximum(pixels - k - i, 0) / (pixels - i))
    missed *= 1 - (2.0 * i + 4) * 2.0**-52  # each factor errs by half an ulp, each product by another
    return np.concatenate([[0.0], 1.0 - missed + 2.0**-53])


def _whole_root(value: IntArray) -> IntArray:
    root = np.floor(np.sqrt(np.asarray(value, dtype=np.float64))).astype(np.int64)
    root = np.where(root * root > value, root - 1, root)
    return np.where((root + 1) ** 2 <= value, root + 1, root)
