"""Tables of the public scripts: read into records, written from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_rs.records import (
    RecordFile,
    export_tsv,
    import_tsv,
    read_records,
    read_seconds,
)
from lightning_rs.records.tsv import parse_seconds
from tests.fakes import (
    ABSTAINED,
    NOISE,
    certification,
    faithful,
    header,
    header_of,
    save,
)

# --- tables -----------------------------------------------------------------------------------------------------------

TABLE = """idx\tlabel\tpredict\tradius\tcorrect\ttime
0\t3\t-1\t0.0\t0\t0:00:14.114881
20\t8\t8\t0.36\t1\t1 day, 1:00:01
40\t8\t2\t0.356\t0\t13.5
60\t0\t0\t0.331\t1\t2 days, 0:00:00.5
"""
GIVEN: dict[str, Any] = {"noise": NOISE, "n": 100_000, "n0": 100, "alpha": 0.001}


def test_import_reads_what_the_scripts_write(tmp_path: Path) -> None:
    table, out = tmp_path / "table.tsv", tmp_path / "run.jsonl"
    table.write_text(TABLE)
    assert import_tsv(table, out, **GIVEN) == 4
    head, records = read_records(out)
    assert head.imported
    assert head.binding["noise"] == NOISE
    assert (head.binding["n"], head.binding["alpha"], head.expected) == (100_000, 0.001, None)
    assert [(r.index, r.label, r.prediction, r.radius, r.correct) for r in records] == [
        (0, 3, -1, 0.0, False),
        (20, 8, 8, 0.35, True),  # 0.36 may have been 0.355: the last printed digit
        (40, 8, 2, 0.355, False),
        (60, 0, 0, 0.33, True),
    ]
    assert records[1].counts == ()
    assert "radius printed as 0.36" in repr(records[1])
    assert read_seconds(out) == {0: 14.114881, 20: 86400 + 3601.0, 40: 13.5, 60: 172800.5}
    before = out.read_bytes()
    assert import_tsv(table, out, **GIVEN) == 4, "importing again changes nothing"
    assert out.read_bytes() == before
    with pytest.raises(ValueError, match="exists and holds other records"):
        import_tsv(table, out, **(GIVEN | {"alpha": 0.01}))
    assert len(read_seconds(out)) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("idx\tlabel", "id\tlabel", r"table\.tsv:1: the columns idx are missing, got id, label"),
        ("0.36\t1", "0.36", r"table\.tsv:3: 6 columns expected, got 5"),
        ("0.36\t1", "x\t1", r"table\.tsv:3: column radius must be a finite number >= 0, got 'x'"),
        ("0.36\t1", "nan\t1", r"table\.tsv:3: column radius must be a finite number >= 0, got 'nan'"),
        ("0.36\t1", "0.36\t0", r"table\.tsv:3: column correct says 0, but label is 8 and predict is 8"),
        ("-1\t0.0", "-1\t0.1", r"table\.tsv:2: column radius must be 0 where the prediction is -1, got 0\.1"),
        ("20\t8", "0\t8", r"table\.tsv:3: image 0 occurs twice"),
        ("13.5", "soon", r"table\.tsv:4: column time must be a time such as 0:00:18\.5 or 18\.5, got 'soon'"),
    ],
)
def test_a_bad_table_is_one_error_that_names_the_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    table, out = tmp_path / "table.tsv", tmp_path / "run.jsonl"
    table.write_text(TABLE.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        import_tsv(table, out, **GIVEN)
    assert not out.exists()


def test_import_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no table at .*none\.tsv"):
        import_tsv(tmp_path / "none.tsv", tmp_path / "run.jsonl", **GIVEN)
    (tmp_path / "empty.tsv").write_text("")
    with pytest.raises(ValueError, match=r"empty\.tsv:1: the file is empty: the columns idx, label, predict, radius"):
        import_tsv(tmp_path / "empty.tsv", tmp_path / "run.jsonl", **GIVEN)


def test_export_rounds_radii_down_and_returns(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    radii = [0.1 + 0.2, 0.4129999999, 2 / 3, 1e-9]
    records = [*(certification(i, radius=r) for i, r in enumerate(radii)), certification(4, **ABSTAINED)]
    head = header_of(records, header(range(5), noise=NOISE | {"sigma": 1.0}))
    records = [faithful(record, head) for record in records]
    with RecordFile(path, head) as file:
        file.append(records[:4], seconds=[18.583187, 90061.0, 0.0, 1.0])
        file.append(records[4:])
    out = tmp_path / "table.tsv"
    assert export_tsv(path, out) == 5
    rows = [line.split("\t") for line in out.read_text().splitlines()]
    assert rows[0] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert rows[1] == ["0", "7", "7", "0.300000", "1", "0:00:18.583187"]
    assert rows[2][3:] == ["0.412999", "1", "1 day, 1:01:01"]
    assert rows[5] == ["4", "7", "-1", "0.000000", "0", ""]
    for row, radius in zip(rows[1:], radii, strict=False):
        assert radius - 1e-6 < float(row[3]) <= radius
    with pytest.raises(FileExistsError):
        export_tsv(path, out)
    back = tmp_path / "back.jsonl"
    assert import_tsv(out, back, **(GIVEN | {"noise": NOISE | {"sigma": 1.0}})) == 5
    assert [r.prediction for r in read_records(back)[1]] == [7, 7, 7, 7, -1]


def test_export_refuses_what_the_table_cannot_say(tmp_path: Path) -> None:
    decided = certification(mode="decision", status="decided", target=0.5, radius=0.0)
    for record, message in ((decided, "decision mode and has no radius"), (certification(label=None), "has no label")):
        path, out = tmp_path / f"{record.mode}.jsonl", tmp_path / "table.tsv"
        save(path, [record], header())
        with pytest.raises(ValueError, match=message):
            export_tsv(path, out)
        assert not out.exists()


def test_both_time_formats() -> None:
    for text, seconds in (
        ("0:00:18.583187", 18.583187),
        ("1 day, 0:00:01", 86401.0),
        ("3 days, 2:03:04.5", 3 * 86400 + 7384.5),
        ("10:00:00", 36000.0),
        ("18.583187", 18.583187),
        ("7", 7.0),
        ("1e-3", 0.001),
    ):
        assert parse_seconds(text) == pytest.approx(seconds, abs=1e-9)
    assert parse_seconds(" ") is None
    with pytest.raises(ValueError, match="soon"):
        parse_seconds("soon")
