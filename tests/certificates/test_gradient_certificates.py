"""The gradient certificates end to end: real noise, the real loop, classifiers whose true distances are known."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from torch import Tensor, nn

from lightning_rs.certificates._gradient_evidence import INFEASIBLE, NO_GAIN
from lightning_rs.certificates.base import ABSTAIN, Certificate, Radii, Setting
from lightning_rs.certificates.dipole import DipoleGradientL2, DipoleL2
from lightning_rs.certificates.first_order_norms import FirstOrderL1, FirstOrderLinf
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.certificates.second_order import SecondOrderL2
from lightning_rs.certificates.subspace import ChannelL2, FirstOrderSubspaceL2
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import Evidence, GradientSums, PairGradientSums, PairProducts, PairVotes, Plan, Votes
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.numerics.regions import region_mask
from lightning_rs.setting import Selection
from tests.helpers import HalfSpace

SHAPE = (3, 2, 4)
DIM = 24
SIGMA = 0.5
Array = NDArray[np.float64]

IID = [
    GaussianL2(),
    SecondOrderL2(),
    FirstOrderL1(),
    FirstOrderLinf(),
    ChannelL2("red"),
]
PAIRS: list[Certificate] = [DipoleL2(), DipoleGradientL2()]


class Slab(nn.Module):
    """f(x) = 1{|w.x - m| < h}, w a unit vector: at w.x = m the smoothed probability has no gradient."""

    def __init__(self, weight: Tensor, half_width: float, middle: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.flatten() / weight.norm())
        self.half_width, self.middle = half_width, middle

    def forward(self, x: Tensor) -> Tensor:
        off = (x.flatten(1) @ self.weight.to(x.dtype) - self.middle).abs()
        return torch.stack([off - self.half_width, self.half_width - off], dim=1)


def _distance(certificate: Certificate, unit: Array, l2: float) -> float:
    """True distance in the certificate's norm, of a classifier that changes at l2 distance along ``unit``."""
    name, _, region = certificate.norm.partition(":")
    part = unit[region_mask(region or None, SHAPE)] if region != "subspace" else unit[:2]
    dual = {"l1": np.abs(part).max(), "l2": np.linalg.norm(part), "linf": np.abs(part).sum()}[name]
    return l2 / float(dual)


def _weight() -> Tensor:
    weight = torch.linspace(-1, 1, DIM)
    weight[:8] *= 0.2
    return weight / weight.norm()


def _records(
    certificates: list[Certificate], network: nn.Module, n: int, images: int = 1, alpha: float = 0.001
) -> list:
    certifier = Certifier(certificates, n0=50, n=n, alpha=alpha, runtime=Runtime(micro_batch=400))
    return certifier.certify(network, GaussianNoise(SIGMA), torch.full((images, *SHAPE), 0.5))


@pytest.mark.parametrize("certificates", [IID, PAIRS], ids=["iid", "pairs"])
def test_one_pass_serves_all_and_none_exceeds_the_truth(certificates: list[Certificate]) -> None:
    weight = _weight()
    offset = float(0.5 * weight.sum()) - 1.0 * SIGMA
    record = _records(certificates, HalfSpace(weight, offset), n=20_000)[0]
    for certificate in certificates:
        truth = _distance(certificate, weight.numpy(), 1.0 * SIGMA)
        least = 0.9 * SIGMA / (math.sqrt(DIM) if certificate.norm == "linf" else 1.0)
        assert least < record.radii[certificate.name] < truth


def test_what_no_gradient_is_worth() -> None:
    """A slab hides its walls from the vote but not from gradient and dipole: both exceed Cohen's radius."""
    weight = _weight()
    network = Slab(weight, 1.1 * SIGMA, float(0.5 * weight.sum()))
    p = 1 - 2 * norm.sf(1.1)
    truth = SIGMA * next(r for r in np.linspace(0, 3, 30_001) if norm.cdf(1.1 - r) - norm.cdf(-1.1 - r) <= 0.5)
    found = _records(IID, network, n=60_000)[0].radii
    pairs = _records(PAIRS, network, n=60_000)[0].radii
    assert SIGMA * norm.ppf(p) < 0.31
    assert found["GaussianL2"] + 0.05 < found["SecondOrderL2"] < truth
    assert found["GaussianL2"] + 0.05 < pairs["DipoleL2"] < truth
    assert found["GaussianL2"] + 0.05 < pairs["DipoleGradientL2"] < truth


