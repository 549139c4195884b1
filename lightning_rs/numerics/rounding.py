"""Rounding of radii the safe way."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def round_down(radius: NDArray[np.float64], relative: float = 2.0**-48) -> NDArray[np.float64]:
    """Return ``radius`` lowered by more than the rounding errors of the formula that produced it.

    A radius one ulp above the true one is a false statement; a few ulps below it is not. Negative values,
    by which a formula says that nothing is certified, become 0.

    Args:
        radius: radii as computed, any shape, float64; infinity stays infinity.
        relative: bound on the relative error of the computation; the default, 16 ulps, covers a handful of
            elementary operations.
    """
    # np.float64(...) on 0-d arrays keeps "scalars in, scalar out".
    return np.maximum(radius, 0.0)[()] * (1.0 - relative)
