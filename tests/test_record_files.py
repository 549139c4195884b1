"""Record files: what is written is read again, whatever interrupts the writer; locks; merge."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lightning_rs.records import (
    RecordFile,
    body_lines,
    merge,
    read_records,
    read_seconds,
    sidecar_path,
)
from tests.fakes import (
    certification,
    header,
)

# --- files ------------------------------------------------------------------------------------------------------------


def write(path: Path, indices: range | list[int], **changes: Any) -> Path:
    with RecordFile(path, header(**changes)) as file:
        file.append([certification(i) for i in indices if i not in file.done])
    return path


def test_write_read_resume(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "run.jsonl"
    with RecordFile(path, header()) as file:
        assert file.done == frozenset()
        file.append([certification(40), certification(0)], seconds=[0.5, 0.25])
        assert file.done == {0, 40}
        # Visible to others at once: the line is on disk, not in a buffer.
        assert [r.index for r in read_records(path)[1]] == [0, 40]
    with RecordFile(path, header()) as file:
        assert file.done == {0, 40}
        file.append([certification(20)])
    head, records = read_records(path)
    assert head.difference(header()) == []
    assert records == [certification(0), certification(20), certification(40)]
    assert body_lines(path) == [r.to_json() for r in records]
    assert read_seconds(path) == {40: 0.5, 0: 0.25}
    assert sidecar_path(path) == tmp_path / "deep" / "run.sidecar.jsonl"
    assert sidecar_path(path).read_text().count('"environment"') == 2


def test_bodies_do_not_depend_on_the_order_of_writing(tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.jsonl", [0, 20, 40]), write(tmp_path / "b.jsonl", [40, 0, 20])
    assert one.read_text() != two.read_text()
    assert body_lines(one) == body_lines(two)


def test_a_torn_line_is_repaired_wherever_it_was_torn(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.jsonl", [0, 20, 40])
    data = whole.read_bytes()
    lines = data.splitlines(keepends=True)
    ends = np.cumsum([len(line) for line in lines])
    path = tmp_path / "torn.jsonl"
    # Every byte of the last line, and a sample of the positions before it.
    for size in [*range(0, ends[-2], 37), *range(ends[-2], len(data) + 1)]:
        path.write_bytes(data[:size])
        with RecordFile(path, header()) as file:
            finished = int((ends <= size).sum())
            assert file.done == set([0, 20, 40][: max(0, finished - 1)])
            file.append([certification(i) for i in (0, 20, 40) if i not in file.done])
        assert body_lines(path) == body_lines(whole), size
        # Finished lines were not rewritten.
        assert path.read_bytes().startswith(data[: int(ends[finished - 1])] if finished else b"{")


def test_reading_ignores_a_torn_line_with_a_warning_and_leaves_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0, 20])
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    with pytest.warns(UserWarning, match="last line is unfinished"):
        records = read_records(path)[1]
    assert [r.index for r in records] == [0]
    assert path.read_bytes() == torn


def test_a_file_without_a_header_yet(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    for content in (b"", header().to_json().encode()[:50]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"run\.jsonl:1: the header is missing or unfinished"):
            read_records(path)
    with pytest.raises(FileNotFoundError, match=r"no record file at .*nothing\.jsonl"):
        read_records(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize("content", [b"important notes", b"important\nnotes\n", b"idx\tlabel\n", b"\x00\xff\n"])
def test_a_foreign_file_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes.txt:1: not a "):
        RecordFile(path, header())
    assert path.read_bytes() == content


def test_a_corrupt_line_in_the_middle_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0, 20, 40])
    lines = path.read_bytes().splitlines(keepends=True)
    for bad in (b'{"index": 20\n', b"\xff\xfe\n", b"\n", lines[2].replace(b'"radius":', b'"radius":-', 1)):
        content = b"".join([*lines[:2], bad, lines[3]])
        path.write_bytes(content)
        for attempt in (lambda: read_records(path), lambda: RecordFile(path, header()), lambda: body_lines(path)):
            with pytest.raises(ValueError, match=r"run\.jsonl:3: "):
                attempt()
        assert path.read_bytes() == content, "nothing is erased"


def test_a_finished_but_corrupt_last_line_is_not_mistaken_for_a_torn_one(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    path.write_bytes(path.read_bytes() + b'{"index": 20\n')
    with pytest.raises(ValueError, match=r"run\.jsonl:3: not a line of JSON"):
        RecordFile(path, header())


def test_a_repeated_image_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    with RecordFile(path, header()) as file:
        with pytest.raises(ValueError, match="image 0 is already recorded"):
            file.append([certification(20), certification(0)])
        with pytest.raises(ValueError, match="image 20 is already recorded"):
            file.append([certification(20), certification(20)])
        with pytest.raises(ValueError, match="got 1 for 2 records"):
            file.append([certification(20), certification(40)], seconds=[1.0])
        assert file.done == {0}
    assert len(body_lines(path)) == 1, "a refused batch leaves nothing behind"
    path.write_bytes(path.read_bytes() + path.read_bytes().splitlines(keepends=True)[1])
    with pytest.raises(ValueError, match=r"run\.jsonl:3: image 0 is already on line 2"):
        read_records(path)


def test_another_binding_configuration_is_refused_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"another configuration than this run: n: 1000 != 100000; runtime.precision"):
        RecordFile(path, header(n=100_000, runtime={"precision": "32-true", "micro_batch": 400}))
    assert path.read_bytes() == before


def test_other_versions_only_warn(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    old = {"versions": {"torch": "0.1"}, "git": None, "host": "elsewhere"}
    RecordFile(path, dataclasses.replace(header(), informative=old)).close()
    with pytest.warns(UserWarning, match=r"resumed although versions\.torch: '0\.1' != ") as caught:
        RecordFile(path, header()).close()
    assert not any("host" in str(w.message) for w in caught)


def test_closed_files_do_not_write(tmp_path: Path) -> None:
    file = RecordFile(tmp_path / "run.jsonl", header())
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.append([certification(0)])


def test_a_failed_write_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "run.jsonl", [0])
    real = os.write

    def full_disk(fd: int, data: memoryview) -> int:
        if len(data) > 100:
            return real(fd, data[:100])
        raise OSError(28, "No space left on device")

    with RecordFile(path, header()) as file:
        monkeypatch.setattr(os, "write", full_disk)
        with pytest.raises(OSError, match="No space left"):
            file.append([certification(20)])
        monkeypatch.undo()
        assert file.done == {0}
        file.append([certification(20)])
    assert [r.index for r in read_records(path)[1]] == [0, 20]


# --- processes --------------------------------------------------------------------------------------------------------

# Writes what `tests.fakes` makes, whose votes repeat after 60 images, without importing it: that would import torch.
WRITER = """
import dataclasses, itertools, sys
sys.path.insert(0, {root!r})
from lightning_rs.records import RecordFile, read_records
header, known = read_records({known!r})
with RecordFile({path!r}, header) as file:
    print("open", flush=True)
    for i in itertools.count() if sys.argv[1] == "for ever" else range(int(sys.argv[1])):
        if i not in file.done:
            file.append([dataclasses.replace(known[i % 60], index=i)], seconds=[0.001])
            if i % 40 == 0:
                print("written", flush=True)
    print("holding", flush=True)
    sys.stdin.read()
