"""Reports at another alpha, from the votes alone; and other people's published logs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_rs.certificates.gaussian_l2 import GaussianL2
from lightning_rs.cli.commands import import_main, report_main
from lightning_rs.records import body_lines
from lightning_rs.report import load_runs, recompute, report
from tests.fakes import DECISION, certification
from tests.reported import (
    CERTIFICATES,
    EXACT,
    SPLITTING,
    from_votes,
    read_csv,
    save,
    voted_records,
)

# --- recomputation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.05, 0.001, 1e-5])
def test_recomputation_equals_certifying_at_that_alpha(tmp_path: Path, alpha: float) -> None:
    path = save(tmp_path / "run.jsonl", voted_records(0.001))
    [run] = load_runs([path])
    again = recompute(run, alpha)
    for record, expected in zip(again.records, voted_records(alpha), strict=True):
        assert (record.prediction, record.status, record.alpha) == (expected.prediction, expected.status, alpha)
        assert record.radius == pytest.approx(expected.radius, rel=1e-9)
    shown = str(report([path], alpha=alpha))
    assert f"alpha = {alpha:g}" in shown
    before = body_lines(path)
    assert before == [record.to_json() for record in voted_records(0.001)], "the file is not touched"


def test_recomputation_at_the_same_alpha_changes_nothing(tmp_path: Path) -> None:
    fresh = GaussianL2()
    [run] = load_runs([save(tmp_path / "run.jsonl", voted_records(0.001))])
    once = recompute(run, 0.001)
    assert recompute(once, 0.001).records == once.records
    assert {r.certificate for r in once.records} == {fresh.name}
    assert [r.bounds["q_upper"] > 0 for r in once.records] == [True] * len(once.records)


@pytest.mark.parametrize(
    ("changes", "run", "message"),
    [
        ({"mode": "staged"}, {}, "alpha cannot be changed in mode 'staged'"),
        ({"mode": "randomized"}, {}, "alpha cannot be changed in mode 'randomized'"),
        ({"n_used": 500}, {}, "the counts of image 0 are not those of 1000 independent samples"),
        ({"counts": (0, 900, 0)}, {}, "the counts of image 0 are not those of 1000"),
        ({}, {"entry": {}}, r"the header does not say how to build certificate 'GaussianL2'"),
        (
            {},
            {"entry": CERTIFICATES[0] | {"alpha_split": {"p_lower": 0.5}}},
            r"recorded with \{'norm': 'l2', 'alpha_split': \{'p_lower': 0\.5\}\}, but here it has \{'norm': 'l2'",
        ),
    ],
)
def test_recomputation_is_refused_where_it_is_not_sound(
    tmp_path: Path, changes: dict[str, Any], run: dict[str, Any], message: str
) -> None:
    [sound] = load_runs([save(tmp_path / "run.jsonl", [from_votes(0, 1, (20, 960, 20), 0.001)])])
    assert recompute(sound, 0.01).records[0].radius > sound.records[0].radius
    record = dataclasses.replace(sound.records[0], **changes)
    with pytest.raises(ValueError, match=message):
        recompute(dataclasses.replace(sound, records=[record], **run), 0.01)


def test_recomputation_of_an_import_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "run.jsonl", [certification(0, radius=0.1)])
    with pytest.raises(ValueError, match="was imported and has no raw counts"):
        report([path], alpha=0.01)
    report([path])  # without another alpha it is reported as it is


def test_recomputation_of_decisions_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "run.jsonl", [certification(0, status="decided", **DECISION)])
    with pytest.raises(ValueError, match="mode 'decision'"):
        report([path], alpha=0.01)


def test_exact_statements_hold_at_every_alpha(tmp_path: Path) -> None:
    exact = save(tmp_path / "exact.jsonl", [certification(0, **EXACT, grid=16, radius=0.25)], noise=SPLITTING)
    [run] = load_runs([exact])
    assert recompute(run, 0.05) is run
    with pytest.raises(ValueError, match=r"alpha must lie in \(0, 1\), got 2"):
        report([exact], alpha=2)


# --- published logs ---------------------------------------------------------------------------------------------------

PUBLISHED = {
    "0.12": (0.2758, [0.832, 0.598]),
    "0.25": (0.4240, [0.767, 0.612, 0.423, 0.251]),
    "0.50": (0.5251, [0.657, 0.549, 0.428, 0.325, 0.220, 0.141, 0.083]),
    "1.00": (0.5105, [0.472, 0.409, 0.338, 0.277, 0.221, 0.172, 0.133]),
}


def test_published_logs_give_the_published_numbers(shared: Path, tmp_path: Path) -> None:
    paths = []
    for sigma in PUBLISHED:
        paths.append(tmp_path / f"sigma_{sigma}.jsonl")
        table = shared / "data" / "cohen-cifar10" / f"sigma_{sigma}.tsv"
        given = ["--sigma", sigma, "--n", "100000", "--alpha", "0.001", "--data", "cifar10"]
        assert import_main([str(table), "--out", str(paths[-1]), *given]) == 0
    at = [f"{i / 4:g}" for i in range(7)]
    assert report_main([*map(str, paths), "--out", str(tmp_path / "out"), "--format", "csv", "--radii", *at]) == 0
    for row, (sigma, (radius, accuracies)) in zip(
        read_csv(tmp_path / "out" / "report.csv"), PUBLISHED.items(), strict=True
    ):
        assert (row["run"], float(row["sigma"]), row["n_images"]) == (f"sigma_{sigma}", float(sigma), "10000")
        # Lowered by the last printed digit: between one and two units of the third digit below what was published.
        assert radius - 0.006 < float(row["acr"]) < radius - 0.0004
        assert float(row["acr"]) == pytest.approx(lowered_average(shared, sigma), abs=1e-12)
        for i, accuracy in enumerate(accuracies):
            assert accuracy - 0.006 < float(row[f"acc@{i / 4:g}"]) <= accuracy + 6e-4
    assert "--assert-independent" in str(report(paths[:1]))


def lowered_average(shared: Path, sigma: str) -> float:
    """Average radius of a published log, each lowered by one unit of its last printed or third digit: written again."""
    total, lines = 0.0, (shared / "data" / "cohen-cifar10" / f"sigma_{sigma}.tsv").read_text().splitlines()[1:]
    for line in lines:
        _, _, _, radius, correct, _ = line.split("\t")
        whole, _, decimals = radius.partition(".")
        leading = len(whole) if float(whole) else -(len(decimals) - len(decimals.lstrip("0")))
        unit = max(10.0 ** -len(decimals), 10.0 ** (leading - 3))
        total += int(correct) * max(float(radius) - unit, 0.0)
    return total / len(lines)
