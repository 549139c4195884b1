"""Budgets: what they spend, what they record, and that scheduling does not change a record."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rs.budgets import Budget, DecideRadius, FixedSamples, Group, RandomizedBound, StagedSamples
from lightning_rs.certificates.base import Certificate, Setting, TopVoteCertificate
from lightning_rs.certificates.dipole import DipoleL2
from lightning_rs.certificates.gaussian_l2 import GaussianL1, GaussianL2, GaussianLinf, GaussianTwoClassL2
from lightning_rs.certificates.laplace import LaplaceL1
from lightning_rs.certificates.second_order import SecondOrderL2
from lightning_rs.certificates.splitting import DeterministicSplittingL1
from lightning_rs.certificates.uniform import UniformL1
from lightning_rs.certifier import Certifier
from lightning_rs.engine.runtime import Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.noise.base import Noise
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.laplace import LaplaceNoise
from lightning_rs.noise.uniform import UniformNoise
from lightning_rs.records import Certification
from lightning_rs.setting import Selection
from lightning_rs.statistics.binomial import clopper_pearson_tail_upper, randomized_clopper_pearson_tail
from lightning_rs.statistics.sequential import StagedClopperPearson
from tests.helpers import HalfSpace

SIGMA = 0.5
RUNTIME = Runtime(micro_batch=64)
NETWORK = HalfSpace(torch.tensor([1.0, 0.0, 0.0]))


def image(score: float) -> torch.Tensor:
    """An image whose radius is ``score`` sigma."""
    return torch.tensor([score * SIGMA, 0.0, 0.0])


def certify(
    budget: Budget | None, scores: list[float], indices: list[int] | None = None, **arguments: Any
) -> list[Certification]:
    certifier = Certifier(**{"n0": 50, "n": 2000, "alpha": 0.01, "budget": budget, "runtime": RUNTIME, **arguments})
    return certifier.certify(NETWORK, GaussianNoise(SIGMA), torch.stack([image(s) for s in scores]), indices=indices)


SCORES = [3.0, 0.4, 1.0, -2.0, 0.0, 1.7, 5.0, 0.9]
BUDGETS: list[Budget] = [
    FixedSamples(),
    StagedSamples(first=50),
    DecideRadius(0.5 * SIGMA),
    RandomizedBound(),
]
every = pytest.mark.parametrize("budget", BUDGETS, ids=lambda budget: budget.mode)


@every
def test_records_depend_on_the_index_only(budget: Budget) -> None:
    together = certify(budget, SCORES, indices=list(range(8)))
    backwards = certify(budget, SCORES[::-1], indices=list(range(8))[::-1])[::-1]
    alone = [certify(budget, SCORES[i : i + 1], indices=[i])[0] for i in range(8)]
    assert together == backwards == alone
    assert together != certify(budget, SCORES, indices=list(range(1, 9)))


@pytest.mark.parametrize(
    ("certificate", "together"),
    [(SecondOrderL2(), False), (SecondOrderL2("levine"), False), (DipoleL2(), True), (GaussianTwoClassL2(), True)],
    ids=repr,
)
def test_floating_point_sums_are_formed_for_one_image_at_a_time(
    certificate: Certificate, together: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Float addition is not associative, and micro-batches that images share would cut their sums at random. That
    # shows in the last digits of few records, hence the look at how samples are collected. Counts may share.
    images: list[int] = []
    collect = Sampler.collect

    def spy(self: Sampler, x: torch.Tensor, *arguments: Any, **others: Any) -> Any:
        images.append(len(x))
        return collect(self, x, *arguments, **others)

    monkeypatch.setattr(Sampler, "collect", spy)
    certify(FixedSamples(), SCORES, certificates=[certificate])
    assert images == ([8, 8] if together else [8] + [1] * 8)  # selection first


@every
def test_records_state_what_was_spent(budget: Budget) -> None:
    for record in certify(budget, SCORES):
        assert record.mode == budget.mode
        assert record.target == budget.target
        assert record.n == 2000
        assert record.alpha == 0.01
        assert 0 < record.n_used <= record.n
        assert sum(record.counts) == record.n_used
        assert sum(record.counts0) == 50


@every
def test_samples_are_reported_as_they_are_spent(budget: Budget) -> None:
    seen: list[int] = []
    certifier = Certifier(n0=50, n=2000, alpha=0.01, budget=budget, runtime=RUNTIME)
    session = certifier.session(NETWORK, GaussianNoise(SIGMA), (3,), on_samples=seen.append)
    records = list(session.certify(torch.stack([image(s) for s in SCORES])))
    assert sum(seen) == sum(record.n_used + 50 for record in records)


@every
def test_certificates_are_about_the_right_class(budget: Budget) -> None:
    records = certify(budget, [3.0, -3.0])
    assert [record.prediction for record in records] == [1, 0]
    assert [record.top for record in records] == [1, 0]


@every
def test_bodies_survive_json(budget: Budget) -> None:
    for record in certify(budget, SCORES[:3]):
        assert Certification.from_json(record.to_json()) == record


@every
def test_description_is_plain_and_complete(budget: Budget) -> None:
    described = budget.describe()
    assert described["mode"] == budget.mode
    own = {name: value for name, value in vars(budget).items() if name != "target"}
    assert {name: described[name] for name in own} == own
    assert Certifier(budget=budget).describe()["budget"] == described


@every
def test_pool_is_positive(budget: Budget) -> None:
    for wanted, per_image in ((1, 100_000), (32768, 100_100), (10**6, 10)):
        assert budget.pool(wanted, per_image) >= 1


# ------------------------------------------------------------------------------------------------- staged


def test_staged_records_say_how_alpha_was_shared() -> None:
    records = certify(StagedSamples(first=50), SCORES)
    for record in records:
        stages, alphas, stage = (record.extra[name] for name in ("stages", "alphas", "stage"))
        assert stages[-1] == record.n
        assert len(stages) == len(alphas)
        assert math.fsum(alphas) <= record.alpha
        assert math.fsum(alphas) == pytest.approx(record.alpha, rel=1e-8)  # less the error of the noise law
        assert record.n_used == stages[stage]
        tail = clopper_pearson_tail_upper(record.counts[record.top], record.n_used, alphas[stage])
        assert record.bounds["q_upper"] == tail
    assert {record.n_used for record in records} > {2000}  # some stop, some go on


def test_staged_samples_stop_early_where_there_is_nothing_to_gain() -> None:
    hopeless, easy = certify(StagedSamples(first=50, tolerance=0.5), [0.0, 5.0])
    assert hopeless.status == "abstain"
    assert easy.n_used < 2000
    generous, stingy = (certify(StagedSamples(first=50, tolerance=t), [1.0])[0] for t in (0.0, 3.0))
    assert stingy.n_used < generous.n_used == 2000


def test_staged_radius_is_never_larger_than_that_of_fixed_n_at_the_same_samples() -> None:
    for staged, index in zip(certify(StagedSamples(first=50, tolerance=0.0), SCORES), range(8), strict=True):
        fixed = GaussianL2().from_tail(
            np.array([float(clopper_pearson_tail_upper(staged.counts[staged.top], staged.n_used, 0.01))]),
            setting(GaussianNoise(SIGMA)),
        )
        assert staged.radius <= fixed.radius[0]
        assert staged.index == index


def test_tolerance_is_in_units_of_sigma(monkeypatch: pytest.MonkeyPatch) -> None:
    # The same scores in units twice as large must stop at the same stages, on the same noise.
    monkeypatch.setattr("lightning_rs.engine.sampler.image_sha256", lambda image: "the same")
    small = certify(StagedSamples(first=50, tolerance=0.1), SCORES)
    certifier = Certifier(n0=50, n=2000, alpha=0.01, budget=StagedSamples(first=50, tolerance=0.1), runtime=RUNTIME)
    large = certifier.certify(NETWORK, GaussianNoise(2 * SIGMA), torch.stack([2 * image(s) for s in SCORES]))
    assert [record.counts for record in small] == [record.counts for record in large]
    assert [record.n_used for record in small] == [record.n_used for record in large]
    assert [2 * record.radius for record in small] == pytest.approx([record.radius for record in large])


def test_all_certificates_of_a_staged_pass_share_its_bound() -> None:
    certificates = [GaussianL2(), GaussianLinf(), GaussianL1()]
    (record,) = certify(StagedSamples(first=50), [1.0], certificates=certificates)
    radius = {name: record.radii[name] + record.bounds.get(f"{name}.rounding", 0.0) for name in record.radii}
    assert radius["GaussianL1"] == pytest.approx(record.radius + record.bounds["rounding"], rel=1e-12)
    assert radius["GaussianLinf"] == pytest.approx(radius["GaussianL1"] / math.sqrt(3))
    assert record.bounds["GaussianLinf.q_upper"] == record.bounds["q_upper"]


def test_one_stage_is_fixed_sampling() -> None:
    staged, fixed = (certify(budget, SCORES, n=100) for budget in (StagedSamples(first=100), FixedSamples()))
    for one, other in zip(staged, fixed, strict=True):
        assert one.counts == other.counts
        assert one.radius == pytest.approx(other.radius, rel=1e-12)
        assert one.radius <= other.radius * (1 + 1e-15)  # rounded to the lattice, taken off in another order


# ----------------------------------------------------------------------------------------------- decision


def setting(noise: Noise) -> Setting:
    return Setting(noise, 0.01, 100, (3,), selection=Selection(np.array([1]), np.array([0])))


def test_looks_are_the_same_for_every_image_and_end_at_n() -> None:
    budget = DecideRadius(0.1)
    for n in (1, 31, 32, 33, 100, 2000, 100_000):
        looks = budget.looks(n)
        assert looks[0] == min(32, n)
        assert looks[-1] == n
        assert all(a < b for a, b in itertools.pairwise(looks))
        assert all(look % 32 == 0 for look in looks[:-1])
    assert len(budget.looks(100_000)) < 60


@pytest.mark.parametrize("micro_batch", [8, 64, 512])
def test_looks_do_not_depend_on_the_batch(micro_batch: int) -> None:
    # A small micro-batch admits few images at a time; n_used is always a look.
    looks = set(DecideRadius(0.5 * SIGMA).looks(2000))
    certifier = {"runtime": Runtime(micro_batch=micro_batch)}
    together = certify(DecideRadius(0.5 * SIGMA), SCORES * 5, **certifier)
    assert {record.n_used for record in together} <= looks
    alone = [certify(DecideRadius(0.5 * SIGMA), [s], indices=[i], **certifier)[0] for i, s in enumerate(SCORES * 5)]
    assert together == alone


def test_decisions_have_no_radius_and_their_own_statuses() -> None:
    records = certify(DecideRadius(0.5 * SIGMA), SCORES)
    by_score = dict(zip(SCORES, records, strict=True))
    for score, record in by_score.items():
        assert record.radius == 0.0
        assert record.radii == {"GaussianL2": 0.0}
        assert record.target == 0.5 * SIGMA
        if score >= 1.5 or score <= -1.5:
            assert record.status == "decided"
            assert record.prediction == (score > 0)
            assert record.n_used < 200
        if score == 0.0:
            assert record.status == "abstain"
            assert record.prediction == -1
            assert record.n_used < 1000
    assert "undecided" not in repr(by_score[3.0])


def test_images_at_the_threshold_stay_undecided() -> None:
    records = certify(DecideRadius(0.5 * SIGMA), [0.5] * 40, n=300)
    undecided = [record for record in records if record.status == "undecided"]
    assert len(undecided) > 30
    assert all(record.n_used == record.n == 300 for record in undecided)
    assert all(record.prediction == -1 and record.radius == 0 for record in undecided)
    assert "undecided whether the l2 radius reaches 0.25" in repr(undecided[0])


def test_a_target_that_nothing_certifies_costs_no_samples() -> None:
    # No l1 radius of uniform noise exceeds lam.
    certifier = Certifier([UniformL1()], n0=10, n=1000, budget=DecideRadius(0.7), runtime=RUNTIME)
    (record,) = certifier.certify(NETWORK, UniformNoise(0.6), image(9.0)[None])
    assert (record.status, record.n_used, record.prediction) == ("abstain", 0, -1)


def test_rejection_has_its_own_level() -> None:
    eager, careful = (
        certify(DecideRadius(0.5 * SIGMA, alpha_reject=level), [0.2] * 20, n=20_000) for level in (0.3, 1e-6)
    )
    assert all(record.status == "abstain" for record in eager + careful)
    assert sum(r.n_used for r in eager) < sum(r.n_used for r in careful)


@pytest.mark.parametrize(
    ("certificate", "noise"),
    [(GaussianL2(), GaussianNoise(0.5)), (UniformL1(), UniformNoise(0.6)), (LaplaceL1(), LaplaceNoise(0.4))],
)
def test_the_recorded_threshold_certifies_the_target(certificate: TopVoteCertificate, noise: Noise) -> None:
    budget = DecideRadius(0.25)
    certifier = Certifier([certificate], n0=10, n=1000, budget=budget, runtime=RUNTIME)
    (record,) = certifier.certify(NETWORK, noise, image(9.0)[None])
    threshold = record.bounds["threshold"]
    assert record.status == "decided"
    assert certificate.radius_of_tail(np.array([threshold]), setting(noise))[0] >= 0.25
    assert certificate.radius_of_tail(np.array([threshold + 1e-4]), setting(noise))[0] < 0.25  # rounding is on top


# --------------------------------------------------------------------------------------------- randomized


def test_randomized_bounds_store_their_draw() -> None:
    records = certify(RandomizedBound(), SCORES)
    draws = [record.extra["u"] for record in records]
    assert len(set(draws)) == len(draws)
    assert all(0 < u < 1 for u in draws)
    for record in records:
        hits = record.counts[record.top]
        tail = max(float(randomized_clopper_pearson_tail(hits, 2000, 0.01, record.extra["u"])), 1e-9)
        assert record.bounds["q_upper"] == pytest.approx(tail, rel=1e-8)
    fixed = certify(FixedSamples(), SCORES)
    assert [r.counts for r in fixed] == [r.counts for r in records]  # the same votes, another bound
    assert all(r.radius >= f.radius for r, f in zip(records, fixed, strict=True))


def test_draws_are_uniform_and_belong_to_seed_and_index() -> None:
    def draws(seed: int, count: int = 400) -> list[float]:
        return [r.extra["u"] for r in certify(RandomizedBound(), [0.0] * count, n0=1, n=1, seed=seed)]

    first = draws(0)
    assert first == draws(0)
    assert draws(1) != first
    assert abs(np.mean(first) - 0.5) < 4 / math.sqrt(12 * 400)
    assert abs(np.var(first) - 1 / 12) < 0.02


def test_the_radius_of_a_tail_of_zero_is_capped() -> None:
    records = certify(RandomizedBound(tail_floor=1e-6), [20.0] * 300, n0=1, n=5, alpha=0.5)
    cap = GaussianL2().from_tail(np.array([1e-6]), setting(GaussianNoise(SIGMA))).radius[0]
    largest = max(record.radius for record in records)
    assert largest + records[0].bounds["rounding"] == pytest.approx(cap, rel=1e-12)
    assert sum(record.radius == largest for record in records) > 100  # U < alpha


# ------------------------------------------------------------------------------------------------ refusals

NOT_A_FUNCTION_OF_ONE_TAIL: list[Certificate] = [
    GaussianTwoClassL2(),
    SecondOrderL2(),
    DipoleL2(),
    DeterministicSplittingL1(),
]


@pytest.mark.parametrize("certificate", NOT_A_FUNCTION_OF_ONE_TAIL, ids=lambda c: c.name)
@pytest.mark.parametrize("budget", BUDGETS[1:], ids=lambda budget: budget.mode)
def test_certificates_that_need_more_than_one_tail_are_refused(budget: Budget, certificate: Certificate) -> None:
    name = type(budget).__name__
    with pytest.raises(ValueError, match=f"budget {name} serves certificates .*{certificate.name} needs a fixed n"):
        Certifier([certificate], budget=budget)
    Certifier([certificate], budget=FixedSamples())


def test_a_decision_is_about_one_certificate() -> None:
    with pytest.raises(ValueError, match="budget DecideRadius serves one certificate, got GaussianL2, GaussianLinf"):
        Certifier([GaussianL2(), GaussianLinf()], budget=DecideRadius(0.1))


@pytest.mark.parametrize(
    ("budget", "arguments", "message"),
    [
        (StagedSamples, {"tolerance": -0.1}, "tolerance must be >= 0, got -0.1"),
        (StagedSamples, {"first": 0}, "first must be a whole number >= 1, got 0"),
        (StagedSamples, {"factor": 1.0}, "factor must be > 1, got 1.0"),
        (StagedSamples, {"factor": math.nan}, "factor must be > 1, got nan"),
        (DecideRadius, {"radius": 0.0}, "radius must be finite and > 0, got 0.0"),
        (DecideRadius, {"radius": math.inf}, "radius must be finite and > 0, got inf"),
        (DecideRadius, {"radius": 0.1, "first": 0}, "first must be a whole number >= 1, got 0"),
        (DecideRadius, {"radius": 0.1, "growth": 1.0}, "growth must be > 1, got 1.0"),
        (DecideRadius, {"radius": 0.1, "alpha_reject": 1.0}, r"alpha_reject must lie in \(0, 1\), got 1.0"),
        (RandomizedBound, {"tail_floor": 0.0}, r"tail_floor must lie in \(0, 1\), got 0.0"),
    ],
)
def test_bad_parameters(budget: type[Budget], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        budget(**arguments)


def test_the_stages_of_the_budget_are_those_of_the_rule() -> None:
    budget = StagedSamples(first=100, factor=math.sqrt(10))
    (record,) = certify(budget, [1.0], n=10_000)
    rule = StagedClopperPearson.geometric(10_000, 0.01, 100, math.sqrt(10))
    assert tuple(record.extra["stages"]) == rule.sizes == (100, 316, 1000, 3162, 10_000)
    assert record.extra["alphas"] == pytest.approx(rule.alphas, rel=1e-8)


def test_groups_take_rows() -> None:
    group = Group(torch.arange(4.0)[:, None], [10, 11, 12, 13], [0, 1, 2, 3])
    taken = group.take([3, 1])
    assert taken.images.flatten().tolist() == [3.0, 1.0]
    assert (taken.indices, taken.labels) == ([13, 11], [3, 1])
    assert dataclasses.replace(group, labels=None).take([0]).labels is None
