"""Networks that look for the image in the floating-point sum with the noise, and statements about lattices."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from lightning_rs import Certifier
from lightning_rs.certificates import (
    Certificate,
    DipoleL2,
    FirstOrderL1,
    FirstOrderSubspaceL2,
    GaussianL2,
    LaplaceL1,
    SecondOrderL2,
    UniformL1,
)
from lightning_rs.certificates._gradient_evidence import GradientMeans
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.engine.streams import Purpose
from lightning_rs.evidence import Evidence, GradientSums, PairGradientSums, PairProducts, Votes
from lightning_rs.functional import levine_scaled_gradient_upper
from lightning_rs.noise import (
    AblationNoise,
    AdditiveNoise,
    GaussianNoise,
    LaplaceNoise,
    MixedNormNoise,
    Noise,
    NormPowerNoise,
    PureLinfNoise,
    SplittingNoise,
    UniformNoise,
)
from lightning_rs.records import Header
from lightning_rs.setting import Selection
from tests.helpers import HalfSpace, tiny_cnn

PLAIN = Runtime(micro_batch=64, channels_last=False, fuse=False, fold=False)
SHAPE = (3, 16, 16)
DIM = 3 * 16 * 16


class Finder(nn.Module):
    """Class 1 if some input cannot be ``x + w``: not a multiple of ``step``, or not what float32 gives for ``x``."""

    def __init__(self, x: Tensor, step: float | None = None) -> None:
        super().__init__()
        self.register_buffer("x", x.flatten())
        self.step = step
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: Tensor) -> Tensor:
        v = rows.flatten(1).float()
        if self.step is None:
            found = ((v - self.x) + self.x != v).any(1)
        else:
            found = (torch.round(v.double() / self.step) * self.step != v.double()).any(1)
        return torch.stack([(~found).float(), found.float()], 1) * self.scale


def without_lattice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the float path of before back."""
    monkeypatch.setattr(AdditiveNoise, "on_lattice", lambda self, grid: None)


def shares(network: nn.Module, noise: Noise, images: Tensor, seed: int, runtime: Runtime = PLAIN) -> np.ndarray:
    """The share of class 1 at each image, from the real loop at n = 300."""
    certifier = Certifier(n0=1, n=300, seed=seed, runtime=runtime, certificates=[AnyNoise()])
    session = certifier.session(network, noise, tuple(images.shape[1:]), grid=255)
    return np.array([record.counts[1] / 300 for record in session.certify(images, indices=[2 * seed, 2 * seed + 1])])


class AnyNoise(GaussianL2):
    """Reads votes of any noise: only its counts are used here."""

    noises = (Noise,)


BLACK = torch.zeros(SHAPE)
NEAR = torch.full(SHAPE, 1 / 255)
GREY = torch.full(SHAPE, 100 / 255)
LAWS = [
    GaussianNoise(0.25),
    UniformNoise(sigma=1.0),
    UniformNoise(0.5),
    LaplaceNoise(1.0),
    NormPowerNoise(0.25, 50.0, DIM),
    MixedNormNoise(0.25, 50.0, DIM),
    PureLinfNoise(0.25, 50.0, DIM),
]
FINDERS = [
    (Finder(BLACK, 2.0**-32), torch.stack([BLACK, NEAR])),
    (Finder(BLACK, 2.0**-25), torch.stack([BLACK, NEAR])),
    (Finder(GREY), torch.stack([GREY, GREY + NEAR])),
]


def differences(noise: Noise, seeds: int, runtime: Runtime = PLAIN) -> float:
    """The largest |p(x) - p(x')| of the finders over some seeds."""
    found = [shares(net, noise, x, seed, runtime) for net, x in FINDERS for seed in range(seeds)]
    return max(abs(a - b) for a, b in found)


