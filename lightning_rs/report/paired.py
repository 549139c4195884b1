"""Two runs on the same images: who certifies which, the difference and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ttest_1samp

from lightning_rs.records import Certification, nearest_decimals
from lightning_rs.report.runs import Run
from lightning_rs.report.tables import Table
from lightning_rs.statistics.accuracy import paired_difference_interval, paired_p_value

IntArray = NDArray[np.int64]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Pair:
    """Two runs of one norm, on the images that both cover.

    Attributes:
        first: the run that is the baseline.
        second: the run whose advantage is asked for.
        records: the statements about each common image, of the first and of the second run.
    """

    first: Run
    second: Run
    records: Sequence[tuple[Certification, Certification]]

    @classmethod
    def of(cls, first: Run, second: Run) -> Pair:
        """Match two runs by image index.

        Raises:
            ValueError: if they have no image in common, or an index names two images, or an image has two labels.
        """
        known = {record.index: record for record in first.records}
        common = [(known[record.index], record) for record in second.records if record.index in known]
        if not common:
            raise ValueError(f"runs {first.name} and {second.name} must share images to be paired, they share none")
        for one, other in common:
            if one.image and other.image and one.image != other.image:
                raise ValueError(
                    f"image {one.index} must be the same to be paired, but {first.path} and {second.path} recorded "
                    "different ones (their SHA-256 differ)"
                )
            if one.label != other.label:
                raise ValueError(
                    f"image {one.index} must have one label to be paired, got {one.label} in {first.name} and "
                    f"{other.label} in {second.name}"
                )
        return cls(first, second, common)

    def radii(self, radii: Sequence[float]) -> list[float]:
        """Return the radii about which both runs know something: decision mode knows nothing beyond its target."""
        ends = [run.target for run in (self.first, self.second) if run.target is not None]
        return [radius for radius in radii if all(radius <= end for end in ends)]

    def only(self, radius: float) -> tuple[int, int]:
        """Return how many images only the first run, and only the second, has right and certified at a radius."""
        hits = [(one.correct and one.certified_at(radius), two.correct and two.certified_at(radius))
                for one, two in self.records]  # fmt: skip
        return sum(a and not b for a, b in hits), sum(b and not a for a, b in hits)

    def table(self, radii: Sequence[float], key: str = "pair") -> Table:
        """Return one row a radius: difference, interval, images that only one of them has, McNemar's p-value.

        Args:
            radii: where to compare; those beyond a target of decision mode are left out.
            key: what a label calls the table.
        """
        columns = ["r", "difference", f"{CONFIDENCE:.0%} interval", "only second", "only first", "p"]
        title = f"{self.second.norm}: {self.second.name} (second) less {self.first.name} (first), certified accuracy "
        rows = [self._row(r) for r in self.radii(radii)]
        names = (self.first.name, self.second.name)
        return Table(f"{title}on the same {len(self.records)} images", columns, rows, key, names)

    def note(self) -> str:
        """Return the difference of the average certified radii with its Student interval."""
        name = f"{self.second.name} less {self.first.name}"
        if self.first.target is not None or self.second.target is not None:
            return f"{name}: decisions have no radii to average."
        gains = np.array([two.radius * two.correct - one.radius * one.correct for one, two in self.records])
        mean = _signed(float(gains.mean()), 4)
        if len(gains) < 2 or np.ptp(gains) == 0:
            return f"{name}: average certified radius {mean}."
        low, high = ttest_1samp(gains, 0.0).confidence_interval(CONFIDENCE)
        ends = f"{_signed(low, 4)} to {_signed(high, 4)}"
        return f"{name}: average certified radius {mean} ({CONFIDENCE:.0%} Student interval {ends})."

    def _row(self, radius: float) -> list[str]:
        first, second = self.only(radius)
        total = len(self.records)
        low, high = paired_difference_interval(first, second, total, CONFIDENCE)
        difference, interval = _signed((second - first) / total), f"{_signed(float(low))} to {_signed(float(high))}"
        p_value = f"{float(paired_p_value(first, second)):.2g}"
        return [f"{radius:g}", difference, interval, str(second), str(first), p_value]


def pairs(runs: Sequence[Run]) -> list[Pair]:
    """Match every later run with the first. Raises ``ValueError`` as :meth:`Pair.of`."""
    return [Pair.of(runs[0], run) for run in runs[1:]]


NOTE = (
    "Paired tables: differences on the same images with score intervals (Tango 1998) for the population of images, and "
    "the exact McNemar p-value of equal accuracy; each at one radius by itself."
)


def _signed(value: float, decimals: int = 3) -> str:
    text = nearest_decimals(abs(value), decimals)
    zero = not text.strip("0.")
    return text if zero else f"{'-' if value < 0 else '+'}{text}"
