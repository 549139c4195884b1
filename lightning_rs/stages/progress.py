"""Says what is about to happen and how long it will take, then how it goes."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from lightning_rs.records import Certification

_SECONDS_BETWEEN_LINES = 15.0
_SECONDS_BETWEEN_REDRAWS = 0.5


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

    On a terminal one line is redrawn; elsewhere a line is printed now and then.

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
        seconds = max(self._clock() - self._start, 1e-9)
        done = len(self._records)
        # Samples of the image at work count, so that the estimate is there before the first image is done.
        share = max(done / self.images, min(self._sampled / max(self.images * self.samples, 1), 1.0))
        parts = [
            f"{done}/{self.images} images",
            f"{done / seconds:.2f} images/s",
            f"{self._sampled / seconds:,.0f} samples/s",
        ]
        if 0 < share < 1:
            parts.append(f"{duration(seconds * (1 - share) / share)} left")
        parts += self._accuracies()
        return ", ".join(parts)

    def close(self) -> None:
        """Print the final account."""
        self._show(final=True)

    def _accuracies(self) -> list[str]:
        labelled = [record for record in self._records if record.label is not None]
        if not labelled:
            return []
        shown = [
            f"{sum(record.certified_at(r) for record in labelled) / len(labelled):.3f} at {r:g}" for r in self.radii
        ]
        return [f"certified accuracy {', '.join(shown)}"] if shown else []

    def _pause(self) -> float:
        return _SECONDS_BETWEEN_REDRAWS if self._is_terminal() else _SECONDS_BETWEEN_LINES

    def _is_terminal(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _show(self, final: bool = False) -> None:
        self._last = self._clock()
        if self._stream is None:
            return
        if self._is_terminal():
            # A line that wraps could not be redrawn; the last one may.
            line = self.line() if final else self.line()[: shutil.get_terminal_size().columns - 1]
            self._stream.write(f"\r\x1b[K{line}" + ("\n" if final else ""))
        else:
            self._stream.write(self.line() + "\n")
        self._stream.flush()
