"""Reading believes nothing: every field of a valid record, changed, is refused with file, line, field and value."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_rs import certificates
from lightning_rs.budgets import DecideRadius, RandomizedBound, StagedSamples
from lightning_rs.certifier import Certifier
from lightning_rs.class_paths import class_named
from lightning_rs.engine.runtime import Runtime
from lightning_rs.noise import GaussianNoise, LaplaceNoise, Noise, UniformNoise
from lightning_rs.records import Header, RecordFile, read_records
from lightning_rs.records.recomputed import PLAIN
from lightning_rs.records.verification import NOT_CHECKED
from tests.helpers import HalfSpace

# Facts about the data, remarks for people, and extra facts that no radius follows from.
HARMLESS = {*NOT_CHECKED, "extra", "image"}
NETWORK = HalfSpace(torch.tensor([1.0, 0.0, 0.0, 0.0]), 0.2)


def made(path: Path, noise: Noise, certifier: Certifier) -> Path:
    x = torch.linspace(0.0, 1.0, 4)[:, None] * torch.ones(4)
    session = certifier.session(NETWORK, noise, (4,))
    records = list(session.certify(x, torch.tensor([0, 1, 1, 1])))
    header = Header.create(session.describe(), data={"name": "line"}, indices=range(4))
    with RecordFile(path, header) as file:
        file.append(records)
    return path


CASES: dict[str, tuple[Noise, dict[str, Any]]] = {
    "cohen": (GaussianNoise(0.5), {}),
    "several": (
        GaussianNoise(0.5),
        {"certificates": [certificates.GaussianL2(), certificates.GaussianLinf(), certificates.GaussianTwoClassL2()]},
    ),
    "uniform": (UniformNoise(1.0), {"certificates": [certificates.UniformL1(), certificates.UniformBoxL1()]}),
    "laplace": (LaplaceNoise(0.5), {"certificates": [certificates.LaplaceL1()]}),
    "staged": (GaussianNoise(0.5), {"budget": StagedSamples()}),
    "randomized": (GaussianNoise(0.5), {"budget": RandomizedBound()}),
    "decision": (GaussianNoise(0.5), {"budget": DecideRadius(0.2)}),
    "lecuyer": (GaussianNoise(0.5), {"certificates": [certificates.LecuyerL2()]}),
}


def mutations(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the record with each field changed, each number and text, inside lists and mappings too."""
    for name, value in record.items():
        for changed in _others(value):
            yield name, {**record, name: changed}


def _others(value: Any) -> Iterator[Any]:
    if isinstance(value, bool) or value is None:
        yield 1
    elif isinstance(value, int | float):
        yield from (value + 1, value * 2 + 3, -7)
        if isinstance(value, float):
            yield value * 1.001 + 1e-6
    elif isinstance(value, str):
        yield from ("l7" if value != "l7" else "l1", value + "x")
    elif isinstance(value, list):
        yield from ([*value, 1], value[:-1])
        for place, item in enumerate(value):
            for other in _others(item):
                yield [*value[:place], other, *value[place + 1 :]]
    elif isinstance(value, dict):
        for key, item in value.items():
            yield {k: v for k, v in value.items() if k != key}
            for other in _others(item):
                yield {**value, key: other}


def _same_threshold(field: str, record: dict[str, Any], before: dict[str, Any]) -> bool:
    return field == "bounds" and record[field].get("threshold") == before[field]["threshold"]


def refusal(path: Path) -> str | None:
    """Return why a file is refused, None if it is read."""
    try:
        read_records(path)
    except ValueError as error:
        return str(error)
    return None


@pytest.mark.parametrize("case", CASES)
def test_every_mutation_is_refused(case: str, tmp_path: Path) -> None:
    noise, changes = CASES[case]
    certifier = Certifier(n0=20, n=400, alpha=0.01, runtime=Runtime(micro_batch=64), **changes)
    path = made(tmp_path / "run.jsonl", noise, certifier)
    lines = path.read_text().splitlines()
    assert len(read_records(path)[1]) == 4
    tried = 0
    accepted = []
    for row in (1, 4):
        before = json.loads(lines[row])
        for field, record in mutations(before):
            path.write_text("\n".join([*lines[:row], json.dumps(record), *lines[row + 1 :], ""]))
            tried += 1
            told = refusal(path)
            if told is None:
                # Decisions have no radius from which a rounding distance is taken; it is a fact for people there.
                unread = (
                    case == "decision" and record[field] != before[field] and _same_threshold(field, record, before)
                )
                accepted += [] if unread else [(field, record[field])]
            else:
                assert told.startswith(f"{path}:")
                assert "\n" not in told
    assert tried > 100
    assert {field for field, _ in accepted} <= HARMLESS, [each for each in accepted if each[0] not in HARMLESS][:5]


def test_ten_thousand_records_are_read_in_a_moment(tmp_path: Path) -> None:
    certifier = Certifier(n0=20, n=400, runtime=Runtime(micro_batch=64))
    path = made(tmp_path / "run.jsonl", GaussianNoise(0.5), certifier)
    head, *lines = path.read_text().splitlines()
    many = json.loads(head)
    many["binding"]["subset"] = {"start": 0, "stop": 10_000, "step": 1}
    body = [json.dumps({**json.loads(lines[i % 4]), "index": i}) for i in range(10_000)]
    path.write_text("\n".join([json.dumps(many), *body, ""]).replace('{"format": ', '{"format":', 1))
    start = time.process_time()
    assert len(read_records(path)[1]) == 10_000
    assert time.process_time() - start < 5, "about one second; a bound against solving for every image"


def test_the_theorems_in_numbers_are_the_theorems() -> None:
    for name, plain in PLAIN.items():
        theorem = class_named(name, certificates.Certificate, "certificate")  # type: ignore[type-abstract]
        assert plain.norm == theorem().norm
        assert theorem.ball == "open"
        assert not theorem.exact
        assert plain.laws == tuple(law.__name__ for law in theorem.noises)
        assert theorem.votes_only
    assert np.isfinite(PLAIN["GaussianLinf"].radius({"sigma": 1.0}, 9, np.array([0.1]), None)).all()
