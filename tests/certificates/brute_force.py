"""Independent Neyman-Pearson values by integration over a fine grid: no symmetry argument, no special functions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

Array = NDArray[np.float64]
LogDensity = Callable[[Array], Array]


def polar_grid(radii: int = 1000, angles: int = 720, reach: float = 14.0) -> tuple[Array, Array]:
    """Midpoint rule in the plane, points (n, 2) and areas (n,); radii clustered as u^4 at the origin."""
    u = (np.arange(radii) + 0.5) / radii * reach ** (1 / 4)
    r, width = u**4, 4 * u**3 * reach ** (1 / 4) / radii
    angle = 2 * np.pi * (np.arange(angles) + 0.5) / angles
    points = np.stack([np.outer(r, np.cos(angle)), np.outer(r, np.sin(angle))], axis=-1).reshape(-1, 2)
    return points, np.repeat(r * width * 2 * np.pi / angles, angles)


def axial_grid(radii: int = 800, cosines: int = 800, reach: float = 14.0) -> tuple[Array, Array]:
    """Midpoint rule in space for functions that are symmetric about the first axis: points (n, 3), volumes (n,)."""
    u = (np.arange(radii) + 0.5) / radii * reach ** (1 / 4)
    r, width = u**4, 4 * u**3 * reach ** (1 / 4) / radii
    cosine = -1 + 2 * (np.arange(cosines) + 0.5) / cosines
    x, y = np.outer(r, cosine), np.outer(r, np.sqrt(1 - cosine**2))
    points = np.stack([x, y, np.zeros_like(x)], axis=-1).reshape(-1, 3)
    return points, np.repeat(2 * np.pi * r**2 * width * 2 / cosines, cosines)


def cube_grid(cells: int = 140, reach: float = 9.0) -> tuple[Array, Array]:
    """Midpoint rule in space, points (n, 3) and volumes (n,); coordinates clustered as u^3 at zero."""
    u = (np.arange(2 * cells) + 0.5) / cells - 1.0
    x, width = reach * u**3, reach * 3 * u**2 / cells
    points = np.stack(np.meshgrid(x, x, x, indexing="ij"), axis=-1).reshape(-1, 3)
    return points, np.einsum("i,j,k->ijk", width, width, width).ravel()


def worst_case(log_density: LogDensity, delta: Array, grid: tuple[Array, Array]) -> Callable[[float], float]:
    """Return p -> smallest P_delta(A) over all sets A with P_0(A) = p (fractional cells allowed)."""
    before, after = _ordered_masses(log_density, delta, grid)
    return lambda p: float(np.interp(p, before, after))


def score_needed(log_density: LogDensity, delta: Array, grid: tuple[Array, Array]) -> float:
    """Return Phi^-1 of the p at which the smallest P_delta(A) is one half."""
    before, after = _ordered_masses(log_density, delta, grid)
    return float(ndtri(np.interp(0.5, after, before)))


def _ordered_masses(log_density: LogDensity, delta: Array, grid: tuple[Array, Array]) -> tuple[Array, Array]:
    """Cumulative P_0 and P_delta in the order of the likelihood ratio.

    Both densities can be singular, at 0 and at delta, so each half of space is covered by a copy of the grid that
    is centred on its own singularity.
    """
    points, volume = grid
    mine = (points**2).sum(-1) < ((points - delta) ** 2).sum(-1)
    other = ((points + delta) ** 2).sum(-1) >= (points**2).sum(-1)
    volume = np.concatenate([volume[mine], volume[other]])
    points = np.concatenate([points[mine], points[other] + delta])
    base, shifted = log_density(points), log_density(points - delta)
    order = np.argsort(shifted - base)
    before = np.cumsum(np.exp(base[order]) * volume[order])
    after = np.cumsum(np.exp(shifted[order]) * volume[order])
    return before / before[-1], after / after[-1]
