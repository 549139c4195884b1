"""Record files of several processes: resumed by any number of them, repaired, merged once."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest

from lightning_rs.records import Certification, Header, RecordFile, body_lines, read_seconds, sidecar_path
from lightning_rs.stages.files import RecordSet
from tests.fakes import certification
from tests.fakes import header as fake_header


def header(n: int = 1000, indices: Iterable[int] = range(6)) -> Header:
    return fake_header(list(indices), n=n, runtime={"micro_batch": 64})


def record(index: int) -> Certification:
    return certification(index)


def write(path: Path, indices: Iterable[int], world: int = 2, rank: int = 0) -> None:
    files = RecordSet(path, header(), rank, world)
    files.open()
    for index in indices:
        files.append(record(index), 0.25)
    files.close()


def test_ranks_are_merged_when_all_is_there(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, [0, 2, 4])
    write(path, [1, 3], rank=1)
    files = RecordSet(path, header(), 0, 2)
    assert files.resume() == {0, 1, 2, 3, 4}
    files.close()
    files.merge(range(6))
    assert not path.exists()  # image 5 is missing
    write(path, [5], rank=1)
    files.merge(range(6))
    assert [r.index for r in files.read()] == list(range(6))
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["r.jsonl", "r.sidecar.jsonl"]
    assert read_seconds(path) == dict.fromkeys(range(6), 0.25)


def test_files_of_more_processes_are_repaired_and_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, [0, 2])
    write(path, [1], rank=1)
    with open(tmp_path / "r.rank1.jsonl", "a") as file:
        file.write('{"index":3,')
    (tmp_path / "r.rank2.jsonl").write_text('{"format":"light')  # killed in its header
    alone = RecordSet(path, header(), 0, 1)
    assert alone.resume() == {0, 1, 2}
    alone.open()
    for index in (3, 4, 5):
        alone.append(record(index), 0.25)
    alone.close()
    alone.merge(range(6))
    assert [r.index for r in alone.read()] == list(range(6))
    assert len(list(tmp_path.iterdir())) == 2


def test_copies_left_by_a_killed_merge_are_removed(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, [0, 2, 4])
    write(path, [1, 3, 5], rank=1)
    parts = {part: part.read_bytes() for part in tmp_path.glob("r.rank*.jsonl")}
    files = RecordSet(path, header(), 0, 2)
    files.merge(range(6))
    before = body_lines(path)
    for part, contents in parts.items():
        part.write_bytes(contents)  # as if the process had died before its clean-up
    assert RecordSet(path, header(), 0, 1).resume() == set(range(6))
    files.merge(range(6))
    assert body_lines(path) == before
    assert not list(tmp_path.glob("r.rank*"))


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "r[1].jsonl"
    write(path, [0])
    (tmp_path / "r[1].rankings.jsonl").write_text("mine")
    (tmp_path / "r1.rank0.jsonl").write_text("mine")
    assert RecordSet(path, header(), 0, 1).resume() == {0}


def test_another_binding_in_any_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, [1], rank=1)
    files = RecordSet(path, header(n=2000), 0, 1)
    with pytest.raises(ValueError, match="n: 1000 != 2000"):
        files.resume()
    RecordFile(tmp_path / "r.rank1.jsonl", header()).close()  # it was released


def test_a_file_that_another_run_writes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, [0])
    with RecordFile(tmp_path / "r.rank0.jsonl", header()), pytest.raises(BlockingIOError, match="another process"):
        RecordSet(path, header(), 0, 1).resume()


def test_the_recorded_micro_batch(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    assert RecordSet.recorded_micro_batch(path) is None
    path.write_text('{"format":"light')
    assert RecordSet.recorded_micro_batch(path) is None
    write(path, [0], rank=1)
    assert RecordSet.recorded_micro_batch(path) == 64
    assert sidecar_path(tmp_path / "r.rank1.jsonl").is_file()
