"""The running account: what it says, when, and where."""

from __future__ import annotations

import io

import pytest

from lightning_rs.records import Certification
from lightning_rs.stages.progress import Progress, duration


class Clock:
    """A clock that tests set."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def record(index: int, label: int, radius: float) -> Certification:
    return Certification(
        index=index, label=label, prediction=3 if radius else -1, radius=radius, norm="l2", certificate="GaussianL2",
        alpha=0.001, n=100, n_used=100, status="certified" if radius else "abstain",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("seconds", "said"), [(-3, "0 s"), (8.4, "8 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_the_line_counts_and_estimates() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(images=4, samples=1000, radii=(0.0, 0.5), stream=stream, clock=clock)
    progress.add_samples(2000)
    progress.add_record(record(0, label=3, radius=0.7))
    progress.add_record(record(1, label=3, radius=0.2))
    clock.now += 10
    assert progress.line() == (
        "2/4 images, 0.20 images/s, 200 samples/s, 10 s left, certified accuracy 1.000 at 0, 0.500 at 0.5"
    )
    progress.add_record(record(2, label=5, radius=0.7))  # wrong
    progress.add_record(record(3, label=3, radius=0.0))  # abstains
    assert progress.line().endswith("certified accuracy 0.500 at 0, 0.250 at 0.5")
    assert "left" not in progress.line()


def test_samples_of_the_first_image_already_give_an_estimate() -> None:
    clock = Clock()
    progress = Progress(images=1, samples=1000, stream=None, clock=clock)
    progress.add_samples(250)
    clock.now += 5
    assert "15 s left" in progress.line()


def test_lines_come_now_and_then_in_a_pipe() -> None:
    clock, stream = Clock(), io.StringIO()
    progress = Progress(images=10, samples=100, stream=stream, clock=clock)
    for _ in range(100):
        clock.now += 0.5
        progress.add_samples(1)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 3
    assert all("\r" not in line and "\x1b" not in line for line in lines)
    progress.close()
    assert len(stream.getvalue().splitlines()) == 4


def test_a_terminal_has_one_line_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    clock, stream = Clock(), Terminal()
    progress = Progress(images=10, samples=100, radii=(0.0,), stream=stream, clock=clock)
    progress.add_record(record(0, label=3, radius=0.7))
    for _ in range(4):
        clock.now += 0.6
        progress.add_samples(10)
    progress.close()
    said = stream.getvalue()
    assert said.count("\n") == 1
    assert said.endswith("\n")
    assert said.count("\r\x1b[K") == 5
    assert all(len(part) < 40 for part in said.rstrip("\n").split("\r\x1b[K")[:-1])


def test_other_ranks_are_silent() -> None:
    clock = Clock()
    progress = Progress(images=1, samples=1, stream=None, clock=clock)
    clock.now += 100
    progress.add_samples(1)
    progress.close()
