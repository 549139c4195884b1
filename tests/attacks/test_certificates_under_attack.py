"""The end-to-end test: tight on linear classifiers, silent on sound certificates, loud on planted mistakes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

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
)
from lightning_rs.attacks.assertions import asserted, run_tests
from lightning_rs.networks.normalize import Normalize
from lightning_rs.noise import Noise
from lightning_rs.records import Header
from lightning_rs.session import Session
from lightning_rs.stages.attack import ContradictionError, refuse_contradictions
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


@pytest.mark.parametrize(("noise", "norm"), [(GaussianNoise(SIGMA), "l2"), (UniformNoise(lam=0.5), "l1")])
def test_linear_classifiers_lose_just_outside_and_keep_their_value_just_inside(noise: Noise, norm: str) -> None:
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
    record = Certification(
        index=0, label=own, prediction=own, radius=radius, norm=norm, certificate=f"{type(noise).__name__}", alpha=1e-3,
        n=n, n_used=n, top=own, counts=(0, 0), bounds={"q_upper": 1 - p},
    )  # fmt: skip
    toward = (step.sign() if norm == "l1" else step) * (-1 if own else 1)
    geometry = Geometry(norm)
    for share in (1 - 1e-3, 1 + 1e-3):
        point = (x.flatten().double() + share * radius * toward).float().view(x.shape)
        (test,) = run_tests(session, [record], x, point, "adversarial", geometry, n, beta)
        assert test.lower is not None
        assert not test.failed  # outside, too, the law's value holds: it is only below one half
        assert binomtest(test.count, test.n, test.lower).pvalue > 1e-6  # with equality
        assert (test.lower > 0.5) == (share < 1)
        assert int(network(point).argmax() == own) == (share < 1)
    # Doubled radii and a law that claims more are both seen.
    far = (x.flatten().double() + 1.5 * radius * toward).float().view(x.shape)
    doubled = dataclasses.replace(record, radius=2 * radius)
    assert run_tests(session, [doubled], x, far, "adversarial", geometry, n, beta)[0].failed


def test_deterministic_splitting_is_tight_on_one_pixel() -> None:
    noise = DeterministicSplittingNoise(lam=0.6, shape=SHAPE, q=15, seed=0)
    weight = torch.zeros(DIM)
    weight[5] = 1.0
    network = HalfSpace(weight, offset=0.5)
    session = Certifier([DeterministicSplittingL1()]).session(network, noise, SHAPE, grid=15)
    x = torch.randint(4, 12, (COUNT, *SHAPE), generator=torch.Generator().manual_seed(1)).float() / 15
    attacker = Attacker(max_radius=1.0, n=100)
    records = list(session.certify(x))
    found = attacker.run(attacker.victim(session, network, Geometry("l1", (0.0, 1.0), 15)), records, x)
    assert not any(record.contradicted for record in found)
    broken = [(r, c) for r, c in zip(found, records, strict=True) if r.attacked is not None]
    assert len(broken) > COUNT / 2
    for record, certified in broken:
        assert round(15 * float(record.attacked or 0)) == (certified.steps or 0) + 1  # exactly one step outside


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
    exact = dataclasses.replace(record, alpha=0.0)
    with pytest.raises(ContradictionError, match=r"at most 0 by chance .* first image 3: a bug"):
        refuse_contradictions([exact], Attacker(), tmp_path)


def test_files_append_resume_and_merge(tmp_path: Path) -> None:
    header = Header({"norm": "l2", "attacker": {"n": 3}}, {})
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
        AttackFile(path, Header({"norm": "l2", "attacker": {"n": 4}}, {}))
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
    x = torch.zeros(4)
    assert asserted(record, GaussianNoise(1.0), x, x, 0.0) is None


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
