"""What every certificate promises: one table of all theorems, one set of tests. One that is missing fails."""

from __future__ import annotations

import importlib
import inspect
import json
import math
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import lightning_rs.certificates as certificate_package
from lightning_rs.certificates.ablation import AblationL0, PatchBand, PatchBlock
from lightning_rs.certificates.base import (
    ABSTAIN,
    Certificate,
    Radii,
    Setting,
    TopVoteCertificate,
    certificate_from_dict,
    certificate_to_dict,
)
from lightning_rs.certificates.dipole import DipoleGradientL2, DipoleL2
from lightning_rs.certificates.first_order_norms import FirstOrderL1, FirstOrderLinf
from lightning_rs.certificates.gaussian_l2 import GaussianL1, GaussianL2, GaussianLinf, GaussianTwoClassL2
from lightning_rs.certificates.joint import LargestRadius
from lightning_rs.certificates.laplace import LaplaceL1
from lightning_rs.certificates.lecuyer import LecuyerL2
from lightning_rs.certificates.norm_power_l2 import NormPowerL2, NormPowerLinf, NormPowerTwoClassL2
from lightning_rs.certificates.norm_power_linf import MixedNormLinf, PureLinf
from lightning_rs.certificates.renyi import RenyiL2
from lightning_rs.certificates.second_order import SecondOrderL2
from lightning_rs.certificates.second_order_two_class import SecondOrderTwoClassL2
from lightning_rs.certificates.splitting import DeterministicSplittingL1, SplittingL1
from lightning_rs.certificates.subspace import ChannelL2, FirstOrderSubspaceL2
from lightning_rs.certificates.uniform import UniformBoxL1, UniformL1, UniformLinf, UniformTwoClassL1
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.evidence import (
    EnumeratedVotes,
    Evidence,
    GradientSums,
    PairGradientSums,
    PairProducts,
    PairVotes,
    RunnerUpGradientSums,
    Votes,
)
from lightning_rs.noise.ablation import AblationNoise, BandNoise, BlockNoise
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.norm_power import MixedNormNoise, NormPowerNoise, PureLinfNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise, SplittingNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.setting import Selection
from tests.helpers import HalfSpace, bit_equal

SHAPE = (3, 2, 2)
DIM = 12
N = 400  # the number of outcomes of the enumerated example as well
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Example:
    """A certificate, a noise that it is proved for, and how many votes lie between those tried at least."""

    build: Callable[[], Certificate]
    noise: Noise
    step: int = 2


GAUSSIAN, UNIFORM = GaussianNoise(0.5), UniformNoise(0.6)
ENUMERATED = DeterministicSplittingNoise(12.5, shape=SHAPE, q=16)
NORM_POWER = NormPowerNoise(0.5, k=3.0, dim=DIM)


MIXED_NORM, PURE_LINF = MixedNormNoise(0.5, k_inf=2.0, dim=DIM), PureLinfNoise(0.5, k=9.0, dim=DIM)
_FOLDER = tempfile.TemporaryDirectory()


def subspace_basis() -> str:
    """Write two orthonormal rows for :class:`FirstOrderSubspaceL2`, which reads them from a file."""
    path = Path(_FOLDER.name) / "basis.npy"
    np.save(path, np.eye(DIM)[:2])
    return str(path)