@pytest.mark.parametrize("noise", LAWS, ids=repr)
@pytest.mark.parametrize("seeds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_nobody_finds_the_image_in_the_sum(noise: Noise, seeds: int) -> None:
    # Two shares of 300 votes: 5 standard deviations of their difference at p = 1/2.
    assert differences(noise, seeds) < 5 * math.sqrt(0.5 / 300)


@pytest.mark.parametrize("noise", LAWS, ids=repr)
def test_in_floating_point_it_is_found(noise: Noise, monkeypatch: pytest.MonkeyPatch) -> None:
    without_lattice(monkeypatch)
    assert differences(noise, 1) > 0.3  # the other test allows .2


@pytest.mark.parametrize("seeds", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_nor_in_bfloat16(seeds: int) -> None:
    bf16 = Runtime(micro_batch=64, precision="bf16-true", channels_last=False, fuse=False, fold=False)
    assert differences(GaussianNoise(0.25), seeds, bf16) < 5 * math.sqrt(0.5 / 300)


@pytest.mark.parametrize("runtime", [Runtime(micro_batch=32), Runtime(micro_batch=32, precision="int8")], ids=repr)
def test_what_a_fused_network_sees_is_a_function_of_the_whole_number(runtime: Runtime) -> None:
    # The same stream at two images: the inputs are k / 255 for whole k, and differ by the images everywhere.
    x = torch.stack([torch.full((2, 6, 6), 20 / 255), torch.full((2, 6, 6), 21 / 255)])
    session = Certifier(n0=1, n=10, runtime=runtime).session(tiny_cnn(), GaussianNoise(0.25), (2, 6, 6), grid=255)
    first, second = (session.sampler.draw_rows(image[None]) for image in x)
    whole = torch.round(first.double() * 255)
    assert torch.equal(first, (whole.float() / 255))
    assert torch.equal(second, ((whole + 1).float() / 255))


def test_a_float_sampler_fails_that() -> None:
    prepared = Runtime(micro_batch=32).prepare(tiny_cnn(), (2, 6, 6), "cpu")
    rows = Sampler(prepared, GaussianNoise(0.25), "x", 0).draw_rows(torch.full((1, 2, 6, 6), 20 / 255))
    assert not torch.equal(rows, torch.round(rows.double() * 255).float() / 255)


class TestStreams:
    KINDS: tuple[type[Evidence], ...] = (Votes, GradientSums)

    def run(self, noise: Noise, grid: int | None, threads: int, micro_batch: int, images: int = 3) -> list[Any]:
        runtime = Runtime(micro_batch=micro_batch, threads=threads, channels_last=False, fuse=False)
        prepared = runtime.prepare(HalfSpace(torch.linspace(-1, 1, 2000)), (2000,), "cpu")
        engine = Sampler(prepared, noise, "c", 0, lattice=noise.on_lattice(grid))
        x = torch.randint(0, 256, (3, 2000), generator=torch.Generator().manual_seed(0))[:images] / 255
        chosen = Selection.known([1] * images)
        found = engine.collect(x, range(images), "estimation", 300, list(self.KINDS), chosen)
        votes, sums = found[Votes], found[GradientSums]
        assert isinstance(votes, Votes)
        assert isinstance(sums, GradientSums)
        return [votes.counts, *sums.means(1.0)]

    @pytest.mark.parametrize("grid", [255, None])
    @pytest.mark.parametrize("noise", [GaussianNoise(0.5), UniformNoise(0.5), LaplaceNoise(0.5)], ids=repr)
    def test_are_the_same_for_any_batches_and_threads(self, noise: Noise, grid: int | None) -> None:
        counts, first, second = self.run(noise, grid, 1, 128)
        for threads, micro_batch, images in ((2, 128, 3), (1, 256, 3), (1, 128, 2)):
            other = self.run(noise, grid, threads, micro_batch, images)
            assert (other[0] == counts[:images]).all()
            # Sums of floats are cut where micro-batches end.
            assert other[1] == pytest.approx(first[:images], abs=1e-12)
            assert other[2] == pytest.approx(second[:images], abs=1e-12)

    def test_no_variates_are_kept_where_only_votes_are_counted(self) -> None:
        session = Certifier(n0=1, n=100, runtime=PLAIN).session(HalfSpace(torch.ones(4)), GaussianNoise(0.5), (4,))
        next(session.certify(torch.zeros(1, 4)))
        assert all(slot.variates is None for slot in session.sampler._slots)


class TestGradients:
    """On a coarse lattice a half-space's scaled gradient is phi(threshold) exactly, in the direction of its axis."""

    SIGMA, GRID = 0.5, 16

    def collect(self, kinds: list[type[Evidence]], n: int, seed: int, purpose: Purpose = "estimation") -> Any:
        noise = GaussianNoise(self.SIGMA)
        lattice = noise.on_lattice(self.GRID)
        axis = torch.zeros(6)
        axis[0] = 1.0
        # Class 1 where J >= 12 steps of 1/64: between the lattice points 11 and 12.
        step = 1 / lattice.lattice.scale
        network = HalfSpace(axis, offset=11.5 * step)
        engine = Sampler(PLAIN.prepare(network, (6,), "cpu"), noise, "c", seed, lattice=lattice)
        found = engine.collect(torch.zeros(1, 6), [seed], purpose, n, kinds, Selection.known([1]))
        z = 11.5 * step / self.SIGMA
        return found, float(stats.norm.sf(z)), float(stats.norm.pdf(z))

    @pytest.mark.parametrize("kind", [GradientSums, PairGradientSums])
    def test_bounds_cover(self, kind: type[GradientSums]) -> None:
        alpha, missed = 0.1, 0
        for seed in range(100):
            found, _, gradient = self.collect([kind], 400, seed)
            lower, upper = GradientMeans(found[kind], self.SIGMA).l2(alpha)
            missed += not lower[0] <= gradient <= upper[0]
        assert stats.binom.sf(missed - 1, 100, 2 * alpha) > 1e-4

    def test_a_bound_of_half_the_gradient_is_missed(self) -> None:
        missed = 0
        for seed in range(20):
            found, _, gradient = self.collect([GradientSums], 4000, seed)
            missed += GradientMeans(found[GradientSums], self.SIGMA).l2(0.1).upper[0] / 2 < gradient
        assert missed == 20

    def test_products_of_pairs_cover(self) -> None:
        missed = 0
        for seed in range(60):
            found, _, gradient = self.collect([PairProducts], 400, seed)
            upper = levine_scaled_gradient_upper(found[PairProducts].mean, 200, 6, self.SIGMA, 0.1)
            missed += upper[0] < gradient
        assert stats.binom.sf(missed - 1, 60, 0.1) > 1e-4

    def test_the_mean_is_that_of_the_theorem(self) -> None:
        found, _, gradient = self.collect([GradientSums], 40_000, 1)
        means = GradientMeans(found[GradientSums], self.SIGMA).mean[0]
        assert means[0] == pytest.approx(gradient, abs=5 * 0.5 / math.sqrt(40_000))
        assert np.abs(means[1:]).max() < 5 * 0.5 / math.sqrt(40_000)

    @pytest.mark.parametrize("certificate", [SecondOrderL2(), DipoleL2(), FirstOrderL1()], ids=repr)
    def test_radii_of_a_half_space_hold(self, certificate: Certificate) -> None:
        # The distance of x from the boundary is 11.5 steps; class 0 certainly has no larger radius.
        step, axis = 1 / 64, torch.zeros(6)
        axis[0] = 1.0
        network = HalfSpace(axis, offset=11.5 * step)
        certifier = Certifier([certificate], n0=20, n=1000, alpha=0.05, runtime=PLAIN)
        session = certifier.session(network, GaussianNoise(self.SIGMA), (6,), grid=self.GRID)
        records = list(session.certify(torch.zeros(40, 6)))
        false = sum(r.prediction == 0 and r.radius > 11.5 * step for r in records)
        false += sum(r.prediction == 1 for r in records)
        assert stats.binom.sf(false - 1, 40, 0.05) > 1e-4
        assert sum(r.radius > 0 for r in records) > 30


class TestStatements:
    NETWORK = HalfSpace(torch.ones(4), offset=-3.0)

    def certify(self, noise: Noise, certificate: Certificate, grid: int | None, n: int = 1000) -> Any:
        certifier = Certifier([certificate], n0=10, n=n, runtime=PLAIN)
        session = certifier.session(self.NETWORK, noise, (4,), grid=grid)
        return session, next(session.certify(torch.full((1, 4), 51 / 255)))

    def test_on_a_grid(self) -> None:
        session, record = self.certify(GaussianNoise(0.25), GaussianL2(), 255)
        assert record.grid == 255
        assert "rounding" not in record.bounds
        said = repr(record)
        assert "between images on the grid {0, 1/255, ..., 1}" in said
        assert "the arithmetic is exact up to the network's input, the noise law to 2.5e-13" in said
        lattice = session.describe()["lattice"]
        assert (lattice["grid"], lattice["bits"], lattice["scale"]) == (255, 0, 255)
        assert lattice["alpha_noise"] == pytest.approx(2.5e-13, rel=0.02)

    def test_off_the_grid_the_rounding_is_taken_off(self) -> None:
        _, record = self.certify(GaussianNoise(0.25), GaussianL2(), None)
        assert record.grid is None
        plain = float(-0.25 * stats.norm.ppf(record.bounds["q_upper"]))
        assert record.radius == pytest.approx(plain - record.bounds["rounding"], abs=1e-12)
        assert 1e-7 < record.bounds["rounding"] < 1e-4 * record.radius
        assert "images are rounded to a lattice, which is taken off the radius" in repr(record)

    def test_the_law_of_a_floating_point_generator_is_said_to_be_one(self) -> None:
        _, record = self.certify(NormPowerNoise(0.25, 2.0, 4), AnyNoise(), 255)
        assert "the noise law is that of a floating-point generator" in repr(record)

    def test_without_a_lattice_it_is_said(self, monkeypatch: pytest.MonkeyPatch) -> None:
        without_lattice(monkeypatch)
        session, record = self.certify(GaussianNoise(0.25), GaussianL2(), 255)
        assert "noise and image are combined in floating point, which the theorem does not know" in repr(record)
        assert session.describe()["lattice"] is None

    @pytest.mark.parametrize("noise", [SplittingNoise(0.5), AblationNoise(2, shape=(1, 2, 2))], ids=repr)
    def test_noise_that_adds_nothing_needs_none(self, noise: Noise) -> None:
        assert noise.on_lattice(255) is None
        assert "exact" in noise.arithmetic

    def test_what_is_left_of_alpha_is_used(self) -> None:
        session, record = self.certify(GaussianNoise(0.25), GaussianL2(), 255)
        spent = session.describe()["lattice"]["alpha_noise"]
        assert 0 < spent == 0.001 - session.setting.alpha or session.setting.alpha == pytest.approx(
            0.001 - spent, rel=1e-15
        )
        assert record.alpha == 0.001

    def test_another_lattice_is_another_experiment(self) -> None:
        headers = [
            Header.create(self.certify(GaussianNoise(0.25), GaussianL2(), grid)[0].describe(), data={}, indices=[0])
            for grid in (255, 5, None)
        ]
        assert len({repr(header.binding["lattice"]) for header in headers}) == 3

    def test_a_subspace_askew_to_the_axes_stays_in_floating_point_off_the_grid(self, tmp_path: Any) -> None:
        np.save(tmp_path / "basis.npy", np.full((1, 4), 0.5))
        certificate = FirstOrderSubspaceL2(str(tmp_path / "basis.npy"))
        assert "floating point" in repr(self.certify(GaussianNoise(0.25), certificate, None)[1])
        assert "arithmetic is exact" in repr(self.certify(GaussianNoise(0.25), certificate, 255)[1])

    @pytest.mark.parametrize(
        ("noise", "certificate"), [(UniformNoise(0.5), UniformL1()), (LaplaceNoise(0.5), LaplaceL1())]
    )
    def test_l1_off_the_grid(self, noise: Noise, certificate: Certificate) -> None:
        _, record = self.certify(noise, certificate, None)
        assert record.radius > 0
        assert 0 < record.bounds["rounding"] < 1e-4 * record.radius
