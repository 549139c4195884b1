"""The norm-power laws: samplers against densities, densities against integrals, matching against high precision.

Every statistical test has a fixed seed and rejects a correct sampler with probability at most 1e-6.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from lightning_rs.noise._norm_power_laws import (
    MaximumLaw,
    fill_mixed_norm_,
    log_erf,
    maximum_law,
    single_precision_suffices,
)
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerFamily, NormPowerNoise, PureLinfNoise, matched_sigma
from tests.oracles import oracle_cases

REJECT = 1e-6
LAWS = [
    (2, 0.0),
    (2, 1.75),
    (3, 1.0),
    (49, 20.0),
    (784, 783.0),
    (3072, 500.0),
    (3072, 3071.5),
    (150528, 0.0),
    (150528, 50000.0),
    (150528, 150520.0),
]


def draws(noise: NormPowerFamily, rows: int, seed: int = 0) -> torch.Tensor:
    out = torch.empty(rows, noise.dim)
    noise.draw_(out, torch.Generator().manual_seed(seed))
    return out


def rows_for(dim: int) -> int:
    return max(80, min(20_000, 3_000_000 // dim))


# ---------------------------------------------------------------- matching


@pytest.mark.parametrize("case", oracle_cases("zhang_sigma_match"))
@pytest.mark.parametrize("rule", ["mode", "mean", "rms"])
def test_matched_sigma_oracles(case, rule):
    i = case["inputs"]
    np.testing.assert_allclose(
        matched_sigma(i["sigma0"], i["k"], i["d"], rule), case["expected"][f"sigma_{rule}"], rtol=1e-11
    )


def test_matched_sigma_matches_what_it_says():
    d, k = 7, 3.5
    grid = np.linspace(1e-6, 10, 400_001)
    for rule in ("mode", "mean", "rms"):
        scale = matched_sigma(0.6, k, d, rule)
        # ||z|| has density r^(d-1-k) e^(-r^2/2s^2); the Gaussian is k = 0, s = 0.6.
        ours, theirs = (
            r ** (d - 1 - p) * np.exp(-(r**2) / (2 * s * s)) for r, p, s in ((grid, k, scale), (grid, 0, 0.6))
        )
        measure = {
            "mode": lambda f: grid[f.argmax()],
            "mean": lambda f: (grid * f).sum() / f.sum(),
            "rms": lambda f: (grid**2 * f).sum() / f.sum(),
        }[rule]
        np.testing.assert_allclose(measure(ours), measure(theirs), rtol=1e-4)


def test_matched_sigma_broadcasts_and_refuses():
    both = matched_sigma([0.1, 0.2], [[0.0], [500.0]], 3072)
    assert both.shape == (2, 2)
    assert both[0].tolist() == [0.1, 0.2]
    assert isinstance(matched_sigma(0.5, 500, 3072), np.float64)
    for bad, message in [
        ((0.5, 3.0, 4), "k must be < dim - 1"),
        ((0.5, -1.0, 4), "k must be >= 0"),
        ((0.0, 1.0, 4), "sigma0 must be finite and > 0"),
        ((math.nan, 1.0, 4), "sigma0 must not be NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            matched_sigma(*bad)
    with pytest.raises(ValueError, match="rule must be one of"):
        matched_sigma(0.5, 1.0, 4, "median")
    assert matched_sigma(0.5, 3.5, 4, "rms") == pytest.approx(0.5 * math.sqrt(8))


# ---------------------------------------------------------------- the law of the maximum


@pytest.mark.parametrize("case", oracle_cases("zhang_inf_mmarginal"))
def test_maximum_law_oracles(case):
    i = case["inputs"]
    law = maximum_law(i["d"], float(i["k"]))
    # Two oracle values at d = 150,528 are integration noise around zero (-2e-41).
    np.testing.assert_allclose(law.cdf(i["t"]), max(case["expected"]["cdf"], 0.0), rtol=case["rtol"], atol=1e-30)
    assert law.mode == pytest.approx(case["expected"]["mode"], abs=1e-4)


@pytest.mark.parametrize(("dim", "k"), LAWS)
def test_maximum_law_against_adaptive_quadrature(dim, k):
    law = MaximumLaw(dim, k)
    low, high = np.log(law.support)
    peak = float(special.logsumexp(law._log_density(np.linspace(low, high, 2001))))

    def density(u: float) -> float:
        t = math.exp(u)
        return math.exp((1 - k) * u - t * t / 2 + (dim - 1) * math.log(special.erf(t / math.sqrt(2))) - peak)

    knots = law.quantile(torch.tensor([1e-6, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)).log().tolist()
    parts = [
        integrate.quad(density, a, b, epsabs=0, epsrel=1e-10, limit=400)[0]
        for a, b in zip([low, *knots], [*knots, high], strict=True)
    ]
    total = sum(parts)
    np.testing.assert_allclose(np.cumsum(parts)[:5] / total, [1e-6, 0.1, 0.5, 0.9, 1 - 1e-6], rtol=1e-6)
    assert law.log_mass == pytest.approx(peak + math.log(total), abs=1e-6)


def test_maximum_law_quantile_inverts_cdf_and_ends_are_finite():
    law = maximum_law(3072, 250.0)
    p = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = law.quantile(p)
    assert torch.isfinite(t).all()
    assert (t.diff() > 0).all()
    np.testing.assert_allclose([law.cdf(float(x)) for x in t], p.numpy(), atol=1e-12)
    assert law.cdf(law.support[0] / 2) == 0.0
    assert law.cdf(law.support[1] * 2) == pytest.approx(1.0, abs=1e-15)
    assert maximum_law(4, 3.5).mode == 0.0


def test_log_erf_in_both_tails():
    for x in (1e-9, 0.3, 0.999, 1.001, 3.0):
        assert float(log_erf(x)) == pytest.approx(math.log(math.erf(x)), rel=1e-12)
    assert float(log_erf(7.0)) == pytest.approx(-math.erfc(7.0), rel=1e-12)


# ---------------------------------------------------------------- samplers


@pytest.mark.parametrize(("dim", "k"), LAWS)
def test_l2_family_norm_and_direction(dim, k):
    noise = NormPowerNoise(0.7, k, dim, match="none")
    z = draws(noise, rows_for(dim)).double()
    square = z.square().sum(1) / 0.7**2
    assert stats.kstest(square / 2, stats.gamma((dim - k) / 2).cdf).pvalue > REJECT
    if dim > 2:
        first = 0.5 * (1 + z[:, 0] / z.norm(dim=1))
        assert stats.kstest(first, stats.beta((dim - 1) / 2, (dim - 1) / 2).cdf).pvalue > REJECT
    assert abs(float(z[:, -1].sign().mean())) < 5 / math.sqrt(len(z))


@pytest.mark.parametrize(("dim", "k"), LAWS)
def test_mixed_family_maximum_position_and_norm(dim, k):
    noise = MixedNormNoise(1.3, k, dim, match="none")
    z = draws(noise, rows_for(dim), seed=1).double() / 1.3
    largest, where = z.abs().max(1)
    law = maximum_law(dim, k)
    assert stats.kstest([law.cdf(float(t)) for t in largest], "uniform").pvalue > REJECT
    # The joint law: the sum of squares is a Gamma variable although it is made of a maximum and truncated normals.
    assert stats.kstest(z.square().sum(1) / 2, stats.gamma((dim - k) / 2).cdf).pvalue > REJECT
    assert stats.kstest((where + torch.rand(len(where))) / dim, "uniform").pvalue > REJECT
    assert abs(float(z.gather(1, where[:, None]).sign().mean())) < 5 / math.sqrt(len(z))


def test_mixed_family_other_coordinates_are_truncated_normals():
    z = draws(MixedNormNoise(1.0, 250.0, 3072, match="none"), 50).double()
    largest, where = z.abs().max(1)
    others = z[torch.arange(3072) != where[:, None]].view(50, 3071).numpy()
    edge = special.ndtr(-largest.numpy())[:, None]
    uniform = (special.ndtr(others) - edge) / (1 - 2 * edge)
    assert stats.kstest(uniform.ravel(), "uniform").pvalue > REJECT
    # Independent within a draw: the lag-one correlation of normal scores is N(0, 1/n).
    score = special.ndtri(np.clip(uniform, 1e-9, 1 - 1e-9))
    assert abs((score[:, 1:] * score[:, :-1]).mean()) < 5 / math.sqrt(score.size)


def test_mixed_family_with_l2_power_keeps_the_direction_and_changes_the_norm():
    plain, tilted = (MixedNormNoise(1.0, 40.0, 300, k_2=k_2, match="none") for k_2 in (0.0, 180.0))
    a, b = draws(plain, 8000, 2).double(), draws(tilted, 8000, 3).double()
    assert stats.kstest(b.square().sum(1) / 2, stats.gamma((300 - 220) / 2).cdf).pvalue > REJECT
    ratio_a, ratio_b = (z.abs().amax(1) / z.norm(dim=1) for z in (a, b))
    assert stats.ks_2samp(ratio_a, ratio_b).pvalue > REJECT
    assert abs(stats.pearsonr(ratio_b, b.norm(dim=1)).statistic) < 5 / math.sqrt(8000)


@pytest.mark.parametrize(("dim", "k"), LAWS)
def test_pure_family_norm_and_cube(dim, k):
    z = draws(PureLinfNoise(2.0, k, dim, match="none"), rows_for(dim), 4).double() / 2.0
    largest, where = z.abs().max(1)
    assert stats.kstest(largest.square() / 2, stats.gamma((dim - k) / 2).cdf).pvalue > REJECT
    assert stats.kstest((where + torch.rand(len(where))) / dim, "uniform").pvalue > REJECT
    column = (z[:, 0] / largest)[where != 0]
    if len(column) > 10:
        assert stats.kstest(column, stats.uniform(-1, 2).cdf).pvalue > REJECT


@pytest.mark.parametrize(
    "noise",
    [
        NormPowerNoise(0.8, 1.2, 2),
        MixedNormNoise(0.8, 1.0, 2),
        MixedNormNoise(0.8, 0.5, 2, k_2=0.6),
        PureLinfNoise(0.8, 1.2, 2),
        MixedNormNoise(0.8, 0.0, 2),
    ],
    ids=repr,
)
def test_sampler_and_normalised_density_agree_in_the_plane(noise):
    """Chi-square of 100,000 draws in 24 x 18 polar cells against the integral of exp(log_density)."""
    z = draws(noise, 100_000, 5).double().numpy()
    edges = np.concatenate([[0.0], np.quantile(np.hypot(*z.T), np.linspace(0.04, 0.98, 17)), [12.0]])
    expected = np.empty((24, 18))
    x, w = np.polynomial.legendre.leggauss(40)
    for j in range(18):
        # u -> u^8 removes the power singularity at the origin.
        a, b = (edges[j : j + 2]) ** (1 / 8)
        u, wu = 0.5 * (a + b) + 0.5 * (b - a) * x, 0.5 * (b - a) * w
        for i in range(24):
            angle, wa = np.pi / 12 * (i + 0.5 + 0.5 * x), np.pi / 24 * w
            r, t = np.meshgrid(u**8, angle, indexing="ij")
            points = torch.from_numpy(np.stack([r * np.cos(t), r * np.sin(t)], axis=-1))
            density = noise.log_density(points).exp().numpy()
            expected[i, j] = np.einsum("ij,i,j->", density * r, wu * 8 * u**7, wa)
    assert expected.sum() == pytest.approx(1.0, abs=1e-5)
    angle = np.mod(np.arctan2(z[:, 1], z[:, 0]), 2 * np.pi)
    observed = np.histogram2d(angle, np.hypot(*z.T), bins=[np.linspace(0, 2 * np.pi, 25), edges])[0]
    chi = ((observed - 1e5 * expected) ** 2 / (1e5 * expected)).sum()
    assert stats.chi2(24 * 18 - 1).sf(chi) > REJECT


@pytest.mark.parametrize("dim", [2, 24, 3072])
def test_standard_deviation_of_a_coordinate(dim):
    laws = [
        NormPowerNoise(0.25, 0.4 * dim, dim),
        MixedNormNoise(0.25, 0.3 * dim, dim, k_2=0.1 * dim),
        PureLinfNoise(0.25, 0.4 * dim, dim),
        NormPowerNoise(0.25, 0.4 * dim, dim, match="mode"),
        PureLinfNoise(0.25, 0.4 * dim, dim, match="none"),
    ]
    for noise in laws:
        rows = 500 if dim > 100 else 4000
        square = draws(noise, rows, 6).double().square().mean(1)
        error = 6 * float(square.std()) / math.sqrt(rows)
        assert abs(float(square.mean()) - noise.sigma**2) < error
        assert noise.sigma == 0.25 or noise.match != "rms"


def test_zero_power_is_the_gaussian():
    z = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    normal = stats.multivariate_normal(np.zeros(6), 0.09 * np.eye(6)).logpdf(z.numpy())
    for noise in (NormPowerNoise(0.3, 0.0, 6), MixedNormNoise(0.3, 0.0, 6)):
        assert noise.scale == 0.3
        np.testing.assert_allclose(noise.log_density(z), normal, rtol=1e-7)
        column = draws(noise, 30_000, 7)[:, 3].double()
        assert stats.kstest(column, stats.norm(0, 0.3).cdf).pvalue > REJECT


def test_float64_is_used_where_the_tail_needs_it():
    assert single_precision_suffices(3072, 250.0)
    assert not single_precision_suffices(3072, 0.0)
    assert not single_precision_suffices(3072, 3071.75)
    out = torch.empty(20_000, 30, dtype=torch.float64)
    fill_mixed_norm_(out, 0.0, 0.0, torch.Generator().manual_seed(1))
    # 24-bit uniforms would leave 2^24 distinct magnitudes; 600,000 doubles should all differ.
    assert out.abs().unique().numel() == out.numel()


def test_draws_repeat_with_the_generator_and_differ_without():
    for noise in (NormPowerNoise(1.0, 3.0, 10), MixedNormNoise(1.0, 2.0, 10, 1.0), PureLinfNoise(1.0, 3.0, 10)):
        assert torch.equal(draws(noise, 5, 1), draws(noise, 5, 1))
        assert not torch.equal(draws(noise, 5, 1), draws(noise, 5, 2))


# ---------------------------------------------------------------- densities, shifts, shapes


@pytest.mark.parametrize("dim", [3, 40])
def test_likelihood_ratio_has_mean_one(dim):
    """E_0[pi_delta / pi_0] = 1 for small shifts, within 6 standard errors."""
    for noise in (NormPowerNoise(1.0, 1.0, dim), MixedNormNoise(1.0, 1.0, dim, 0.5), PureLinfNoise(1.0, 1.0, dim)):
        z = draws(noise, 100_000, 8).double()
        delta = torch.full((dim,), 0.1 / math.sqrt(dim), dtype=torch.float64)
        ratio = (noise.log_density(z - delta) - noise.log_density(z)).exp()
        assert abs(float(ratio.mean()) - 1) < 6 * float(ratio.std()) / math.sqrt(len(z))


def test_densities_are_even_and_fall_in_every_coordinate():
    for noise in (NormPowerNoise(1.0, 3.0, 5), MixedNormNoise(1.0, 2.0, 5, 1.0), PureLinfNoise(1.0, 3.0, 5)):
        z = draws(noise, 1000, 9).double()
        flips = torch.where(torch.rand(5) < 0.5, -1.0, 1.0).double()
        torch.testing.assert_close(noise.log_density(z * flips), noise.log_density(z))
        farther = z.clone()
        farther[:, 2] *= 1.1
        assert (noise.log_density(farther) <= noise.log_density(z) + 1e-12).all()


def test_worst_shift_beats_other_shifts():
    """Monte Carlo of the discrepancy at 60 random shifts in the l-infinity ball, against the corner."""
    noise = MixedNormNoise(1.0, 1.0, 3, match="none")
    z = draws(noise, 200_000, 10).double()
    base = noise.log_density(z)

    def discrepancy(delta: torch.Tensor) -> torch.Tensor:
        return (1.0 - (noise.log_density(z - delta) - base).exp()).clamp_min(0).mean()

    corner = discrepancy(noise.worst_shift("linf", 0.5))
    generator = torch.Generator().manual_seed(0)
    inside = (torch.rand(60, 3, dtype=torch.float64, generator=generator) - 0.5).clamp(-0.5, 0.5)
    assert all(discrepancy(delta) < corner for delta in inside)
    with pytest.raises(ValueError, match="norm must be one of 'linf', got 'l2'"):
        noise.worst_shift("l2", 0.5)
    assert NormPowerNoise(1.0, 1.0, 3).worst_shift("l2", 0.5).tolist() == [0.5, 0.0, 0.0]
    assert NormPowerNoise(1.0, 1.0, 3).worst_shift("linf", 0.5).tolist() == [0.5, 0.5, 0.5]


def test_shapes_and_arguments_are_refused():
    noise = NormPowerNoise(0.25, 500, 3072)
    noise.check_shape((3, 32, 32))
    with pytest.raises(ValueError, match=r"dim must be the number of input coordinates, got 3072 for .* \(1, 28, 28\)"):
        noise.check_shape((1, 28, 28))
    with pytest.raises(ValueError, match="k must be < dim - 1 for rule 'mode'"):
        NormPowerNoise(0.25, 3.5, 4, match="mode")
    with pytest.raises(ValueError, match="match must be one of 'rms', 'none', got 'mean'"):
        PureLinfNoise(0.25, 1.0, 4, match="mean")
