"""Early exit of an enumeration: the decision of the full one, from fewer votes, with doubt against the certificate."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lightning_rs.budgets import DecideGridRadius, DecideRadius, FixedSamples
from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.certificates.splitting import DeterministicSplittingL1, splitting_votes_distance
from lightning_rs.certifier import Certifier
from lightning_rs.cli import main
from lightning_rs.engine.runtime import Probe, Runtime
from lightning_rs.engine.sampler import Sampler
from lightning_rs.evidence import EnumeratedVotes, Votes
from lightning_rs.metrics import average_certified_radius, certified_accuracy
from lightning_rs.noise.gaussian import GaussianNoise
from lightning_rs.noise.splitting import DeterministicSplittingNoise
from lightning_rs.records import Certification, read_records

Q, SHAPE = 15, (1, 2, 3)
RUNTIME = Runtime(micro_batch=16)


def network(seed: int = 0) -> nn.Module:
    """A network whose votes are neither unanimous nor even."""
    torch.manual_seed(seed)
    layers = nn.Sequential(nn.Flatten(), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    with torch.no_grad():
        layers[1].weight.mul_(5)
        layers[1].bias.copy_(-0.5 * layers[1].weight.sum(1))
        layers[3].bias.zero_()
    return layers


def images(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(Q + 1, size=(count, *SHAPE)) / Q).float()


def certify(
    budget: Any, lam: float = 1.3, count: int = 60, labels: bool = False, **arguments: Any
) -> list[Certification]:
    noise = DeterministicSplittingNoise(lam, shape=SHAPE, q=Q, seed=2)
    certifier = Certifier([DeterministicSplittingL1()], budget=budget, runtime=RUNTIME, **arguments)
    full = [0] * count if labels else None
    return certifier.certify(network(), noise, images(count), full)


@pytest.mark.parametrize("lam", [0.4, 1.3])
def test_every_decision_is_that_of_the_full_enumeration(lam: float) -> None:
    full = certify(FixedSamples(), lam)
    top = max(round(Q * record.radius) for record in full)
    saved, seen = 0, set()
    for goal in range(1, top + 2):
        for step in (1, 7):
            for whole, early in zip(full, certify(DecideGridRadius(goal / Q, step), lam), strict=True):
                reached = round(Q * whole.radius) >= goal
                assert early.status == ("decided" if reached else "abstain")
                assert early.prediction == (whole.prediction if reached else -1)
                assert sum(early.counts) == early.n_used <= early.n == whole.n
                saved += early.n - early.n_used
                seen.add(reached)
    assert seen == {True, False}
    assert saved > 0.2 * full[0].n * len(full) * 2 * top


def test_one_outcome_at_a_time_stops_as_early_as_any_rule_can() -> None:
    """At the last look but one the remaining votes could still have turned the decision."""
    goal = 4
    noise = DeterministicSplittingNoise(1.3, shape=SHAPE, q=Q, seed=2)
    rows = torch.empty(noise.size, 6)
    for image, record in zip(images(60), certify(DecideGridRadius(goal / Q, 1)), strict=True):
        noise.split(image.flatten(), torch.arange(noise.size), rows)
        votes = network()(rows.view(-1, *SHAPE)).argmax(1).numpy()
        assert tuple(np.bincount(votes[: record.n_used], minlength=3)) == record.counts
        before, left = np.bincount(votes[: record.n_used - 1], minlength=3), noise.size - record.n_used + 1
        ends = before + left * np.eye(3, dtype=int)
        distance = splitting_votes_distance(ends)[1]
        assert (distance >= goal).any()
        assert (distance < goal).any()


def test_votes_are_those_of_the_first_outcomes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[range]] = []
    collect = Sampler.collect

    def spy(self: Sampler, *arguments: Any, **others: Any) -> Any:
        asked.append(others["outcomes"])
        return collect(self, *arguments, **others)

    monkeypatch.setattr(Sampler, "collect", spy)
    (record,) = certify(DecideGridRadius(0.2, step=3), count=1)
    ranges = [chosen for (chosen,) in asked]
    assert len(ranges) > 1
    assert [b for chosen in ranges for b in chosen] == list(range(record.n_used))
    assert all(len(chosen) >= 3 for chosen in ranges[:-1])


def test_records_do_not_depend_on_the_company() -> None:
    budget = DecideGridRadius(0.2, 1)
    noise = DeterministicSplittingNoise(1.3, shape=SHAPE, q=Q, seed=2)
    session = Certifier([DeterministicSplittingL1()], budget=budget, runtime=RUNTIME).session(network(), noise, SHAPE)
    alone = [next(iter(session.certify(image[None], indices=[i]))) for i, image in enumerate(images(20))]
    assert alone == certify(budget, count=20)


def test_a_target_that_no_vote_reaches_costs_none() -> None:
    lam = 1.3
    assert {record.n_used for record in certify(DecideGridRadius(lam + 1 / Q), lam)} == {0}
    assert {record.status for record in certify(DecideGridRadius(lam + 1 / Q), lam)} == {"abstain"}


def test_records_have_no_radius_and_state_what_is_exact() -> None:
    radius = 4.5 / Q  # certified iff D >= 4
    records = certify(DecideGridRadius(radius), labels=True)
    by_status = {record.status: record for record in records}
    assert set(by_status) == {"decided", "abstain"}
    assert all((r.radius, r.mode, r.alpha, r.target, r.grid) == (0.0, "decision", 0.0, radius, Q) for r in records)
    assert "exactly, no l1 perturbation of norm <= 0.3 between images on the grid" in repr(by_status["decided"])
    assert "exactly: l1 radius 0.3 is not certified" in repr(by_status["abstain"])
    assert math.isnan(average_certified_radius(records))
    for line in records:
        assert Certification.from_json(line.to_json()) == line
    full = certify(FixedSamples(), labels=True)
    for rho in (3.9 / Q, 4 / Q, 4.9 / Q):
        same = certified_accuracy(records, [rho])[0]
        if rho < 4 / Q:
            assert 0 < same <= certified_accuracy(full, [rho])[0]
        else:
            assert same == certified_accuracy(full, [rho])[0] > 0  # one grid cell: floor(q rho) = 4


class Doubt:
    """Calls some outcomes doubtful, by number, and can turn their votes: what unlucky companions would do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, doubtful: np.ndarray) -> None:
        self.doubtful, self.collect = doubtful, Sampler.collect
        monkeypatch.setattr(Sampler, "collect", self._collect())

    def _collect(self) -> Any:
        doubt = self

        def collect(sampler: Sampler, x: Any, indices: Any, *arguments: Any, **others: Any) -> Any:
            found = doubt.collect(sampler, x, indices, *arguments, **others)
            if EnumeratedVotes in found and others.get("outcomes") is not None:
                asked = others["outcomes"]
                many = [int(doubt.doubtful[chosen.start : chosen.stop].sum()) for chosen in asked]
                votes = found[EnumeratedVotes]
                votes._doubtful = votes._doubtful + torch.tensor(many)
            return found

        return collect


