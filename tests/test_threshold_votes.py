"""Votes by threshold: a part of the image votes for every class whose softmax score reaches it, for several or none."""

from __future__ import annotations

import dataclasses
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lightning_rs.budgets import DecideGridRadius
from lightning_rs.certificates import PatchBand, PatchBlock
from lightning_rs.certificates.base import Certificate
from lightning_rs.certifier import Certifier
from lightning_rs.engine.ballots import threshold_votes
from lightning_rs.engine.runtime import Probe, Runtime
from lightning_rs.evidence import EnumeratedVotes
from lightning_rs.networks.null_coding import NullCoding
from lightning_rs.noise import BandNoise, BlockNoise
from lightning_rs.noise.base import EnumeratedNoise, noise_from_dict, noise_to_dict
from lightning_rs.records import Certification, read_records
from lightning_rs.session import Session
from tests.driving import ONE_THREAD, ROOT, run

CLASSES = 3
RUNTIME = Runtime(micro_batch=512, threads=1, fuse=False, fold=False)
BAND = BandNoise(1, shape=(1, 2, 6), threshold=0.4)
# The numbers of votes of one part that occur: thresholds above a third allow none, below one half several.
LAWS: list[tuple[Certificate, EnumeratedNoise, set[int]]] = [
    (PatchBand(), BAND, {0, 1, 2}),
    (PatchBand(), BandNoise(2, shape=(1, 2, 9), threshold=0.6), {0, 1}),
    (PatchBlock(), BlockNoise(1, shape=(1, 3, 3), threshold=0.4), {0, 1, 2}),
    (PatchBlock(), BlockNoise(2, shape=(1, 4, 4), threshold=0.2), {1, 2, 3}),
]


every = pytest.mark.parametrize(("certificate", "noise", "expected"), LAWS, ids=[repr(law[1]) for law in LAWS])


def network(shape: tuple[int, ...], seed: int) -> nn.Module:
    """A network whose parts are sure of several classes, of one, or of none."""
    torch.manual_seed(seed)
    layers = nn.Sequential(
        NullCoding(), nn.Flatten(), nn.Linear(2 * math.prod(shape), 16), nn.Tanh(), nn.Linear(16, CLASSES)
    )
    with torch.no_grad():
        layers[2].weight.mul_(3)
        layers[4].weight.mul_(4)
        layers[4].bias[1] += 1.2
    return layers


def images(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(3, size=(count, *shape)) / 2).float()


def session_of(certificate: Certificate, noise: EnumeratedNoise, seed: int, **arguments: Any) -> Session:
    shape = noise.shape  # type: ignore[attr-defined]
    return Certifier([certificate], runtime=RUNTIME, **arguments).session(network(shape, seed), noise, shape)


def votes_by_hand(net: nn.Module, noise: EnumeratedNoise, some: Tensor) -> np.ndarray:
    """Return the votes of all parts of some images, (B, parts, classes), in float64."""
    assert noise.threshold is not None
    count, flat = len(some), some.flatten(1)
    rows = torch.empty(count * noise.size, flat.shape[1])
    noise.split(flat.repeat_interleave(noise.size, 0), torch.arange(noise.size).repeat(count), rows)
    with torch.no_grad():
        scores = net(rows.view(-1, *some.shape[1:])).double().softmax(1)
    return (scores >= noise.threshold).view(count, noise.size, CLASSES).numpy()


def patched(image: Tensor, side: int) -> Tensor:
    """Return the image under every square patch of some side, at all places and with all values on the grid of 1/2."""
    _, height, width = image.shape
    fillings = torch.tensor(list(product((0.0, 0.5, 1.0), repeat=side * side))).view(-1, 1, side, side)
    attacked = []
    for top, left in product(range(height - side + 1), range(width - side + 1)):
        each = image.repeat(len(fillings), 1, 1, 1)
        each[..., top : top + side, left : left + side] = fillings
        attacked.append(each)
    return torch.cat(attacked)


def test_a_vote_for_every_class_that_reaches_the_threshold() -> None:
    scores = torch.tensor([[0.6, 0.3, 0.1], [0.34, 0.33, 0.33], [0.98, 0.01, 0.01]])
    expected = {0.2: [[1, 1, 0], [1, 1, 1], [1, 0, 0]], 0.5: [[1, 0, 0], [0, 0, 0], [1, 0, 0]]}
    for threshold, right in expected.items():
        votes, margin = threshold_votes(scores.log() + 7, threshold)
        assert votes.tolist() == right
        distance = (scores.double().log() - math.log(threshold)).abs().amin(1)
        assert margin.numpy() == pytest.approx(distance.numpy(), abs=1e-6)
        assert (margin > 0).all()


def test_a_score_at_the_threshold_is_doubtful_however_large_the_logits() -> None:
    logits = torch.tensor([[0.0, 0.0], [3e7, 3e7], [1.0, 0.0], [-40.0, 40.0]])
    votes, margin = threshold_votes(logits, 0.5)
    assert (margin <= 0).tolist() == [True, True, False, False]
    assert votes[2:].tolist() == [[1, 0], [0, 1]]


