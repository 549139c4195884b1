"""The l2 family: oracles, brute force in two and three dimensions, its table, what it is worth."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import (
    norm_power_discrepancy,
    norm_power_l2_radius,
    radius_ratio_to_gaussian,
    radius_table,
)
from lightning_rs.noise.norm_power import matched_sigma
from lightning_rs.numerics.norm_power_quadrature import LogRatioLaw, converged_law
from tests.certificates.brute_force import axial_grid, polar_grid, score_needed
from tests.certificates.norm_power import one
from tests.oracles import oracle_cases


@pytest.mark.parametrize("case", oracle_cases("zhang_l2_pstar"))
def test_pstar_oracles(case):
    i, e = case["inputs"], case["expected"]
    law, r = LogRatioLaw(i["d"], float(i["k"])), one(i["R"] / e["sigma"])
    np.testing.assert_allclose(law.median(r), e["median_loglr"], rtol=1e-11)
    np.testing.assert_allclose(law.tail_needed(r), e["one_minus_pstar"], rtol=1e-11)
    np.testing.assert_allclose(law.score_needed(r), e["z_needed"], rtol=1e-12)


@pytest.mark.parametrize("case", oracle_cases("zhang_l2_radius"))
def test_radius_oracles(case):
    i, e = case["inputs"], case["expected"]
    radius = norm_power_l2_radius(
        q_upper=i["qA"], sigma=matched_sigma(i["sigma0"], i["k"], i["d"]), k=i["k"], dim=i["d"]
    )
    assert radius <= e["R"]
    assert radius == pytest.approx(e["R"], rel=1e-9)


@pytest.mark.parametrize("case", oracle_cases("zhang_l2_D"))
def test_discrepancy_oracles(case):
    i = case["inputs"]
    got = norm_power_discrepancy(i["lam"], i["r"], i["sigma"], i["k"], i["d"])
    assert got == pytest.approx(case["expected"]["D"], rel=1e-11)
    # r is in input units: scaling both changes nothing.
    assert norm_power_discrepancy(i["lam"], 0.3 * i["r"], 0.3, i["k"], i["d"]) == pytest.approx(got, rel=1e-9)


@pytest.mark.parametrize(("dim", "k", "r"), [(2, 1.0, 0.4), (2, 1.75, 0.2), (2, 1.0, 2.5), (2, 0.5, 6.0)])
def test_brute_force_in_the_plane(dim, k, r):
    def log_density(z):
        square = (z**2).sum(-1)
        return -0.5 * square - 0.5 * k * np.log(square)

    wanted = score_needed(log_density, np.array([r, 0.0]), polar_grid())
    assert LogRatioLaw(dim, k).score_needed(one(r))[0] == pytest.approx(wanted, rel=2e-3, abs=5e-4)


@pytest.mark.parametrize(("k", "r"), [(1.0, 0.5), (2.5, 0.3), (2.0, 3.0)])
def test_brute_force_in_space(k, r):
    def log_density(z):
        square = (z**2).sum(-1)
        return -0.5 * square - 0.5 * k * np.log(square)

    wanted = score_needed(log_density, np.array([r, 0.0, 0.0]), axial_grid())
    assert LogRatioLaw(3, k).score_needed(one(r))[0] == pytest.approx(wanted, rel=2e-3, abs=5e-4)


def test_zero_power_is_cohen():
    q = np.array([0.4, 0.1, 1e-3, 1e-9, 1e-30, 0.5, 0.7, 0.0])
    np.testing.assert_array_equal(
        norm_power_l2_radius(q_upper=q, sigma=0.25, k=0, dim=3072), gaussian_l2_radius(q_upper=q, sigma=0.25)
    )
    r = np.geomspace(1e-3, 8, 30)
    for dim in (2, 5, 39, 40, 3072, 150528):
        np.testing.assert_allclose(LogRatioLaw(dim, 0.0, 4).score_needed(r), r, rtol=1e-11)


@pytest.mark.parametrize(("dim", "k"), [(2, 1.0), (5, 3.0), (40, 5.0), (3072, 500.0), (3072, 3071.0)])
def test_table_is_below_the_exact_radius_and_close(dim, k):
    """Inverting at random radii: never above, and below by less than the table's own error bound."""
    table, law = radius_table(dim, k), converged_law(dim, k)
    rng = np.random.default_rng(0)
    r = np.exp(rng.uniform(*np.log(table.radii[[0, -1]]), 40))
    got = table.radius(law.tail_needed(r))
    assert (got < r).all()
    assert (got > r * (1 - 1e-4)).all()
    assert np.median(1 - got / r) < 2e-8


