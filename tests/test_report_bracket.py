"""Brackets in reports: attack records beside the records, or given, in every format; and what does not belong."""

from __future__ import annotations

import dataclasses
import math
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from lightning_rs.cli.commands import report_main
from lightning_rs.records import Certification, Header, read_records
from lightning_rs.records.attack_files import AttackFile, certification_sha256
from lightning_rs.records.attacks import AttackRecord, ValueTest
from lightning_rs.report import report
from tests.reported import read_csv, save, voted_records

VOTES, BETA = 1000, 1e-7


def attacked(record: Certification, distance: float | None, **changes: object) -> AttackRecord:
    """Return what an attack found that broke the image at a distance, or did not, and its test at the image."""
    own, other = ((0,) * place + (VOTES,) + (0,) * (2 - place) for place in (record.top, (record.top + 1) % 3))
    test = ValueTest(
        kind="clean", distance=0.0, lower=0.5, count=VOTES, n=VOTES, upper=1.0, prediction=record.top, counts=own,
        seed=3, beta=BETA, failed=False,
    )  # fmt: skip
    lost = {"counts": list(other), "n": VOTES, "beta": BETA, "seed": 5, "prediction": other.index(VOTES), "tries": 1}
    fields = {
        "index": record.index, "label": record.label, "prediction": record.top, "stated": record.prediction >= 0,
        "radius": record.radius, "norm": record.norm, "ball": record.ball, "alpha": record.alpha, "attacked": distance,
        "inside": False, "searched": 1.0, "confirmation": None if distance is None else lost, "tests": (test,),
    }  # fmt: skip
    return AttackRecord(**{**fields, **changes})  # type: ignore[arg-type]


def write(path: Path, header: Header, found: list[AttackRecord], certificate: str = "GaussianL2") -> Path:
    binding = {
        "certification": certification_sha256(header), "certificate": certificate,
        "attacker": {"beta": 1e-6, "attacks": [{"class": "PGD"}]}, "norm": "l2", "alpha": header.binding["alpha"],
    }  # fmt: skip
    file = AttackFile(path, Header(binding, {"records": "r.jsonl"}))
    for record in found:
        file.append(record)
    file.close()
    return path


@pytest.fixture
def records(tmp_path: Path) -> Path:
    return save(tmp_path / "r.jsonl", voted_records(images=30))


def distances(path: Path) -> dict[int, float]:
    """Return a distance beyond the radius for two of three images."""
    return {r.index: r.radius + 0.5 + 0.1 * r.index for r in read_records(path)[1] if r.index % 3}


def test_a_report_has_brackets_in_every_format(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    far = distances(records)
    write(tmp_path / "r.attack.jsonl", header, [attacked(r, far.get(r.index)) for r in certified])
    radii = [0.0, 2.0, 4.0, 8.0, 14.0]
    made = report([records], tmp_path / "out", radii=radii)
    # Written again from the definition: right and certified at r; right and not broken within r.
    right = [r for r in certified if r.top == r.label]
    low = [sum(r.prediction == r.label and r.radius >= at for r in right) / 30 for at in radii]
    high = [sum(far.get(r.index, math.inf) > at for r in right) / 30 for at in radii]
    (row,) = read_csv(tmp_path / "out" / "report_brackets.csv")
    for name, expected in (("certified", low), ("standing", high), ("gap", np.subtract(high, low))):
        assert [float(row[f"{name}@{at:g}"]) for at in radii] == pytest.approx(list(expected), abs=1e-15)
    assert float(row["gap@4"]) > 0
    both = [(r.radius, far[r.index]) for r in right if r.prediction == r.label and r.radius > 0 and r.index in far]
    assert len(both) > 3
    assert float(row["median_gap"]) == pytest.approx(np.median([b - a for a, b in both]))
    assert float(row["least_ratio"]) == pytest.approx(min(b / a for a, b in both))
    assert (row["images"], row["right"], row["tests"], row["contradicted"]) == ("30", str(len(right)), "30", "0")
    assert int(row["broken"]) == sum(r.index in far for r in right)
    text, folder = str(made), tmp_path / "out"
    for shown in (text, (folder / "report.md").read_text(), (folder / "report_tables.tex").read_text()):
        words = shown.replace(r"\allowbreak{}", "")
        assert "not attacked at r" in words
        assert "neither proved nor refuted" in words
        assert f"{high[2]:.3f}" in words
    assert "attacked by PGD, confirmed by fresh votes at beta 1e-06" in text
    for picture in ("report_brackets.pdf", "report_brackets.png", "report_brackets.svg"):
        assert (folder / picture).stat().st_size > 1000
        assert folder / picture in made.files
    assert "report_brackets" in (folder / "report.tex").read_text()
    if shutil.which("pdflatex"):
        subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "report.tex"], cwd=folder, check=True,
                       capture_output=True, timeout=300)  # fmt: skip


