"""The end-to-end test: tight on linear classifiers, silent on sound certificates, loud on planted mistakes."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binomtest
from torch import nn

from lightning_rs import (
    Certification,
    Certifier,
    DeterministicSplittingL1,
    DeterministicSplittingNoise,
    GaussianNoise,
    SmoothedClassifier,
    UniformL1,
    UniformNoise,
)
from lightning_rs.attacks import (
    PGD,
    Attacker,
    AttackFile,
    AttackRecord,
    Geometry,
    VoteSearch,
    merge_attacks,
    read_attacks,
    revote,
)
from lightning_rs.attacks.assertions import asserted, run_tests
from lightning_rs.certificates import FirstOrderSubspaceL2, MixedNormLinf
from lightning_rs.certificates.values import law_value_lower
from lightning_rs.engine.runtime import Runtime
from lightning_rs.networks.normalize import Normalize
from lightning_rs.noise import AdditiveNoise, MixedNormNoise, Noise
from lightning_rs.plots.brackets import bracket_steps
from lightning_rs.records import Header
from lightning_rs.session import Session
from lightning_rs.stages.contradictions import (
    ContradictionError,
    allowed_contradictions,
    chance_of_alarm,
    keep,
    refuse_contradictions,
)
from tests.helpers import HalfSpace

SHAPE, DIM, SIGMA = (1, 4, 4), 16, 0.25
COUNT = 20


def linear(norm: str) -> HalfSpace:
    """Return the classifier at which the certificate of the norm is tight: any direction for l2, one pixel for l1."""
    weight = torch.randn(DIM, generator=torch.Generator().manual_seed(0))
    if norm == "l1":
        weight = torch.zeros(DIM)
        weight[5] = 1.0
    return HalfSpace(weight, offset=0.5 * float(weight.sum()))


def images() -> torch.Tensor:
    return torch.rand((COUNT, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.4 + 0.3


@pytest.mark.parametrize(
    ("noise", "larger", "norm"),
    [
        (GaussianNoise(SIGMA), GaussianNoise(1.1 * SIGMA), "l2"),
        (UniformNoise(lam=0.5), UniformNoise(lam=0.55), "l1"),
    ],
)
def test_linear_classifiers_lose_just_outside_and_keep_their_value_just_inside(
    noise: Noise, larger: Noise, norm: str
) -> None:
    network = linear(norm)
    session = Certifier(n=10_000).session(network, noise, SHAPE)
    x, n, beta = images()[:1], 200_000, 1e-6
    weight = network.weight.detach().double()
    margin = float(x.flatten().double() @ weight - network.offset)
    own = int(margin > 0)
    # The exact p, so that the certificate is tight and the radius is the distance of the boundary.
    if norm == "l2":
        p = 0.5 * math.erfc(-abs(margin) / float(weight.norm()) / SIGMA / math.sqrt(2))
        radius, step = abs(margin) / float(weight.norm()), weight / weight.norm()
    else:
        p, radius, step = 0.5 + abs(margin), abs(margin), weight
    assert radius > 0.05  # what follows would be empty near the boundary
    record = Certification(
        index=0, label=own, prediction=own, radius=radius, norm=norm, certificate=f"{type(noise).__name__}", alpha=1e-3,
        n=n, n_used=n, top=own, counts=(0, 0), bounds={"q_upper": 1 - p},
    )  # fmt: skip
    toward = (step.sign() if norm == "l1" else step) * (-1 if own else 1)
    geometry = Geometry(norm)
    smoothed = SmoothedClassifier(network, noise, copies=16)
    for share in (1 - 1e-3, 1 + 1e-3):
        # The attack finds the worst direction by itself.
        eps = torch.tensor([share * radius], dtype=torch.float64)
        point = PGD(steps=10)(smoothed, x, torch.tensor([own]), eps, geometry)
        (distance,) = geometry.distance(x.flatten(1), point.flatten(1))
        assert distance <= share * radius
        straight = (x.flatten().double() + share * radius * toward).float().view(x.shape)
        torch.testing.assert_close(point, straight, rtol=0, atol=1e-4 * radius)
        assert int(network(point).argmax() == own) == (share < 1)
        (test,) = run_tests(session, [record], x, point, "adversarial", geometry, n, beta)
        assert test.lower is not None
        assert not test.failed  # outside, too, the law's value holds: it is only below one half
        assert binomtest(test.count, test.n, test.lower).pvalue > 1e-6  # with equality
        assert (test.lower > 0.5) == (share < 1)
        # A law that is a tenth wider would assert more, and these votes contradict it: equality is no accident.
        (claim,) = run_tests(Law(session, larger), [record], x, point, "adversarial", geometry, n, beta)
        assert claim.failed
    # Doubled radii and a law that claims more are both seen.
    far = (x.flatten().double() + 1.5 * radius * toward).float().view(x.shape)
    doubled = dataclasses.replace(record, radius=2 * radius)
    assert run_tests(session, [doubled], x, far, "adversarial", geometry, n, beta)[0].failed


@dataclasses.dataclass
class Law:
    """A session whose votes are judged as those of another law."""

    session: Session
    noise: Noise
    lattice: None = None

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        return self.session.predict(*args, **kwargs)


def test_deterministic_splitting_is_tight_on_one_pixel() -> None:
    noise = DeterministicSplittingNoise(lam=0.6, shape=SHAPE, q=15, seed=0)
    weight = torch.zeros(DIM)
    weight[5] = 1.0
    network = HalfSpace(weight, offset=0.5)
    session = Certifier([DeterministicSplittingL1()]).session(network, noise, SHAPE, grid=15)
    x = torch.randint(4, 12, (COUNT, *SHAPE), generator=torch.Generator().manual_seed(1)).float() / 15
    attacker, geometry = Attacker(max_radius=1.0, n=100), Geometry("l1", (0.0, 1.0), 15)
    records = list(session.certify(x))
    found = attacker.run(attacker.victim(session, network, geometry), records, x)
    assert not any(record.contradicted for record in found)
    broken = [(r, c) for r, c in zip(found, records, strict=True) if r.attacked is not None]
    assert len(broken) > COUNT / 2
    for record, certified in broken:
        assert round(15 * float(record.attacked or 0)) == (certified.steps or 0) + 1  # exactly one step outside
    # Inside, the exact number of votes is attained: each step toward the boundary takes one.
    steps = torch.tensor([record.steps or 0 for record in records])
    assert (steps > 0).sum() > COUNT / 2
    point = x.clone().flatten(1)
    point[:, 5] += torch.tensor([-1 if record.prediction else 1 for record in records]) * steps / 15
    for test in run_tests(session, records, x, point.view(x.shape), "adversarial", geometry, 1, 1e-6):
        assert test.lower is not None
        assert not test.failed
        assert test.count == test.lower


def certified(
    noise: Noise | None = None, network: torch.nn.Module | None = None, certifier: Certifier | None = None
) -> list[Certification]:
    session = (certifier or Certifier(n=20_000)).session(network or linear("l2"), noise or GaussianNoise(SIGMA), SHAPE)
    return list(session.certify(images(), [0] * COUNT))


def contradicted(records: list[Certification], noise: Noise, network: torch.nn.Module, norm: str = "l2") -> int:
    session = Certifier(n=100).session(network, noise, SHAPE)
    attacker = Attacker([PGD(steps=10)], n=20_000, bracket=False, copies=64)
    victim = attacker.victim(session, network, Geometry(norm))
    return sum(record.contradicted for record in attacker.run(victim, records, images()))


def test_sound_certificates_are_not_contradicted() -> None:
    assert contradicted(certified(), GaussianNoise(SIGMA), linear("l2")) == 0
    uniform = certified(UniformNoise(lam=0.5), linear("l1"), Certifier([UniformL1()], n=20_000))
    assert contradicted(uniform, UniformNoise(lam=0.5), linear("l1"), "l1") == 0


def sigma_too_large() -> list[Certification]:
    """Radii of a sigma 10 % larger than the noise that was drawn."""
    return [dataclasses.replace(r, radius=1.1 * r.radius, radii={}) for r in certified()]


def noise_too_small() -> list[Certification]:
    """The certifier drew noise 10 % smaller than it says."""
    return certified(GaussianNoise(SIGMA / 1.1))


def another_normalisation() -> list[Certification]:
    return certified(network=torch.nn.Sequential(Normalize(0.2, 0.8), linear("l2")))


def stale_checkpoint() -> list[Certification]:
    network = linear("l2")
    with torch.no_grad():
        network.weight += 0.3 * torch.randn(DIM, generator=torch.Generator().manual_seed(9))
    return certified(network=network)


def radii_doubled() -> list[Certification]:
    return [dataclasses.replace(r, radius=2 * r.radius, radii={}) for r in certified()]


@pytest.mark.parametrize(
    "plant", [sigma_too_large, noise_too_small, another_normalisation, stale_checkpoint, radii_doubled]
)
def test_planted_mistakes_are_caught_within_twenty_images(plant: Callable[[], list[Certification]]) -> None:
    records = plant()
    assert len(records) == COUNT
    found = contradicted(records, GaussianNoise(SIGMA), linear("l2"))
    assert found > 0


def test_another_v_is_caught() -> None:
    weight = torch.randn(DIM, generator=torch.Generator().manual_seed(4))
    network = HalfSpace(weight, offset=float(0.5 * weight.sum()))
    laws = [DeterministicSplittingNoise(lam=0.6, shape=SHAPE, q=15, seed=seed) for seed in (0, 1)]
    x = torch.randint(16, (COUNT, *SHAPE), generator=torch.Generator().manual_seed(1)).float() / 15
    certifier, attacker = Certifier([DeterministicSplittingL1()]), Attacker(n=100, bracket=False)
    records = list(certifier.session(network, laws[0], SHAPE, grid=15).certify(x))
    for law, caught in ((laws[0], False), (laws[1], True)):
        session = certifier.session(network, law, SHAPE, grid=15)
        victim = attacker.victim(session, network, Geometry("l1", (0.0, 1.0), 15))
        assert any(record.contradicted for record in attacker.run(victim, records, x)) == caught


class Detector(nn.Module):
    """Class 1 if some input is finer than 2^-32: a float32 sum with a pixel that is not 0 never is, noise alone is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        v = rows.flatten(1).double()
        fine = (torch.round(v * 2.0**32) * 2.0**-32 != v).any(1).float()
        return torch.stack([1 - fine, fine], 1) * self.scale


