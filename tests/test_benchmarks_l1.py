"""The tables and the figure of the l1 comparison, from records of a network that learned nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are not installed

from benchmarks import l1_cost, l1_tables, splitting, throughput
from lightning_rs.certificates import UniformBoxL1
from lightning_rs.certifier import Certifier
from lightning_rs.records import Header
from lightning_rs.records.writing import write_whole


def test_l1_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape, image = (1, 8, 8), splitting.gray_image((1, 8, 8))
    images = torch.cat([image.roll(shift, 3) for shift in range(6)])
    laws: dict[str, Any] = {
        "uniform": (l1_cost.UniformNoise(sigma=1.0), [l1_cost.UniformL1(), UniformBoxL1()]),
        "ssn": (l1_cost.SplittingNoise(sigma=1.0), [l1_cost.SplittingL1()]),
        "dssn": (l1_cost.DeterministicSplittingNoise(sigma=1.0, shape=shape), [l1_cost.DeterministicSplittingL1()]),
    }
    labels: list[int] = []  # what DSSN answers: the network has learned nothing
    for name in ("dssn", "uniform", "ssn"):
        law, certificates = laws[name]
        session = Certifier(certificates, n=400).session(throughput.network_of("digits_cnn", shape), law, shape)
        count = 6 if name == "dssn" else 4  # DSSN alone covers more images
        labels = labels or [record.prediction for record in session.certify(images)]
        records = list(session.certify(images[:count], labels[:count]))
        header = Header.create(session.describe(), data={"name": "test"}, indices=list(range(count)))
        write_whole(tmp_path / f"{name}_1.0_200.jsonl", header, [record.to_json() for record in records])
    rows = l1_tables.main([str(tmp_path), "--sigmas", "1.0", "--figure", str(tmp_path / "curves.png")])
    assert [row["noise"] for row in rows] == ["uniform", "uniform, UniformBoxL1", "SSN", "DSSN"]
    assert {row["images"] for row in rows} == {"4"}
    shown = capsys.readouterr().out
    table = shown[shown.index("DSSN less the others") : shown.index("DSSN on all images")].splitlines()
    assert [line.split(" | ")[1].strip() for line in table[4:-1]] == ["SSN", "uniform", "uniform, UniformBoxL1"]
    assert all("[" in line for line in table[4:-1])
    assert "sigma = 1.0 | DSSN  | 6 " in shown
    assert (tmp_path / "curves.png").stat().st_size > 5000
