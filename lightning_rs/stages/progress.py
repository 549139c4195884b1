"""Says what is about to happen and how long it will take, then how it goes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from lightning_rs.records import Certification

if TYPE_CHECKING:
    from rich.console import Group
    from rich.live import Live

SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_REDRAWS = 0.5
_BAR, _SHORTEST_BAR = 40, 8  # columns


def duration(seconds: float) -> str:
    """Return a duration for people: ``8 s``, ``3 min 20 s``, ``2 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Running account of a certification: images and samples a second, time left, certified accuracy so far.

    On a terminal rich redraws a bar and a few lines, broken where the terminal ends and never cut; elsewhere a plain
    line is printed now and then.

    Args:
        images: number of images to do in this process.
        samples: number of samples an image.
        radii: radii at which the running certified accuracy is shown.
        stream: where to write; None is silent (other ranks).
        clock: for tests.
    """

    def __init__(
        self,
        images: int,
        samples: int,
        radii: Sequence[float] = (),
        stream: TextIO | None = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.images = images
        self.samples = samples
        self.radii = tuple(radii)
        self._stream = stream
        self._clock = clock
        self._start = self._last = clock()
        self._sampled = 0
        self._records: list[Certification] = []
        self._live: Live | None = None

    def add_samples(self, count: int) -> None:
        """Account for one micro-batch; called from the hot loop, so it only counts."""
        self._sampled += count
        if self._clock() - self._last > self._pause():
            self._show()

    def add_record(self, record: Certification) -> None:
        """Account for one finished image."""
        self._records.append(record)

    def line(self) -> str:
        """Return the account as one line."""
        return ", ".join(self._counts() + self._accuracies())

    def drawn(self, width: int) -> Group:
        """Return the account as rich draws it on a terminal of this many columns."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        counts, *more = packed(self._counts(), width)
        room = min(_BAR, width - len(counts) - 2)
        lines: list[Table | Text] = [Text(line) for line in (counts, *more, *packed(self._accuracies(), width))]
        if not more and room >= _SHORTEST_BAR:
            row = Table.grid(padding=(0, 2, 0, 0))
            row.add_row(ProgressBar(total=1.0, completed=self._share(), width=room), Text(counts))
            lines[0] = row
        return Group(*lines)

    def _share(self) -> float:
        # Samples of the image at work count, so that the estimate is there before the first image is done.
        sampled = min(self._sampled / max(self.images * self.samples, 1), 1.0)
        return max(len(self._records) / self.images, sampled)

    def _counts(self) -> list[str]:
        seconds = max(self._clock() - self._start, 1e-9)
        done, share = len(self._records), self._share()
        parts = [
            f"{done}/{self.images} images",
            f"{done / seconds:.2f} images/s",
            f"{self._sampled / seconds:,.0f} samples/s",
        ]
        if 0 < share < 1:
            parts.append(f"{duration(seconds * (1 - share) / share)} left")
        return parts

    def close(self) -> None:
        """Print the final account, and leave the terminal as it was."""
        self._show(final=True)

    def _accuracies(self) -> list[str]:
        labelled = [record for record in self._records if record.label is not None]
        if not labelled:
            return []
        shown = [
            f"{sum(record.certified_at(r) for record in labelled) / len(labelled):.3f} at {r:g}" for r in self.radii
        ]
        return [f"certified accuracy {shown[0]}", *shown[1:]] if shown else []

    def _pause(self) -> float:
        return _SECONDS_BETWEEN_REDRAWS if self._is_terminal() else SECONDS_BETWEEN_LINES

    def _is_terminal(self) -> bool:
        # Not rich's own answer: it takes a pipe for a terminal where colours are forced.
        return self._stream is not None and self._stream.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")

    def _show(self, final: bool = False) -> None:
        self._last = self._clock()
        if self._stream is None:
            return
        if not self._is_terminal():
            self._stream.write(self.line() + "\n")
            self._stream.flush()
            return
        if self._live is None:
            self._live = self._started(self._stream)
        self._live.update(self.drawn(self._live.console.width), refresh=not final)
        if final:  # which draws
            self._live.stop()
            self._live = None

    @staticmethod
    def _started(stream: TextIO) -> Live:
        from rich.console import Console
        from rich.live import Live

        # Warnings appear above the bar; standard output may go elsewhere and is left alone.
        console = Console(file=stream, force_terminal=True)
        ours = stream is sys.stderr
        live = Live(
            console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=ours,
            vertical_overflow="visible",
        )  # fmt: skip
        live.start()
        return live


def packed(parts: Sequence[str], width: int) -> list[str]:
    """Return the parts joined by commas, in lines of at most ``width`` columns; no part is broken."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + len(part) + 2 < width:
            lines[-1] += f", {part}"
        else:
            if lines:
                lines[-1] += ","
            lines.append(part)
    return lines