@pytest.mark.parametrize("planted", [True, False], ids=["in floating point", "on the lattice"])
def test_float_noise_in_place_of_lattice_noise_is_caught(planted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if planted:
        monkeypatch.setattr(AdditiveNoise, "on_lattice", lambda self, grid: None)
    shape = (3, 16, 16)
    x = torch.randint(1, 4, (COUNT, *shape), generator=torch.Generator().manual_seed(2)).float() / 255
    network, runtime = Detector(), Runtime(micro_batch=64, channels_last=False, fuse=False, fold=False)
    session = Certifier(n0=20, n=300, runtime=runtime).session(network, GaussianNoise(SIGMA), shape, grid=255)
    records = list(session.certify(x))
    attacker = Attacker([VoteSearch(steps=1)], n=300, bracket=False, copies=4)
    found = attacker.run(attacker.victim(session, network, Geometry("l2", (0.0, 1.0), 255)), records, x)
    if planted:
        assert sum(record.stated and record.radius > 0.1 for record in found) > COUNT / 2
        assert sum(record.contradicted for record in found) > COUNT / 2
        with pytest.raises(ContradictionError, match="of 20 certificates are contradicted"):
            refuse_contradictions(found, attacker, Path("x"))
    else:
        assert not any(record.contradicted for record in found)


def test_subspace_certificates_are_attacked_in_their_subspace(tmp_path: Path) -> None:
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, 3)))[0].T
    path, other = tmp_path / "basis.npy", tmp_path / "other.npy"
    np.save(path, basis)
    np.save(other, basis[:2])
    network, certificate = linear("l2"), FirstOrderSubspaceL2(str(path))
    session = Certifier([certificate], n=4000).session(network, GaussianNoise(SIGMA), SHAPE)
    x = images()[:6]
    records = list(session.certify(x))
    attacker = Attacker([PGD(steps=10)], n=4000, basis=str(path), max_radius=5.0)
    geometry = Geometry.of_certificate(certificate.norm, SHAPE, None, None, attacker.vectors(certificate.norm))
    found = attacker.run(attacker.victim(session, network, geometry), records, x)
    weight = network.weight.detach().double().numpy()
    inside = np.linalg.norm(basis @ weight)
    for record, image in zip(found, x, strict=True):
        boundary = abs(float(image.flatten().double() @ torch.from_numpy(weight)) - network.offset) / inside
        assert not record.contradicted
        assert record.attacked is None or record.radius < boundary < record.attacked < 1.3 * boundary + 0.3
    assert sum(record.attacked is not None for record in found) > 3
    with pytest.raises(ValueError, match=r"basis must hold the vectors of 'l2:subspace-.*other\.npy"):
        Attacker(basis=str(other)).vectors(certificate.norm)