def test_radius_is_monotone_scales_and_handles_the_ends():
    q = np.concatenate([[0.9, 0.5, 0.49999], np.geomspace(0.4999, 1e-20, 500), [0.0]])
    radius = norm_power_l2_radius(q_upper=q, sigma=2.0, k=30, dim=60)
    assert (np.diff(radius) >= 0).all()
    assert radius[:3].tolist() == [0.0, 0.0, 0.0]
    assert radius[-1] == np.inf
    assert np.isfinite(radius[:-1]).all()
    assert radius[-2] == radius[-3] == pytest.approx(2.0 * radius_table(60, 30.0).radii[-1], rel=1e-9)
    np.testing.assert_allclose(norm_power_l2_radius(q_upper=q, sigma=1.0, k=30, dim=60) * 2.0, radius, rtol=1e-14)
    np.testing.assert_allclose(
        norm_power_l2_radius(0.9, 2.0, 30, 60), norm_power_l2_radius(q_upper=0.1, sigma=2.0, k=30, dim=60), rtol=1e-12
    )
    assert isinstance(norm_power_l2_radius(0.9, 2.0, 30, 60), np.float64)
    assert norm_power_l2_radius([0.8, 0.9], [[1.0], [2.0]], 30, 60).shape == (2, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"p_lower": math.nan, "sigma": 1.0}, "p_lower must not be NaN"),
        ({"p_lower": 1.5, "sigma": 1.0}, r"p_lower must lie in \[0, 1\], got 1.5"),
        ({"p_lower": 0.9}, "sigma must be given"),
        ({"p_lower": 0.9, "sigma": -1.0}, "sigma must be finite and > 0"),
        ({"p_lower": 0.9, "sigma": 1.0, "q_upper": 0.1}, "exactly one of p_lower and q_upper"),
        ({"p_lower": 0.9, "sigma": 1.0, "k": 5.0, "dim": 5}, "k must be at most dim - 0.25, got 5.0 at dim 5"),
        ({"p_lower": 0.9, "sigma": 1.0, "k": -1.0, "dim": 5}, "k must be >= 0"),
        ({"p_lower": 0.9, "sigma": 1.0, "k": 1.0, "dim": 1}, "dim must be a whole number >= 2"),
        ({"p_lower": 0.9, "sigma": 1.0, "k": 1.0, "dim": 5, "p_upper": 2.0}, "p_upper must lie in"),
    ],
)
def test_l2_radius_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        norm_power_l2_radius(**{"k": 1.0, "dim": 5, **arguments})


def test_discrepancy_ends_and_bounds():
    lam = np.array([0.0, 1e-9, 0.3, 1.0, 5.0, 1e9])
    d = norm_power_discrepancy(lam, [[0.0], [0.5], [40.0]], 1.0, 2.0, 6)
    np.testing.assert_array_equal(d[0], np.maximum(lam - 1, 0))
    assert (d <= lam).all()
    assert (d >= np.maximum(lam - 1, 0)).all()
    assert (np.diff(d, axis=0) >= -1e-12).all()
    assert d[2, 3] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="must be finite"):
        norm_power_discrepancy(1.0, math.inf, 1.0, 2.0, 6)


@pytest.mark.parametrize("draws", [400_000, pytest.param(10_000_000, marks=pytest.mark.slow)])
def test_monte_carlo_over_norm_and_angle_at_imagenet_dimension(draws):
    """1 - p* at d = 150,528 from fresh draws of (norm, angle): within five standard errors."""
    dim, k, r = 150528, 50000.0, 2.0 / matched_sigma(1.0, 50000, 150528)
    rng, total, square = np.random.default_rng(0), 0.0, 0.0
    m = LogRatioLaw(dim, k, 2).median(one(r))[0]
    for _ in range(0, draws, 100_000):
        norm2 = 2 * rng.gamma((dim - k) / 2, size=100_000)
        cosine = 2 * rng.beta((dim - 1) / 2, (dim - 1) / 2, size=100_000) - 1
        t = r * r - 2 * r * np.sqrt(norm2) * cosine
        log_ratio = -0.5 * k * np.log1p(t / norm2) - 0.5 * t
        weight = np.exp(log_ratio) * (log_ratio < m)
        total, square = total + weight.sum(), square + (weight**2).sum()
    mean = total / draws
    error = math.sqrt((square / draws - mean**2) / draws)
    assert abs(mean - LogRatioLaw(dim, k, 2).tail_needed(one(r))[0]) < 5 * error
    assert error < 0.004 * mean


def test_at_image_dimensions_the_family_is_the_gaussian_to_four_digits():
    """Radius ratios at equal p and matched norm (the paper reports gains of several per cent)."""
    p = np.array([0.6, 0.9, 0.99, 0.999, 1 - 7e-5])
    cifar, wide = radius_ratio_to_gaussian(p, 500, 3072), radius_ratio_to_gaussian(p, 2000, 3072)
    imagenet, near = radius_ratio_to_gaussian(p, 50000, 150528), radius_ratio_to_gaussian(p, 3000, 3072)
    np.testing.assert_allclose(cifar, [0.99999, 1.00001, 1.00006, 1.0001, 1.0002], atol=3e-5)
    np.testing.assert_allclose(imagenet, 1.0, atol=1.2e-5)
    assert (np.abs(wide - 1) < 6.5e-4).all()
    assert (near < 0.9982).all()
    assert (near > 0.9965).all()
    # Only in low dimension is there a trade-off.
    np.testing.assert_allclose(radius_ratio_to_gaussian(p, 50, 100)[[0, 4]], [0.9975, 1.0156], atol=2e-4)
    np.testing.assert_allclose(radius_ratio_to_gaussian(p, 3, 5)[[0, 4]], [0.885, 1.49], atol=5e-3)
