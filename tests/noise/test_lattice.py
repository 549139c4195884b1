"""Exact laws on the integers, their draws, and what is rounded and deducted."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from mpmath import mp
from scipy import stats

from lightning_rs.functional import integer_gaussian_pmf
from lightning_rs.noise import (
    GaussianNoise,
    LaplaceNoise,
    MixedNormNoise,
    Noise,
    NormPowerNoise,
    PureLinfNoise,
    UniformNoise,
)
from lightning_rs.noise._integer_laws import (
    UNIT,
    IntegerLaw,
    discrete_gaussian,
    gaussian_levels,
    rounded_gaussian,
    rounded_laplace,
    signed_geometric,
    truncated_geometric,
    uniform_integers,
)
from lightning_rs.noise._tables import Scratch, Table
from lightning_rs.noise.lattice import LatticeNoise
from lightning_rs.noise.lattice_laws import OneTable, TwoTables, gaussian_on_lattice, uniform_on_lattice
from tests.oracles import oracle_cases

M = Fraction(255, 4)


def probabilities(law: IntegerLaw) -> np.ndarray:
    """Exact shares of the 2^63 numbers, as floats."""
    ends = [0, *map(int, law.thresholds), UNIT]
    return np.array([(b - a) / UNIT for a, b in itertools.pairwise(ends)])


def draw(noise: LatticeNoise, rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    out = torch.empty(rows, dim, dtype=noise.dtype)
    noise.draw_(out, torch.Generator().manual_seed(seed), Scratch())
    return out


@pytest.mark.parametrize("case", oracle_cases("integer_gaussian_pmf"), ids=str)
def test_pmf_oracles(case: dict) -> None:
    given = case["inputs"]
    found = integer_gaussian_pmf(given["w"], given["sigma"], given["levels"], given["fraction_bits"])
    assert found == pytest.approx(case["expected"], rel=case["rtol"])


@pytest.mark.parametrize("case", oracle_cases("integer_gaussian_threshold63"), ids=str)
def test_threshold_oracles(case: dict) -> None:
    given = case["inputs"]
    law = rounded_gaussian(Fraction(given["sigma"]) * given["levels"] * 2 ** given["fraction_bits"])
    assert int(law.thresholds[np.searchsorted(law.values, given["w"])]) == int(case["digits"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5, 1.0, 255, 0), "w must be whole"),
        ((0, 0.0, 255, 0), "sigma must be"),
        ((0, 1.0, 255, 0.5), "bits must be"),
    ],
)
def test_pmf_refuses(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        integer_gaussian_pmf(*arguments)


@pytest.mark.parametrize("scale", [Fraction(5, 2), Fraction(8), M, Fraction(576)])
def test_thresholds_are_the_floors_of_the_distribution_function(scale: Fraction) -> None:
    law = rounded_gaussian(scale)
    with mp.workprec(220):
        for i in [0, 1, len(law.thresholds) // 3, len(law.thresholds) // 2, len(law.thresholds) - 2]:
            z = (mp.mpf(int(law.values[i])) + mp.mpf(0.5)) * scale.denominator / scale.numerator
            assert int(law.thresholds[i]) == int(mp.floor(mp.ldexp(mp.erfc(-z / mp.sqrt(2)) / 2, 63)))


@pytest.mark.parametrize("scale", [Fraction(3, 2), Fraction(180)])
def test_laplace_thresholds(scale: Fraction) -> None:
    law = rounded_laplace(scale)
    with mp.workprec(220):
        for i in [1, len(law.thresholds) // 2 - 1, len(law.thresholds) // 2, len(law.thresholds) - 3]:
            w = int(law.values[i])
            tail = mp.exp(-(abs(w + mp.mpf(0.5))) * scale.denominator / scale.numerator) / 2
            below = tail if w < 0 else 1 - tail
            assert int(law.thresholds[i]) == int(mp.floor(mp.ldexp(below, 63)))


@pytest.mark.parametrize(
    "law",
    [
        rounded_gaussian(M),
        discrete_gaussian(Fraction(300) ** 2),
        rounded_laplace(Fraction(90)),
        signed_geometric(Fraction(40)),
        truncated_geometric(Fraction(70), 64),
        uniform_integers(883),
    ],
    ids=["gaussian", "discrete", "laplace", "signed", "truncated", "uniform"],
)
def test_draws_have_the_law_of_the_thresholds(law: IntegerLaw) -> None:
    table, out = Table(law), torch.empty(1 << 20, dtype=Table(law).dtype)
    table.draw_(out, torch.Generator().manual_seed(5), Scratch())
    cell = np.searchsorted(law.values, out.numpy())
    assert (law.values[cell] == out.numpy()).all()
    counts, expected = np.bincount(cell, minlength=len(law.values)), probabilities(law) * out.numel()
    # Cells are pooled until 50 draws are expected in each; level 1e-4, seed fixed.
    edges = np.unique((np.cumsum(expected) // 50).astype(int), return_index=True)[1]
    pooled, wanted = np.add.reduceat(counts, edges), np.add.reduceat(expected, edges)
    assert ((pooled - wanted) ** 2 / wanted).sum() < stats.chi2.isf(1e-4, len(edges) - 1)


def test_every_marked_entry_is_refined_with_the_thresholds() -> None:
    # All 63 bits decide: a draw equals the search among the thresholds for the number that the bits spell.
    law = rounded_gaussian(M)
    table, scratch = Table(law), Scratch()
    out = torch.empty(4096, dtype=torch.int16)
    table.draw_(out, torch.Generator().manual_seed(1), scratch)
    again = torch.Generator().manual_seed(1)
    words = torch.empty(1024, dtype=torch.int64).random_(-(1 << 63), None, generator=again)
    high = words.numpy().view(np.uint16).astype(np.int64)
    first = np.searchsorted(law.thresholds, high << 47, side="right")
    last = np.searchsorted(law.thresholds, ((high + 1) << 47) - 1, side="right")
    marked = np.flatnonzero(first != last)
    assert len(marked) > 20
    low = torch.empty(len(marked), dtype=torch.int64).random_(0, 1 << 47, generator=again).numpy()
    number = high << 47
    number[marked] |= low
    assert (law.values[np.searchsorted(law.thresholds, number, side="right")] == out.numpy()).all()


def test_two_gaussian_levels_are_one_gaussian() -> None:
    # Direct convolution against the rounded law, both to double precision.
    shift, scale = 2, Fraction(300)
    coarse, fine = gaussian_levels(scale, shift)
    spread = np.zeros((len(coarse.values) - 1) * (1 << shift) + 1)
    spread[:: 1 << shift] = probabilities(coarse)
    law = np.convolve(spread, probabilities(fine))
    w = np.arange(len(law)) - len(law) // 2
    assert np.abs(law - integer_gaussian_pmf(w, 300.0, 1, 0)).max() < 1e-15


def test_laplace_digits_are_one_laplace() -> None:
    noise = LaplaceNoise(2.0**-3).on_lattice(None)
    assert isinstance(noise, TwoTables)
    drawn = draw(noise, 400, 500).double().flatten().numpy() / noise.lattice.scale
    assert stats.kstest(drawn, stats.laplace(scale=2.0**-3).cdf).pvalue > 1e-4
    assert stats.kstest(drawn, stats.laplace(scale=0.127).cdf).pvalue < 1e-4


@pytest.mark.parametrize("sigma", [0.05, 0.25, 1.0, 30.0])
@pytest.mark.parametrize("grid", [255, 16, None])
def test_gaussian_moments_and_conditional_means(sigma: float, grid: int | None) -> None:
    noise = GaussianNoise(sigma).on_lattice(grid)
    w, means = torch.empty(200, 1000, dtype=noise.dtype), torch.empty(200, 1000, dtype=torch.float64)
    noise.draw_(w, torch.Generator().manual_seed(3), Scratch(), means)
    real = w.double() / noise.lattice.scale
    step = 1 / noise.lattice.scale
    assert float(real.mean()) == pytest.approx(0, abs=5 * sigma / math.sqrt(real.numel()))
    assert float(real.var()) == pytest.approx(sigma**2 + step**2 / 12, rel=5 * math.sqrt(2 / real.numel()))
    assert float((real - means).abs().max()) < step
    assert int(w.abs().max()) <= noise.largest


def test_conditional_means_keep_the_gradient() -> None:
    # f = 1{W >= c}: E[Z f] = phi((c - 1/2) / M), exactly; with W / M for E[Z | W] it is off on a coarse lattice.
    law = rounded_gaussian(Fraction(2))
    share = probabilities(law)
    for c in (-1, 0, 1, 3):
        above = law.values >= c
        wanted = 2 * stats.norm.pdf((c - 0.5) / 2)
        assert float((share * law.means)[above].sum()) == pytest.approx(wanted, rel=1e-12)
        assert float((share * law.values)[above].sum()) != pytest.approx(wanted, rel=1e-3)


def test_what_the_noise_law_takes_of_alpha() -> None:
    noise = GaussianNoise(0.25).on_lattice(255)
    cells = round(noise.distance * 2**64)
    assert 1100 < cells < 1250
    assert noise.level(1e-3, 100_000, 3072) == pytest.approx(1e-3 - 100_000 * 3072 * cells * 2.0**-64, rel=1e-12)
    assert noise.statement(100_000, 3072).endswith("the noise law to 1.9e-08")
    with pytest.raises(ValueError, match="alpha must exceed the error"):
        noise.level(1e-9, 100_000, 3072)


@pytest.mark.parametrize(("lam", "grid"), [(0.5, 255), (2.0, 16), (math.sqrt(3), 255), (0.37, 16)])
def test_one_grid_step_of_uniform_noise_moves_at_most_its_share(lam: float, grid: int) -> None:
    noise = uniform_on_lattice(lam, grid)
    assert isinstance(noise, OneTable)
    law = noise._table.law
    step = noise.lattice.scale // grid
    overlap = len(np.intersect1d(law.values, law.values + step))
    lost = Fraction(len(law.values) - overlap, len(law.values))
    assert lost <= Fraction(1, grid) / (2 * Fraction(lam)) * (1 + Fraction(1, 1 << 50))
    assert float(lost) == pytest.approx(1 / (2 * lam * grid), rel=3e-4 if grid == 255 else 0.03)
    assert (law.values == -law.values[::-1]).all()
    assert float(np.ptp(law.values) + 2) / noise.lattice.scale >= 2 * lam * (1 - 1e-12)


ADDITIVE = [
    GaussianNoise(0.25),
    GaussianNoise(20.0),
    UniformNoise(0.6),
    LaplaceNoise(0.3),
    NormPowerNoise(0.25, 4.0, 12),
    MixedNormNoise(0.25, 4.0, 12, 1.0),
    PureLinfNoise(0.25, 4.0, 12),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("grid", [255, None])
@pytest.mark.parametrize("noise", ADDITIVE, ids=repr)
def test_noisy_copies_of_another_image_are_translates(noise: Noise, grid: int | None, dtype: torch.dtype) -> None:
    lattice = noise.on_lattice(grid)
    assert lattice is not None
    x = torch.randint(0, 256, (2, 12), generator=torch.Generator().manual_seed(0)) / 255
    placed = lattice.place(x)
    w = draw(lattice, 50, 12)
    rows = torch.empty(2, 50, 12, dtype=dtype)
    for i in (0, 1):
        lattice.apply(placed[i], w, rows[i])
    whole = placed.double()[:, None] + w.double()
    # The network sees a function of the whole number J alone: what J gives, it gives for every image.
    assert torch.equal(rows, (whole.to(torch.float32) / lattice.lattice.scale).to(dtype))


@pytest.mark.parametrize("norm", ["l1", "l2", "linf"])
@pytest.mark.parametrize("noise", [GaussianNoise(0.3), UniformNoise(0.3), LaplaceNoise(0.3)], ids=repr)
def test_rounding_covers_the_image_and_any_other(noise: Noise, norm: str) -> None:
    lattice = noise.on_lattice(None)
    assert lattice is not None
    order = {"l1": 1, "l2": 2, "linf": math.inf}[norm]
    x = torch.rand(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = lattice.lattice.scale

    def rounded(y: torch.Tensor) -> torch.Tensor:
        return lattice.lattice.place(y) / scale

    deducted = torch.from_numpy(lattice.lattice.rounding(x, norm))
    other = x + (torch.rand(40, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 0.5)
    moved = torch.linalg.vector_norm(rounded(other) - rounded(x), order, dim=1)
    assert (moved <= torch.linalg.vector_norm(other - x, order, dim=1) + deducted).all()
    half = 0.5 * lattice.lattice.stride / scale
    assert (deducted >= half * (1 if norm == "linf" else 30 ** (1 / order))).all()
    assert (deducted < {"l1": 30, "l2": 30**0.5, "linf": 1}[norm] * 2.1 * half).all()
    # A pixel of uniform noise lies on every second point only: the copies of any two images share their points.
    assert float((lattice.place(x.float()) % lattice.lattice.stride).abs().max()) == 0


class Quiet(GaussianNoise):
    """Draws half of what it says."""

    def draw_(self, out: torch.Tensor, generator: torch.Generator | None = None) -> None:
        out.normal_(0.0, self.sigma / 2, generator=generator)


class Twice(GaussianNoise):
    """Does not add."""

    def apply(self, x: torch.Tensor, variates: torch.Tensor, out: torch.Tensor) -> None:
        out.copy_(2 * x + variates)


def test_a_subclass_that_draws_in_its_own_way_does_not_inherit_the_tables() -> None:
    noise = Quiet(0.5).on_lattice(255)
    assert float(draw(noise, 100, 100).double().std()) / 255 == pytest.approx(0.25, rel=0.05)
    assert Twice(0.5).on_lattice(255) is None


def test_images_on_a_grid_lose_nothing() -> None:
    lattice = GaussianNoise(0.25).on_lattice(255).lattice
    x = torch.arange(256).float()[:, None] / 255
    assert torch.equal(lattice.place(x)[:, 0], torch.arange(256).double())
    assert (lattice.rounding(x, "l2") == 0).all()


def test_an_image_beyond_the_integers_is_refused() -> None:
    noise = gaussian_on_lattice(0.25, None)
    with pytest.raises(ValueError, match=r"images must lie within \+-.* for noise on a lattice"):
        noise.place(torch.tensor([[0.0, 5e3]]))