def test_a_contradiction_is_kept_with_all_that_repeats_it(tmp_path: Path) -> None:
    network, noise = linear("l2"), GaussianNoise(SIGMA)
    session = Certifier(n=100).session(network, noise, SHAPE)
    records = radii_doubled()
    attacker = Attacker([PGD(steps=10)], n=20_000, bracket=False, copies=64)
    results = attacker.run_with_points(attacker.victim(session, network, Geometry("l2")), records, images())
    header = Header({"noise": {"class": "GaussianNoise", "sigma": SIGMA}, "classifier": session.classifier}, {})
    row, (record, points) = next((row, each) for row, each in enumerate(results) if each[0].contradicted)
    kept = keep(record, points, records[row], header, tmp_path / "r.jsonl")
    assert kept.failure == f"r.failures/image{record.index}.npz"
    for said in (
        "votes for the class",
        "asserted are at least",
        "seed",
        "is confirmed by fresh votes: a bug",
        kept.failure,
    ):
        assert said in kept.contradiction
    with pytest.raises(
        ContradictionError, match=r"first image \d+: adversarial point at distance .*seed \d+.*kept in r"
    ):
        refuse_contradictions([kept] * 9, attacker, tmp_path / "r.jsonl")
    # From the file alone: the votes of every test are taken again, and are the same.
    file = np.load(tmp_path / kept.failure)
    told = json.loads(str(file["record"]))
    assert told["certification"] == records[row].to_json()
    assert told["binding"] == dict(header.binding)
    again = AttackRecord.from_json(told["attack"])
    assert again == kept
    assert [test.kind for test in again.repeated] == ["clean again", "half way", "again"]
    assert again.repeated[2].failed
    image, point = torch.from_numpy(file["image"]), torch.from_numpy(file["adversarial"])
    assert torch.equal(image, images()[row])
    fresh = Certifier(n=100).session(linear("l2"), noise, SHAPE)
    failed = next(test for test in again.tests if test.failed)
    assert revote(fresh, point, failed) == failed.counts
    assert revote(fresh, point, again.repeated[2]) == again.repeated[2].counts
    assert revote(fresh, image, again.repeated[0]) == again.repeated[0].counts
    assert revote(fresh, point, dataclasses.replace(failed, seed=failed.seed + 1)) != failed.counts


