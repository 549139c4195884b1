"""Processes that are killed, interrupted, or several: every image once, and the bodies of an undisturbed run."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_rs.cli import main
from lightning_rs.records import body_lines
from tests.driving import PLAIN, certify, certify_words, indices, run, start, start_in_turn, trained

# Somebody may commit while the processes run.
pytestmark = pytest.mark.filterwarnings("ignore:.* is resumed although git")

# Long enough that a signal arrives in the middle on a machine that is slow to wake the test.
LONG = {"n": 60_000, "max": 60}
BROKEN = """
from lightning_rs.data import Digits
from lightning_rs.data.sources import ArraySource

class Broken(Digits):
    def _load(self, split):
        source = super()._load(split)
        values = (source.values / 16.0).astype("float32")
        values[7, 0, 3, 3] = float("nan")
        return ArraySource(values, source.labels, None)
"""
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def begin() -> Iterator[Start]:
    """Start processes that do not outlive the test."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*words: Any, devices: int = 1, how: Start = start) -> subprocess.Popen[str]:
        begun.append(how(*words, devices=devices))
        return begun[-1]

    yield begin
    for process in begun:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def test_killed_terminated_and_interrupted_the_records_are_those_of_one_run(tmp_path: Path, begin: Start) -> None:
    assert certify(tmp_path / "whole.jsonl", **LONG) == 0
    out = tmp_path / "r.jsonl"
    for ending, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 143), (signal.SIGINT, 1)):
        before = _lines(out)
        process = begin(*certify_words(out, **LONG))
        _wait(lambda goal=before + 4: _lines(out) > goal, process)
        process.send_signal(ending)
        said, _ = process.communicate(timeout=60)
        assert process.returncode == status
        assert before + 4 <= _lines(out) < 61  # Ctrl-C may come while a record is being written
    assert f"images are recorded in {out}: the same certification goes on from there" in said
    assert "Traceback" not in said
    assert certify(out, **LONG) == 0
    assert body_lines(out) == body_lines(tmp_path / "whole.jsonl")


def test_two_processes_share_the_work_of_one(tmp_path: Path, begin: Start) -> None:
    one, two, rest, other = (tmp_path / f"{name}.jsonl" for name in ("one", "two", "rest", "other"))
    assert certify(one) == 0
    rest.write_text("".join(one.read_text().splitlines(keepends=True)[:-1]))  # one image for two processes
    other.write_text(one.read_text())
    validate = [
        "validate",
        f"--ckpt_path={trained()}",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.callbacks=EpochEndCertification",
        "--trainer.callbacks.images=13",
        "--trainer.callbacks.certifier=Certifier",
        "--trainer.callbacks.certifier.n=300",
    ]
    (tmp_path / "broken.py").write_text(BROKEN)
    words = (f"--ckpt_path={trained()}", "--data.max=13", "--certifier.n=50", f"--trainer.default_root_dir={tmp_path}")
    commands = (
        certify_words(two),
        certify_words(rest),
        certify_words(other, n=300),
        validate,
        ["predict", *words],
        ["certify", *words, "--data=broken.Broken", f"--records={tmp_path / 'broken.jsonl'}"],
    )
    process = begin(tmp_path, *commands, devices=2, how=start_in_turn)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    for rank in range(2):
        ended = [line[-1] for line in said.splitlines() if line.startswith(f"process {rank} ended with")]
        assert ended == ["0", "0", "2", "0", "0", "2"]
    # Every image once, and the bodies of the single process.
    assert indices(two) == list(range(13))
    assert body_lines(two) == body_lines(rest) == body_lines(one)
    assert sorted(file.name for file in tmp_path.glob("two.*")) == ["two.jsonl", "two.sidecar.jsonl"]
    assert "certify 13 images of digits (test)" in said
    assert "in 2 processes" in said
    assert "the missing 1 of 13 images" in said
    assert said.count("13 images, GaussianL2") == 2
    # A refusal is one line, whichever process met what is wrong; the others finish their share.
    refused, broken = [line for line in said.splitlines() if line.startswith("error")]
    assert "n: 200 != 300" in refused
    assert "image 7 of digits: images must be finite, got NaN" in broken
    assert "7 images are recorded in" in said
    assert indices(tmp_path / "broken.rank0.jsonl") == list(range(0, 13, 2))
    assert "Traceback" not in said
    assert other.read_text() == one.read_text()
    # Certification at epoch ends is shared, with the same result.
    said_here = _said(lambda: main([*validate, *PLAIN]))
    assert _certified(said) == _certified(said_here)
    assert len(_certified(said)) >= 8
    with open(tmp_path / "predictions.csv") as file:
        assert [row["index"] for row in csv.DictReader(file)] == [str(index) for index in range(13)]


def test_a_killed_rank_loses_nothing(tmp_path: Path, begin: Start) -> None:
    out = tmp_path / "r.jsonl"
    ranks = [tmp_path / f"r.rank{rank}.jsonl" for rank in range(2)]
    process = begin(*certify_words(out, **LONG), devices=2)
    _wait(lambda: min(map(_lines, ranks)) > 3, process)
    child = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()[0])
    os.kill(child, signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    with open(ranks[1], "a") as file:
        file.write('{"index":23,"la')  # torn, and no second process will come to repair it
    kept = sum(map(_lines, ranks))
    assert certify(out, **LONG) == 0
    assert certify(tmp_path / "whole.jsonl", **LONG) == 0
    assert body_lines(out) == body_lines(tmp_path / "whole.jsonl")
    assert kept > 6
    assert not any(rank.exists() for rank in ranks)


@pytest.mark.slow
def test_fit_and_final_certification_with_two_processes(tmp_path: Path, begin: Start) -> None:
    words = ["--trainer.max_epochs=2", "--certifier.n=200", "--data.max=13", f"--trainer.default_root_dir={tmp_path}"]
    process = begin("fit", *words, devices=2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    assert indices(next((tmp_path / "certify").glob("*[0-9a-f].jsonl"))) == list(range(13))
    assert run("certify", "-c", tmp_path / "fit.yaml", "--ckpt_path", tmp_path / "checkpoints/last.ckpt", *PLAIN) == 0


def _certified(said: str) -> list[str]:
    return [line for line in said.splitlines() if "certify/" in line]


def _said(action: Callable[[], int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert action() == 0
    return said.getvalue()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0


def _wait(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)
