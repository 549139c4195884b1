"""Norm-power certificates: oracles, brute force in two and three dimensions, soundness of tables, coverage."""

from __future__ import annotations

import functools
import json
import logging
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr, ndtri

from lightning_rs.certificates.base import Certificate, Setting
from lightning_rs.certificates.gaussian_l2 import gaussian_l2_radius
from lightning_rs.certificates.norm_power_l2 import (
    NormPowerL2,
    NormPowerLinf,
    NormPowerTwoClassL2,
    norm_power_discrepancy,
    norm_power_l2_radius,
    radius_ratio_to_gaussian,
    radius_table,
)
from lightning_rs.certificates.norm_power_linf import (
    MixedNormLinf,
    PureLinf,
    mixed_norm_linf_radius,
    mixed_norm_log_ratio,
    mixed_norm_needed_score,
    pure_linf_log_ratio,
    pure_linf_radius,
)
from lightning_rs.certifier import Certifier
from lightning_rs.evidence import Votes
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerFamily, NormPowerNoise, PureLinfNoise, matched_sigma
from lightning_rs.numerics import linf_table as tables
from lightning_rs.numerics import norm_power_quadrature, norm_power_two_class
from lightning_rs.numerics.linf_statistics import (
    CornerFamily,
    MixedCorner,
    PureCorner,
    sign_patterns,
    signed_extremes,
)
from lightning_rs.numerics.linf_table import (
    LinfTable,
    TableSettings,
    build_table,
    cache_path,
    linf_table,
    read_table,
)
from lightning_rs.numerics.norm_power_quadrature import LogRatioLaw, converged_law
from lightning_rs.numerics.norm_power_two_class import exact_two_class_radius
from lightning_rs.numerics.tail_bounds import median_order_index, one_step_tail_lower, two_step_tail_lower
from lightning_rs.records import Header, RecordFile
from lightning_rs.report import load_runs
from lightning_rs.setting import Selection
from lightning_rs.statistics.accuracy import certified_accuracy_lower_bound, empirical_bernstein_lower
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, simultaneous_tail_bounds
from tests.certificates.brute_force import axial_grid, cube_grid, polar_grid, score_needed, worst_case
from tests.oracles import oracle_cases


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Tables of these tests go to one temporary directory, never to the user's."""
    monkeypatch.setenv(tables.CACHE, str(tmp_path_factory.getbasetemp() / "tables"))


def one(x: float) -> np.ndarray:
    return np.array([x])


def setting(noise: Noise, n: int, top: int = 0, alpha: float = 0.001, dim: int | None = None) -> Setting:
    dim = dim or noise.dim
    return Setting(noise, alpha, n, (dim,), selection=Selection(np.array([top]), np.array([1 - top])))


# ---------------------------------------------------------------- the l2 family: exact values


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


# ---------------------------------------------------------------- the l2 family: what it is worth


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


# ---------------------------------------------------------------- bilateral form


def test_two_class_radius_agrees_with_one_class_and_with_the_gaussian():
    p = np.array([0.55, 0.8, 0.99])
    one_class = norm_power_l2_radius(p, 1.0, 500, 3072)
    np.testing.assert_allclose(norm_power_l2_radius(p, 1.0, 500, 3072, p_upper=1 - p), one_class, rtol=1e-8)
    assert (norm_power_l2_radius(p, 1.0, 500, 3072, p_upper=0.4 * (1 - p)) > one_class).all()
    sigma = matched_sigma(1.0, 500, 3072)
    ours = norm_power_l2_radius(0.45, sigma, 500, 3072, p_upper=0.2)
    assert ours == pytest.approx(gaussian_l2_radius(0.45, 1.0, 0.2), rel=1e-4)
    assert norm_power_l2_radius(0.3, 1.0, 500, 3072, p_upper=0.3) == 0.0
    assert norm_power_l2_radius(1.0, 1.0, 500, 3072, p_upper=0.0) == np.inf