def test_a_contradiction_that_chance_cannot_explain_is_loud(tmp_path: Path) -> None:
    record = AttackRecord(
        index=3, label=1, prediction=1, stated=True, radius=0.5, norm="l2", ball="open", alpha=0.001, attacked=0.4,
        inside=True, searched=0.0, confirmation={"counts": [9, 1]}, verdict="a bug",
    )  # fmt: skip
    fine = [dataclasses.replace(record, index=i, attacked=0.7, inside=False, verdict="") for i in range(10, 60)]
    refuse_contradictions([record, *fine], Attacker(), tmp_path)  # one in 51 at alpha .001 may be chance
    bad = [dataclasses.replace(record, index=i) for i in range(6)]
    with pytest.raises(ContradictionError, match=r"6 of 56 certificates are contradicted, at most 3 by chance"):
        refuse_contradictions([*bad, *fine], Attacker(), tmp_path)
    with pytest.raises(ContradictionError, match=r"1 of 51 .*, 1 for certain; first image 3"):
        refuse_contradictions([*fine, dataclasses.replace(record, certain=True)], Attacker(), tmp_path)
    exact = dataclasses.replace(record, alpha=0.0)
    with pytest.raises(
        ContradictionError, match=r"at most 0 by chance .* first image 3: broken inside, at 0\.4, .*; a bug"
    ):
        refuse_contradictions([exact], Attacker(), tmp_path)


