"""Vectorised maximisation over one variable, for radii that are valid at every value of a free parameter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lightning_rs.checks import FloatArray

_SHRINK = 0.5 * (np.sqrt(5.0) - 1.0)


def maximise(objective: Callable[[FloatArray], FloatArray], low: FloatArray, high: FloatArray) -> FloatArray:
    """Return, elementwise, (about) the largest value of ``objective`` on [low, high].

    65 equidistant points find the hill, golden sections climb it; the largest value seen is returned, so that no
    property of the objective is needed for soundness, only for finding the best value.

    Args:
        objective: maps parameters of shape (k, *S) to values of the same shape.
        low: left ends, shape S; both ends are evaluated.
        high: right ends, shape S.
    """
    grid = low + (high - low) * np.linspace(0.0, 1.0, 65).reshape(-1, *(1,) * np.ndim(low))
    values = objective(grid)
    peak = values.argmax(axis=0)[None]
    best = values.max(axis=0)
    left = np.take_along_axis(grid, np.maximum(peak - 1, 0), axis=0)
    right = np.take_along_axis(grid, np.minimum(peak + 1, 64), axis=0)
    for _ in range(40):
        first, second = right - _SHRINK * (right - left), left + _SHRINK * (right - left)
        at_first, at_second = objective(first), objective(second)
        best = np.maximum(best, np.maximum(at_first, at_second)[0])
        rises = at_second > at_first
        left, right = np.where(rises, first, left), np.where(rises, right, second)
    return best