EXAMPLES: dict[type[Certificate], list[Example]] = {
    GaussianL2: [Example(GaussianL2, GAUSSIAN)],
    GaussianL1: [Example(GaussianL1, GAUSSIAN)],
    GaussianLinf: [Example(GaussianLinf, GAUSSIAN)],
    GaussianTwoClassL2: [
        Example(GaussianTwoClassL2, GAUSSIAN),
        Example(lambda: GaussianTwoClassL2("grouped"), GAUSSIAN),
    ],
    LecuyerL2: [Example(LecuyerL2, GAUSSIAN), Example(lambda: LecuyerL2("bonferroni"), GAUSSIAN)],
    RenyiL2: [Example(RenyiL2, GAUSSIAN), Example(lambda: RenyiL2("grouped"), GAUSSIAN)],
    SecondOrderL2: [Example(SecondOrderL2, GAUSSIAN), Example(lambda: SecondOrderL2("levine"), GAUSSIAN)],
    SecondOrderTwoClassL2: [Example(SecondOrderTwoClassL2, GAUSSIAN)],
    DipoleL2: [Example(DipoleL2, GAUSSIAN)],
    DipoleGradientL2: [Example(DipoleGradientL2, GAUSSIAN)],
    FirstOrderL1: [
        Example(FirstOrderL1, GAUSSIAN),
        Example(lambda: FirstOrderL1(with_l2=False, region="red"), GAUSSIAN),
    ],
    FirstOrderLinf: [
        Example(FirstOrderLinf, GAUSSIAN),
        Example(lambda: FirstOrderLinf(with_l2=False, region="top"), GAUSSIAN),
    ],
    ChannelL2: [Example(ChannelL2, GAUSSIAN), Example(lambda: ChannelL2(2, with_outside=False), GAUSSIAN)],
    FirstOrderSubspaceL2: [Example(lambda: FirstOrderSubspaceL2(subspace_basis()), GAUSSIAN)],
    UniformL1: [Example(UniformL1, UNIFORM)],
    UniformLinf: [Example(UniformLinf, UNIFORM), Example(UniformLinf, SplittingNoise(0.6))],
    UniformBoxL1: [Example(UniformBoxL1, UNIFORM), Example(UniformBoxL1, SplittingNoise(2.5))],
    UniformTwoClassL1: [
        Example(UniformTwoClassL1, UNIFORM),
        Example(lambda: UniformTwoClassL1("grouped"), SplittingNoise(0.6)),
    ],
    LaplaceL1: [Example(LaplaceL1, LaplaceNoise(0.4))],
    SplittingL1: [Example(SplittingL1, SplittingNoise(0.6))],
    DeterministicSplittingL1: [Example(DeterministicSplittingL1, ENUMERATED)],
    PatchBand: [Example(PatchBand, BandNoise(2, shape=(1, 1, N)))],
    PatchBlock: [Example(PatchBlock, BlockNoise(3, shape=(1, 20, 20)))],
    AblationL0: [Example(AblationL0, AblationNoise(4, shape=(1, 40, 40)), step=20)],
    NormPowerL2: [Example(NormPowerL2, NORM_POWER)],
    NormPowerLinf: [Example(NormPowerLinf, NORM_POWER)],
    NormPowerTwoClassL2: [Example(NormPowerTwoClassL2, NORM_POWER, step=50)],
    MixedNormLinf: [Example(lambda: MixedNormLinf(draws=2000), MIXED_NORM)],
    PureLinf: [Example(lambda: PureLinf(draws=2000), PURE_LINF)],
    LargestRadius: [
        Example(lambda: LargestRadius([GaussianL2(), GaussianTwoClassL2()]), GAUSSIAN),
        Example(lambda: LargestRadius([DipoleL2(), DipoleGradientL2()]), GAUSSIAN),
        Example(lambda: LargestRadius([GaussianTwoClassL2(), GaussianTwoClassL2("grouped")]), GAUSSIAN),
    ],
}
ALL = [(cls.__name__, i, example) for cls, examples in EXAMPLES.items() for i, example in enumerate(examples)]
every = pytest.mark.parametrize(
    ("certificate", "noise"), [pytest.param(e.build(), e.noise, id=f"{name}-{i}") for name, i, e in ALL]
)
every_with_step = pytest.mark.parametrize(
    ("certificate", "noise", "step"), [pytest.param(e.build(), e.noise, e.step, id=f"{name}-{i}") for name, i, e in ALL]
)


def network_and_images(noise: Noise) -> tuple[HalfSpace, torch.Tensor]:
    """Return a half space and four images of the law's shape on which its votes differ."""
    shape = getattr(noise, "shape", SHAPE)
    if tuple(shape) == SHAPE:
        levels = [torch.full(SHAPE, level / 16) for level in (8, 11, 9, 12)]
        return HalfSpace(torch.arange(1.0, DIM + 1), offset=38.9), torch.stack(levels)
    # Laws that drop pixels: weights that sum to zero, images that differ in what is kept.
    dim = math.prod(shape)
    generator = torch.Generator().manual_seed(0)
    weight, images = torch.randn(dim, generator=generator), torch.rand(4, *shape, generator=generator)
    return HalfSpace(weight - weight.mean()), images


