"""Log ratios, bounds on one tail, and the statistics from which l-infinity tables are built."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr

from lightning_rs.certificates.norm_power_linf import (
    mixed_norm_log_ratio,
    pure_linf_log_ratio,
)
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerNoise, PureLinfNoise
from lightning_rs.numerics.linf_statistics import (
    MixedCorner,
    PureCorner,
    sign_patterns,
    signed_extremes,
)
from lightning_rs.numerics.tail_bounds import one_step_tail_lower
from tests.certificates.norm_power import corner_score
from tests.oracles import oracle_cases


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


@pytest.mark.parametrize("case", oracle_cases("zhang_table_onestep"))
def test_one_step_oracles(case):
    i = case["inputs"]
    got = one_step_tail_lower(i["meanW"], i["varW"], i["M"], i["beta"], i["m"])
    np.testing.assert_allclose(got, case["expected"]["q_low"], rtol=case["rtol"])


def gaussian_log_ratio(rng, r, n):
    return rng.normal(-0.5 * r * r, r, size=n)


def test_the_tail_bound_is_valid_and_not_far_off():
    """200 repetitions at beta = 0.1 on the Gaussian law of L: at most 40 failures unless the bound is wrong."""
    rng, r, beta = np.random.default_rng(0), 2.0, 0.1
    truth, found = ndtr(-r), []
    for _ in range(200):
        first, second = gaussian_log_ratio(rng, r, 1000), gaussian_log_ratio(rng, r, 4000)
        m = np.median(first)
        w = np.exp(np.minimum(second - m, 0))
        found.append(one_step_tail_lower(w.mean(), w.var(ddof=1), 4000, beta, m))
    assert np.sum(np.array(found) > truth) <= 40
    assert np.mean(found) > 0.5 * truth


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


@pytest.mark.parametrize("case", oracle_cases("zhang_inf_pstar_mc"))
@pytest.mark.parametrize("rows", [800, pytest.param(10_000, marks=pytest.mark.slow)])
def test_linf_oracles_within_five_standard_errors(case, rows):
    i, e = case["inputs"], case["expected"]
    rows = rows if i["d"] > 2 else 100 * rows
    z, error = corner_score(MixedCorner(i["d"], float(i["k"]), 0.0), i["r_inf"] / i["sigma"], rows, 32)
    assert abs(z - e["z_needed"]) < 5 * math.hypot(error, e["stderr"])
    assert error < 0.02