def test_doubtful_votes_count_against_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    goal, lam = 3, 1.3
    size = DeterministicSplittingNoise(lam, shape=SHAPE, q=Q, seed=2).size
    full = certify(FixedSamples(), lam)
    doubtful = np.zeros(size, dtype=int)
    doubtful[::9] = 1
    Doubt(monkeypatch, doubtful)
    early = certify(DecideGridRadius(goal / Q, 1), lam)
    lost = 0
    for whole, record in zip(full, early, strict=True):
        seen = int(doubtful[: record.n_used].sum())
        assert record.extra["doubtful"] == seen
        assert ("within the logit margin" in record.note) == (seen > 0)
        sure = round(Q * whole.radius) - doubtful.sum() >= goal  # with the doubt of all outcomes
        possible = round(Q * whole.radius) - seen >= goal
        assert sure <= (record.status == "decided") <= possible
        lost += round(Q * whole.radius) >= goal and record.status == "abstain"
    assert lost > 0


def test_the_engine_measures_doubt_on_partial_enumerations() -> None:
    noise = DeterministicSplittingNoise(1.3, shape=SHAPE, q=Q, seed=2)
    session = Certifier([DeterministicSplittingL1()], runtime=RUNTIME).session(network(), noise, SHAPE)
    session.sampler.tolerance = 0.3
    some = images(3)
    parts = [
        session.sampler.collect(some, range(3), "estimation", 1, [EnumeratedVotes], outcomes=chosen)[EnumeratedVotes]
        for chosen in ([range(5), range(20), range(1)], [range(5, 39), range(20, 39), range(1, 39)])
    ]
    whole = session.sampler.collect(some, range(3), "estimation", 1, [EnumeratedVotes])[EnumeratedVotes]
    assert noise.size == 39
    assert (parts[0].counts.sum(1) == [5, 20, 1]).all()
    assert (parts[0].counts + parts[1].counts == whole.counts).all()
    assert (parts[0].doubtful + parts[1].doubtful == whole.doubtful).all()
    assert whole.doubtful.sum() > 0


