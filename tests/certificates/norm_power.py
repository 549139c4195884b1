"""What the tests of the norm-power families share: solvers, estimates and small tables to compare with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

from lightning_rs.checks import FloatArray, IntArray
from lightning_rs.numerics.linf_statistics import (
    CornerFamily,
    sign_patterns,
)
from lightning_rs.numerics.linf_table import (
    LinfTable,
    TableSettings,
)
from lightning_rs.numerics.norm_power_quadrature import converged_law, increasing_root


def one(x: float) -> np.ndarray:
    return np.array([x])


def exact_two_class_radius(tail: FloatArray, other: FloatArray, dim: int, k: float) -> FloatArray:
    """Return r in units of sigma with (least probability of the class) = (greatest of any other), rounded down.

    Milliseconds a pair, a tenth of a second below dimension 40.

    Args:
        tail: 1 - p_lower, shape (m,).
        other: p_upper, at most ``tail``, shape (m,).
        dim: number of coordinates.
        k: power of the norm, > 0.
    """
    law, radius = converged_law(dim, k), np.zeros(tail.shape)
    radius[tail == 0.0] = np.inf
    top, rival = -ndtri(tail), -ndtri(np.maximum(other, 1e-300))
    # A smaller gap between the scores is rounding, and certifies nothing worth having.
    todo = (top + rival > 1e-9) & (tail > 0.0)
    if not todo.any():
        return radius
    top, rival = top[todo], rival[todo]

    def excess(log_r: FloatArray, rows: IntArray) -> FloatArray:
        r, a, b = np.exp(log_r), top[rows], rival[rows]
        # P_delta(L <= s) = 1 - H(-s) for the class, P_delta(L >= t) = H(-t) for the rival.
        least = law.score(-law.quantile(a, r), r, -a)
        greatest = law.score(-law.quantile(b, r), r, -b)
        return greatest + least

    start = math.log(math.sqrt((dim - k) / dim)) + np.log(0.5 * (top + rival))
    log_r = increasing_root(excess, start - 0.5, start + 0.5, np.full(top.shape, 1e-11))
    # The solver's error is far below 1e-9; step down until the inequality itself says so.
    log_r -= 1e-9
    while (wrong := excess(log_r, np.arange(len(log_r))) > 0.0).any():
        log_r[wrong] -= 1e-6
    radius[todo] = np.exp(log_r)
    return radius


def corner_score(family: CornerFamily, r: float, rows: int, patterns: int, seed: int = 0) -> tuple[float, float]:
    """Return an estimate of Phi^-1(p*(r)) and its standard error."""
    generator = torch.Generator().manual_seed(seed)
    seen = family.draw(rows, sign_patterns(family.dim, patterns, generator), generator)
    log_ratio = family.log_ratio(seen, r)
    m = float(log_ratio.median())
    weight = torch.exp(torch.clamp_max(log_ratio - m, 0.0)).mean(1)
    tail = math.exp(m) * (float(weight.mean()) - 0.5)
    z = float(-ndtri(tail))
    spread = math.exp(m) * float(weight.std()) / math.sqrt(rows)
    return z, spread / (math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi))


def small(family: str, dim: int, k_inf: float, k_2: float = 0.0, **changes: Any) -> TableSettings:
    """Return the settings of a table of few draws."""
    return TableSettings(family, dim, k_inf, k_2, **{"draws": 4000, "patterns": 8, **changes})


def scores(table: LinfTable, r: np.ndarray) -> np.ndarray:
    """Return the Phi^-1(p_lower) that a table asks for at each radius."""
    return np.interp(np.log(r), np.log(table.radii), -ndtri(table.tails))
