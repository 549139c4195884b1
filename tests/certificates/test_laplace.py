"""The Laplace radius against quantiles, 40-digit arithmetic, and Neyman-Pearson sets on a grid."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from lightning_rs.certificates.laplace import laplace_l1_radius


@pytest.mark.parametrize("p", [0.500001, 0.6, 0.9, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("scale", [0.05, 1.0, 7.0])
def test_attained_by_the_half_space(p: float, scale: float) -> None:
    """1{z_1 <= t} has probability p for t = the quantile of p, and 1/2 after a shift by t."""
    assert laplace_l1_radius(p, scale) == pytest.approx(stats.laplace.ppf(p, scale=scale), rel=1e-6)


@pytest.mark.parametrize("q", [0.4999999999, 0.25, 1e-3, 1e-17, 1e-300])
def test_high_precision_and_never_above(q: float) -> None:
    with mpmath.workdps(40):
        exact = -mpmath.mpf("0.3") * mpmath.log(2 * mpmath.mpf(q))
        got = mpmath.mpf(float(laplace_l1_radius(q_upper=q, scale=0.3)))
        # 0.3 as a float64 is below 3/10, so an upward error of one ulp would show.
        assert exact * (1 - mpmath.mpf("1e-13")) <= got < exact


def _np_lower_bound(p: float, shift: tuple[float, float]) -> float:
    """Least probability under the shifted law of a union of grid cells with probability p at zero, d = 2."""
    edges = [np.unique(np.concatenate([[-np.inf, np.inf, 0.0, s], np.linspace(-12, 12, 241)])) for s in shift]
    before = np.outer(*(np.diff(stats.laplace.cdf(e)) for e in edges)).ravel()
    after = np.outer(*(np.diff(stats.laplace.cdf(e - s)) for e, s in zip(edges, shift, strict=True))).ravel()
    order = np.argsort(after / before)
    before, after = before[order], after[order]
    full = int(np.searchsorted(np.cumsum(before), p))
    rest = (p - before[:full].sum()) / before[full]
    return float(after[:full].sum() + rest * after[full])


@pytest.mark.parametrize("p", [0.55, 0.8, 0.97])
def test_no_shift_of_smaller_norm_reaches_one_half(p: float) -> None:
    radius = float(laplace_l1_radius(p, 1.0))
    for share in (0.0, 0.1, 0.3, 0.5):
        shift = (radius * (1 - share), radius * share)
        assert _np_lower_bound(p, shift) >= 0.5 - 1e-9
    assert _np_lower_bound(p, (radius, 0.0)) == pytest.approx(0.5, abs=1e-9)
    assert _np_lower_bound(p, (1.01 * radius, 0.0)) < 0.5


def test_edges_and_shapes() -> None:
    assert laplace_l1_radius(0.5, 1.0) == 0.0
    assert laplace_l1_radius(0.1, 1.0) == 0.0
    assert laplace_l1_radius(1.0, 1.0) == math.inf
    assert isinstance(laplace_l1_radius(0.9, 1.0), np.float64)
    assert laplace_l1_radius(np.full((3, 1), 0.9), np.ones(2)).shape == (3, 2)
    assert np.all(np.diff(laplace_l1_radius(np.linspace(0.5, 1, 100, endpoint=False), 1.0)) > 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_lower": 1.2, "scale": 1.0}, "p_lower must lie in"),
        ({"p_lower": math.nan, "scale": 1.0}, "p_lower must not be NaN"),
        ({"p_lower": 0.9, "scale": 0.0}, "scale must be finite and > 0"),
        ({"p_lower": 0.9}, "scale must be given, got None"),
        ({"p_lower": 0.9, "q_upper": 0.1, "scale": 1.0}, "exactly one of p_lower and q_upper"),
    ],
)
def test_refusals(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        laplace_l1_radius(**arguments)