"""


def writer(path: Path, *arguments: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).parents[1])
    known = path.with_name("known.jsonl")
    if not known.exists():
        with RecordFile(known, header(range(100_000))) as file:
            file.append([certification(i) for i in range(60)])
    code = WRITER.format(root=root, path=str(path), known=str(known))
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_kill_9_twice_then_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    """The writer never stops of its own accord, so that it is always killed while it writes."""
    path = tmp_path / "killed.jsonl"
    seen = 0
    for _ in range(2):
        with writer(path, "for ever") as process:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["open\n", "written\n", "written\n"]
            process.send_signal(signal.SIGKILL)
        assert process.returncode == -signal.SIGKILL
        assert path.stat().st_size > seen
        seen = path.stat().st_size
    with RecordFile(path, header(range(100_000))) as file:
        survivors = len(file.done)
        assert survivors > 80
        file.append([certification(i) for i in range(survivors + 50) if i not in file.done])
    whole = tmp_path / "whole.jsonl"
    with RecordFile(whole, header(range(100_000))) as file:
        file.append([certification(i) for i in range(survivors + 50)])
    assert body_lines(path) == body_lines(whole)
    assert set(read_seconds(path)) <= set(range(survivors + 50)), "a torn line of the sidecar is skipped"


def test_two_writers_do_not_interleave(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with writer(path, "3") as process:
        try:
            assert process.stdout is not None
            assert [process.stdout.readline() for _ in range(3)] == ["open\n", "written\n", "holding\n"]
            with pytest.raises(BlockingIOError, match=r"run\.jsonl is being written by another process"):
                RecordFile(path, header(range(100_000)))
            assert len(read_records(path)[1]) == 3, "reading needs no lock"
        finally:
            process.kill()
    with RecordFile(path, header(range(100_000))) as file:
        assert len(file.done) == 3, "the lock dies with its process"


# --- merge ------------------------------------------------------------------------------------------------------------


def test_merged_shards_equal_one_run(tmp_path: Path) -> None:
    parts = [write(tmp_path / f"shard{i}.jsonl", indices) for i, indices in enumerate(([40, 0], [20]))]
    whole = write(tmp_path / "whole.jsonl", [0, 20, 40])
    out = tmp_path / "merged" / "all.jsonl"
    assert merge(parts, out) == 3
    assert body_lines(out) == body_lines(whole)
    assert out.read_text().splitlines()[1:] == body_lines(whole), "the merged file is in index order"
    merged = read_records(out)[0]
    assert merged.difference(header()) == []
    assert merged.informative["merged"] == ["shard0.jsonl", "shard1.jsonl"]
    before = out.read_bytes()
    assert merge(parts, out) == 3, "merging again changes nothing"
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out], "no temporary file is left"


def test_merge_refuses(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", [0, 20]), write(tmp_path / "b.jsonl", [20, 40])
    c, d = write(tmp_path / "c.jsonl", [40], seed=1), write(tmp_path / "d.jsonl", [60])
    e, out = write(tmp_path / "e.jsonl", [40]), tmp_path / "out.jsonl"
    for paths, message in (
        ([a, b], r"image 20 is in both .*a\.jsonl and .*b\.jsonl"),
        ([a, c], r"a\.jsonl was made with another configuration than .*c\.jsonl: seed: 0 != 1"),
        ([a], "1 images are missing: 40"),
        ([a, e, d], r"d\.jsonl:2: index must be one of the header's subset, got 60"),
        ([a, a], "image 0 is in both"),
        ([], "at least one record file"),
    ):
        with pytest.raises(ValueError, match=message):
            merge(paths, out)
        assert not out.exists()
    with pytest.raises(FileNotFoundError, match=r"no record file at .*none\.jsonl"):
        merge([a, tmp_path / "none.jsonl"], out)
    with pytest.raises(ValueError, match="5 images are missing: 1, 2, 3, 4, 5"):
        merge([a], out, expected_indices=[0, 20, 1, 2, 3, 4, 5])
    e.write_bytes(e.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"e\.jsonl: the last line is unfinished"):
        merge([a, e], out)


def test_merge_never_overwrites(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", [0, 20]), write(tmp_path / "b.jsonl", [40])
    out = write(tmp_path / "out.jsonl", [0])
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"out\.jsonl exists and holds other records"):
        merge([a, b], out)
    assert out.read_bytes() == before
    foreign = tmp_path / "notes.txt"
    foreign.write_text("notes")
    with pytest.raises(ValueError, match="exists and is no record file"):
        merge([a, b], foreign)
    assert foreign.read_text() == "notes"
