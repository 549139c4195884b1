"""How many attacks may succeed although every certificate was made as it should be."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom

from lightning_rs.checks import IntArray, as_count, check_alpha, check_probability


def attack_allowed(images: ArrayLike, alpha: ArrayLike, rho: ArrayLike, beta: ArrayLike) -> IntArray:
    """Return the largest number of contradicted certificates that chance explains: the smallest Q with
    ``P(Bin(images, alpha + beta) > Q) <= rho``.

    A certificate is false with probability at most alpha over its samples, and a confirmation of a true one errs with
    probability at most beta. If images have independent noise, the number of contradicted certificates is
    stochastically at most Bin(images, alpha + beta). With noise that images share it is not: use Markov's inequality.
    The probability of one event that makes all certificates false adds to rho. For exact certificates alpha is 0, and
    nothing is allowed.

    Args:
        images: number of certificates that were attacked.
        alpha: failure probability of each certificate, in [0, 1).
        rho: probability with which more than Q may occur all the same.
        beta: failure probability of the confirmations of one image, in [0, 1).

    Returns:
        Q, int64, broadcast shape.

    Raises:
        ValueError: for values out of range.

    Example:
        >>> int(attack_allowed(500, alpha=0.001, rho=1e-6, beta=1e-6))
        6
    """  # noqa: D205 (the sentence needs two lines)
    total, level = as_count("images", images), check_alpha(rho, "rho")
    chance = np.minimum(check_probability("alpha", alpha) + check_probability("beta", beta), 1.0)
    allowed = np.where(chance > 0, binom.isf(level, total, chance), 0.0)
    return np.asarray(np.maximum(allowed, 0)).astype(np.int64)[()]