def test_files_append_resume_and_merge(tmp_path: Path) -> None:
    header = Header({"norm": "l2", "alpha": 0.001, "attacker": {"n": 3}}, {})
    record = AttackRecord(
        index=3, label=1, prediction=1, stated=True, radius=0.5, norm="l2", ball="open", alpha=0.001, attacked=None,
        inside=False, searched=1.0,
    )  # fmt: skip
    path = tmp_path / "a.jsonl"
    file = AttackFile(path, header)
    file.append(record)
    with pytest.raises(ValueError, match="image 3 is already recorded"):
        file.append(record)
    with pytest.raises(BlockingIOError, match="being written by another process"):
        AttackFile(path, header)
    file.close()
    with open(path, "a") as torn:
        torn.write('{"index":4,"lab')
    again = AttackFile(path, header)
    assert again.done == {3}
    again.append(dataclasses.replace(record, index=4))
    again.close()
    assert read_attacks(path)[1] == [record, dataclasses.replace(record, index=4)]
    with pytest.raises(ValueError, match=r"attacker\.n: 3 != 4"):
        AttackFile(path, Header({"norm": "l2", "alpha": 0.001, "attacker": {"n": 4}}, {}))
    other = AttackFile(tmp_path / "b.jsonl", header)
    other.append(dataclasses.replace(record, index=1))
    other.close()
    assert merge_attacks([path, tmp_path / "b.jsonl"], tmp_path / "all.jsonl") == 3
    assert [r.index for r in read_attacks(tmp_path / "all.jsonl")[1]] == [1, 3, 4]
    (tmp_path / "c.jsonl").write_text("hello\n")
    with pytest.raises(ValueError, match=r"c\.jsonl:1"):
        read_attacks(tmp_path / "c.jsonl")