def test_logits_that_move_by_the_tolerance_cannot_turn_a_vote_outside_it() -> None:
    """By e each: a log-score moves by at most 2 e, of which the tolerance is twice as much for two evaluations."""
    generator = torch.Generator().manual_seed(0)
    logits, moved = torch.randn(20_000, 4, generator=generator), 0.05
    signs = torch.randint(2, logits.shape, generator=generator) * 2.0 - 1
    votes, margin = threshold_votes(logits, 0.3)
    again, _ = threshold_votes(logits + moved * signs, 0.3)
    turned = (votes != again).any(1)
    assert turned.any()
    assert (margin[turned] <= 2 * moved).all()


@every
def test_the_engine_counts_them(certificate: Certificate, noise: EnumeratedNoise, expected: set[int]) -> None:
    shape = noise.shape  # type: ignore[attr-defined]
    some, session = images(shape, 40, 0), session_of(certificate, noise, 0)
    records = list(session.certify(some))
    kinds = set()
    for votes, record in zip(votes_by_hand(network(shape, 0), noise, some), records, strict=True):
        kinds |= set(votes.sum(1).tolist())
        assert record.counts == tuple(votes.sum(0))
        assert record.prediction == votes.sum(0).argmax()
        assert record.n_used == noise.size
        assert record.extra["threshold"] == noise.threshold
        assert record.extra["doubtful"] == 0
        assert Certification.from_json(record.to_json()) == record
    assert noise.threshold is not None
    assert expected - {0} <= kinds <= expected  # to have none is rare
    assert (session.predict(some).counts == [record.counts for record in records]).all()


@every
def test_no_patch_of_the_certified_side_turns_the_answer(
    certificate: Certificate, noise: EnumeratedNoise, expected: set[int]
) -> None:
    """Every patch, at all places, with all values of a small grid."""
    shape = noise.shape  # type: ignore[attr-defined]
    certified = broken = 0
    for seed in range(4):
        some, net = images(shape, 8, seed), network(shape, seed)
        for image, record in zip(some, session_of(certificate, noise, seed).certify(some), strict=True):
            for side in (1, 2):
                votes = votes_by_hand(net, noise, patched(image, side)).sum(1)
                turned = bool((votes.argmax(1) != record.prediction).any())
                certified += side <= record.radius
                assert not (side <= record.radius and turned)
                broken += turned
    assert certified >= 5
    assert broken >= 3


@every
def test_early_decisions_are_those_of_all_parts(
    certificate: Certificate, noise: EnumeratedNoise, expected: set[int]
) -> None:
    shape = noise.shape  # type: ignore[attr-defined]
    some, seen, saved = images(shape, 40, 1), set(), 0
    whole = list(session_of(certificate, noise, 1).certify(some))
    for side, step in ((1, 1), (1, 5), (2, 1), (9, 1)):
        early = session_of(certificate, noise, 1, budget=DecideGridRadius(side, step)).certify(some)
        for full, record in zip(whole, early, strict=True):
            reached = full.radius >= side
            assert record.status == ("decided" if reached else "abstain")
            assert record.prediction == (full.prediction if reached else -1)
            assert max(record.counts) <= record.n_used <= record.n == noise.size
            assert Certification.from_json(record.to_json()) == record
            seen.add(reached)
            saved += record.n - record.n_used
    assert seen == {True, False}
    assert saved > 0


def test_a_side_between_two_needs_the_larger() -> None:
    assert PatchBand().needed(1.5, BAND) == PatchBand().needed(2, BAND) == 2
    assert PatchBlock().needed(2, BlockNoise(2, shape=(1, 9, 9))) == 9
    assert PatchBand().needed(7, BAND) == BAND.size  # no such patch: nothing reaches it
    assert PatchBlock().needed(2, BlockNoise(1, shape=(1, 1, 50))) == 50


def test_votes_within_the_tolerance_count_against_the_class() -> None:
    noise, shape = BAND, (1, 2, 6)
    some, session = images(shape, 30, 1), session_of(PatchBand(), noise, 1)
    plain = list(session.certify(some))
    session.probed, session.sampler.tolerance = Probe(0.0, False, 0.01, 64), 0.04
    doubted = list(session.certify(some))
    lost = 0
    for image, full, record in zip(some, plain, doubted, strict=True):
        rows = torch.empty(noise.size, image.numel())
        noise.split(image.flatten(), torch.arange(noise.size), rows)
        with torch.no_grad():
            scores = network(shape, 1)(rows.view(-1, *shape)).double().log_softmax(1).numpy()
        near = int((np.abs(scores - math.log(0.4)).min(1) <= 0.04).sum())
        assert record.extra["doubtful"] == near
        assert record.counts == full.counts
        assert record.bounds["distance"] == full.bounds["distance"] - near
        lost += near > 0
    assert 3 < lost < 30


