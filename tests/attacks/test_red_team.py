"""Certificates under attack by their own numbers: what each asserts against a truth in closed form; planted mistakes.

Everything happens on half-spaces, whose smoothed probabilities are known exactly, at the worst points of each ball. The
value test alone must find each planted mistake: no header is compared here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import ndtr
from torch import nn

from lightning_rs import Certification, Certifier, GaussianNoise, LaplaceNoise, SplittingNoise, UniformNoise
from lightning_rs.attacks import Geometry
from lightning_rs.attacks.assertions import asserted, run_tests, shortened
from lightning_rs.certificates import (
    Certificate,
    ChannelL2,
    DipoleGradientL2,
    DipoleL2,
    FirstOrderL1,
    FirstOrderLinf,
    FirstOrderSubspaceL2,
    GaussianL1,
    GaussianL2,
    GaussianLinf,
    GaussianTwoClassL2,
    LaplaceL1,
    NormPowerL2,
    SecondOrderL2,
    SecondOrderTwoClassL2,
    SplittingL1,
    UniformL1,
)
from lightning_rs.certificates.norm_power_l2 import norm_power_discrepancy, norm_power_l2_radius
from lightning_rs.certificates.values import law_value_lower
from lightning_rs.networks.normalize import Normalize
from lightning_rs.noise import Noise, NormPowerNoise
from lightning_rs.session import Session
from tests.helpers import HalfSpace

SHAPE, DIM, COUNT = (1, 4, 4), 16, 20
SIGMA, LARGER = 0.25, 1.1
N, BETA = 20_000, 1e-6
SUBSPACE = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 3)))[0].T


def direction(kind: str) -> torch.Tensor:
    """Return the weights of a half-space at which a certificate is tight, up to what confidence costs."""
    weight = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    if kind == "pixel":
        return torch.eye(DIM)[5]
    if kind == "signs":
        return torch.where(torch.arange(DIM) % 4 == 0, -1.0, 1.0)  # unbalanced: else a shift of all pixels is nothing
    if kind == "subspace":
        return torch.from_numpy(np.array([1.0, -0.5, 0.7]) @ SUBSPACE).float()
    if kind == "top":
        return torch.where(torch.arange(DIM) < DIM // 2, weight, 0.0)
    return weight


def half_space(kind: str) -> HalfSpace:
    weight = direction(kind)
    return HalfSpace(weight, offset=0.5 * float(weight.sum()))


def images() -> torch.Tensor:
    return torch.rand((COUNT, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05


@dataclasses.dataclass(frozen=True)
class Case:
    """A certificate, its noise by a factor of its scale, and the half-space at which it is tight."""

    certificate: Callable[[Path], Certificate]
    noise: Callable[[float], Noise]
    kind: str = "dense"


def plain(kind: Callable[..., Certificate], **arguments: Any) -> Callable[[Path], Certificate]:
    return lambda folder: kind(**arguments)


def subspace(folder: Path) -> Certificate:
    np.save(folder / "basis.npy", SUBSPACE)
    return FirstOrderSubspaceL2(str(folder / "basis.npy"))


def scaled(law: Callable[..., Noise], **arguments: Any) -> Callable[[float], Noise]:
    """Return a law whose scale is ``factor`` times the usual one."""
    (name, value), *others = arguments.items()
    return lambda factor: law(**{name: value * factor}, **dict(others))


GAUSSIAN = scaled(GaussianNoise, sigma=SIGMA)
CASES = {
    "GaussianL2": Case(plain(GaussianL2), GAUSSIAN),
    "GaussianTwoClassL2": Case(plain(GaussianTwoClassL2), GAUSSIAN),
    "GaussianLinf": Case(plain(GaussianLinf), GAUSSIAN, kind="signs"),
    "GaussianL1": Case(plain(GaussianL1), GAUSSIAN, kind="pixel"),
    "SecondOrderL2": Case(plain(SecondOrderL2), GAUSSIAN),
    "SecondOrderTwoClassL2": Case(plain(SecondOrderTwoClassL2), GAUSSIAN),
    "DipoleL2": Case(plain(DipoleL2), GAUSSIAN),
    "DipoleGradientL2": Case(plain(DipoleGradientL2), GAUSSIAN),
    "FirstOrderL1": Case(plain(FirstOrderL1), GAUSSIAN, kind="pixel"),
    "FirstOrderLinf": Case(plain(FirstOrderLinf), GAUSSIAN, kind="signs"),
    "FirstOrderSubspaceL2": Case(subspace, GAUSSIAN, kind="subspace"),
    "ChannelL2": Case(plain(ChannelL2, region="top"), GAUSSIAN, kind="top"),
    "UniformL1": Case(plain(UniformL1), scaled(UniformNoise, lam=0.5), kind="pixel"),
    "LaplaceL1": Case(plain(LaplaceL1), scaled(LaplaceNoise, scale=0.2), kind="pixel"),
    "SplittingL1": Case(plain(SplittingL1), scaled(SplittingNoise, lam=0.6), kind="pixel"),
    "NormPowerL2": Case(plain(NormPowerL2), scaled(NormPowerNoise, sigma=SIGMA, k=4.0, dim=DIM)),
}  # fmt: skip


# What goes beyond votes, and a law each; the others are slow tests.
QUICK = ("SecondOrderL2", "DipoleGradientL2", "FirstOrderL1", "FirstOrderSubspaceL2", "UniformL1", "LaplaceL1",
         "SplittingL1", "NormPowerL2")  # fmt: skip


@pytest.fixture(params=[name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES])
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("red")


def session_of(case: Case, folder: Path, noise: Noise, network: nn.Module) -> Session:
    certifier = Certifier([case.certificate(folder)], n=N, separate_passes=True, seed=3)
    return certifier.session(network, noise, SHAPE, domain=noise.domain)


def certify(case: Case, folder: Path, noise: Noise, network: nn.Module) -> list[Certification]:
    return list(session_of(case, folder, noise, network).certify(images(), [0] * COUNT))


@cache
def sound(case: Case, folder: Path) -> list[Certification]:
    """Return the certificates of the half-space without any mistake."""
    return certify(case, folder, case.noise(1.0), half_space(case.kind))


def geometry_of(case: Case, folder: Path) -> Geometry:
    norm = case.certificate(folder).norm
    return Geometry.of_certificate(norm, SHAPE, None, None, SUBSPACE if "subspace" in norm else None)


def worst(case: Case, folder: Path, records: list[Certification], share: float) -> torch.Tensor:
    """Return the points of the threat sets, at ``share`` of the radii, at which the half-space is worst."""
    x = images()
    toward = torch.tensor([[-1.0 if record.top == 1 else 1.0] for record in records])
    eps = torch.tensor([share * record.radius for record in records])
    geometry = geometry_of(case, folder)
    uphill = toward * direction(case.kind)[None]
    return geometry.furthest(x.flatten(1), uphill, eps).view(x.shape)


def contradictions(case: Case, folder: Path, session: Any, records: list[Certification], share: float) -> int:
    """Return how many of the images are contradicted at the image or at the worst point of the ball."""
    x, geometry = images(), geometry_of(case, folder)
    bad = set()
    for kind, points in (("clean", x), ("adversarial", worst(case, folder, records, share))):
        for record, test in zip(
            records, run_tests(session, records, x, points, kind, geometry, N, BETA / 2), strict=True
        ):
            if test.failed:
                bad.add(record.index)
    return len(bad)


@dataclasses.dataclass
class Claims:
    """A session whose votes are judged as those of another law, as if it had been drawn."""

    session: Session
    noise: Noise
    lattice: None = None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.session.predict(*args, **kwargs)


def test_what_certificates_assert_holds_in_closed_form_and_is_nearly_attained(case: Case, folder: Path) -> None:
    if not isinstance(case.noise(1.0), GaussianNoise):
        pytest.skip("the closed form below is that of Gaussian noise")
    network, noise = half_space(case.kind), case.noise(1.0)
    records = sound(case, folder)
    weight, geometry, x = direction(case.kind).double(), geometry_of(case, folder), images()
    nearest = []
    for share in (0.0, 0.5, 1 - 1e-3, 1.3, 2.0):
        generator = torch.Generator().manual_seed(5)
        reach = torch.tensor([share * record.radius for record in records])
        anywhere = geometry.random(x.flatten(1), reach, generator).view(x.shape)
        for points in (worst(case, folder, records, share), anywhere):
            distances = geometry.distance(x.flatten(1), points.flatten(1))
            for record, image, point, distance in zip(records, x, points, distances, strict=True):
                delta = (point.double() - image.double()).flatten()
                margin = float((point.flatten().double() @ weight) - network.offset) * (1 if record.top == 1 else -1)
                truth = float(ndtr(margin / SIGMA / float(weight.norm())))
                claim = asserted(record, noise, delta.numpy(), shortened(float(distance)))
                assert claim is not None
                assert claim <= truth, (record, share)
                if points is not anywhere and share == 1 - 1e-3 and record.radius > 0:
                    nearest.append(truth - claim)
    assert len(nearest) > COUNT / 2
    assert np.median(nearest) < 0.08  # what confidence costs; a bound that says nothing could not be wrong


def test_sound_certificates_survive(case: Case, folder: Path) -> None:
    noise, network = case.noise(1.0), half_space(case.kind)
    records = sound(case, folder)
    assert sum(record.radius > 0.02 for record in records) > COUNT / 2
    assert contradictions(case, folder, session_of(case, folder, noise, network), records, 1 - 1e-3) == 0


def smaller_noise(case: Case, folder: Path) -> tuple[list[Certification], Session, float]:
    """Certification drew noise that is a tenth smaller than it says."""
    network = half_space(case.kind)
    records = certify(case, folder, case.noise(1 / LARGER), network)
    return records, session_of(case, folder, case.noise(1.0), network), 1 - 1e-3


def larger_sigma(case: Case, folder: Path) -> tuple[list[Certification], Any, float]:
    """Every vote is of the smaller noise; the theorem is told a sigma that is a tenth larger: radii and claims are."""
    network, drawn = half_space(case.kind), case.noise(1 / LARGER)
    records = [
        dataclasses.replace(record, radius=LARGER * record.radius, radii={})
        for record in certify(case, folder, drawn, network)
    ]
    return records, Claims(session_of(case, folder, drawn, network), case.noise(1.0)), 1 - 1e-3


def another_normalisation(case: Case, folder: Path) -> tuple[list[Certification], Session, float]:
    other = nn.Sequential(Normalize(0.2, 0.8), half_space(case.kind))
    records = certify(case, folder, case.noise(1.0), other)
    return records, session_of(case, folder, case.noise(1.0), half_space(case.kind)), 1 - 1e-3


def stale_checkpoint(case: Case, folder: Path) -> tuple[list[Certification], Session, float]:
    other = half_space(case.kind)
    with torch.no_grad():
        other.weight += 0.3 * other.weight.norm() / 4 * torch.randn(DIM, generator=torch.Generator().manual_seed(9))
    records = certify(case, folder, case.noise(1.0), other)
    return records, session_of(case, folder, case.noise(1.0), half_space(case.kind)), 1 - 1e-3


def doubled_radii(case: Case, folder: Path) -> tuple[list[Certification], Session, float]:
    network, noise = half_space(case.kind), case.noise(1.0)
    records = [dataclasses.replace(record, radius=2 * record.radius, radii={}) for record in sound(case, folder)]
    return records, session_of(case, folder, noise, network), 1 - 1e-3


PLANTS = (smaller_noise, larger_sigma, another_normalisation, stale_checkpoint, doubled_radii)


@pytest.mark.parametrize(
    "plant",
    PLANTS,
    ids=lambda plant: plant.__name__,
)
def test_planted_mistakes_are_caught_within_twenty_images(
    case: Case, plant: Callable[[Case, Path], tuple[list[Certification], Any, float]], folder: Path
) -> None:
    records, session, share = plant(case, folder)
    assert len(records) == COUNT
    assert contradictions(case, folder, session, records, share) > 0


def test_powers_of_norms_assert_the_dual_of_their_discrepancy() -> None:
    noise = NormPowerNoise(sigma=SIGMA, k=4.0, dim=DIM)
    delta = np.zeros(DIM)
    values = []
    for r in (0.0, 0.05, 0.2, 0.4):
        delta[3] = r
        value = law_value_lower(noise, 0.02, delta)
        assert value is not None
        values.append(value)
        lam = np.geomspace(0.001, 1000.0, 4000)
        dual = lam * 0.98 - norm_power_discrepancy(lam, r, noise.scale, 4.0, DIM)  # each of them bounds it from below
        assert value == pytest.approx(float(dual.max()) if r else 0.98, abs=1e-4)
    assert values[0] == 0.98
    assert values == sorted(values, reverse=True)
    # Where the exact certificate ends, one half is what is left.
    delta[3] = float(norm_power_l2_radius(0.98, noise.scale, 4.0, DIM))
    assert law_value_lower(noise, 0.02, delta) == pytest.approx(0.5, abs=1e-6)