@pytest.mark.parametrize("certificates", [[SecondOrderL2(), FirstOrderL1(), ChannelL2("blue")], [DipoleGradientL2()]])
def test_coverage_through_the_sampling_loop(certificates: list[Certificate]) -> None:
    """At alpha .05 and a small n, on the worst case of every theorem, the share of false radii is at most alpha."""
    weight = torch.zeros(SHAPE)
    weight[2, 0, 0] = 1.0  # blue, one coordinate: all norms of the gradient are equal
    network = HalfSpace(weight, 0.5 - 0.8 * SIGMA)
    records = _records(certificates, network, n=100, images=400, alpha=0.05)
    for certificate in certificates:
        false = sum(record.radii[certificate.name] >= 0.8 * SIGMA for record in records)
        assert binomtest(false, len(records), 0.05, alternative="greater").pvalue > 1e-6
    wishful = sum(norm.ppf(max(record.counts) / 100) >= 0.8 for record in records)
    assert binomtest(wishful, len(records), 0.05, alternative="greater").pvalue < 1e-6


def _evidence(
    certificate: Certificate, hits: int, n: int, gradient: Array, both: int = 0
) -> dict[type[Evidence], Evidence]:
    """Evidence of one image whose two half-sample means show exactly this scaled gradient."""
    top = torch.zeros(1, dtype=torch.int64)
    found: dict[type[Evidence], Evidence] = {
        Votes: Votes.of(np.array([[hits, n - hits]])),
        PairVotes: PairVotes.of(np.array([[both, 0]]), np.array([[hits - 2 * both, 0]])),
        PairProducts: PairProducts(torch.full((1,), SIGMA**2 * float(gradient @ gradient) * (n // 2)), top, n // 2),
    }
    for kind, count in ((GradientSums, n), (PairGradientSums, n // 2)):
        sizes = (count // 2, count - count // 2)
        sums = torch.tensor(SIGMA * np.stack([sizes[0] * gradient, sizes[1] * gradient])[None])
        found[kind] = kind(sums, top, sizes[0], sizes, None)
    return {kind: found[kind] for kind in certificate.evidence}


def _certify(certificate: Certificate, hits: int, n: int, gradient: Array, both: int = 0) -> Radii:
    top = np.zeros(1, dtype=np.int64)
    setting = Setting(GaussianNoise(SIGMA), 0.001, n, SHAPE, selection=Selection(top, top + 1))
    return certificate.certify(_evidence(certificate, hits, n, gradient, both), setting)


N = 10**6


def _gradient(length: float = 0.1) -> Array:
    return length * _weight().numpy().astype(np.float64)


def test_infeasible_and_useless_gradients_are_noted() -> None:
    weak, steep = _gradient(0.05), _gradient(0.9)
    cohen = _certify(GaussianL2(), 900_000, N, weak).radius[0]
    assert _certify(SecondOrderL2(), 900_000, N, weak).notes == {}
    useless = _certify(SecondOrderL2(), 900_000, N, steep)
    assert useless.notes == {0: NO_GAIN}
    assert useless.radius[0] == pytest.approx(cohen, rel=1e-3)
    levine = _certify(SecondOrderL2("levine"), 900_000, N, weak)
    assert levine.notes == {0: NO_GAIN}
    assert 0 < levine.radius[0] < cohen
    impossible = _certify(FirstOrderL1(), 900_000, N, steep)
    assert impossible.notes[0] == INFEASIBLE
    assert 0 < impossible.radius[0] < 10
    assert _certify(DipoleGradientL2(), 900_000, N, steep, both=420_000).notes == {0: NO_GAIN}


@pytest.mark.parametrize("certificate", [*IID[1:], ChannelL2("top"), SecondOrderL2("levine")], ids=repr)
def test_abstains_below_one_half(certificate: Certificate) -> None:
    found = _certify(certificate, N // 2, N, _gradient())
    assert found.prediction[0] == ABSTAIN
    assert found.radius[0] == 0.0
    assert found.notes == {}


def test_dipoles_abstain_below_one_half() -> None:
    for certificate in PAIRS:
        found = _certify(certificate, N // 2, N, _gradient(), both=N // 8)
        assert (found.prediction[0], found.radius[0]) == (ABSTAIN, 0.0)


def test_lower_bounds_help_and_their_absence_does_not_hurt_much() -> None:
    gradient = _gradient(0.15)
    for with_it, without in (
        (FirstOrderL1(), FirstOrderL1(with_l2=False)),
        (ChannelL2("red"), ChannelL2("red", with_outside=False)),
    ):
        more = _certify(with_it, 900_000, N, gradient).radius[0]
        less = _certify(without, 900_000, N, gradient).radius[0]
        assert more > less + 0.01 > _certify(GaussianL2(), 900_000, N, gradient).radius[0]


def test_linf_is_at_least_second_order_over_root_d() -> None:
    gradient = _gradient(0.05)
    linf = _certify(FirstOrderLinf(), 900_000, N, gradient).radius[0]
    l2 = _certify(SecondOrderL2(), 900_000, N, gradient).radius[0]
    assert linf == pytest.approx(l2 / math.sqrt(DIM), rel=0.03)
    # One channel has a third of the coordinates: printed Corollary 3.4 without 1/sqrt(d_S) would give the l2 radius.
    red = _certify(FirstOrderLinf(region="red"), 900_000, N, gradient).radius[0]
    channel = _certify(ChannelL2("red"), 900_000, N, gradient).radius[0]
    assert channel / math.sqrt(DIM / 3) * 0.97 < red < channel / math.sqrt(DIM / 3) * 1.05
    assert red > linf


def test_a_coordinate_subspace_by_file_is_a_channel(tmp_path: Path) -> None:
    path = tmp_path / "red.npy"
    np.save(path, np.eye(DIM)[region_mask("red", SHAPE)])
    by_file = _certify(FirstOrderSubspaceL2(str(path)), 900_000, N, _gradient())
    by_name = _certify(ChannelL2("red"), 900_000, N, _gradient())
    assert by_file.radius == pytest.approx(by_name.radius, rel=1e-12)
    rotated = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 2)))[0].T
    np.save(path, rotated)
    assert _certify(FirstOrderSubspaceL2(str(path)), 900_000, N, _gradient()).radius[0] > by_name.radius[0] * 0.8


def test_bad_bases_are_refused(tmp_path: Path) -> None:
    path = str(tmp_path / "basis.npy")
    np.save(path, np.ones((2, DIM)))
    with pytest.raises(ValueError, match="basis must hold orthonormal rows"):
        FirstOrderSubspaceL2(path)
    np.save(path, np.eye(5))
    with pytest.raises(ValueError, match="basis must have rows of length 24, got 5"):
        _certify(FirstOrderSubspaceL2(path), 900_000, N, _gradient())


@pytest.mark.parametrize(
    ("region", "shape", "indices"),
    [
        (None, (1, 2, 2), [0, 1, 2, 3]),
        ("green", (3, 1, 2), [2, 3]),
        (1, (2, 1, 2), [2, 3]),
        ("top", (1, 3, 2), [0, 1]),
        ("bottom", (1, 3, 2), [2, 3, 4, 5]),
        ("left", (2, 1, 2), [0, 2]),
        ("right", (2, 1, 2), [1, 3]),
    ],
)
def test_regions(region: str | int | None, shape: tuple[int, ...], indices: list[int]) -> None:
    assert np.flatnonzero(region_mask(region, shape)).tolist() == indices


@pytest.mark.parametrize(("region", "shape"), [("red", (1, 4, 4)), (0, (1, 4, 4)), (3, (3, 4, 4)), ("top", (3, 1, 4))])
def test_regions_that_do_not_exist(region: str | int, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"region .* does not exist in inputs of shape"):
        region_mask(region, shape)


def test_pair_products_need_whole_pairs() -> None:
    """An odd n would leave pairs out at the ends of micro-batches, and the mean would be too small."""
    engine = Sampler(
        Runtime(micro_batch=8).prepare(HalfSpace(torch.ones(DIM)), SHAPE, torch.device("cpu")),
        GaussianNoise(SIGMA),
        "c",
        0,
    )
    images = torch.full((3, *SHAPE), 0.5)
    with pytest.raises(ValueError, match="n must be even"):
        engine.collect(images, range(3), "estimation", 13, [PairProducts], Selection.known([1, 1, 1]))
    plan = Plan(images=1, classes=2, dim=DIM, n=10, top=torch.zeros(1), device=torch.device("cpu"))
    assert PairProducts.empty(plan).pairs == 5
