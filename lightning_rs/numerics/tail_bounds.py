"""Lower confidence bounds on 1 - p*, the tail that certifies one radius, from draws of the log likelihood ratio.

L is the log ratio at the worst shift, drawn under a symmetric pi_0; 1 - p* = E_0[e^L 1{L < median}].
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from lightning_rs.checks import FloatArray, as_float64
from lightning_rs.statistics.accuracy import empirical_bernstein_lower


def one_step_tail_lower(
    mean: ArrayLike, variance: ArrayLike, n: ArrayLike, beta: ArrayLike, m: ArrayLike
) -> FloatArray:
    """Bound ``1 - p* >= e^m (E[min(1, e^(L - m))] - 1/2)``, which is sharp at the median of L and flat around it.

    Args:
        mean: sample mean of ``min(1, e^(L - m))``, in [0, 1].
        variance: its unbiased sample variance.
        n: number of independent values.
        beta: failure probability, in (0, 1).
        m: any number chosen without these draws; best an estimate of the median.

    Returns:
        The bound, 0 where the data say nothing, broadcast shape.
    """
    lower = empirical_bernstein_lower(mean, variance, n, beta)
    return (np.exp(as_float64("m", m)) * np.maximum(lower - 0.5, 0.0))[()]
