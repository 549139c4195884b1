"""Records of attacks are not believed: what contradicts itself, or its header, is refused with file, line and field."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rs import Certifier, DeterministicSplittingL1, DeterministicSplittingNoise, GaussianL2, GaussianNoise
from lightning_rs.attacks import PGD, Attacker, AttackFile, Geometry, SplittingMoves, read_attacks
from lightning_rs.certificates import Certificate
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import Noise
from lightning_rs.records import Header
from tests.helpers import HalfSpace, every_change, odd

SHAPE = (1, 2, 2)
#: What only the file of certificates, the data, or the network can tell.
FACTS = {"index", "label", "radius", "attacked", "searched", "confirmation", "tests"}
CASES: dict[str, tuple[Noise, Certificate, Any]] = {
    "sampled": (GaussianNoise(0.25), GaussianL2(), PGD(steps=3)),
    "exact": (DeterministicSplittingNoise(0.5, shape=SHAPE, q=255), DeterministicSplittingL1(), SplittingMoves()),
}


@pytest.fixture(params=CASES)
def attacked(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    noise, certificate, attack = CASES[request.param]
    network = HalfSpace(torch.tensor([1.0, 0, 0, 0]), offset=0.5)
    certifier = Certifier([certificate], n0=20, n=400, alpha=0.01, runtime=Runtime(micro_batch=64, threads=1))
    session = certifier.session(network, noise, SHAPE, domain=(0.0, 1.0), grid=255)
    x = torch.tensor([30.0, 90.0, 170.0, 220.0])[:, None, None, None].expand(-1, *SHAPE) / 255
    attacker = Attacker([attack], copies=4, n=400, screen=50, rounds=1)
    victim = attacker.victim(session, network, Geometry(certificate.norm, domain=(0.0, 1.0), grid=255))
    found = attacker.run(victim, list(session.certify(x, [0, 0, 1, 1])), x)
    binding = {
        "certificate": certificate.name, "norm": certificate.norm, "alpha": 0.01, "attacker": attacker.describe(),
    }  # fmt: skip
    path = tmp_path / "run.attack.jsonl"
    file = AttackFile(path, Header(binding, {}))
    for record in found:
        file.append(record)
    file.close()
    return path


def rows(path: Path) -> tuple[str, list[dict[str, Any]]]:
    header, *lines = path.read_text().splitlines()
    return header, [json.loads(line) for line in lines]


def refusal(path: Path, header: str, record: dict[str, Any]) -> str | None:
    path.write_text(f"{header}\n{json.dumps(record)}\n")
    try:
        read_attacks(path)
    except ValueError as error:
        return str(error)
    return None


def test_every_change_of_an_attack_is_refused_or_is_a_fact_of_another_file(attacked: Path) -> None:
    header, records = rows(attacked)
    assert any(record["attacked"] is not None for record in records)
    tried, accepted = 0, []
    for record in records[1:3]:
        for field, changed in every_change(record):
            tried += 1
            told = refusal(attacked, header, changed)
            if told is None and changed != record:
                accepted.append(field)
            assert told is None or (told.startswith(f"{attacked}:2") and "\n" not in told)
    assert tried > 200
    assert set(accepted) <= FACTS
    assert len(accepted) < tried / 5


def lies(record: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield records that say something better than what was seen, and what the refusal says of it."""
    tests = record["tests"]
    if record["attacked"] is not None:
        yield {**record, "attacked": None}, "attacked and confirmation go together"
        yield {**record, "inside": True}, "attacked must be in the ball"
        yield {**record, "radius": 2 * record["attacked"]}, "attacked must be beyond the radius|0.0 where nothing"
        yield {**record, "attacked": record["radius"] / 2}, "attacked must be beyond the radius"
        if record["alpha"]:  # an exact majority needs no lead
            weak = {"counts": [201, 199] if record["prediction"] else [199, 201], "n": 400}
            yield {**record, "confirmation": {**record["confirmation"], **weak}}, "its lead is too small at level"
    for place, test in enumerate(tests):
        for change, why in (
            ({"lower": 10_000.0}, "lower must be from 0"),
            ({"failed": True}, "failed must be false"),
            ({"upper": test["upper"] * 2 + 1}, "upper must be"),
            ({"counts": test["counts"][::-1]}, "prediction must be|count must be"),
            ({"n": test["n"] + 1}, "n must be"),
            ({"beta": 0.5}, "beta must be a share"),
            ({"kind": "elsewhere"}, "kind must be one of clean, random, adversarial"),
        ):
            yield {**record, "tests": [*tests[:place], {**test, **change}, *tests[place + 1 :]]}, why
    yield {**record, "tests": [tests[0], tests[0]]}, "tests must be one of each kind"
    yield {**record, "norm": "linf"}, "norm must be the header's"
    yield {**record, "alpha": 0.5}, "alpha must be the header's"
    yield {**record, "verdict": "a bug"}, "verdict must be there if something is contradicted"
    yield {**record, "certain": True}, "certain must be left out"
    yield {**record, "label": 7}, "label must be one of the 2 classes"


def test_what_is_said_of_a_lie(attacked: Path) -> None:
    header, records = rows(attacked)
    for record in records:
        for lie, why in lies(record):
            told = refusal(attacked, header, lie)
            assert told is not None, (lie, why)
            assert any(part in told for part in why.split("|")), (told, why)


def test_what_was_sampled_is_not_called_exact(attacked: Path) -> None:
    """Without tests of what it asserts, nothing else in the record would contradict it."""
    header, records = rows(attacked)
    for record in records:
        bare = {**record, "tests": []}
        assert refusal(attacked, header, bare) is None
        told = refusal(attacked, header, {**bare, "alpha": 0})
        assert (told is None) == (record["alpha"] == 0)
        assert told is None or "alpha must be > 0: GaussianL2 was sampled" in told
        for nameless in (None, 3):
            binding = json.loads(header)
            where = binding["binding"]
            assert where["certificate"]
            where["certificate"] = nameless
            told = refusal(attacked, json.dumps(binding), {**bare, "alpha": 0})
            assert told is not None
            assert "alpha must be > 0: the header names no certificate" in told


def test_what_is_no_record_at_all_is_one_line(attacked: Path) -> None:
    """Any other error than the refusal would reach the user as a traceback."""
    header, records = rows(attacked)
    lines = [(header, record) for record in odd(records[1])]
    lines += [(json.dumps(changed), records[1]) for changed in odd(json.loads(header))]
    assert len(lines) > 200
    for first, second in lines:
        told = refusal(attacked, first, second)
        assert told is None or (told.startswith(f"{attacked}:") and "\n" not in told)


def test_a_hidden_contradiction_is_refused(attacked: Path) -> None:
    """A bound that the votes contradict, called a success."""
    header, records = rows(attacked)
    record = next(each for each in records if each["stated"])
    test = record["tests"][1]
    most = test["n"] if not record["alpha"] else 1.0
    lost = [0, 0]
    lost[1 - record["prediction"]] = test["n"]
    other = {**test, "lower": most, "counts": lost, "count": 0, "prediction": 1 - record["prediction"]}
    upper = 0.0 if not record["alpha"] else 1 - (test["beta"]) ** (1 / test["n"])
    told = refusal(attacked, header, {**record, "tests": [record["tests"][0], {**other, "upper": upper}]})
    assert told is not None
    assert "failed must be true: the certificate is contradicted" in told
