"""What paths may be: pipes, devices, links in a circle, folders where files are wanted, files where folders are."""

from __future__ import annotations

import builtins
import os
import shutil
import stat
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_rs.checks import folder_for, kind_of
from lightning_rs.cli import main
from lightning_rs.cli.words import read_config
from lightning_rs.networks.files import read_file
from lightning_rs.networks.weights import read_own_checkpoint
from lightning_rs.records import RecordFile, export_tsv
from lightning_rs.records.attack_files import AttackFile
from lightning_rs.records.header import Header
from lightning_rs.records.writing import write_complete
from lightning_rs.trainer import check_checkpoint
from tests.fakes import certification, header


@pytest.fixture(autouse=True)
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one of each kind."""
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe")
    Path("loop").symlink_to("circle")
    Path("circle").symlink_to("loop")
    Path("dangling").symlink_to("nothing")
    Path("folder").mkdir()
    Path("file").write_text("mine")
    with RecordFile("r.jsonl", header()) as file:
        file.append([certification(index) for index in header().expected or range(5)])
    return tmp_path


def test_what_a_path_is() -> None:
    kinds = {
        "file": "a file", "folder": "a folder", "pipe": "a pipe", "loop": "a link in a circle", "none": "not there",
        "dangling": "a link to nothing", "/dev/null": "a device",
    }  # fmt: skip
    assert {path: kind_of(path) for path in kinds} == kinds


KINDS = {"pipe": "a pipe", "loop": "a link in a circle", "folder": "a folder", "/dev/null": "a device"}


@pytest.mark.parametrize("path", KINDS)
@pytest.mark.parametrize(
    "words",
    [
        ["report"],
        ["report", "r.jsonl"],
        ["merge", "--out", "new"],
        ["export", "--out", "new"],
        ["combine", "r.jsonl", "--out", "new"],
        ["import", "--out", "new", "--sigma", "1", "--n", "100", "--alpha", "0.1"],
    ],
)
def test_what_is_no_file_is_not_read(words: list[str], path: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: a link in a circle ended ``report`` with a traceback."""
    assert main([*words, path]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"at {path}, which is {KINDS[path]}" in said or f"no record file in the folder {path}" in said
    assert not Path("new").exists()


@pytest.mark.parametrize("path", KINDS)
def test_what_is_no_file_is_not_written(path: str) -> None:
    """Before: opening a pipe for the records of an attack waited for ever."""
    for open_one, name in (
        (lambda: RecordFile(path, header()), "records"),
        (lambda: AttackFile(Path(path), Header({"norm": "l2"}, {})), "out"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be a file, got {path}, which is {KINDS[path]}"):
            open_one()
    if path != "/dev/null":
        before = os.lstat(path)
        with pytest.raises(OSError, match="exists; it is never overwritten"):
            export_tsv("r.jsonl", path)
        assert stat.S_IFMT(os.lstat(path).st_mode) == stat.S_IFMT(before.st_mode)


@pytest.mark.parametrize("place", ["file/new", "file/deep/new", "pipe/new", "loop/new"])
def test_a_folder_cannot_lie_below_a_file(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "[Errno 17] File exists: 'file'" and "[Errno 20] Not a directory"."""
    kind = kind_of(place.partition("/")[0])
    commands = [["report", "r.jsonl", "--out", place], ["configs", "certify/fast", "--to", place]]
    commands += [["merge", "r.jsonl", "--out", f"{place}/x"], ["export", "r.jsonl", "--out", f"{place}/x"]]
    for words in commands:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"must be a folder, got {place} below {place.partition('/')[0]}, which is {kind}" in said, said
    assert Path("file").read_text() == "mine"


def test_folders_are_made_below_folders() -> None:
    assert folder_for("folder/a/b").is_dir()
    assert folder_for("folder/a/b").is_dir()


def test_files_may_stand_behind_options(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "these words mean nothing here: other.jsonl"."""
    Path("other.jsonl").write_text(Path("r.jsonl").read_text())
    assert main(["report", "r.jsonl", "--paired", "other.jsonl"]) == 0
    assert "other" in capsys.readouterr().out


def test_a_file_that_may_not_be_read_or_written_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: "is damaged or no checkpoint" of one that may not be read; the name of a temporary file."""
    Path("x.ckpt").write_text("anything")

    def refuse(path: Any, *args: Any, **kwargs: Any) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(torch, "load", refuse)
    for read in (check_checkpoint, read_file, read_own_checkpoint):
        with pytest.raises(PermissionError, match=r"Permission denied: 'x\.ckpt'"):
            read("x.ckpt")
    monkeypatch.setattr(builtins, "open", refuse)
    with pytest.raises(PermissionError, match=r"Permission denied: 'new\.jsonl'$"):
        write_complete("new.jsonl", ["a"])


def test_no_half_of_a_file_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before: a full disk left a part of a table under its name, and the next export refused to overwrite it."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    there = set(os.listdir())
    with monkeypatch.context() as context:
        context.setattr(os, "fsync", full)
        for write in (lambda: export_tsv("r.jsonl", "table.tsv"), lambda: write_complete("new.jsonl", ["a"])):
            with pytest.raises(OSError, match=r"No space left on device: '(table\.tsv|new\.jsonl)'$"):
                write()

    def interrupted(descriptor: int) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export_tsv("r.jsonl", "table.tsv")
    assert set(os.listdir()) == there
    assert export_tsv("r.jsonl", "table.tsv") == len(header().expected or range(5))


def test_a_record_file_is_no_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Before: "the columns must be separated by tabs, got" and the whole header."""
    old = Path(__file__).parent / "records_of_version_1.jsonl"
    for path in (str(old), "r.jsonl"):
        assert main(["import", path, "--out", "new", "--sigma", "1", "--n", "100", "--alpha", "0.1"]) == 2
        said = capsys.readouterr().err
        assert f"{path} is a record file, not a table: nothing needs to be imported" in said
    Path("wide.tsv").write_text("x," * 5000)
    assert main(["import", "wide.tsv", "--out", "new", "--sigma", "1", "--n", "100", "--alpha", "0.1"]) == 2
    assert len(capsys.readouterr().err) < 250


CONFIGS: dict[str, tuple[Any, str]] = {
    "broken": ("model: [1", r"broken\.yaml:1 is no YAML that can be read: expected ',' or '\]'"),
    "records": ('{"a": 1}\n{"b": 2}\n', r"records\.yaml:2 is no YAML that can be read: expected '<document start>'"),
    "objects": ("n: !!python/object:os.system x", r"objects\.yaml:1 .* could not determine a constructor"),
    "bytes": (b"\xff\xfe\x00", r"bytes\.yaml is no text file in UTF-8"),
    "control": ("a: \x07", r"control\.yaml is no YAML that can be read"),
    "list": ("- 1", r"list\.yaml must be a mapping .* got a list"),
    "empty": ("# nothing", r"empty\.yaml must be a mapping .* got nothing"),
    "deep": ("[" * 5000, r"deep\.yaml is nested too deeply"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_that_cannot_be_read_is_named(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Before: a traceback, or "Unexpected config" without the file."""
    content, message = CONFIGS[name]
    path = Path(f"{name}.yaml")
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as caught:
        read_config(path)
    assert "\n" not in str(caught.value)
    if name in ("broken", "empty"):
        assert main(["predict", "-c", str(path)]) == 2
        assert caught.value.args[0] in capsys.readouterr().err


def test_records_of_version_one_are_read_and_never_gone_on_with(capsys: pytest.CaptureFixture[str]) -> None:
    old = shutil.copy(Path(__file__).parent / "records_of_version_1.jsonl", "old.jsonl")
    for words in (["report"], ["merge", "--out", "m.jsonl"], ["export", "--out", "t.tsv"]):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert main([*words, old]) == 0
        said = capsys.readouterr().out + "".join(str(warning.message) for warning in caught)
        assert "of record format version 1 (lightning_rs 0.1), which does not bind the function" in said, words
    assert main(["report", "m.jsonl"]) == 0  # what was merged is still of version 1
    assert "does not bind the function" in capsys.readouterr().out
    before = Path(old).read_bytes()
    with pytest.raises(ValueError, match="but not resumed: record into another file"):
        RecordFile(old, header())
    assert main(["combine", old, old, "--out", "c.jsonl"]) == 2
    assert "was imported, or is of version 1" in capsys.readouterr().err
    assert Path(old).read_bytes() == before