@pytest.mark.parametrize(
    ("outcomes", "message"),
    [
        ([range(3)], "outcomes must be one range for each of 2 images, got 1"),
        ([range(3), range(0)], r"outcomes must be consecutive, at least one, within 0..38, got range\(0, 0\)"),
        ([range(3), range(30, 40)], r"within 0..38, got range\(30, 40\)"),
        ([range(3), range(0, 9, 2)], r"consecutive, .* got range\(0, 9, 2\)"),
    ],
)
def test_outcomes_are_checked(outcomes: list[range], message: str) -> None:
    noise = DeterministicSplittingNoise(1.3, shape=SHAPE, q=Q, seed=2)
    sampler = Certifier([DeterministicSplittingL1()], runtime=RUNTIME).session(network(), noise, SHAPE).sampler
    with pytest.raises(ValueError, match=message):
        sampler.collect(images(2), range(2), "estimation", 1, [EnumeratedVotes], outcomes=outcomes)


def test_outcomes_of_sampled_noise_are_refused() -> None:
    sampler = Certifier(runtime=RUNTIME).session(network(), GaussianNoise(0.5), SHAPE).sampler
    with pytest.raises(ValueError, match="outcomes must be left out for noise that is sampled"):
        sampler.collect(images(1), [0], "estimation", 1, [Votes], outcomes=[range(1)])


def test_refusals() -> None:
    with pytest.raises(ValueError, match="DeterministicSplittingL1, PatchBand, PatchBlock, got GaussianL2"):
        Certifier([GaussianL2()], budget=DecideGridRadius(0.5))
    with pytest.raises(ValueError, match="needs a fixed n: use FixedSamples or DecideGridRadius"):
        Certifier([DeterministicSplittingL1()], budget=DecideRadius(0.5))
    with pytest.raises(ValueError, match="radius must be finite and > 0, got 0"):
        DecideGridRadius(0)
    with pytest.raises(ValueError, match="step must be a whole number >= 1, got 0"):
        DecideGridRadius(0.5, 0)


def test_description_binds_and_pools() -> None:
    assert DecideGridRadius(0.5, 8).describe() == {"mode": "decision", "radius": 0.5, "step": 8}
    assert DecideGridRadius(0.5).pool(32768, 883) == 4 * 38
    assert DecideGridRadius(0.5).pool(100, 3091) == 32


def test_a_session_says_what_exact_means() -> None:
    noise = DeterministicSplittingNoise(1.3, shape=SHAPE, q=Q, seed=2)
    session = Certifier([DeterministicSplittingL1()], runtime=RUNTIME).session(network(), noise, SHAPE)
    assert session.exactness is None  # not probed yet
    session.probe(images(3))
    assert "at one shape of 16 rows; its logits did not move with position or companions" in str(session.exactness)
    session.probed, session.sampler.tolerance = Probe(0.0, False, 1e-4, 16), 4e-4
    assert "logits moved by up to 0.0001" in str(session.exactness)
    assert "votes by a margin of at most 0.0004 count as adversarial" in str(session.exactness)
    sampled = Certifier(runtime=RUNTIME).session(network(), GaussianNoise(0.5), SHAPE)
    sampled.probe(images(3))
    assert sampled.exactness is None


def test_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[1]
    own = '{"sigma": 0.35, "q": 16, "shape": [1, 8, 8]}'
    law = f'{{"class_path": "lightning_rs.noise.DeterministicSplittingNoise", "init_args": {own}}}'
    words = [
        "certify",
        "--untrained",
        "true",
        "--model.init_args.noise",
        law,
        "--data.init_args.max",
        "5",
        "--trainer.logger",
        "false",
    ]
    words += ["--trainer.default_root_dir", str(tmp_path)]
    decide = [
        "-c",
        str(root / "configs/certify/decide_l1.yaml"),
        "--certifier.init_args.budget.init_args.radius",
        "0.25",
    ]
    assert main([*words, *decide, "--records", str(tmp_path / "early.jsonl")]) == 0
    assert main([*words, "--records", str(tmp_path / "full.jsonl")]) == 0
    header, early = read_records(tmp_path / "early.jsonl")
    full = read_records(tmp_path / "full.jsonl")[1]
    assert header.binding["budget"] == {"mode": "decision", "radius": 0.25, "step": 32}
    assert "its logits did not move with position or companions" in header.informative["exact"]
    assert [record.status == "decided" for record in early] == [record.steps >= 4 for record in full]  # type: ignore[operator]
    assert all(record.n == full[0].n_used == 19 for record in early)