def concrete_certificates() -> set[type[Certificate]]:
    for module in pkgutil.iter_modules(certificate_package.__path__):
        importlib.import_module(f"{certificate_package.__name__}.{module.name}")
    found: set[type[Certificate]] = set()
    queue: list[type[Certificate]] = [Certificate]
    while queue:
        cls = queue.pop()
        queue += cls.__subclasses__()
        if not inspect.isabstract(cls) and cls.__module__.startswith("lightning_rs."):
            found.add(cls)
    return found


def evidence(hits: NDArray[np.int64], n: int = N, slope: float = 0.0) -> dict[type[Evidence], Evidence]:
    """Return what images with so many votes for class 1 of 3 would leave, with sums for a given gradient.

    ``slope`` is the scaled gradient along the first coordinate that both half-sample means show.
    """
    rest = n - hits
    counts = np.stack([(rest + 1) // 2, hits, rest // 2], axis=1)
    both = counts // 2
    one = np.minimum(counts % 2, np.maximum(n // 2 - both.sum(1, keepdims=True), 0))
    top = torch.ones(len(hits), dtype=torch.int64)
    found: dict[type[Evidence], Evidence] = {
        Votes: Votes.of(counts),
        EnumeratedVotes: EnumeratedVotes.of(counts),
        PairVotes: PairVotes.of(both, one),
        PairProducts: PairProducts(torch.zeros(len(hits), dtype=torch.float64), top, n // 2),
    }
    for kind, count in ((GradientSums, n), (RunnerUpGradientSums, n), (PairGradientSums, n // 2)):
        sizes = (count // 2, count - count // 2)
        sums = torch.zeros(len(hits), 2, DIM, dtype=torch.float64)
        sums[:, :, 0] = slope * GAUSSIAN.sigma * torch.tensor(sizes)
        found[kind] = kind(sums, top, sizes[0], sizes, None)
    return found


def setting(noise: Noise, images: int, alpha: float = 0.001, n: int = N) -> Setting:
    top = np.ones(images, dtype=np.int64)
    return Setting(noise, alpha, n, SHAPE, selection=Selection(top, np.zeros_like(top)))


def radii(
    certificate: Certificate, noise: Noise, hits: NDArray[np.int64], alpha: float = 0.001, slope: float = 0.0
) -> Radii:
    return certificate.certify(evidence(hits, slope=slope), setting(noise, len(hits), alpha))


def test_no_certificate_is_missing_from_the_table() -> None:
    assert concrete_certificates() == set(EXAMPLES)


def test_records_are_readable_without_knowing_where_their_certificate_lives() -> None:
    # A report imports the packages only; in this process the tests imported every module by hand.
    code = (
        "from lightning_rs.certificates import certificate_from_dict\n"
        "try: certificate_from_dict({'class': '?'})\n"
        "except ValueError as error: print(error)"
    )
    known = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    names = set(known.removeprefix("certificate must be one of ").partition(", or a class path")[0].split(", "))
    assert names == {cls.__name__ for cls in EXAMPLES}


def test_names_are_unique() -> None:
    names = [cls.__name__ for cls in EXAMPLES]
    assert len(set(names)) == len(names)


@every
def test_survives_a_record_header(certificate: Certificate, noise: Noise) -> None:
    spec = certificate_to_dict(certificate)
    plain = json.loads(json.dumps(spec))
    assert plain == spec
    again = certificate_from_dict(plain)
    assert type(again) is type(certificate)
    assert again == certificate
    assert hash(again) == hash(certificate)
    assert (again.norm, dict(again.alpha_split)) == (certificate.norm, dict(certificate.alpha_split))
    assert repr(certificate).startswith(f"{certificate.name}(")
    hits = np.array([N - 1])
    if isinstance(certificate, FirstOrderSubspaceL2):  # a header names the content of its basis, which is a file
        with pytest.raises(ValueError, match="basis must be a file to certify with"):
            radii(again, noise, hits)
        return
    assert radii(again, noise, hits).radius == radii(certificate, noise, hits).radius


def test_bad_specs_are_refused() -> None:
    with pytest.raises(ValueError, match=r"certificate must be one of .*GaussianL2.* got 'Wishful'"):
        certificate_from_dict({"class": "Wishful"})
    with pytest.raises(ValueError, match=r"certificate GaussianL2 does not take .*'hope'"):
        certificate_from_dict({"class": "GaussianL2", "hope": 1})


@pytest.mark.parametrize(
    ("cls", "arguments", "message"),
    [
        (GaussianTwoClassL2, {"method": "goodman"}, "method must be one of .*'bonferroni', 'grouped', got 'goodman'"),
        (GaussianTwoClassL2, {"method": "complement"}, "method must be one of .* got 'complement'"),
        (LecuyerL2, {"method": "x"}, "method must be one of .* got 'x'"),
        (RenyiL2, {"method": "x"}, "method must be one of .* got 'x'"),
        (UniformTwoClassL1, {"method": "x"}, "method must be one of .* got 'x'"),
        (SecondOrderL2, {"estimator": "exact"}, "estimator must be one of 'local', 'levine', got 'exact'"),
        (FirstOrderL1, {"region": "pink"}, "region must be one of .* got 'pink'"),
        (FirstOrderLinf, {"region": -1}, "region must be one of .* got -1"),
        (ChannelL2, {"region": "ultraviolet"}, "region must be one of .* got 'ultraviolet'"),
    ],
)
def test_bad_parameters_are_refused_by_name_and_value(
    cls: type[Certificate], arguments: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**arguments)


@every
def test_every_other_noise_is_refused_naming_both(certificate: Certificate, noise: Noise) -> None:
    others = [GAUSSIAN, LaplaceNoise(0.4), UNIFORM, SplittingNoise(0.6), ENUMERATED, NORM_POWER, MIXED_NORM, PURE_LINF]
    refused = [other for other in others if not isinstance(other, certificate.noises)]
    assert len(refused) >= 4
    certificate.check_noise(noise)
    for other in refused:
        proved = " or ".join(law.__name__ for law in certificate.noises)
        message = f"certificate {certificate.name} is proved for {proved}, got noise {other!r}"
        with pytest.raises(ValueError, match=re.escape(message)):
            radii(certificate, other, np.array([N]))
        with pytest.raises(ValueError, match=f"certificate {certificate.name} is proved for"):
            Certifier([certificate], n=N).session(HalfSpace(torch.ones(DIM)), other, SHAPE)


@every
def test_missing_evidence_is_refused_by_name(certificate: Certificate, noise: Noise) -> None:
    for kind in certificate.evidence:
        found = evidence(np.array([N]))
        del found[kind]
        with pytest.raises(ValueError, match=f"certificate {certificate.name} needs the evidence {kind.__name__}, got"):
            certificate.certify(found, setting(noise, 1))
    with pytest.raises(ValueError, match="got none"):
        certificate.certify({}, setting(noise, 1))


@every
@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, math.nan])
def test_alpha_must_be_a_probability(certificate: Certificate, noise: Noise, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha must"):
        radii(certificate, noise, np.array([N]), alpha=alpha)


@every
def test_alpha_is_shared_completely(certificate: Certificate, noise: Noise) -> None:
    shares = certificate.alpha_split
    if certificate.exact:
        assert not shares
    else:
        assert all(share > 0 for share in shares.values())
        assert math.fsum(shares.values()) == pytest.approx(1.0, rel=1e-12)


@every
def test_declarations_are_well_formed(certificate: Certificate, noise: Noise) -> None:
    assert certificate.norm.partition(":")[0] in ("l0", "l1", "l2", "linf", "patch")
    assert certificate.ball in ("open", "closed")
    assert len({kind.scheme for kind in certificate.evidence}) == 1
    # Variants for a region carry its name, so that several can be listed in one run.
    assert certificate.name.partition(":")[0] == type(certificate).__name__
    assert certificate.exact == (certificate.evidence[0].scheme == "enumerated")
    # Fixed, staged, randomized and anytime-valid sampling need a function of the top class's tail.
    if isinstance(certificate, TopVoteCertificate):
        assert certificate.evidence == (Votes,)
        assert certificate.votes_only


@every
@pytest.mark.parametrize("slope", [0.0, 0.05, 0.3])
def test_radii_at_the_edges(certificate: Certificate, noise: Noise, slope: float) -> None:
    hits = np.array([0, 1, N // 3, N // 2 - 1, N // 2, N // 2 + 1, N - 1, N])
    found = radii(certificate, noise, hits, slope=slope)
    assert found.radius.dtype == np.float64
    assert found.radius.shape == found.prediction.shape == hits.shape
    assert np.isfinite(found.radius).all()
    assert (found.radius >= 0).all()
    for bound in found.bounds.values():
        assert bound.shape == hits.shape
        assert not np.isnan(bound).any()
    if certificate.exact:
        assert (found.prediction >= 0).all()
        return
    assert ((found.prediction == 1) == (found.radius > 0)).all()
    assert ((found.prediction == ABSTAIN) == (found.radius == 0)).all()
    assert found.prediction[:2].tolist() == [ABSTAIN, ABSTAIN]
    assert found.radius[-1] > 0
    p_lower = found.bounds.get("p_lower")
    if p_lower is not None:
        assert ((p_lower >= 0) & (p_lower <= hits / N)).all()


@every_with_step
@pytest.mark.parametrize("slope", [0.0, 0.05])
def test_more_votes_never_mean_a_smaller_radius(
    certificate: Certificate, noise: Noise, step: int, slope: float
) -> None:
    # From one half up: below it the votes of an exact law certify another class.
    hits = np.arange(N // 2, N + 1, step)
    found = radii(certificate, noise, hits, slope=slope).radius
    assert (np.diff(found) >= -1e-12 * found.max()).all()
    assert found[-1] > found[len(found) // 2] > 0


@every_with_step
def test_a_smaller_alpha_never_means_a_larger_radius(certificate: Certificate, noise: Noise, step: int) -> None:
    hits = np.arange(N // 2, N + 1, 10 * step)
    strict, loose = (radii(certificate, noise, hits, alpha=alpha).radius for alpha in (1e-4, 0.05))
    if certificate.exact:
        assert (strict == loose).all()
    else:
        assert (strict <= loose).all()
        assert strict[-1] < loose[-1]


IMAGES = 16
RNG = np.random.default_rng(5)
#: Everything from abstention to all votes for the class, next to each other.
HITS = np.concatenate([[N, N - 1, N // 2, N // 2 + 3, 0], RNG.integers(N // 2 + 20, N, IMAGES - 5)])
MEANS = 0.02 * RNG.normal(size=(IMAGES, 2, DIM)) + np.geomspace(0.001, 0.1, IMAGES)[:, None, None]
GROUPS = (np.arange(IMAGES), RNG.permutation(IMAGES), RNG.permutation(IMAGES)[:5], RNG.permutation(IMAGES)[:2])


def evidence_of(rows: NDArray[np.int64]) -> dict[type[Evidence], Evidence]:
    """Return what some of those images would leave."""
    found = evidence(HITS[rows])
    top = torch.ones(len(rows), dtype=torch.int64)
    for kind, n in ((GradientSums, N), (RunnerUpGradientSums, N), (PairGradientSums, N // 2)):
        sizes = (n // 2, n - n // 2)
        sums = torch.from_numpy(MEANS[rows]) * GAUSSIAN.sigma * torch.tensor(sizes)[None, :, None]
        found[kind] = kind(sums, top, sizes[0], sizes, None)
    products = torch.from_numpy(MEANS[rows].prod(axis=1).sum(axis=1)) * (GAUSSIAN.sigma**2 * N // 2)
    found[PairProducts] = PairProducts(products, top, N // 2)
    return found


@every
def test_radii_are_bit_equal_alone_and_in_any_group(certificate: Certificate, noise: Noise) -> None:
    alone = [certificate.certify(evidence_of(np.array([row])), setting(noise, 1, alpha=0.01)) for row in range(IMAGES)]
    assert len({float(radii.radius[0]) for radii in alone}) > 5
    for rows in GROUPS:
        together = certificate.certify(evidence_of(rows), setting(noise, len(rows), alpha=0.01))
        assert [int(row) for place, row in enumerate(rows) if not bit_equal(together, place, alone[row])] == []


@every
def test_a_tail_certificate_is_monotone_and_its_threshold_is_sound(certificate: Certificate, noise: Noise) -> None:
    if not isinstance(certificate, TopVoteCertificate):
        return
    where = setting(noise, 1)
    tails = np.concatenate([np.geomspace(1e-12, 0.4, 200), np.linspace(0.4, 1.0, 200)])
    found = certificate.radius_of_tail(tails, where)
    assert (np.diff(found) <= 0).all()
    assert (found >= 0).all()
    assert (found[tails >= 0.5] == 0).all()
    for tail in (0.3, 0.05, 1e-3):
        radius = float(certificate.radius_of_tail(np.array([tail]), where)[0])
        assert radius > 0
        threshold = certificate.threshold(radius, where)
        assert certificate.radius_of_tail(np.array([threshold]), where)[0] >= radius
        # It is the largest such tail: radii from tables are steps, on which it may lie beyond the tail it came from.
        assert certificate.radius_of_tail(np.array([threshold * (1 + 1e-9)]), where)[0] < radius
        assert threshold >= tail * (1 - 1e-9)


@every
def test_through_the_engine_and_back_from_its_record(certificate: Certificate, noise: Noise) -> None:
    # Class 1 has most of the mass everywhere: the half space leaves a tail of a few percent.
    shape = getattr(noise, "shape", SHAPE)
    network = HalfSpace(torch.ones(math.prod(shape)), offset=2.0 if tuple(shape) == SHAPE else -1e4)
    x = torch.full((2, *shape), 0.5)
    certifier = Certifier([certificate], n0=20, n=N, alpha=0.01, runtime=Runtime(micro_batch=128))
    session = certifier.session(network, noise, tuple(shape))
    records = list(session.certify(x, labels=[1, 0]))
    for record in records:
        assert record.certificate == certificate.name
        assert (record.norm, record.ball) == (certificate.norm, certificate.ball)
        assert record.alpha == (0.0 if certificate.exact else 0.01)
        assert record.prediction == 1
        assert record.radius > 0
        assert sum(record.counts) == record.n == record.n_used
        assert record.radii == {certificate.name: record.radius}
    if certificate.votes_only:
        votes = {Votes: Votes.of(np.array([record.counts for record in records]))}
        again = recomputed(certificate, votes, noise, records[0].n, session.setting.alpha)
        if session.lattice is not None:
            again = again.less(np.array([record.bounds["rounding"] for record in records]))
        assert again.radius.tolist() == [record.radius for record in records]
        assert {name: float(v[0]) for name, v in again.bounds.items()} == records[0].bounds


@every
def test_records_do_not_depend_on_the_other_images_to_the_last_bit(certificate: Certificate, noise: Noise) -> None:
    network, x = network_and_images(noise)
    certifier = Certifier([certificate], n0=20, n=302, alpha=0.01, runtime=Runtime(micro_batch=128))
    together = certifier.certify(network, noise, x, indices=[5, 6, 7, 8])
    alone = [certifier.certify(network, noise, x[i : i + 1], indices=[5 + i])[0] for i in (2, 0, 3, 1)]
    assert together == [alone[1], alone[3], alone[0], alone[2]]
    assert len({record.counts for record in together}) > 1


def recomputed(
    certificate: Certificate, votes: Mapping[type[Evidence], Evidence], noise: Noise, n: int, alpha: float
) -> Radii:
    top = np.ones(2, dtype=np.int64)
    return certificate.certify(votes, Setting(noise, alpha, n, SHAPE, selection=Selection(top, np.zeros_like(top))))


def test_enumerated_votes_must_be_complete() -> None:
    with pytest.raises(ValueError, match=r"votes must count all 384 outcomes of Deterministic.* got \[400\]"):
        radii(DeterministicSplittingL1(), DeterministicSplittingNoise(12.0, shape=SHAPE, q=16), np.array([N]))
