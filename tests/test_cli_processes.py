"""Processes that are killed, interrupted, or several: every image once, and the bodies of an undisturbed run.

Nothing here is timed: signals come at events of the run, see :mod:`tests.processes`; a timeout only ends a test that
has failed already.
"""

from __future__ import annotations

import contextlib
import csv
import io
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lightning_rs.cli import main
from lightning_rs.records import body_lines
from tests.driving import (
    END,
    PLAIN,
    Forks,
    certify,
    certify_words,
    indices,
    run,
    said,
    spawn,
    start,
    statuses,
    trained,
)
from tests.processes import Act

# Somebody may commit while the processes run.
pytestmark = pytest.mark.filterwarnings("ignore:.* is resumed although git")

# So many samples that images are not certified in groups: between two records the network is sampled.
LONG = {"n": 40_000, "max": 13}
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
Begun = subprocess.Popen[bytes]


@pytest.fixture
def begin() -> Iterator[Callable[..., Begun]]:
    """Start processes that do not outlive the test."""
    begun: list[Begun] = []

    def begin(folder: Path, *commands: Any, **options: Any) -> Begun:
        begun.append(start(folder, *commands, **options))
        return begun[-1]

    yield begin
    for process in begun:
        with contextlib.suppress(ProcessLookupError):  # a group lives as long as any of its processes
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_killed_terminated_and_interrupted_the_records_are_those_of_one_run(tmp_path: Path, forks: Forks) -> None:
    assert certify(tmp_path / "whole.jsonl", **LONG) == 0
    out = tmp_path / "r.jsonl"
    # A request to terminate is heeded once the image at work is recorded; Ctrl-C and kill are not that patient.
    for act, status, recorded in (
        (Act("SIGKILL", after=3, at="sample"), -signal.SIGKILL, 3),
        (Act("SIGTERM", after=2, at="sample"), 143, 6),
        (Act("SIGINT", after=2), 1, 8),
    ):
        folder = tmp_path / f"{act.do}-{recorded}"
        assert forks.run(folder, certify_words(out, **LONG), acts={0: act}) == [status], said(folder)
        assert _lines(out) == 1 + recorded, said(folder)
        if act.do != "SIGKILL":
            going_on = f"{recorded} images are recorded in {out}: the same certification goes on from there"
            assert going_on in said(folder)
            assert "Traceback" not in said(folder)
    assert certify(out, **LONG) == 0
    assert body_lines(out) == body_lines(tmp_path / "whole.jsonl")


def test_two_processes_share_the_work_of_one(tmp_path: Path, forks: Forks) -> None:
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
    folder = tmp_path / "processes"
    folder.mkdir()
    (folder / "broken.py").write_text(BROKEN)
    words = (f"--ckpt_path={trained()}", "--data.max=13", "--certifier.n=50", f"--trainer.default_root_dir={tmp_path}")
    commands = (
        certify_words(two),
        certify_words(rest),
        certify_words(other, n=300),
        validate,
        ["predict", *words],
        ["certify", *words, "--data=broken.Broken", f"--records={tmp_path / 'broken.jsonl'}"],
    )
    ends = forks.run(folder, *commands, devices=2)
    text = said(folder)
    assert ends == [2, 2], text  # that of the last command
    assert [statuses(folder, rank) for rank in range(2)] == [[0, 0, 2, 0, 0, 2]] * 2
    # Every image once, and the bodies of the single process.
    assert indices(two) == list(range(13))
    assert body_lines(two) == body_lines(rest) == body_lines(one)
    assert sorted(file.name for file in tmp_path.glob("two.*")) == ["two.jsonl", "two.sidecar.jsonl"]
    assert "certify 13 images of digits (test)" in text
    assert "in 2 processes" in text
    assert "the missing 1 of 13 images" in text
    assert text.count("13 images, GaussianL2") == 2
    # A refusal is one line, whichever process met what is wrong; the others finish their share.
    refused, broken = [line for line in text.splitlines() if line.startswith("error")]
    assert "n: 200 != 300" in refused
    assert "image 7 of digits: images must be finite, got NaN" in broken
    assert "10 images are recorded in" in text
    assert indices(tmp_path / "broken.rank0.jsonl") == list(range(0, 13, 2))
    assert indices(tmp_path / "broken.rank1.jsonl") == [1, 3, 5]  # what came before the bad one
    assert "Traceback" not in text
    assert other.read_text() == one.read_text()
    # Certification at epoch ends is shared, with the same result.
    here = _said(lambda: main([*validate, *PLAIN]))
    assert _certified(text) == _certified(here)
    assert len(_certified(text)) >= 8
    with open(tmp_path / "predict_1" / "predictions.csv") as file:
        assert [row["index"] for row in csv.DictReader(file)] == [str(index) for index in range(13)]


def test_a_killed_rank_loses_nothing(tmp_path: Path, begin: Callable[..., Begun]) -> None:
    out = tmp_path / "r.jsonl"
    ranks = [tmp_path / f"r.rank{rank}.jsonl" for rank in range(2)]
    acts = {0: Act("tell", after=4), 1: Act("SIGKILL", after=3, at="sample", told=True)}
    folder = tmp_path / "processes"
    # The other process waits in the middle of its share; Lightning, which looks after its children, ends it.
    assert begin(folder, certify_words(out, **LONG), devices=2, acts=acts).wait(END) == -signal.SIGKILL, said(folder)
    assert [_lines(rank) for rank in ranks] == [1 + 4, 1 + 3]
    with open(ranks[1], "a") as file:
        file.write('{"index":23,"la')  # torn, and no second process will come to repair it
    assert certify(out, **LONG) == 0
    assert certify(tmp_path / "whole.jsonl", **LONG) == 0
    assert body_lines(out) == body_lines(tmp_path / "whole.jsonl")
    assert not any(rank.exists() for rank in ranks)


@pytest.mark.slow
def test_fit_and_final_certification_with_two_processes(tmp_path: Path, begin: Callable[..., Begun]) -> None:
    words = ["--trainer.max_epochs=2", "--certifier.n=200", "--data.max=13", f"--trainer.default_root_dir={tmp_path}"]
    folder = tmp_path / "processes"
    assert begin(folder, ["fit", *words], devices=2).wait(END) == 0, said(folder)
    assert indices(next((tmp_path / "certify").glob("*[0-9a-f].jsonl"))) == list(range(13))
    assert run("certify", "-c", tmp_path / "fit.yaml", "--ckpt_path", tmp_path / "checkpoints/last.ckpt", *PLAIN) == 0


@pytest.mark.slow
def test_the_module_starts_itself_again_for_the_second_process(tmp_path: Path) -> None:
    out = tmp_path / "r.jsonl"
    plain = [word for word in PLAIN if "devices" not in word]
    process = spawn(tmp_path, "-m", "lightning_rs", *certify_words(out), *plain, "--trainer.devices=2")
    assert process.wait(END) == 0, said(tmp_path)
    assert indices(out) == list(range(13))
    assert "in 2 processes" in said(tmp_path)


def _certified(said: str) -> list[str]:
    return [line for line in said.splitlines() if "preview/" in line]


def _said(action: Callable[[], int]) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert action() == 0
    return said.getvalue()


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.is_file() else 0