def two_class_pairs(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Random bounds of a class and its strongest rival, with mean scores from 0.003 to 5 and the class from 1 % up."""
    rng = np.random.default_rng(seed)
    u = np.exp(rng.uniform(math.log(0.003), math.log(5.0), count))
    v = rng.uniform(0.0, 1.0, count) * np.minimum(2.8, 5.4 - u)
    return ndtr(-(u - v)), ndtr(-(u + v))


@pytest.mark.parametrize(
    ("dim", "k", "loss"),
    [
        (60, 30.0, 1e-3),
        (784, 128.0, 3e-5),
        (3072, 500.0, 2e-5),
        (150528, 50000.0, 3e-6),
        pytest.param(2, 1.0, 1.0, marks=pytest.mark.slow),
        pytest.param(5, 3.0, 0.05, marks=pytest.mark.slow),
        pytest.param(39, 20.0, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_two_class_table_is_below_the_exact_radius_and_close(dim, k, loss):
    """Against the solver, which shares the quadrature and nothing else. In the plane a corner is not covered."""
    tail, other = two_class_pairs(0, 12)
    exact = exact_two_class_radius(tail, other, dim, k)
    got = norm_power_l2_radius(q_upper=tail, sigma=1.0, k=k, dim=dim, p_upper=other)
    assert (got < exact * (1 + 1e-9)).all()  # the solver's result is itself stepped down by 1e-9
    assert (got >= exact * (1 - loss)).all()
    assert np.median(1 - got / exact) < min(0.1 * loss, 0.01)


def test_two_class_table_at_its_ends_and_beyond():
    """Lowering a score is safe: outside the table the radius is that of the nearest scores inside."""
    tail, other = np.array([0.5, 0.4995, 1e-9, 1e-3, 0.99]), np.array([0.4999, 0.4995, 1e-12, 1e-200, 1e-4])
    exact = exact_two_class_radius(tail, other, 60, 30.0)
    got = norm_power_l2_radius(q_upper=tail, sigma=1.0, k=30.0, dim=60, p_upper=other)
    assert (got < exact * (1 + 1.1e-9)).all()
    assert got[0] == 0.0 < exact[0]  # a mean score below 0.002
    assert got[1] == norm_power_l2_radius(q_upper=0.4995, sigma=1.0, k=30.0, dim=60)
    assert got[2] == norm_power_l2_radius(q_upper=1e-9, sigma=1.0, k=30.0, dim=60)
    assert got[3] > norm_power_l2_radius(q_upper=1e-3, sigma=1.0, k=30.0, dim=60, p_upper=1e-7)
    assert 0.0 < got[4] < exact[4]
    assert norm_power_l2_radius(q_upper=1.0, sigma=1.0, k=30.0, dim=60, p_upper=0.0) == 0.0


def test_two_class_radius_is_monotone():
    q = np.linspace(0.999, 1e-4, 400)
    for rival in (1e-6, 0.01, 0.2):
        radius = norm_power_l2_radius(q_upper=np.maximum(q, rival), sigma=1.0, k=500, dim=3072, p_upper=rival)
        assert (np.diff(radius) >= -1e-5 * radius[1:]).all()


def test_two_class_look_up_solves_nothing(monkeypatch):
    """A thousand images of a thousand distinct pairs: one table, and no solver runs."""
    tail, other = two_class_pairs(1, 1000)
    table = functools.partial(norm_power_l2_radius, None, 1.0, 500, 3072, q_upper=tail, p_upper=other)
    radius = table()
    built = norm_power_two_class.two_class_table.cache_info().misses

    def solver(*args, **kwargs):
        raise AssertionError("a root was searched for")

    monkeypatch.setattr(norm_power_two_class, "increasing_root", solver)
    monkeypatch.setattr(norm_power_quadrature, "increasing_root", solver, raising=False)
    assert (table() == radius).all()
    assert norm_power_two_class.two_class_table.cache_info().misses == built


def test_two_class_radius_by_brute_force():
    """In the plane, k = 1: at the returned radius the least of A meets the greatest of B."""

    def log_density(z):
        square = (z**2).sum(-1)
        return -0.5 * square - 0.5 * np.log(square)

    r = exact_two_class_radius(np.array([0.5]), np.array([0.25]), 2, 1.0)[0]
    smallest = worst_case(log_density, np.array([r, 0.0]), polar_grid())
    assert smallest(0.5) == pytest.approx(1 - smallest(0.75), abs=1e-3)


# ---------------------------------------------------------------- log ratios


@pytest.mark.parametrize("case", oracle_cases("zhang_loglr"))
def test_log_ratio_oracles(case):
    i, e = case["inputs"], case["expected"]
    mixed = mixed_norm_log_ratio(i["z"], i["delta"], i["sigma"], i["k1"], i["k2"])
    np.testing.assert_allclose(mixed, e["loglr_mixed"], rtol=1e-12)
    pure = pure_linf_log_ratio(i["z"], i["delta"], i["sigma"], i["k1"])
    np.testing.assert_allclose(pure, e["loglr_pure_inf"], rtol=1e-12, atol=1e-15)


def test_log_ratio_is_the_difference_of_log_densities_and_antisymmetric():
    z = np.random.default_rng(0).normal(size=(7, 5))
    delta = np.full(5, 0.3)
    for noise, ratio in [
        (MixedNormNoise(0.7, 1.5, 5, 2.0, match="none"), mixed_norm_log_ratio(z, delta, 0.7, 1.5, 2.0)),
        (PureLinfNoise(0.7, 1.5, 5, match="none"), pure_linf_log_ratio(z, delta, 0.7, 1.5)),
        (NormPowerNoise(0.7, 1.5, 5, match="none"), mixed_norm_log_ratio(z, delta, 0.7, 0, 1.5)),
    ]:
        shifted, base = (noise.log_density(torch.from_numpy(x)).numpy() for x in (z - delta, z))
        np.testing.assert_allclose(ratio, shifted - base, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        mixed_norm_log_ratio(delta - z, delta, 0.7, 1.5, 2.0),
        -mixed_norm_log_ratio(z, delta, 0.7, 1.5, 2.0),
        atol=1e-12,
    )


def test_log_ratio_ends():
    zero, delta = np.zeros(3), np.full(3, 0.5)
    assert mixed_norm_log_ratio(zero, delta, 1.0, 1.0) == -np.inf
    assert mixed_norm_log_ratio(delta, delta, 1.0, 1.0) == np.inf
    assert mixed_norm_log_ratio(zero, zero, 1.0, 1.0, 1.0) == 0.0
    assert pure_linf_log_ratio(delta, zero, 1.0, 1.0) == 0.0
    with pytest.raises(ValueError, match="z must not be NaN"):
        mixed_norm_log_ratio([math.nan], [0.0], 1.0, 1.0)


# ---------------------------------------------------------------- bounds on one tail


@pytest.mark.parametrize("case", oracle_cases("zhang_table_onestep"))
def test_one_step_oracles(case):
    i = case["inputs"]
    got = one_step_tail_lower(i["meanW"], i["varW"], i["M"], i["beta"], i["m"])
    np.testing.assert_allclose(got, case["expected"]["q_low"], rtol=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("median_order_index"))
def test_median_order_index_oracles(case):
    assert median_order_index(case["inputs"]["M"], case["inputs"]["beta"]) == case["expected"]["j"]


def test_median_order_index_by_summation():
    for n in (1, 5, 9, 40):
        for beta in (0.5, 0.1, 1e-3):
            cdf = [sum(math.comb(n, i) for i in range(j)) / 2**n for j in range(n + 2)]
            assert median_order_index(n, beta) == max(j for j in range(n + 1) if cdf[j] <= beta)


def gaussian_log_ratio(rng, r, n):
    return rng.normal(-0.5 * r * r, r, size=n)


def test_tail_bounds_are_valid_and_the_one_step_bound_is_tighter():
    """200 repetitions at beta = 0.1 on the Gaussian law of L: at most 40 failures unless the bound is wrong."""
    rng, r, beta = np.random.default_rng(0), 2.0, 0.1
    truth, one_step, two_step = ndtr(-r), [], []
    for _ in range(200):
        first, second = gaussian_log_ratio(rng, r, 1000), gaussian_log_ratio(rng, r, 4000)
        m = np.median(first)
        w = np.exp(np.minimum(second - m, 0))
        one_step.append(one_step_tail_lower(w.mean(), w.var(ddof=1), 4000, beta, m))
        two_step.append(two_step_tail_lower(first, second, beta))
    assert np.sum(np.array(one_step) > truth) <= 40
    assert np.sum(np.array(two_step) > truth) <= 40
    assert np.mean(one_step) > np.mean(two_step) > 0.5 * truth
    assert two_step_tail_lower([0.0, 1.0], [0.0, 1.0], 1e-6) == 0.0


def test_two_step_bound_by_hand():
    first, second = np.linspace(-3, 3, 1000), np.linspace(-4, 4, 500)
    m = first[median_order_index(1000, 0.05) - 1]
    value = np.exp(second - m) * (second < m)
    wanted = np.exp(m) * empirical_bernstein_lower(value.mean(), value.var(ddof=1), 500, 0.05)
    assert two_step_tail_lower(first[::-1], second, 0.1) == pytest.approx(wanted, rel=1e-12)


# ---------------------------------------------------------------- statistics of the corner


@pytest.mark.parametrize("dim", [2, 3, 63, 64, 65, 300])
def test_signed_extremes_against_the_full_product(dim):
    generator = torch.Generator().manual_seed(dim)
    z = torch.randn(200, dim, dtype=torch.float64, generator=generator)
    signs = sign_patterns(dim, 5, generator)
    signs[:, 0] = z[0].sign()  # row 0 is then all of one sign, the rare case that is looked at in full
    high, low = signed_extremes(z, signs)
    full = z[:, :, None] * signs
    torch.testing.assert_close(high, full.amax(1))
    torch.testing.assert_close(low, full.amin(1))


@pytest.mark.parametrize(
    ("family", "ratio"),
    [
        (MixedCorner(40, 6.0, 9.0), lambda z, d: mixed_norm_log_ratio(z, d, 1.0, 6.0, 9.0)),
        (MixedCorner(40, 6.0, 0.0), lambda z, d: mixed_norm_log_ratio(z, d, 1.0, 6.0)),
    ],
)
def test_log_ratio_from_statistics(family, ratio, monkeypatch):
    kept = {}

    def keep(out, *args):
        out.copy_(torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))
        kept["z"] = out.clone()

    monkeypatch.setattr("lightning_rs.numerics.linf_statistics.fill_mixed_norm_", keep)
    signs = sign_patterns(40, 4, torch.Generator().manual_seed(1))
    seen = family.draw(9, signs, torch.Generator())
    for r in (1e-3, 0.2, 3.0):
        for b in range(4):
            wanted = ratio((kept["z"] * signs[:, b]).numpy(), np.full(40, r))
            np.testing.assert_allclose(family.log_ratio(seen, r)[:, b].numpy(), wanted, rtol=1e-10)


def test_pure_statistics_have_the_law_of_full_draws():
    """Two-sample tests of L from two numbers a draw against L from whole vectors; fails a correct code once in 10^6."""
    for dim, k in ((2, 1.0), (7, 3.0), (400, 100.0)):
        generator = torch.Generator().manual_seed(dim)
        family = PureCorner(dim, k)
        seen = family.draw(20_000, torch.zeros(dim, 1, dtype=torch.float64), generator)
        z = torch.empty(20_000, dim)
        PureLinfNoise(1.0, k, dim, match="none").draw_(z, generator)
        for r in (0.02, 0.3):
            full = pure_linf_log_ratio(z.double().numpy(), np.full(dim, r), 1.0, k)
            # The two columns are z and -z; either one alone is only half of the law.
            half = family.log_ratio(seen, r).numpy()
            mixed = np.concatenate([half[:10_000, 0], half[10_000:, 1]])
            assert stats.ks_2samp(mixed, full).pvalue > 1e-6


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


@pytest.mark.parametrize("case", oracle_cases("zhang_inf_pstar_mc"))
@pytest.mark.parametrize("rows", [800, pytest.param(10_000, marks=pytest.mark.slow)])
def test_linf_oracles_within_five_standard_errors(case, rows):
    i, e = case["inputs"], case["expected"]
    rows = rows if i["d"] > 2 else 100 * rows
    z, error = corner_score(MixedCorner(i["d"], float(i["k"]), 0.0), i["r_inf"] / i["sigma"], rows, 32)
    assert abs(z - e["z_needed"]) < 5 * math.hypot(error, e["stderr"])
    assert error < 0.02


# ---------------------------------------------------------------- tables


def small(family: str, dim: int, k_inf: float, k_2: float = 0.0, **changes) -> TableSettings:
    return TableSettings(family, dim, k_inf, k_2, **{"draws": 4000, "patterns": 8, **changes})


def scores(table: LinfTable, r: np.ndarray) -> np.ndarray:
    return np.interp(np.log(r), np.log(table.radii), -ndtri(table.tails))


@pytest.mark.parametrize(
    "settings",
    [
        small("mixed", 2, 1.0, draws=20_000),
        small("mixed", 2, 0.5, 0.8, draws=20_000),
        small("pure", 2, 1.0, draws=20_000),
    ],
    ids=lambda settings: f"{settings.family}-{settings.k_2}",
)
def test_table_against_brute_force_in_the_plane(settings):
    """The table asks for at least the exact probability, and for little more."""

    def log_density(z):
        largest, square = np.abs(z).max(-1), (z**2).sum(-1)
        exponent = square if settings.family == "mixed" else largest**2
        return -0.5 * exponent - settings.k_inf * np.log(largest) - 0.5 * settings.k_2 * np.log(square)

    table, grid = build_table(settings), polar_grid(700, 480)
    for r in (0.1, 0.5, 1.5):
        exact = score_needed(log_density, np.array([r, r]), grid)
        asked = scores(table, np.array([r]))[0]
        assert exact - 2e-3 < asked < exact + 0.06


def test_table_against_brute_force_in_space():
    def log_density(z):
        return -0.5 * (z**2).sum(-1) - 1.5 * np.log(np.abs(z).max(-1))

    table, grid = build_table(small("mixed", 3, 1.5, draws=20_000)), cube_grid(50)
    for r in (0.2, 0.8):
        exact = score_needed(log_density, np.full(3, r), grid)
        assert exact - 5e-3 < scores(table, np.array([r]))[0] < exact + 0.06


@pytest.mark.parametrize(("dim", "k_2"), [(50, 20.0), (50, 0.0), (784, 300.0)])
def test_table_without_maximum_power_is_the_l2_family_over_sqrt_d(dim, k_2):
    """The l2 family's exact quadrature is an independent answer at k_inf = 0, the corner having l2 norm r sqrt(d)."""
    table = build_table(small("mixed", dim, 0.0, k_2))
    q = np.array([0.3, 0.1, 0.01, 1e-4])
    exact = norm_power_l2_radius(q_upper=q, sigma=1.0, k=k_2, dim=dim) / math.sqrt(dim)
    got = table.radius(q)
    assert (got < exact).all()
    # 4,000 draws: a few hundredths of a score, so more of a small radius.
    assert (got > exact * [0.85, 0.93, 0.96, 0.97]).all()


def test_tables_fail_no_more_often_than_beta_and_a_planted_mistake_is_caught(monkeypatch):
    """25 tables at beta = 0.1: sound ones are rarely wrong anywhere, those without a confidence bound nearly always.

    P(Bin(25, 0.1) > 13) < 1e-6, so a failure here is a mistake.
    """
    exact_r = np.geomspace(0.005, 2.0, 60)
    exact = np.log(LogRatioLaw(4, 2.0).tail_needed(2.0 * exact_r))
    planted, wrong = [], np.zeros(2, dtype=np.int64)

    def spy(mean, variance, n, beta, m):
        planted.append(np.exp(m) * np.maximum(mean - 0.5, 0.0))
        return one_step_tail_lower(mean, variance, n, beta, m)

    monkeypatch.setattr(tables, "one_step_tail_lower", spy)
    for seed in range(25):
        table = build_table(small("mixed", 4, 0.0, 2.0, beta=0.1, draws=1000, patterns=2, seed=seed))
        inside = (table.radii > 0.005) & (table.radii < 2.0)
        truth = np.exp(np.interp(np.log(table.radii), np.log(exact_r), exact)) * (1 + 1e-3)
        wrong += [bool((tails > truth)[inside].any()) for tails in (table.tails, planted[-1])]
    assert wrong[0] <= 13
    assert wrong[1] > 13


def test_table_hands_the_right_numbers_to_the_bound(monkeypatch):
    """Fresh draws after the pilot, medians from the pilot alone, one event of beta / J a radius."""
    settings, seen = small("mixed", 10, 3.0, 1.0, draws=2500, beta=1e-3), {}

    def spy(mean, variance, n, beta, m):
        seen.update(mean=mean, variance=variance, n=n, beta=beta, m=m)
        return one_step_tail_lower(mean, variance, n, beta, m)

    monkeypatch.setattr(tables, "one_step_tail_lower", spy)
    table = build_table(settings)
    assert seen["n"] == 2500
    assert seen["beta"] * len(table.radii) == pytest.approx(1e-3)
    law, generator = MixedCorner(10, 3.0, 1.0), torch.Generator().manual_seed(0)
    signs = sign_patterns(10, 8, generator)
    pilot = law.draw(1000, signs, generator)
    chunks = [law.draw(rows, signs, generator) for rows in (2000, 500)]
    for j in (0, 100, 250, -1):
        r = table.radii[j] / (1 - 1e-9)
        m = float(law.log_ratio(pilot, r).median())
        assert seen["m"][j] == pytest.approx(m, rel=1e-9)
        weight = np.concatenate([np.minimum(1, np.exp(law.log_ratio(c, r).numpy() - m)).mean(1) for c in chunks])
        assert seen["mean"][j] == pytest.approx(weight.mean() - tables.LAW_ERROR, rel=1e-9)
        assert seen["variance"][j] == pytest.approx(weight.var(ddof=1), rel=1e-9)


def test_draws_in_parts_are_draws(monkeypatch):
    """The pilot of a table at d = 150,528 would otherwise take 5 GB."""
    law, generator = MixedCorner(10, 3.0, 0.0), torch.Generator().manual_seed(0)
    signs = sign_patterns(10, 4, generator)
    sizes = []
    monkeypatch.setattr(
        MixedCorner, "draw", lambda self, rows, *a, _draw=MixedCorner.draw: sizes.append(rows) or _draw(self, rows, *a)
    )
    whole = law.draw_in_parts(25, signs, generator, 100)
    assert sizes == [10, 10, 5]
    assert whole.high.shape == whole.total.shape == (25, 4)
    assert whole.largest.shape == (25, 1)
    assert (whole.high.abs().amax(1) <= whole.largest[:, 0]).all()
    assert law.draw_in_parts(3, signs, generator, 1).low.shape == (3, 4)
    assert sizes[3:] == [1, 1, 1]


def test_table_lookup():
    table = LinfTable(np.array([0.1, 0.2, 0.3]), np.array([0.4, 0.25, 0.0]))
    tails = np.array([0.5, 0.4, 0.3, 0.25, 0.2, 1e-300, 0.0])
    assert table.radius(tails).tolist() == [0.0, 0.1, 0.1, 0.2, 0.2, 0.2, np.inf]


def test_tables_are_monotone_and_repeat():
    settings = small("mixed", 20, 5.0, draws=1000)
    first, second = build_table(settings), build_table(settings)
    assert np.array_equal(first.tails, second.tails)
    assert (np.diff(first.tails) <= 0).all()
    assert (np.diff(first.radii) > 0).all()
    assert not np.array_equal(first.tails, build_table(small("mixed", 20, 5.0, draws=1000, seed=1)).tails)


def test_cache_round_trip_and_every_kind_of_damage(monkeypatch, caplog):
    settings = small("pure", 6, 2.0, draws=1000, seed=11)
    built = []
    original = build_table
    monkeypatch.setattr(tables, "build_table", lambda s: built.append(s) or original(s))
    fresh = linf_table.__wrapped__(settings)
    path = cache_path(settings)
    again = linf_table.__wrapped__(settings)
    assert len(built) == 1
    assert np.array_equal(fresh.tails, again.tails)
    assert np.array_equal(fresh.radii, again.radii)
    good = path.read_text()
    stored = json.loads(good)
    assert stored["settings"]["beta"] == 1e-4
    bigger = {**stored, "tails": [2 * q for q in stored["tails"]]}
    unsigned = {key: value for key, value in stored.items() if key != "sha256"}
    for damage in (good[:-20], json.dumps(bigger), json.dumps(unsigned), "[]", ""):
        path.write_text(damage)
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(linf_table.__wrapped__(settings).tails, fresh.tails)
        assert "is built again" in caplog.text
        caplog.clear()
        assert path.read_text() == good
    assert len(built) == 6
    # A faithful file of another noise under this name is foreign.
    other = small("pure", 6, 2.0, draws=1000, seed=12)
    linf_table.__wrapped__(other)
    path.write_text(cache_path(other).read_text())
    assert read_table(path, settings) is None


def test_unwritable_cache_only_costs_time(monkeypatch, tmp_path, caplog):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv(tables.CACHE, str(blocked))
    with caplog.at_level(logging.WARNING):
        assert (linf_table.__wrapped__(small("pure", 5, 1.0, draws=1000)).tails > 0).any()
    assert "could not be stored" in caplog.text


# ---------------------------------------------------------------- l-infinity radii: what they are worth


def test_mixed_norm_at_the_papers_k_shrinks_the_radius():
    """d = 3072, k = 250: the probability that Gaussian noise of equal norm needs is not enough, by far."""
    asked = mixed_norm_needed_score([0.25, 0.5, 1.0, 2.0, 3.0], 250, 3072, draws=4000)
    np.testing.assert_allclose(asked, [0.507, 0.937, 1.674, 2.924, 4.045], atol=0.06)
    assert (asked > [0.507, 0.937, 1.674, 2.924, 4.045]).all()
    # Certified radius at equal p over the Gaussian's: minus a quarter to a half.
    sigma = matched_sigma(1.0, 250, 3072)
    p = ndtr(np.array([0.5, 1.67, 4.0]))
    ratio = mixed_norm_linf_radius(p, sigma, 250, 3072, draws=4000) / (gaussian_l2_radius(p, 1.0) / math.sqrt(3072))
    assert (ratio > [0.40, 0.5, 0.68]).all()
    assert (ratio < [0.51, 0.61, 0.76]).all()


def test_small_powers_change_nothing():
    z, error = corner_score(MixedCorner(3072, 5.0, 0.0), 1 / math.sqrt(3072) / matched_sigma(1.0, 5, 3072), 800, 32)
    assert abs(z - 1.0) < 5 * error + 0.003


def test_pure_family_is_hopeless_in_high_dimension():
    """d = 3072, equal RMS norm: a quarter of the Gaussian radius asks for p > 0.999 instead of 0.6."""
    noise = PureLinfNoise(1.0, 500.0, 3072)
    r = 0.25 / math.sqrt(3072) / noise.scale
    assert scores(linf_table(small("pure", 3072, 500.0, draws=20_000)), np.array([r]))[0] > 3.2
    assert pure_linf_radius(0.9, noise.scale, 500.0, 3072, draws=20_000) < 0.1 * gaussian_l2_radius(
        0.9, 1.0
    ) / math.sqrt(3072)


def test_linf_radius_functions_scale_and_refuse():
    radius = mixed_norm_linf_radius([0.4, 0.5, 0.9, 0.99, 1.0], 2.0, 5.0, 20, draws=1000)
    assert radius[:2].tolist() == [0.0, 0.0]
    assert (np.diff(radius[1:]) > 0).all()
    assert radius[-1] == np.inf
    np.testing.assert_allclose(mixed_norm_linf_radius(0.9, 0.5, 5.0, 20, draws=1000) * 4, radius[2], rtol=1e-14)
    assert mixed_norm_linf_radius(q_upper=0.1, sigma=2.0, k_inf=5.0, dim=20, draws=1000) == radius[2]
    assert isinstance(pure_linf_radius(0.9, 1.0, 2.0, 6, draws=1000), np.float64)
    with pytest.raises(ValueError, match=r"k_inf \+ k_2 must be at most dim - 0.25"):
        mixed_norm_linf_radius(0.9, 1.0, 5.0, 5)
    with pytest.raises(ValueError, match="beta must lie in"):
        mixed_norm_linf_radius(0.9, 1.0, 1.0, 5, beta=0.0)
    with pytest.raises(ValueError, match="draws must be a whole number >= 1000, got 10"):
        pure_linf_radius(0.9, 1.0, 1.0, 5, draws=10)


# ---------------------------------------------------------------- certificates


def test_l2_and_linf_certificates_use_the_exact_radius():
    noise = NormPowerNoise(0.25, 3.0, 12)
    evidence = {Votes: Votes.of(np.array([[990, 10]]))}
    q = clopper_pearson_tail_upper(990, 1000, 0.001)
    l2 = NormPowerL2().certify(evidence, setting(noise, 1000))
    assert l2.prediction.tolist() == [0]
    assert l2.radius[0] == norm_power_l2_radius(q_upper=q, sigma=noise.scale, k=3.0, dim=12)
    linf = NormPowerLinf().certify(evidence, setting(noise, 1000))
    assert linf.radius[0] == pytest.approx(l2.radius[0] / math.sqrt(12), rel=1e-14)
    assert linf.radius[0] < l2.radius[0] / math.sqrt(12)
    assert NormPowerL2().certify(evidence, setting(noise, 1000, top=1)).prediction.tolist() == [-1]
    with pytest.raises(ValueError, match=r"NormPowerL2 is proved for NormPowerNoise, got noise GaussianNoise"):
        NormPowerL2().certify(evidence, setting(GaussianNoise(0.25), 1000, dim=12))


@pytest.mark.parametrize("method", ["bonferroni", "grouped"])
def test_two_class_certificate(method):
    noise = NormPowerNoise(0.25, 5.0, 60)
    counts = np.array([[480, 260, 160, 100], [480, 260, 160, 100], [300, 290, 210, 200]])
    which = Setting(
        noise, 0.001, 1000, (60,), selection=Selection(np.zeros(3, dtype=np.int64), np.ones(3, dtype=np.int64))
    )
    got = NormPowerTwoClassL2(method).certify({Votes: Votes.of(counts)}, which)
    q, p = simultaneous_tail_bounds(counts, which.top, 0.001, method, which.runner_up)
    assert got.prediction.tolist() == [0, 0, -1]
    assert got.radius[0] == got.radius[1]
    assert got.radius[0] == norm_power_l2_radius(q_upper=q[0], sigma=noise.scale, k=5.0, dim=60, p_upper=p[0])
    assert sum(NormPowerTwoClassL2(method).alpha_split.values()) <= 1.0


def test_linf_certificates_use_their_tables():
    evidence = {Votes: Votes.of(np.array([[995, 5]]))}
    q = clopper_pearson_tail_upper(995, 1000, 0.001)
    mixed, pure = MixedNormNoise(0.25, 4.0, 12, 1.0), PureLinfNoise(0.25, 4.0, 12)
    got = MixedNormLinf(draws=1000).certify(evidence, setting(mixed, 1000))
    assert got.radius[0] == mixed_norm_linf_radius(q_upper=q, sigma=mixed.scale, k_inf=4.0, dim=12, k_2=1.0, draws=1000)
    got = PureLinf(draws=1000).certify(evidence, setting(pure, 1000))
    assert got.radius[0] == pure_linf_radius(q_upper=q, sigma=pure.scale, k=4.0, dim=12, draws=1000)
    assert got.radius[0] > 0
    assert MixedNormLinf(beta=1e-6, draws=2000, seed=3).spec() == {
        "beta": 1e-6,
        "draws": 2000,
        "seed": 3,
        "device": "cpu",
    }
    for wrong in ({"beta": 0.0}, {"draws": 10}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            MixedNormLinf(**wrong)


# ---------------------------------------------------------------- coverage on the worst classifier


@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("family", ["l2", "mixed"])
def test_coverage_on_the_worst_case_classifier(family, alpha):
    """5,000 certifications of the Neyman-Pearson classifier of one shift, whose true radius is exactly r.

    f = 1{L <= -median(L)} has probability p*(r) at the centre and one half at distance r, so a certificate is wrong
    iff it claims more than r. The test rejects a correct certificate with probability 1e-6; it must catch a bound
    at twice the level (where alpha = 0.05 leaves something to see) and the bare frequency.
    """
    dim, n, images = 6, 200, 5000
    noise = (
        NormPowerNoise(1.0, 3.0, dim, match="none") if family == "l2" else MixedNormNoise(1.0, 2.0, dim, match="none")
    )
    if family == "l2":
        r, delta = 0.4, np.eye(dim)[0] * 0.4
        cut = -LogRatioLaw(dim, 3.0).median(one(r))[0]
        powers = (0.0, 3.0)
    else:
        table = linf_table(small("mixed", dim, 2.0, draws=20_000))
        r = table.radii[150]
        delta, powers = np.full(dim, r), (2.0, 0.0)
        cut = -float(MixedCorner(dim, 2.0, 0.0).log_ratio(*_many(dim), r).median())
    generator = torch.Generator().manual_seed(5)
    votes = np.empty(images, dtype=np.int64)
    for start in range(0, images, 1000):
        z = torch.empty(1000 * n, dim)
        noise.draw_(z, generator)
        hit = mixed_norm_log_ratio(z.numpy(), delta, 1.0, *powers) <= cut
        votes[start : start + 1000] = hit.reshape(1000, n).sum(1)

    def failures(q: np.ndarray) -> int:
        if family == "l2":
            return int((norm_power_l2_radius(q_upper=q, sigma=1.0, k=3.0, dim=dim) > r * (1 + 1e-9)).sum())
        return int((table.radius(q) > r * (1 + 1e-9)).sum())

    limit = stats.binom(images, alpha).isf(1e-6)
    assert failures(np.asarray(clopper_pearson_tail_upper(votes, n, alpha))) <= limit
    assert failures(1 - np.minimum(votes / n, 1 - 1e-9)) > limit
    if family == "l2" and alpha == 0.05:
        assert failures(np.asarray(clopper_pearson_tail_upper(votes, n, 2 * alpha))) > limit


def _many(dim: int):
    generator = torch.Generator().manual_seed(77)
    return (MixedCorner(dim, 2.0, 0.0).draw(100_000, sign_patterns(dim, 4, generator), generator),)


class WorstCase(torch.nn.Module):
    """f(x) = class 0 where L(x) <= cut: for images at the origin, the Neyman-Pearson set of one shift."""

    def __init__(self, noise: NormPowerFamily, norm: str, radius: float, cut: float) -> None:
        super().__init__()
        self.noise, self.cut = noise, cut
        self.delta = noise.worst_shift(norm, radius)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = x.flatten(1).double()
        log_ratio = self.noise.log_density(z - self.delta) - self.noise.log_density(z)
        score = (self.cut - log_ratio).clamp(-1e6, 1e6).to(x.dtype) * self.scale  # infinite at the origin
        return torch.stack([score, -score], dim=1)


def worst_cases() -> dict[str, tuple[NormPowerFamily, Certificate, str, float, float]]:
    """Noise, certificate, norm, radius r and cut such that the class has probability one half at distance r."""
    law = converged_law(6, 3.0)
    l2, linf = ("l2", 0.4), ("linf", 0.4 / math.sqrt(6))
    plain = NormPowerNoise(1.0, 3.0, 6, match="none")
    cut = -float(law.median(one(0.4))[0])
    mixed, pure = MixedNormNoise(1.0, 2.0, 6, match="none"), PureLinfNoise(1.0, 2.0, 6, match="none")
    # Radii of the tables' own grids, so that rounding down hides no failure.
    r_mixed = float(mixed_norm_linf_radius(0.7, 1.0, 2.0, 6, draws=20_000))
    r_pure = float(pure_linf_radius(0.7, 1.0, 2.0, 6, draws=20_000))
    return {
        "l2": (plain, NormPowerL2(), *l2, cut),
        "l2 read in linf": (plain, NormPowerLinf(), *linf, cut),
        "mixed": (mixed, MixedNormLinf(draws=20_000), "linf", r_mixed, -median_at(MixedCorner(6, 2.0, 0.0), r_mixed)),
        "pure": (pure, PureLinf(draws=20_000), "linf", r_pure, -median_at(PureCorner(6, 2.0), r_pure)),
    }


def median_at(law: CornerFamily, r: float) -> float:
    """Return the median of L at the corner from 800,000 values: it moves a probability of one half by 0.001."""
    generator = torch.Generator().manual_seed(77)
    seen = law.draw(100_000, sign_patterns(6, 8, generator), generator)
    return float(law.log_ratio(seen, r).median())


@pytest.mark.parametrize("images", [1000, pytest.param(5000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("alpha", [0.05, 0.001])
@pytest.mark.parametrize("name", ["l2", "l2 read in linf", "mixed", "pure"])
def test_coverage_through_the_certifier(name, alpha, images):
    """Certifier, sampling loop and noise together; rejects correct code once in 10^6."""
    noise, certificate, norm, r, cut = worst_cases()[name]
    n = 200
    certifier = Certifier([certificate], n0=10, n=n, alpha=alpha)
    records = certifier.certify(WorstCase(noise, norm, r, cut), noise, torch.zeros(images, 1, 2, 3))
    wrong = sum(record.prediction == 0 and record.radius > r * (1 + 1e-9) for record in records)
    limit = stats.binom(images, alpha).isf(1e-6)
    assert wrong <= limit
    # On the same votes, a bound at a much larger level is caught.
    votes = np.array([record.counts[0] for record in records])
    evidence = {Votes: Votes.of(np.stack([votes, n - votes], axis=1))}
    zeros = np.zeros(images, dtype=np.int64)
    planted = certificate.certify(evidence, Setting(noise, 0.3, n, (6,), selection=Selection(zeros, zeros + 1)))
    assert (planted.radius > r * (1 + 1e-9)).sum() > limit


def test_the_budget_of_a_table_is_recorded_and_comes_off_rho(tmp_path):
    """From the certifier to the bound on the set: rho - beta is what Theorem 5 has left."""
    noise, beta, rho = MixedNormNoise(1.0, 2.0, 6, match="none"), 9e-4, 1e-3
    certifier = Certifier([MixedNormLinf(beta=beta, draws=1000)], n0=10, n=100, alpha=0.01)
    session = certifier.session(WorstCase(noise, "linf", 0.5, 1.0), noise, (1, 2, 3))
    (entry,) = session.describe()["certificates"]
    assert entry["shared_failure"] == beta
    header = Header.create(session.describe(), data={"name": "none"}, indices=range(40))
    with RecordFile(tmp_path / "run.jsonl", header) as file:
        file.append(list(session.certify(torch.zeros(40, 1, 2, 3), [0] * 40)))
    (run,) = load_runs([tmp_path / "run.jsonl"])
    left, whole = (
        float(certified_accuracy_lower_bound(run.hits([0.0]), 40, 0.01, r, "bernstein")[0]) for r in (rho - beta, rho)
    )
    assert 0.0 < left < whole
    assert float(run.lower_bound([0.0], rho, "bernstein")[0]) == pytest.approx(left, rel=1e-12)
    with pytest.raises(ValueError, match="rho must exceed the failure probability"):
        run.lower_bound([0.0], beta, "bernstein")
    assert "shared_failure" not in Certifier([NormPowerL2()]).describe()["certificates"][0]