def test_sentences_round_the_bracket_outward() -> None:
    record = AttackRecord(
        index=3, label=1, prediction=1, stated=True, radius=0.50009, norm="l2", ball="open", alpha=0.001,
        attacked=0.70001, inside=False, searched=0.6, confirmation={},
    )  # fmt: skip
    assert "norm < 0.5; broken at 0.7001" in repr(record)
    assert record.bracket == (0.50009, 0.70001)
    assert dataclasses.replace(record, label=2).bracket == (0.0, 0.0)
    assert dataclasses.replace(record, stated=False).bracket == (-math.inf, 0.70001)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"copies": 0}, "copies must be a whole number >= 1, got 0"),
        ({"n": 0}, "n must be a whole number >= 1"),
        ({"beta": 0.0}, r"beta must lie in \(0, 1\)"),
        ({"max_radius": -1.0}, "max_radius must be finite and > 0"),
        ({"attacks": []}, "attacks must be one or more"),
    ],
)
def test_configurations_are_checked(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Attacker(**arguments)  # type: ignore[arg-type]


def test_nothing_is_asserted_of_an_image_without_a_class() -> None:
    record = Certification(
        index=0, label=0, prediction=-1, radius=0.0, norm="l2", certificate="GaussianL2", alpha=0.001, n=10, n_used=10,
        status="abstain",
    )  # fmt: skip
    assert asserted(record, GaussianNoise(1.0), np.zeros(4), 0.0) is None


def test_black_boxes_serve_the_attacker() -> None:
    network = linear("l2")
    session: Session = Certifier(n=2000).session(network, GaussianNoise(SIGMA), SHAPE)
    x = images()[:2]
    attacker = Attacker([VoteSearch(steps=100)], n=4000, rounds=2, tests=False)
    records = list(session.certify(x))
    found = attacker.run(attacker.victim(session, network, Geometry("l2")), records, x)
    weight = network.weight.detach()
    for record, certificate, image in zip(found, records, x, strict=True):
        assert record.attacked is not None
        true = abs(float(image.flatten() @ weight - network.offset)) / float(weight.norm())
        assert true * 0.99 < record.attacked < 4 * true + 0.2
        assert record.attacked > certificate.radius


def test_smoothed_classifiers_are_what_attackers_see() -> None:
    session = Certifier(n=100).session(linear("l2"), GaussianNoise(SIGMA), SHAPE, domain=(0.0, 1.0))
    victim = Attacker(copies=7).victim(session, linear("l2"), Geometry("l2"))
    assert isinstance(victim.smoothed, SmoothedClassifier)
    assert (victim.smoothed.copies, victim.smoothed.domain) == (7, (0.0, 1.0))
    assert np.isfinite(victim.smoothed(images()).detach().numpy()).all()


def test_what_all_images_share_adds_to_the_chance_of_an_alarm(tmp_path: Path) -> None:
    record = AttackRecord(
        index=0, label=1, prediction=1, stated=True, radius=0.5, norm="linf", ball="open", alpha=0.001, attacked=0.4,
        inside=True, searched=0.0, confirmation={"counts": [9, 1]},
    )  # fmt: skip
    bad = [dataclasses.replace(record, index=i) for i in range(9)]
    with pytest.raises(ContradictionError, match=r"by chance \(probability 0\.000101, 0\.0001 of it that all images"):
        refuse_contradictions(bad, Attacker(), tmp_path, shared=1e-4)
    # Simulated: the probability that is said covers alarms over sound sets, and rho alone would not.
    shared, rho, runs, count, alpha = 0.02, 0.01, 20_000, 50, 0.05
    rng, attacker = np.random.default_rng(0), Attacker(rho=rho)
    sound = [dataclasses.replace(record, index=i, alpha=alpha) for i in range(count)]
    failed = np.where(rng.random(runs) < shared, count, rng.binomial(count, alpha, runs))
    alarms = int((failed > allowed_contradictions(sound, attacker)).sum())
    assert binomtest(alarms, runs, chance_of_alarm(attacker, shared), alternative="greater").pvalue > 1e-3
    assert binomtest(alarms, runs, rho, alternative="greater").pvalue < 1e-6


def test_a_false_table_is_named_beside_a_bug() -> None:
    noise = MixedNormNoise(SIGMA, k_inf=4.0, dim=DIM)
    network = linear("l2")
    session = Certifier([MixedNormLinf(draws=1000)], n=2000).session(network, noise, SHAPE)
    x = images()
    records = [dataclasses.replace(r, radius=3 * r.radius, radii={}) for r in session.certify(x)]
    attacker = Attacker([PGD(steps=10)], n=5000, bracket=False, copies=32)
    found = attacker.run(attacker.victim(session, network, Geometry("linf")), records, x)
    (said, *_) = [record.verdict for record in found if record.contradicted]
    assert "a bug, or the event of probability 0.0001 that all images share" in said


def test_at_the_image_every_law_asserts_the_number_of_the_record() -> None:
    noise = MixedNormNoise(SIGMA, k_inf=4.0, dim=DIM)
    assert law_value_lower(noise, 0.01, np.zeros(DIM)) == 0.99
    assert law_value_lower(noise, 0.01, np.full(DIM, 0.1)) is None


def test_curves_of_a_bracket_certify_nothing_beyond_a_radius() -> None:
    def record(index: int, radius: float, attacked: float | None) -> AttackRecord:
        return AttackRecord(
            index=index, label=1, prediction=1, stated=True, radius=radius, norm="l1", ball="open", alpha=0.001,
            attacked=attacked, inside=False, searched=0.0, confirmation=None if attacked is None else {},
        )  # fmt: skip

    edges, certified, standing = bracket_steps([record(0, 0.8, 2.0), record(1, 0.3, 1.5), record(2, 0.8, None)])
    for r, low, high in ((0.2, 1.0, 1.0), (0.31, 2 / 3, 1.0), (0.81, 0.0, 1.0), (1.6, 0.0, 2 / 3), (3.0, 0.0, 1 / 3)):
        at = np.searchsorted(edges, r, side="right") - 1  # steps hold up to the next edge
        assert (certified[at], standing[at]) == (pytest.approx(low), pytest.approx(high))
    # Right, but not certified: at no radius, not even at 0.
    _, certified, standing = bracket_steps(
        [dataclasses.replace(record(0, 0.0, 1.0), stated=False), record(1, 0.0, 1.0)]
    )
    assert (certified[0], standing[0]) == (0.5, 1.0)