def test_without_radii_brackets_reach_as_far_as_attacks(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    far = max(r.radius for r in certified) * 3
    write(tmp_path / "r.attack.jsonl", header, [attacked(r, far if r.index == 1 else None) for r in certified])
    report([records], tmp_path / "out", formats=["csv"])
    (row,) = read_csv(tmp_path / "out" / "report_brackets.csv")
    at = [float(name.removeprefix("gap@")) for name in row if name.startswith("gap@")]
    assert 0.7 * far < max(at) <= far


def test_the_page_has_brackets(records: Path, tmp_path: Path) -> None:
    pytest.importorskip("bokeh")
    header, certified = read_records(records)
    far = distances(records)
    plain = report([records], tmp_path / "plain", formats=["csv"], html=True).files[-1].read_text()
    write(tmp_path / "r.attack.jsonl", header, [attacked(r, far.get(r.index)) for r in certified])
    page = report([records], tmp_path / "out", formats=["csv"], html=True).files[-1].read_text()
    for words in ("not attacked at r", '"broken at"', "neither proved nor refuted"):
        assert words in page
        assert words not in plain


def test_of_several_attacks_the_closest_counts_and_the_unattacked_are_counted(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    right = next(r for r in certified if r.prediction == r.label and r.radius > 0)
    near, far = right.radius + 1, right.radius + 3
    write(tmp_path / "r.attack.jsonl", header, [attacked(right, far)])
    given = write(tmp_path / "elsewhere.jsonl", header, [attacked(right, near)])
    for paths, attacks in (([records, given], ()), ([records], (given,))):
        made = report(paths, tmp_path / "out", formats=["csv"], attacks=attacks)
        (row,) = read_csv(tmp_path / "out" / "report_brackets.csv")
        assert (float(row["median_attacked"]), row["images"]) == (near, "1")
        assert "29 images were not attacked" in str(made)


def test_radii_of_the_report_count_not_those_that_were_attacked(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    write(tmp_path / "r.attack.jsonl", header, [attacked(r, None) for r in certified])
    made = report([records], tmp_path / "out", alpha=0.2, radii=[3.0], formats=["csv"])
    (row,) = read_csv(tmp_path / "out" / "report_brackets.csv")
    assert float(row["certified@3"]) == made.groups[0].runs[0].accuracy([3.0])[0]
    (before,) = report([records], radii=[3.0]).groups
    assert float(row["certified@3"]) > before.runs[0].accuracy([3.0])[0]


def test_contradictions_are_loud(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    record = next(r for r in certified if r.prediction == r.label and r.radius > 1)
    bad = attacked(record, record.radius / 2, inside=True, verdict="a bug")
    write(tmp_path / "r.attack.jsonl", header, [bad])
    text = str(report([records]))
    assert re.search(rf"CONTRADICTED: 1 certificates of r, .*image {record.index}: broken inside, .*a bug", text)


def test_attacks_of_other_records_are_left_out_or_refused(
    records: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    header, certified = read_records(records)
    other = dataclasses.replace(header, binding={**header.binding, "n": 7})
    stale = write(tmp_path / "r.attack.jsonl", other, [attacked(certified[0], None)])
    made = report([records])
    assert any("Attacks left out: " in remark and "none of the runs" in remark for remark in made.remarks)
    assert "not attacked at r" not in str(made)
    assert report_main([str(records), "--attacks", str(stale)]) == 1
    assert "r.attack.jsonl holds attacks on r.jsonl, which is none of the runs" in capsys.readouterr().err
    assert report_main([str(records), "--attacks", str(records)]) == 1
    assert "r.jsonl:1: not a file of attacks" in capsys.readouterr().err
    assert report_main([str(stale)]) == 1
    assert "must name at least one record file" in capsys.readouterr().err
    norm = write(tmp_path / "r.attack2.jsonl", header, [attacked(certified[0], None)], certificate="GaussianLinf")
    assert report_main([str(records), "--attacks", str(norm)]) == 1
    assert "none of the runs" in capsys.readouterr().err


def test_attacks_that_misstate_their_certificates_are_left_out_or_refused(records: Path, tmp_path: Path) -> None:
    header, certified = read_records(records)
    right = next(r for r in certified if r.prediction == r.label and r.radius > 0)
    wrong: list[dict[str, object]] = [{"radius": right.radius + 1}, {"label": None}, {"radius": 0.0, "stated": False}]
    for number, change in enumerate(wrong):
        given = write(tmp_path / f"elsewhere{number}.jsonl", header, [attacked(right, right.radius + 2, **change)])
        with pytest.raises(ValueError, match=rf"elsewhere{number}\.jsonl: image {right.index}: the attacked certif"):
            report([records], attacks=[given])
    write(tmp_path / "r.attack.jsonl", header, [attacked(right, right.radius + 2, radius=right.radius + 1)])
    made = report([records])
    assert any("Attacks left out: " in remark and "radius" in remark for remark in made.remarks)
