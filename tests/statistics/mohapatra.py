"""The printed estimator of Mohapatra et al. (2020), Table 1: what ours is compared with."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.statistics.gradient import MOHAPATRA_CONSTANT, Interval


def mohapatra_l2_interval(
    product: ArrayLike,
    n_first: int,
    n_second: int,
    dim: int,
    alpha: float,
    form: Literal["sound", "printed"] = "sound",
) -> Interval:
    """Bounds of ||beta||_2 from X . Y, the means of disjoint samples; each bound fails with probability alpha.

    The printed deviation of X . Y, sqrt(sqrt2 d L) K / sqrt(n1 n2), L = log(2 / alpha), is too small for a general
    sub-Gaussian vector and small alpha; "sound" uses (sqrt(2 d L) + L) K / sqrt(n1 n2), valid for all d and alpha, so
    that the paper's condition alpha >= 2 exp(-d/16) is not needed.
    """
    level, constant = math.log(2 / alpha), MOHAPATRA_CONSTANT
    root = math.sqrt(math.sqrt(2) * dim * level) if form == "printed" else math.sqrt(2 * dim * level) + level
    t = root * constant / math.sqrt(n_first * n_second)
    s = math.sqrt(constant * (n_first + n_second) * level / (2 * n_first * n_second))
    # b^2 <= X.Y + t + 2 s b and b^2 >= X.Y - t - 2 s b for b = ||beta|| >= 0.
    upper = s + np.sqrt(np.maximum(s * s + np.asarray(product) + t, 0.0))
    lower = np.sqrt(s * s + np.maximum(np.asarray(product) - t, 0.0)) - s
    return Interval(np.maximum(lower, 0.0), upper)
