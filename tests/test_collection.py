"""Certifications as a list, a data frame, and what a notebook shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lightning_rs.records import Certifications, read_records
from tests.fakes import certification
from tests.reported import save, voted_records


def test_records_become_a_typed_table(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    path = save(tmp_path / "run.jsonl", voted_records(images=6))
    records = read_records(path)[1]
    table = records.to_pandas()
    assert len(table) == 6
    assert table["index"].tolist() == [record.index for record in records]
    assert table["correct"].tolist() == [record.correct for record in records]
    assert table["counts.1"].tolist() == [record.counts[1] for record in records]
    assert table["radii.GaussianL2"].tolist() == [record.radii["GaussianL2"] for record in records]
    assert table["bounds.q_upper"].tolist() == [record.bounds["q_upper"] for record in records]
    assert table["label"].dtype == pandas.Int64Dtype()
    assert table["status"].dtype == "category"
    unlabelled = Certifications([certification(0, label=None), certification(1)]).to_pandas()
    assert unlabelled["label"].isna().tolist() == [True, False]
    assert Certifications().to_pandas().empty
    assert list(records[:2]) == list(records)[:2]
    assert isinstance(records[:2], Certifications)


def test_without_pandas_one_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match=r"lightning_rs\[pandas\]"):
        Certifications([certification(0)]).to_pandas()


def test_notebooks_show_text_and_no_markup() -> None:
    records = Certifications(certification(k, note="<script>alert(1)</script>") for k in range(12))
    assert "<script>" not in records[0]._repr_html_()
    assert "&lt;script&gt;" in records[0]._repr_html_()
    odd = Certifications([certification(0, certificate="<b>", radius=0.5)])
    assert "&lt;b&gt;" in odd._repr_html_()
    shown = records._repr_html_()
    assert shown.count("<tr>") == 11
    assert "12 images" in shown
