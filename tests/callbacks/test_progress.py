"""The running account: what it says, when, and where."""

from __future__ import annotations

import io
import re

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


@pytest.mark.parametrize("columns", [40, 80, 120])
def test_a_terminal_shows_everything_at_any_width(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    progress = Progress(
        images=10_000, samples=100_100, radii=(0.0, 0.1667, 0.3333, 0.6667), stream=stream, clock=clock
    )  # fmt: skip
    progress.add_record(record(0, label=3, radius=0.7))
    for _ in range(3):
        clock.now += 1_000
        progress.add_samples(1_000_000)
    progress.close()
    frames = shown(stream.getvalue())
    assert len(frames) == 4
    for frame in frames:
        assert all(len(line) <= columns for line in frame)
        told = " ".join(" ".join(frame).split())
        assert "1/10000 images, " in told
        assert "1,000 samples/s, " in told
        assert " left" in told
        assert told.endswith("certified accuracy 1.000 at 0, 1.000 at 0.1667, 1.000 at 0.3333, 1.000 at 0.6667")
    assert len(frames[-1]) == {40: 5, 80: 3, 120: 2}[columns]
    assert ("━" in frames[-1][0]) == (columns > 40)  # a bar where there is room
    assert stream.getvalue().endswith("\x1b[?25h")  # the cursor is back


def test_a_short_account_has_a_bar_at_eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    clock, stream = Clock(), Terminal()
    progress = Progress(images=100, samples=1_000, radii=(0.0, 0.125, 0.25, 0.5), stream=stream, clock=clock)
    progress.add_record(record(0, label=3, radius=0.7))
    clock.now += 10
    progress.add_samples(25_000)
    progress.close()
    first, second = shown(stream.getvalue())[0]
    bar = first.split()[0]
    assert set(bar) <= set("━╸╺")
    assert first.removeprefix(bar).strip() == "1/100 images, 0.10 images/s, 2,500 samples/s, 30 s left"
    assert second == "certified accuracy 1.000 at 0, 1.000 at 0.125, 1.000 at 0.25, 1.000 at 0.5"


@pytest.mark.parametrize(("stream", "term"), [(io.StringIO(), "xterm"), (Terminal(), "dumb")])
def test_no_control_characters_where_nothing_can_be_redrawn(
    stream: io.StringIO, term: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", term)
    monkeypatch.setenv("FORCE_COLOR", "1")  # some continuous integration sets it
    clock = Clock()
    progress = Progress(images=10, samples=100, radii=(0.0,), stream=stream, clock=clock)
    for _ in range(4):
        clock.now += 20
        progress.add_samples(10)
    progress.close()
    lines = stream.getvalue().split("\n")
    assert len(lines) == 6
    assert all(line.isprintable() for line in lines)


def shown(output: str) -> list[list[str]]:
    """Return the frames that were drawn one over the other, as lines without control sequences."""
    # A frame begins where the cursor goes back to the first line of the last one.
    frames = re.split(r"\r\x1b\[2K(?:\x1b\[1A\x1b\[2K)*", output)
    plain = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", frame) for frame in frames]
    return [[line.rstrip() for line in frame.strip("\r\n").splitlines()] for frame in plain if frame.strip()]


def test_other_ranks_are_silent() -> None:
    clock = Clock()
    progress = Progress(images=1, samples=1, stream=None, clock=clock)
    clock.now += 100
    progress.add_samples(1)
    progress.close()