def test_a_prediction_whose_logits_moved_too_far_abstains_even_without_votes() -> None:
    noise = BandNoise(1, shape=(1, 2, 6), threshold=0.99999)
    session = session_of(PatchBand(), noise, 0)
    evidence = EnumeratedVotes(torch.zeros(1, CLASSES, dtype=torch.int64))
    assert session.sampler.rechecks is not None
    session.sampler.rechecks._seen[0] = type(session.sampler.rechecks.pop(0))(1, 0.5)
    assert session._doubt(session.sampler, evidence).tolist() == [noise.size]


def test_the_speed_of_parts_without_votes_is_not_zero() -> None:
    session = session_of(PatchBand(), BandNoise(1, shape=(1, 2, 6), threshold=1 - 1e-12), 0)
    assert session.measure(images((1, 2, 6), 1, 0), 0.01) > 0


def test_the_threshold_is_part_of_the_law() -> None:
    told = noise_to_dict(BAND)
    assert told["threshold"] == 0.4
    assert noise_from_dict(told) == BAND != BandNoise(1, shape=(1, 2, 6))
    assert "threshold" not in noise_to_dict(BandNoise(1, shape=(1, 2, 6)))
    assert BAND.arranged(torch.arange(12)).threshold == 0.4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"counts": [7, 0, 0]}, "counts must be at most 6 for a class and 12 in all"),
        ({"counts": [5, 4, 4]}, "counts must be at most 6 for a class and 12 in all"),
        ({"extra": {"threshold": 1.0}}, r"counts must be those of votes by a threshold in \(0, 1\), not 1.0"),
        ({"extra": {"threshold": "no"}}, r"counts must be those of votes by a threshold in \(0, 1\), not 'no'"),
        ({"extra": {}, "counts": [6, 6, 0]}, "counts must be 6 in all, as n_used says"),
    ],
)
def test_counts_that_parts_cannot_cast_are_refused(change: dict[str, Any], message: str) -> None:
    (record,) = session_of(PatchBand(), BAND, 0).certify(images((1, 2, 6), 1, 0))
    values = json.loads(record.to_json()) | change
    with pytest.raises(ValueError, match=f"^here: {message}"):
        Certification.from_json(json.dumps(values), "here")
    for counts in ((0, 0, 0), (6, 6, 0)):
        allowed = dataclasses.replace(record, counts=counts)
        assert Certification.from_json(allowed.to_json()) == allowed


def test_fit_certify_decide_and_predict_from_the_command_line(tmp_path: Path) -> None:
    own = '{"kept": 3, "shape": [1, 8, 8], "threshold": 0.4}'
    law = f'{{"class_path": "lightning_rs.noise.BandNoise", "init_args": {own}}}'
    fit = [
        "fit", "--model.init_args.network=null_coded", '--model.init_args.network_args={"base": "mlp"}',
        f"--model.init_args.noise={law}", "--trainer.max_epochs=6", "--trainer.callbacks=[]", "--certifier=null",
        f"--trainer.default_root_dir={tmp_path}",
    ]  # fmt: skip
    assert run(*fit) == 0
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    words = [
        f"--ckpt_path={checkpoint}", "--data.init_args.max=60", f"--trainer.default_root_dir={tmp_path}",
        "--certifier.init_args.runtime.init_args.micro_batch=64", *ONE_THREAD,
    ]  # fmt: skip
    decide = ["-c", ROOT / "configs/certify/decide_patch.yaml", "--certifier.init_args.budget.init_args.radius=1"]
    assert run("certify", *words, f"--records={tmp_path / 'whole.jsonl'}") == 0
    assert run("certify", *words, *decide, f"--records={tmp_path / 'early.jsonl'}") == 0
    assert run("predict", *words) == 0
    header, whole = read_records(tmp_path / "whole.jsonl")
    assert header.binding["noise"]["threshold"] == 0.4
    assert sum(record.correct for record in whole) > 30
    assert any(sum(record.counts) != record.n_used for record in whole)
    early = read_records(tmp_path / "early.jsonl")[1]
    assert [record.status == "decided" for record in early] == [record.radius >= 1 for record in whole]
    assert 0 < sum(record.certified_at(1) for record in whole) < 60
    (predictions,) = tmp_path.rglob("predictions.csv")
    lines = predictions.read_text().splitlines()[1:]
    assert [int(line.split(",")[2]) for line in lines] == [record.prediction for record in whole]
    text = (tmp_path / "whole.jsonl").read_text()
    for old, new, message in (
        (',"threshold":0.4}', "}", "counts must be 8 in all"),
        ('"shape":[1,8,8],"threshold":0.4', '"shape":[1,8,8]', r"extra\['threshold'\] must be None"),
    ):
        assert old in text
        (tmp_path / "forged.jsonl").write_text(text.replace(old, new))
        with pytest.raises(ValueError, match=message):
            read_records(tmp_path / "forged.jsonl")
